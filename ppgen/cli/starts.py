"""Where a training starts: at an earlier run, or, of a Boltzmann machine, pretrained by layers."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppgen.cli.autoencoders import start_from
from ppgen.cli.options import note
from ppgen.cli.runs import read_settings, restored
from ppgen.cli.training import LEARNING_RATES, MACHINES, optimisation, widths

if TYPE_CHECKING:
    from ppgen.data import Dataset


def start(story: Any, settings: dict[str, Any], examples: Dataset, device: str) -> None:
    """Give an untrained `story` the parameters that its settings say it starts from."""
    run = settings["start_from"]
    if settings["model"] not in MACHINES:
        if run is not None:
            alone = start_from(story, Path(run))
            note(f"start: {run}; new here: {', '.join(alone) or 'nothing'}")
        return
    if run is not None:
        _take_over(story, settings, examples)
        return
    epochs = settings["pretraining_epochs"]
    if epochs is None:
        epochs = settings["epochs"] if settings["model"] == "dbn" else 0
    if epochs:
        pretrain(story, settings, examples, device, epochs)


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
    same = earlier["model"] == settings["model"]
    fits = ours == theirs if same else ours[: len(theirs)] == theirs
    if not fits or (settings["model"] == "dbn" and not same and len(ours) != 2):
        raise ValueError(
            f"--start-from {run}: its hidden layers {theirs} are not the lowest of {ours}"
        )
    return settings["model"] == "dbn" and not same


def pretrain(
    story: Any, settings: dict[str, Any], examples: Dataset, device: str, epochs: int
) -> None:
    """Greedy layer-wise training of a DBN's layers, or of a DBM's by duplicated RBMs."""
    import torch

    from ppgen.inference import ContrastiveDivergence, greedy
    from ppgen.models import RBM
    from ppgen.models.duplicated_rbm import pretraining_machines

    loss = partial(
        ContrastiveDivergence, settings["gibbs_steps"], persistent=settings["persistent"]
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        if settings["model"] == "dbm":
            stack: Any = pretraining_machines(story.sizes)
        else:
            stack = [RBM(below, above) for below, above in pairwise(story.sizes)]
    options = {**optimisation({**settings, "epochs": epochs}), "loss": loss}
    greedy(
        stack,
        examples.x,
        epochs=epochs,
        batch_size=min(settings["batch_size"], len(examples)),
        learning_rate=settings.get("pretraining_rate", LEARNING_RATES["rbm"]),
        averaging=settings["averaging"],
        seed=settings["seed"],
        device=device,
        **options,
    )
    story.assemble(stack)


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
