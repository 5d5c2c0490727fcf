"""``ppgen train``, ``resume``, ``evaluate``, ``sample`` and ``report``: deep stories."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ppgen.cli.exits import DONE, INTERRUPTED, NOT_PASSED
from ppgen.cli.options import Common, note
from ppgen.cli.stories import BUNDLED

if TYPE_CHECKING:
    from torch import nn

    from ppgen.data import Dataset
    from ppgen.types import Likelihood

Model = Annotated[str, Parameter(help="rbm, dbm, dbn, vae or flow.")]
Run = Annotated[Path, Parameter(help="A run folder that `ppgen train` wrote.")]
Binarisation = Literal["static", "dynamic", "threshold", "none"]

_HELD_OUT = 0.1  # of the training data, for the validation curve
_LEARNING_RATES = {"rbm": 0.05, "dbm": 0.1, "dbn": 0.02, "vae": 1e-3, "flow": 3e-3}


def train(
    model: Model,
    /,
    *,
    data: str = "digits",
    folder: Path | None = None,
    binarisation: Binarisation | None = None,
    epochs: int = 20,
    batch_size: int = 100,
    learning_rate: float | None = None,
    hidden: int | None = None,
    latent: int = 20,
    gibbs_steps: int = 1,
    persistent: Annotated[bool, Parameter(negative="")] = False,
    decay: Annotated[bool, Parameter(negative="")] = False,
    averaging: float = 0.0,
    patience: int | None = None,
    out: Path | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    checkpoint_every: int | None = None,
    common: Common | None = None,
) -> int:
    """Train a Boltzmann machine, a VAE or a flow on images or on a table of 0 and 1.

    Try:

        ppgen train rbm --data digits --epochs 20 --out runs/rbm
        ppgen train vae --data mnist --folder ~/mnist --hidden 400 --epochs 50

    Args:
        data: digits, mnist, fashion-mnist, or a file (see `ppgen data`).
        folder: where the files of a named data set lie.
        binarisation: of grey images; static for the named data sets.
        epochs: passes over the training data.
        batch_size: examples of one step.
        learning_rate: 0.05 for an RBM, 0.1 for a DBM, 0.02 for a DBN (0.05 for its layers before),
            0.003 for a flow, 0.001 for a VAE.
        hidden: hidden units; 200 for an RBM, 400 for a VAE, 512 for a flow; 200 in the first layer
            of a DBM, which has half as many in the second, and in both of a DBN.
        latent: dimensions of a VAE's code.
        gibbs_steps: of contrastive divergence.
        persistent: chains go on from step to step.
        decay: the learning rate falls linearly, to nothing after the last epoch.
        averaging: decay of an exponential average of the parameters; 0 for none.
        patience: stop after so many epochs without a better validation.
        out: the run folder; runs/MODEL-DATA when not given.
        overwrite: replace the run that is there.
        checkpoint_every: steps between checkpoints; once an epoch when not given.
    """
    from ppgen.data import load

    common = common or Common()
    if model not in BUNDLED or BUNDLED[model].kind != "deep":
        names = ", ".join(n for n, b in BUNDLED.items() if b.kind == "deep")
        raise ValueError(f"no model {model!r} to train: there are {names}")
    out = out or Path("runs") / f"{model}-{Path(data).stem}"
    settings = {
        "model": model,
        "data": data,
        "folder": None if folder is None else str(folder),
        "binarisation": binarisation,
        "seed": common.seed,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate or _LEARNING_RATES[model],
        "hidden": hidden or {"vae": 400, "flow": 512}.get(model, 200),
        "latent": latent,
        "gibbs_steps": gibbs_steps,
        "persistent": persistent,
        "decay": decay,
        "averaging": averaging,
        "patience": patience,
        "checkpoint_every": checkpoint_every,
    }
    with common.active():
        examples = load(data, "train", binarisation=binarisation, folder=folder, seed=common.seed)
        return _train(settings, examples, out, common, overwrite=overwrite)


def resume(run: Run, /, *, epochs: int | None = None, common: Common | None = None) -> int:
    """Go on with a training run that was stopped or killed, bit for bit.

    Try:

        ppgen resume runs/rbm

    Args:
        epochs: in all; as many as were asked for when not given.
    """
    common = common or Common()
    settings = _settings(run)
    settings["epochs"] = epochs or settings["epochs"]
    with common.active():
        return _train(settings, _data(settings, "train"), run, common, resume=True)


def evaluate(
    run: Run,
    /,
    *,
    data: str | None = None,
    folder: Path | None = None,
    split: Literal["train", "test"] = "test",
    samples: int = 5000,
    chains: int = 100,
    temperatures: int = 1000,
    common: Common | None = None,
) -> int:
    """Held-out log-likelihood in nats per example, and what kind of number it is.

    Try:

        ppgen evaluate runs/rbm --data digits

    Args:
        data: other data than the run was trained on.
        folder: where the files of a named data set lie.
        split: of the data.
        samples: of importance sampling, for all but an RBM.
        chains: of annealed importance sampling, for a Boltzmann machine too large to enumerate.
        temperatures: likewise.
    """
    common = common or Common()
    settings = _settings(run)
    with common.active():
        if data is not None:
            settings |= {"data": data, "folder": None if folder is None else str(folder)}
        examples = _data(settings, split)
        story = _restored(settings, examples, run).to(common.device)
        found = _likelihood(story, examples, common, samples, chains, temperatures)
    what = f"{settings['model']} on {examples.describe()}"
    common.print(f"{what}: {found}", {"story": settings["model"], "data": examples.describe(),
                 **asdict(found)})  # fmt: skip
    return DONE


def sample(
    run: Run,
    /,
    *,
    count: int = 64,
    gibbs_steps: int = 1000,
    out: Path | None = None,
    common: Common | None = None,
) -> int:
    """Draw new examples: a picture, or numbers where the data are no images.

    Try:

        ppgen sample runs/vae --count 100

    Args:
        count: how many.
        gibbs_steps: of a Boltzmann machine's chains.
        out: a .png or .npy file; samples.png in the run folder when not given.
    """
    import numpy as np

    common = common or Common()
    settings = _settings(run)
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    with common.active():
        examples = _data(settings, "train")
        story = _restored(settings, examples, run).to(common.device)
        x = draw_examples(story, examples, count, gibbs_steps, common.seed)
        path = out or run / ("samples.png" if examples.image_shape else "samples.npy")
        if path.suffix == ".npy":
            np.save(path, x)
        elif examples.image_shape is None:
            raise ValueError("the data are no images: name a .npy file with --out")
        else:
            _picture(x, examples, settings["model"]).savefig(path, dpi=110)
    common.print(f"{count} samples: {path}", {"samples": count, "path": str(path)})
    return DONE


def report(run: Run, /, *, common: Common | None = None) -> int:
    """Write a run's report.html anew: curves, likelihood, samples.

    Try:

        ppgen report runs/rbm
    """
    common = common or Common()
    settings = _settings(run)
    with common.active():
        examples = _data(settings, "train")
        story = _restored(settings, examples, run)
        path = _write_page(story, settings, _metrics(run), run, common)
    common.print(f"report: {path}", {"report": str(path)})
    return DONE


def build(settings: dict[str, Any], examples: Dataset) -> nn.Module:
    """The untrained story of these settings, its size taken from the data."""
    import torch

    dim = examples.x.shape[1]
    made = BUNDLED[settings["model"]].load()
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        if settings["model"] == "rbm":
            return made.from_data(examples.x, settings["hidden"])
        if settings["model"] == "dbm":
            hidden = settings["hidden"], max(1, settings["hidden"] // 2)
            return made.from_data(examples.x, hidden, weight_scale=0.05)
        if settings["model"] == "dbn":
            return made(dim, (settings["hidden"], settings["hidden"]), tied=False)
        if settings["model"] == "vae":
            return made(dim, settings["latent"], (settings["hidden"],))
        return made(dim, hidden=(settings["hidden"],))


def optimisation(settings: dict[str, Any]) -> dict[str, Any]:
    """The loss, the optimizer and the schedule that suit the model, for ``ppgen.train``."""
    import torch

    options: dict[str, Any] = {}
    if settings["model"] in ("rbm", "dbm", "dbn"):
        from ppgen.inference import ContrastiveDivergence, UpDown

        loss = UpDown if settings["model"] == "dbn" else ContrastiveDivergence
        options["loss"] = loss(settings["gibbs_steps"], persistent=settings["persistent"])
        options["optimizer"] = partial(torch.optim.SGD, momentum=0.5, fused=True)
    elif settings["model"] == "flow":
        options["optimizer"] = partial(torch.optim.AdamW, weight_decay=1e-2, fused=True)
    if settings["decay"]:
        options["schedule"] = partial(_falling, settings["epochs"])
    return options


def _falling(epochs: int, epoch: int) -> float:
    """A learning rate that falls linearly, to nothing after the last epoch."""
    return 1.0 - epoch / epochs


def _train(
    settings: dict[str, Any],
    examples: Dataset,
    out: Path,
    common: Common,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> int:
    import ppgen
    from ppgen.data import check_binary

    if examples.x.ndim != 2:
        raise ValueError(f"{examples.name}: expected one example a row, got {examples.x.shape}")
    check_binary(examples.x, examples.name)
    kept, validation = _split(examples)
    story = build(settings, kept)
    if settings["model"] == "dbn" and not resume:
        _pretrain(story, settings, kept, common)
    result = ppgen.train(
        story,
        kept,
        epochs=settings["epochs"],
        batch_size=min(settings["batch_size"], len(kept)),
        learning_rate=settings["learning_rate"],
        averaging=settings["averaging"],
        validation=validation,
        patience=settings["patience"],
        seed=settings["seed"],
        device=common.device,
        out=out,
        resume=resume,
        overwrite=overwrite,
        checkpoint_every=settings["checkpoint_every"],
        config={"story": {"name": settings["model"]}, "command": settings},
        **optimisation(settings),
    )
    if not _first_rank():
        return DONE if result.stopped != "diverged" else NOT_PASSED
    if result.message:
        note(f"ppgen: {result.message}")
    if result.stopped == "interrupted":
        return INTERRUPTED
    if result.stopped == "diverged":
        return NOT_PASSED
    page = _write_page(result.story, settings, result.history, out, common)
    text = (
        f"{settings['model']}: {result.epochs} epochs, {result.steps} steps, {result.seconds:.1f} s"
    )
    common.print(
        f"{text}\nrun: {out}\nreport: {page}",
        {"run": str(out), "report": str(page), "epochs": result.epochs, "steps": result.steps,
         "seconds": result.seconds, "stopped": result.stopped},
    )  # fmt: skip
    return DONE


def _pretrain(story: Any, settings: dict[str, Any], examples: Dataset, common: Common) -> None:
    """Greedy layer-wise training: as many epochs for each layer as for the whole afterwards."""
    import torch

    from ppgen.inference import ContrastiveDivergence, greedy
    from ppgen.models import RBM

    loss = partial(
        ContrastiveDivergence, settings["gibbs_steps"], persistent=settings["persistent"]
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        stack = [RBM(below, above) for below, above in pairwise(story.sizes)]
    options = {**optimisation(settings), "loss": loss}
    greedy(
        stack,
        examples.x,
        epochs=settings["epochs"],
        batch_size=min(settings["batch_size"], len(examples)),
        learning_rate=_LEARNING_RATES["rbm"],
        averaging=settings["averaging"],
        seed=settings["seed"],
        device=common.device,
        **options,
    )
    story.assemble(stack)


def _split(examples: Dataset) -> tuple[Dataset, Dataset]:
    held = max(1, round(_HELD_OUT * len(examples)))
    return examples.hold_out(held)


def _first_rank() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"


def _settings(run: Path) -> dict[str, Any]:
    from ppgen.run_folder import read_config

    if not run.is_dir():
        raise FileNotFoundError(f"there is no run folder {run}; `ppgen train` makes one")
    config = read_config(run)
    settings = config.get("command") or config.get("config", {}).get("command")
    if not isinstance(settings, dict) or settings.get("model") not in BUNDLED:
        raise ValueError(f"{run} was not made by `ppgen train`: its config.json names no model")
    return dict(settings)


def _data(settings: dict[str, Any], split: Literal["train", "test"]) -> Dataset:
    from ppgen.data import load

    return load(
        settings["data"],
        split,
        binarisation=settings["binarisation"],
        folder=settings["folder"],
        seed=settings["seed"],
    )


def _restored(settings: dict[str, Any], examples: Dataset, run: Path) -> nn.Module:
    from ppgen.inference.train import restore_story

    story = restore_story(build(settings, examples), run)
    return story.eval()


def _likelihood(
    story: nn.Module,
    examples: Dataset,
    common: Common,
    samples: int = 1000,
    chains: int = 100,
    temperatures: int = 1000,
) -> Likelihood:
    import ppgen
    from ppgen.types import UnnormalisedDensity

    options: dict[str, int] = {"samples": samples}
    if isinstance(story, UnnormalisedDensity):
        options |= {"chains": chains, "temperatures": temperatures}
    return ppgen.log_likelihood(story, examples.x.to(common.device), seed=common.seed, **options)


def draw_examples(story: Any, examples: Dataset, count: int, gibbs_steps: int, seed: int) -> Any:
    """New examples, ``(count, D)``; a machine's chains start at rows of the data."""
    import torch

    from ppgen.types import DirectedLayers, UnnormalisedDensity

    device = next(story.parameters()).device
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        if not isinstance(story, UnnormalisedDensity):
            return story.sample(count).cpu().numpy()
        rows = torch.randint(len(examples), (count,))
        side = story.machine_side(examples.x[rows].to(device))
        for _ in range(gibbs_steps):
            side = story.machine.sweep(side)
        x = story.generate(side)[0] if isinstance(story, DirectedLayers) else side
        return x[:, : story.visible].cpu().numpy()


def _picture(x: Any, examples: Dataset, model: str) -> Any:
    from ppgen import plots

    assert examples.image_shape is not None
    return plots.images(x, examples.image_shape, title=f"Samples of the {model}")


def _metrics(run: Path) -> dict[str, list[Any]]:
    import json

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {key: [row.get(key) for row in rows] for key in (rows[0] if rows else {})}


def _write_page(
    story: nn.Module,
    settings: dict[str, Any],
    history: dict[str, list[Any]],
    out: Path,
    common: Common,
) -> Path:
    from ppgen.cli.pages import run_page
    from ppgen.data import DataError
    from ppgen.report import Picture

    story.eval()
    examples = _data(settings, "train")
    try:
        examples = _data(settings, "test")
    except DataError:  # a file without a test split
        note("no test split: the likelihood is that of the training data")
    found: Likelihood | None = None
    try:
        found = _likelihood(story, examples, common)
    except ValueError as error:  # a machine that cannot be measured still has its curves
        note(f"no likelihood: {error}")
    pictures = []
    if examples.image_shape:
        x = draw_examples(story, examples, 64, 1000, common.seed)
        figure = _picture(x, examples, settings["model"])
        figure.savefig(out / "samples.png", dpi=110)
        pictures.append(Picture(figure, "New examples drawn from the model."))
    facts = {**settings, "evaluated on": examples.describe()}
    page = run_page(f"{settings['model']} on {settings['data']}", history, found, pictures, facts)
    return page.save(out / "report.html")
