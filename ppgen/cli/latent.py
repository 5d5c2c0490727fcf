"""``ppgen interpolate`` and ``reconstruct``: what a trained autoencoder makes of data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ppgen.cli.exits import DONE
from ppgen.cli.options import Common, Split
from ppgen.cli.real_units import as_grey
from ppgen.cli.runs import chosen, default_place, opened, read_settings, write_images
from ppgen.cli.sentences import is_text, show_interpolations, show_reconstructions

if TYPE_CHECKING:
    from torch import Tensor

    from ppgen.data import Dataset

Run = Annotated[Path, Parameter(help="A run folder of `ppgen train vae`, sentences or molecules.")]


def interpolate(
    run: Run,
    /,
    *,
    pairs: int = 8,
    steps: int = 9,
    path: Literal["spherical", "linear"] = "spherical",
    data: str | None = None,
    folder: Path | None = None,
    split: Split = "test",
    out: Path | None = None,
    common: Common | None = None,
) -> int:
    """Decode the way between the codes of examples: a picture, one pair a row.

    Try:

        ppgen interpolate runs/vae --pairs 5

    Args:
        pairs: of examples, drawn at random.
        steps: images in a row, both ends included.
        path: along a great circle, which keeps the length of codes, or a straight line.
        data: other data than the run was trained on.
        folder: where the files of a named data set lie.
        split: of the data; validation is the tenth of the training data that was held out.
        out: a .png or .npy file; interpolations.png in the run folder when not given. Sentences,
            and molecules as SMILES, are printed, or written to a .txt file.
    """
    from ppgen import latent, plots

    common = common or Common()
    if pairs < 1:
        raise ValueError(f"--pairs must be at least 1, got {pairs}")
    settings = read_settings(run)
    with common.active():
        settings |= chosen(data, folder)
        story, examples, x = _encodable(settings, run, split, 2 * pairs, common)
        way = latent.linear if path == "linear" else latent.spherical
        if is_text(settings):
            pair = x[:pairs], x[pairs:]
            show_interpolations(story, pair, steps, way, settings, out, common)
            return DONE
        ends = latent.codes(story, x)
        between = story.decode(way(ends[:pairs], ends[pairs:], steps)).mean.transpose(0, 1)
        found = between.detach().cpu().numpy()
        place = out or default_place(run, "interpolations", examples)
        shown = as_grey(found, settings)
        write_images(
            place, found, examples, lambda shape: plots.interpolations(shown, shape, path=path)
        )
    common.print(
        f"{pairs} {path} interpolations of {steps} steps: {place}",
        {"pairs": pairs, "steps": steps, "way": path, "path": str(place)},
    )
    return DONE


def reconstruct(
    run: Run,
    /,
    *,
    count: int = 20,
    data: str | None = None,
    folder: Path | None = None,
    split: Split = "test",
    out: Path | None = None,
    common: Common | None = None,
) -> int:
    """Encode examples and decode them again: a picture, data above reconstructions.

    Try:

        ppgen reconstruct runs/vae --count 30

    Args:
        count: of examples, drawn at random.
        data: other data than the run was trained on.
        folder: where the files of a named data set lie.
        split: of the data; validation is the tenth of the training data that was held out.
        out: a .png or .npy file; reconstructions.png in the run folder when not given. Sentences,
            and molecules as SMILES, are printed, or written to a .txt file.
    """
    from ppgen import latent, plots

    common = common or Common()
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    settings = read_settings(run)
    with common.active():
        settings |= chosen(data, folder)
        story, examples, x = _encodable(settings, run, split, count, common)
        if is_text(settings):
            show_reconstructions(story, x, settings, out, common)
            return DONE
        found = latent.reconstruct(story, x).cpu().numpy()
        before = x.cpu().numpy()
        place = out or default_place(run, "reconstructions", examples)
        pair = as_grey(before, settings), as_grey(found, settings)
        write_images(place, found, examples, lambda shape: plots.reconstructions(*pair, shape))
    # probabilities of pixels, or grey levels: how far they are from the data in the mean
    error = float(abs(before - found).mean())
    common.print(
        f"{count} reconstructions, mean error {error:.4f} a pixel: {place}",
        {"reconstructions": count, "mean_absolute_error": error, "path": str(place)},
    )
    return DONE


def _encodable(
    settings: dict[str, Any],
    run: Path,
    split: Split,
    count: int,
    common: Common,
) -> tuple[Any, Dataset, Tensor]:
    """The story, the data, and `count` of its examples in the story's dtype, by the seed."""
    import torch

    from ppgen.types import Autoencoder

    story, examples = opened(settings, run, common, split, count)
    like = next(story.parameters())
    if not isinstance(story, Autoencoder):
        raise ValueError(
            f"{run} holds a model of kind {settings['model']}, which has no codes to decode; train "
            "a vae: ppgen train vae --data digits"
        )
    rows = torch.randperm(len(examples), generator=torch.Generator().manual_seed(common.seed))
    return story, examples, examples.x[rows[:count]].to(like)
