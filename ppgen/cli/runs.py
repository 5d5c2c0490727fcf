"""A run folder read again: its settings, data and story, and what is shown of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppgen.cli import molecules, real_units
from ppgen.cli.autoencoders import as_modelled, bits_per_dimension, loss_text
from ppgen.cli.bundled import BUNDLED
from ppgen.cli.labels import beside_labels, classification
from ppgen.cli.options import Common, Split, note
from ppgen.cli.sentences import is_text, load_text, tokenizer_of
from ppgen.cli.training import MACHINES, build, has_real_units, hold_out

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ppgen.data import Dataset
    from ppgen.likelihood import Likelihood

LIKELIHOODS = "likelihood.jsonl"  # of a run that was measured while it was trained


THOROUGH = 100  # examples whose importance sampling is not cut short on a run's page


def read_settings(run: Path) -> dict[str, Any]:
    """What `ppgen train` was asked for."""
    from ppgen.run_folder import read_config

    if not run.is_dir():
        raise FileNotFoundError(f"there is no run folder {run}; `ppgen train` makes one")
    config = read_config(run)
    settings = config.get("command") or config.get("config", {}).get("command")
    model = BUNDLED.get(settings.get("model", "")) if isinstance(settings, dict) else None
    if model is None or model.kind != "deep":
        raise ValueError(f"{run} was not made by `ppgen train`: its config.json names no model")
    return _Settings(run, settings)


class _Settings(dict[str, Any]):
    """Those of a run, which says where one is missing that every run has."""

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._run = run

    def __missing__(self, name: str) -> Any:
        from ppgen.run_folder import ConfigError

        raise ConfigError(f"{self._run / 'config.json'}: its 'command' has no {name!r}")


def load_data(settings: dict[str, Any], split: Split) -> Dataset:
    """The data that a run was trained on, what it held out of them, or the test split."""
    from ppgen.data import load

    if split == "validation":
        return hold_out(load_data(settings, "train"))[1]
    if is_text(settings):
        return load_text(settings, split)
    examples = load(
        settings["data"],
        split,
        binarisation=settings["binarisation"],
        folder=settings["folder"],
        seed=settings["seed"],
    )
    modelled = real_units.standardised if has_real_units(settings) else as_modelled
    examples = modelled(examples, settings)
    return beside_labels(examples, settings) if settings.get("labels") else examples


def chosen(data: str | None, folder: Path | None) -> dict[str, Any]:
    """The settings that name other data, or another place of them, than a run was trained on."""
    if data is None and folder is None:
        return {}
    place = {"folder": None if folder is None else str(folder)}
    return place if data is None else {"data": data, **place}


def something_to_start_from(settings: dict[str, Any], run: Path, split: Split = "train") -> Dataset:
    """The data; where they are not here, the examples that shipped weights bring along."""
    import torch

    from ppgen import checkpoint
    from ppgen.data import DataError, Dataset

    try:
        return load_data(settings, split)
    except DataError as error:
        x = checkpoint.load(run / "ckpt")[0].get("examples")
        if x is None or not error.missing:
            raise
        note(f"{error}; the examples that came with the weights are used")
        side = round(x.shape[1] ** 0.5)
        shape = (side, side) if side**2 == x.shape[1] else None
        x = x.to(torch.get_default_dtype())
        return Dataset(x, name=settings["data"], image_shape=shape)


def restored(settings: dict[str, Any], examples: Dataset, run: Path) -> nn.Module:
    """The story as the run left it.

    Raises:
        CheckpointError: where there is none, and where it is of other data than these.
    """
    from ppgen.checkpoint import CheckpointError
    from ppgen.inference.training.state import load_story_tensors, trained_tensors

    story, values = build(settings, examples), trained_tensors(run)
    try:
        load_story_tensors(story, values)
    except CheckpointError as error:
        columns = f"{examples.name} with its {examples.x.shape[1]} columns"
        raise CheckpointError(f"{run} was not trained on data like {columns}: {error}") from error
    return story.eval()


def opened(
    settings: dict[str, Any], run: Path, common: Common, split: Split = "train", count: int = 0
) -> tuple[Any, Dataset]:
    """The story as the run left it, on its device, and data of at least `count` examples."""
    examples = something_to_start_from(settings, run, split)
    if count > len(examples):
        raise ValueError(f"{examples.describe()}: {count} examples were asked for")
    return restored(settings, examples, run).to(common.device), examples


def read_metrics(run: Path) -> dict[str, list[Any]]:
    """The history of a run, a list for each column."""
    import json

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {key: [row.get(key) for row in rows] for key in (rows[0] if rows else {})}


def read_likelihoods(run: Path) -> dict[int, Likelihood]:
    """What was measured after which epoch; a line that was written twice counts once."""
    import json
    from dataclasses import fields

    from ppgen.likelihood import Likelihood

    if not (run / LIKELIHOODS).is_file():
        return {}
    rows = [json.loads(line) for line in (run / LIKELIHOODS).read_text().splitlines()]
    kept = {field.name for field in fields(Likelihood)}  # its other numbers follow from these
    return {
        row["epoch"]: Likelihood(**{name: row[name] for name in row if name in kept})
        for row in rows
    }


def held_out_likelihood(
    story: nn.Module,
    examples: Dataset,
    common: Common,
    samples: int | None = None,
    chains: int = 100,
    temperatures: int = 1000,
    thorough: int | None = None,
    raise_chains: int = 0,
) -> Likelihood:
    """Of `examples`, in nats per example; the rest but `thorough` for Boltzmann machines.

    Importance draws are 1000 when not given, for Boltzmann machines 100: what their guide leaves
    out is less than the uncertainty of log Z.
    """
    import ppgen
    from ppgen.types import ExactDensity, UnnormalisedDensity

    options: dict[str, Any] = {"samples": samples or 1000}
    if not isinstance(story, ExactDensity):
        options["thorough"] = thorough
    if isinstance(story, UnnormalisedDensity):
        options = {"samples": samples or 100, "chains": chains, "temperatures": temperatures}
        options |= {"raise_chains": raise_chains} if raise_chains else {}
    return ppgen.log_likelihood(story, examples.x.to(common.device), seed=common.seed, **options)


def latent_sentence(story: Any, examples: Dataset, common: Common) -> str:
    """Whether a story with a code uses it, on a line of its own; nothing for others."""
    if not hasattr(story, "latent_use") or len(examples) < 2:
        return ""
    return f"\ncode: {story.latent_use(examples.x.to(common.device))}"


def draw_examples(
    story: Any,
    examples: Dataset,
    count: int,
    gibbs_steps: int,
    seed: int,
    *,
    means: bool = False,
    label: int | None = None,
) -> Any:
    """New examples, ``(count, D)``; a machine's chains start at rows of the data.

    With `means` a machine's real units are not drawn given its last hidden side: without the noise
    in each of them. With `label`, the place of a class among those of a run with labels, chains
    start at its rows, and its units stay: the draws are from p(x | label).
    """
    import torch

    from ppgen.distributions import Gaussian
    from ppgen.types import DirectedLayers, UnnormalisedDensity

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        if not isinstance(story, UnnormalisedDensity):
            return story.sample(count).cpu().numpy()
        side = _ends_of_chains(story, examples.x, count, gibbs_steps, label)
        x = story.generate(side)[0] if isinstance(story, DirectedLayers) else side
        machine: Any = story.machine
        if means and isinstance(machine.units, Gaussian):
            x = machine.visible_given_hidden(machine.sample_hidden(side)).mean
        return x[:, : story.visible].cpu().numpy()


def _ends_of_chains(
    story: Any, data: Tensor, count: int, gibbs_steps: int, label: int | None
) -> Tensor:
    import torch

    from ppgen.inference import BlockGibbs

    clamp = None
    if label is not None:
        data = data[data[:, story.pixels + label] == 1]
        clamp = torch.arange(data.shape[1]) >= story.pixels
    rows = data[torch.randint(len(data), (count,))].to(next(story.parameters()).device)
    kernel = BlockGibbs(story.machine, story.machine_side(rows), sweeps=gibbs_steps, clamp=clamp)
    return kernel.sample(kernel.initial_params)["x"]


def picture(x: Any, examples: Dataset, settings: dict[str, Any], subtitle: str = "") -> Any:
    """Samples as images."""
    from ppgen import plots

    assert examples.image_shape is not None
    shown = real_units.as_grey(x, settings)
    title = f"Samples of the {settings['model']}"
    if has_real_units(settings):
        subtitle = "Means of the units given the hidden side, without their noise."
    return plots.images(shown, examples.image_shape, title=title, subtitle=subtitle)


def default_place(run: Path, name: str, examples: Dataset) -> Path:
    """Where a command writes images, or the numbers of data that are none."""
    return run / f"{name}{'.png' if examples.image_shape else '.npy'}"


def write_images(place: Path, found: Any, examples: Dataset, draw: Any) -> None:
    """The picture, or the numbers where a .npy file is named; its folder is made."""
    import numpy as np

    if not place.suffix:
        raise ValueError(f"--out {place}: name a .png or a .npy file")
    if place.suffix != ".npy" and examples.image_shape is None:
        raise ValueError("the data are no images: name a .npy file with --out")
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix == ".npy":
        np.save(place, found)
    else:
        draw(examples.image_shape).savefig(place, dpi=110)


def write_page(
    story: nn.Module,
    settings: dict[str, Any],
    history: dict[str, list[Any]],
    out: Path,
    common: Common,
) -> tuple[Path, str | None]:
    """The run's report.html, and samples.png where the data are images.

    Returns:
        Its place, and what is known of the likelihood of examples that were held out.
    """
    import torch

    from ppgen import plots
    from ppgen.cli.code_pictures import code_section
    from ppgen.cli.machine_pictures import machine_section, training_curves
    from ppgen.cli.pages import Curves, run_page
    from ppgen.data import DataError
    from ppgen.report import Picture, Section, Table

    story.eval()
    examples = load_data(settings, "train")
    try:
        examples = load_data(settings, "test")
    except DataError:  # a file without a test split
        examples = hold_out(examples)[1]
        note("no test split: the likelihood is that of the tenth held out for validation")
    found: Likelihood | None = None
    try:
        draws, thorough = None, THOROUGH
        if settings["model"] == "molecules":
            draws, thorough = molecules.SAMPLES, None
        found = held_out_likelihood(story, examples, common, draws, thorough=thorough)
    except ValueError as error:  # a machine that cannot be measured still has its curves
        note(f"no likelihood: {error}")
    pictures = []
    if examples.image_shape:
        x = draw_examples(story, examples, 64, 1000, common.seed, means=True)
        figure = picture(x, examples, settings)
        figure.savefig(out / "samples.png", dpi=110)
        text = "New examples drawn from the model"
        if settings["model"] in MACHINES:
            text += ", each at the end of a chain of 1000 sweeps that began at an example"
        pictures.append(Picture(figure, f"{text}."))
    if curve := read_likelihoods(out):
        figure = plots.likelihood_curve({"held out": curve})
        pictures.append(Picture(figure, "Measured while it was trained, by short annealing."))
    facts = {k: v for k, v in settings.items() if k not in ("tokenizer", "properties", "standard")}
    facts["evaluated on"] = examples.describe()
    said = None if found is None else f"{examples.describe()}: {found}"
    if found is not None and has_real_units(settings):
        text = real_units.density(found, settings)[0].strip()
        said, facts["the likelihood is"] = f"{said}\n{text}", text
    elif found is not None and settings.get("labels"):
        text = classification(story, found, examples.x, examples.split)[0].strip()
        said = f"{said}\n{text}"
        facts["the likelihood is"], facts["it classifies with"] = text.split("\n")
    elif found is not None:
        facts |= bits_per_dimension(found, settings, examples.x.shape[1])
    more, curves = [], Curves(text=loss_text(settings))
    if settings["model"] in MACHINES:
        curves = training_curves(settings["model"], settings.get("top_alone", False))
        train = load_data(settings, "train")
        more.append(machine_section(story, train, examples, settings, common.seed))
    if settings["model"] == "vae":
        more.append(code_section(story, examples, settings))
    if is_text(settings):
        x = torch.as_tensor(draw_examples(story, examples, 20, 0, common.seed))
        drawn = tokenizer_of(settings).decode(x)
        if settings["model"] == "molecules":
            drawn, _ = molecules.as_smiles(drawn, settings)
        table = Table(["drawn from the model"], [[line] for line in drawn])
        more.append(Section("Samples", tables=[table]))
    title = f"{settings['model']} on {settings['data']}"
    page = run_page(title, history, found, pictures, facts, more=more, curves=curves)
    return page.save(out / "report.html"), said
