"""``ppgen inpaint``: what a Boltzmann machine puts where a part of an example is hidden."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ppgen.cli.exits import DONE
from ppgen.cli.labels import label_column, own_columns
from ppgen.cli.options import Common, Run, Split
from ppgen.cli.real_units import as_grey, own_units
from ppgen.cli.runs import chosen, default_place, opened, read_settings, write_images
from ppgen.cli.training import MACHINES, has_real_units

if TYPE_CHECKING:
    from torch import Tensor

    from ppgen.data import Dataset

Hide = Literal["lower", "upper", "left", "right", "random"]


def inpaint(
    run: Run,
    /,
    *,
    count: int = 8,
    hide: Hide = "lower",
    fills: int = 5,
    gibbs_steps: int = 1000,
    data: str | None = None,
    folder: Path | None = None,
    split: Split = "test",
    out: Path | None = None,
    common: Common | None = None,
) -> int:
    """Fill in what is hidden of examples, by draws of a Boltzmann machine given the rest.

    Each draw is the end of a chain of its own that started without a look at what is hidden. A
    picture has one example a row: as it is, as it is shown, the draws, and their mean. The error is
    absolute, over hidden units; +- is its standard error over the examples.

    Try:

        ppgen inpaint runs/rbm --hide left --count 5

    Args:
        count: of examples, drawn at random.
        hide: a half of each image, or random, half of the units of each example.
        fills: draws for each example.
        gibbs_steps: of each chain.
        data: other data than the run was trained on.
        folder: where the files of a named data set lie.
        split: of the data; validation is the tenth of the training data that was held out.
        out: a .png file, or a .npy file for the draws, (examples, draws, columns); inpainted.png in
            the run folder when not given. Real units are drawn in the data's own units, and shown
            by their means, without noise. Of a run with --labels the label is hidden as well, and
            its draw is the last column of a .npy file.
    """
    import torch

    from ppgen import plots

    common = common or Common()
    for name, number in (("count", count), ("fills", fills), ("gibbs-steps", gibbs_steps)):
        if number < 1:
            raise ValueError(f"--{name} must be at least 1, got {number}")
    settings = read_settings(run)
    _require_sides(settings["model"])
    with common.active():
        settings |= chosen(data, folder)
        own = partial(own_columns, settings=settings)
        story, examples = opened(settings, run, common, split, count)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(common.seed)
            x = examples.x[torch.randperm(len(examples))[:count]].to(next(story.parameters()))
            seen = seen_units(replace(examples, x=own(examples.x)), count, hide).to(x.device)
            seen = torch.nn.functional.pad(seen, (0, x.shape[1] - seen.shape[1]))  # no label
            drawn, means = fill_in(story, x, seen, fills, gibbs_steps)
        place = out or default_place(run, "inpainted", examples)
        found = drawn.cpu().numpy()
        own_scale = own_units if has_real_units(settings) else label_column
        found = own_scale(found, settings)
        shown = torch.where(seen, x, x.new_full((), torch.nan))
        row = torch.cat([x[:, None], shown[:, None], means, means.mean(1, keepdim=True)], 1)
        without = " (without noise)" if has_real_units(settings) else ""
        grid = as_grey(row.flatten(0, 1).cpu().numpy(), settings)
        write_images(place, found, examples, lambda shape: plots.images(
            grid, shape, columns=fills + 3, title=f"Filled in by the {settings['model']}",
            subtitle=f"A row is an example: whole, what is seen of it, draws{without}, their mean.",
        ))  # fmt: skip
    hidden = ~own(seen)
    error, usual = (
        own(guess - x)[hidden].abs().view(count, -1).mean(1)
        for guess in (means.mean(1), examples.x.to(x).mean(0))
    )
    text, numbers = "", {}
    if settings.get("labels"):
        true = label_column(x.cpu().numpy(), settings)[:, None, -1]
        numbers["labels_right"] = float((found[..., -1] == true).mean())
        text = f", the label right in {100 * numbers['labels_right']:.0f} %"
    each = "deviations" if has_real_units(settings) else "a unit"
    common.print(
        f"{fills} draws of what is hidden of {count} examples; error of their mean {_mean(error)} "
        f"{each}, of the data's mean {_mean(usual)}, difference {_mean(error - usual)}{text}: "
        f"{place}",
        {"examples": count, "draws": fills, "mean_absolute_error": error.mean().item(),
         "mean_absolute_error_of_the_means": usual.mean().item(),
         "difference_error": standard_error(error - usual), **numbers, "path": str(place)},
    )  # fmt: skip
    return DONE


def standard_error(each: Tensor) -> float | None:
    """Of the mean over examples, ``(N,)``; nothing where one has to speak for all."""
    return each.std().item() / len(each) ** 0.5 if len(each) > 1 else None


def _mean(each: Tensor) -> str:
    error = standard_error(each)
    return f"{each.mean():.4f}" + ("" if error is None else f" +- {error:.4f}")


def seen_units(examples: Dataset, count: int, hide: Hide) -> Tensor:
    """What is shown of `count` examples, ``(count, D)``, bool."""
    import torch

    units = examples.x.shape[1]
    if hide == "random":
        return torch.rand(count, units).argsort(1) >= units // 2
    if examples.image_shape is None:
        raise ValueError(f"--hide {hide}: the data are no images; take --hide random")
    seen = torch.ones(examples.image_shape, dtype=torch.bool)
    height, width = seen.shape[:2]
    rows = {"upper": slice(height // 2), "lower": slice(height // 2, None)}
    columns = {"left": slice(width // 2), "right": slice(width // 2, None)}
    seen[rows.get(hide, slice(None)), columns.get(hide, slice(None))] = False
    return seen.flatten().expand(count, -1)


def fill_in(
    story: Any, x: Tensor, seen: Tensor, fills: int, gibbs_steps: int
) -> tuple[Tensor, Tensor]:
    """Draws of x given what is seen of it, and the same with hidden real units at their means.

    ``(N, D), (N, D) -> (N, fills, D)`` each. The chains start at independent units, of x and of
    the latent layers on its side.
    """
    import torch

    from ppgen.distributions import Gaussian
    from ppgen.inference import BlockGibbs

    rows = (story.visible_natural().expand(len(x) * fills, -1)).clone()
    side, seen = story.units.sample(rows), seen.repeat_interleave(fills, 0)
    clamp = torch.zeros_like(side, dtype=torch.bool)
    clamp[:, : story.visible] = seen
    data = x.repeat_interleave(fills, 0)
    side[:, : story.visible] = torch.where(seen, data, side[:, : story.visible])
    kernel = BlockGibbs(story, side, sweeps=gibbs_steps, clamp=clamp)
    side = kernel.sample(kernel.initial_params)["x"]
    drawn = means = side[:, : story.visible]
    if isinstance(story.units, Gaussian):
        given = story.visible_given_hidden(story.sample_hidden(side)).mean
        means = torch.where(seen, data, given)
    return drawn.unflatten(0, (-1, fills)), means.unflatten(0, (-1, fills))


def _require_sides(model: str) -> None:
    if model == "dbn":
        raise ValueError(
            "a dbn has no two sides to draw in turn given a part of x; its units are drawn one by "
            "one in Python: ppgen.fit(dbn.model, x, using=Gibbs()), hidden entries of x being NaN"
        )
    if model not in MACHINES:
        raise ValueError(f"this is a {model}; it is an rbm or a dbm that fills in what is hidden")
