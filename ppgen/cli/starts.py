"""Where a training starts: at an earlier run, or, of a Boltzmann machine, pretrained by layers."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppgen.cli.autoencoders import start_from
from ppgen.cli.options import note
from ppgen.cli.runs import read_settings, restored
from ppgen.cli.training import (
    LEARNING_RATES,
    MACHINES,
    divergence,
    has_real_units,
    optimisation,
    widths,
)

if TYPE_CHECKING:
    from ppgen.data import Dataset
    from ppgen.inference.train import TrainResult

LAYERS = "layers"  # of a run folder: the runs that trained them one by one


def prepare(
    story: Any,
    settings: dict[str, Any],
    examples: Dataset,
    device: str,
    out: Path,
    *,
    resume: bool,
    overwrite: bool,
) -> tuple[bool, TrainResult | None]:
    """Bring an untrained `story` and its run folder to where `ppgen.train` takes over.

    Returns:
        Whether the folder holds this run already; and the result of a layer whose training was
        interrupted or diverged, if one was.
    """
    from ppgen import checkpoint
    from ppgen.run_folder import RunFolder

    if resume and checkpoint.exists(out / "ckpt"):
        return True, None
    by_layers = pretraining_epochs(settings) > 0
    if by_layers and first_rank():
        # known to `ppgen resume` from now on, although its checkpoints begin after the layers
        with RunFolder(out, resume=resume, overwrite=overwrite) as folder:
            if not resume:
                shutil.rmtree(out / LAYERS, ignore_errors=True)
            folder.write_config({**run_config(settings), "options": {}})
    return resume or by_layers, start(story, settings, examples, device, out)


def run_config(settings: dict[str, Any]) -> dict[str, Any]:
    """What ``config.json`` holds of the command line."""
    return {"story": {"name": settings["model"]}, "command": settings}


def first_rank() -> bool:
    """Whether this process writes: under ``torchrun`` one does."""
    return os.environ.get("RANK", "0") == "0"


def start(
    story: Any, settings: dict[str, Any], examples: Dataset, device: str, out: Path
) -> TrainResult | None:
    """Give an untrained `story` the parameters that its settings say it starts from.

    Layers are trained in `out`, where those that are there already are gone on with.

    Returns:
        The result of a layer whose training was interrupted or diverged, if one was.
    """
    run = settings["start_from"]
    if settings["model"] not in MACHINES:
        if run is not None:
            alone = start_from(story, Path(run))
            note(f"start: {run}; new here: {', '.join(alone) or 'nothing'}")
    elif run is not None:
        _take_over(story, settings, examples)
    elif epochs := pretraining_epochs(settings):
        return pretrain(story, settings, examples, device, epochs, out)
    return None


def pretraining_epochs(settings: dict[str, Any]) -> int:
    """For each layer, before all are trained together; 0 where nothing is trained by layers."""
    if settings["model"] not in ("dbm", "dbn") or settings["start_from"] is not None:
        return 0
    epochs = settings["pretraining_epochs"]
    if epochs is None:
        return settings["epochs"] if settings["model"] == "dbn" else 0
    return epochs


def trains_top_alone(settings: dict[str, Any]) -> bool:
    """Whether a DBN starts from a run with a layer less, so that only its top is to be trained.

    Raises:
        ValueError: where the run cannot be the lowest layers of this model.
    """
    run = settings["start_from"]
    if run is None:
        return False
    earlier = read_settings(Path(run))
    ours, theirs = widths(settings), widths(earlier)
    allowed = {"rbm": ("rbm",), "dbm": ("rbm", "dbm"), "dbn": ("rbm", "dbn")}
    if earlier["model"] not in allowed.get(settings["model"], ()):
        raise ValueError(
            f"--start-from {run}: a run of {earlier['model']} is no start for {settings['model']}"
        )
    if has_real_units(earlier) != has_real_units(settings):
        kinds = ["gaussian" if has_real_units(s) else "binary" for s in (earlier, settings)]
        raise ValueError(
            f"--start-from {run}: it has {kinds[0]} visible units, this {settings['model']} "
            f"{kinds[1]} ones"
        )
    if bool(earlier.get("labels")) != bool(settings.get("labels")):
        has, lacks = ("it", f"this {settings['model']}")[:: 1 if earlier.get("labels") else -1]
        raise ValueError(
            f"--start-from {run}: {has} was asked for --labels, a part of the visible side, and "
            f"{lacks} was not"
        )
    same = earlier["model"] == settings["model"]
    fits = ours == theirs if same else ours[: len(theirs)] == theirs
    if not fits or (settings["model"] == "dbn" and not same and len(ours) != 2):
        raise ValueError(
            f"--start-from {run}: its hidden layers {theirs} are not the lowest of {ours}"
        )
    return settings["model"] == "dbn" and not same


def pretrain(
    story: Any,
    settings: dict[str, Any],
    examples: Dataset,
    device: str,
    epochs: int,
    out: Path | None,
) -> TrainResult | None:
    """Greedy layer-wise training of a DBN's layers, or of a DBM's by duplicated RBMs.

    Without a run folder nothing is kept, and a layer that stops cannot go on.
    """
    import torch

    from ppgen.inference import ContrastiveDivergence, greedy
    from ppgen.models import RBM
    from ppgen.models.duplicated_rbm import pretraining_machines

    usual = {**settings, "epochs": epochs, "posterior_sweeps": 0}  # each layer is an RBM
    loss = partial(ContrastiveDivergence, **divergence(usual))
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        if settings["model"] == "dbm":
            stack: Any = pretraining_machines(story.sizes)
        else:
            stack = [RBM(below, above) for below, above in pairwise(story.sizes)]
    options = {**optimisation(usual), "loss": loss}
    results = greedy(
        stack,
        examples.x,
        epochs=epochs,
        batch_size=settings["batch_size"],
        learning_rate=settings.get("pretraining_rate", LEARNING_RATES["rbm"]),
        averaging=settings["averaging"],
        seed=settings["seed"],
        device=device,
        out=None if out is None else out / LAYERS,
        resume=out is not None,
        checkpoint_every=settings.get("checkpoint_every"),
        **options,
    )
    stopped = results[-1].stopped
    if stopped in ("interrupted", "diverged"):
        said = (
            f"{stopped} while layer {len(results)} was trained; continue with: ppgen resume {out}"
        )
        return replace(results[-1], message=said)
    story.assemble(stack)
    return None


def _take_over(story: Any, settings: dict[str, Any], examples: Dataset) -> None:
    import torch

    run = Path(settings["start_from"])
    earlier = read_settings(run)
    below: Any = restored(earlier, examples, run)
    if earlier["model"] == settings["model"]:
        story.load_state_dict(below.state_dict())
    elif settings["model"] == "dbm":
        story.start_from(below)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(settings["seed"])
            story.assemble([below, below.transposed(story.sizes[-1])])
