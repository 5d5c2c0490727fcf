"""What a model's settings mean: the story and the optimisation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ppgen.cli.autoencoders import bound, parts
from ppgen.cli.bundled import BUNDLED
from ppgen.cli.flows import flow
from ppgen.cli.sentences import is_text, tokenizer_of

if TYPE_CHECKING:
    from torch import nn

    from ppgen.data import Dataset

LEARNING_RATES = {
    "rbm": 0.05,
    "dbm": 0.1,
    "dbn": 0.02,
    "vae": 1e-3,
    "flow": 3e-3,
    "sentences": 3e-3,
    "molecules": 2e-3,
}
MACHINES = ("rbm", "dbm", "dbn")
_REAL_UNITS = 3e-3  # learning rate of an RBM of real numbers, by Adam
_EPOCHS, _MOST_EPOCHS, _STEPS = 20, 200, 2000  # where no number is asked for
_HELD_OUT = 0.1  # of the training data, for the validation curve


def has_real_units(settings: dict[str, Any]) -> bool:
    """Whether this is an RBM of real numbers; runs of older versions name no visible units."""
    return settings.get("visible_units", "binary") == "gaussian"


def usual_rate(settings: dict[str, Any]) -> float:
    """The learning rate where none is asked for."""
    return _REAL_UNITS if has_real_units(settings) else LEARNING_RATES[settings["model"]]


def usual_epochs(examples: int, batch_size: int) -> int:
    """How many there are where no number is asked for: on few examples more, for their few steps.

    After 260 steps, 20 epochs of the bundled digits, no model is near what it can reach.
    """
    steps = math.ceil(examples / max(1, min(batch_size, examples)))
    return min(max(_EPOCHS, math.ceil(_STEPS / steps)), _MOST_EPOCHS)


def build(settings: dict[str, Any], examples: Dataset) -> nn.Module:
    """The untrained story of these settings, its size taken from the data."""
    import torch

    dim, model, hidden = examples.x.shape[1], settings["model"], widths(settings)
    made = BUNDLED[model].load()
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        if model == "rbm":
            return _rbm(settings, examples, *hidden)
        if model == "dbm":
            scale = 0.05 if settings.get("start_from") is None else 0.01  # the RBM's law stays
            return made.from_data(examples.x, hidden, weight_scale=scale)
        if model == "dbn":
            return made(dim, hidden, tied=False)
        if model == "vae":
            return made(dim, settings["latent"], hidden, **parts(settings, examples, hidden[-1]))
        if is_text(settings):
            tokenizer = tokenizer_of(settings)
            sizes = tokenizer.vocabulary, tokenizer.length, settings["latent"], *hidden
            if model == "molecules":
                return made(*sizes, properties=tuple(torch.tensor(settings["properties"])))
            return made(*sizes, word_dropout=settings["word_dropout"])
        return flow(settings, dim, hidden)


def _rbm(settings: dict[str, Any], examples: Dataset, hidden: int) -> nn.Module:
    from ppgen.distributions import Binary, Rectified, UnitGaussian
    from ppgen.models import RBM, ClassificationRBM, GaussianRBM

    made: Any = GaussianRBM if has_real_units(settings) else RBM
    options: dict[str, Any] = {"weight_scale": settings.get("weight_scale", 0.01)}
    if settings.get("labels"):
        made, options["classes"] = ClassificationRBM, len(settings["classes"])
    else:
        kinds = {"gaussian": UnitGaussian(), "relu": Rectified()}
        options["hidden_units"] = kinds.get(settings.get("hidden_units", "binary"), Binary())
    return made.from_data(examples.x, hidden, **options)


def widths(settings: dict[str, Any]) -> tuple[int, ...]:
    """Units of each hidden layer.

    Raises:
        ValueError: where the model cannot have so many layers.
    """
    given, model = settings["hidden"], settings["model"]
    given = (given,) if isinstance(given, int) else tuple(given)
    if model in ("rbm", "sentences", "molecules") and len(given) != 1:
        raise ValueError(f"--hidden {' '.join(map(str, given))}: {model} takes one number")
    if len(given) == 1 and model == "dbm":
        return given[0], max(1, given[0] // 2)
    return given * 2 if len(given) == 1 and model == "dbn" else given


def optimisation(settings: dict[str, Any]) -> dict[str, Any]:
    """The loss, the optimizer and the schedule that suit the model, for ``ppgen.train``."""
    import torch

    options: dict[str, Any] = {}
    if settings["model"] in MACHINES:
        from ppgen.inference import ContrastiveDivergence, TopLayer, UpDown

        directed = TopLayer if settings.get("top_alone") else UpDown
        loss = directed if settings["model"] == "dbn" else ContrastiveDivergence
        options["loss"] = loss(**divergence(settings))
        if not has_real_units(settings):
            options["optimizer"] = partial(torch.optim.SGD, momentum=0.5, fused=True)
        options["compile"] = settings.get("compile", False)
    elif settings["model"] in ("vae", "sentences", "molecules"):
        options["loss"] = bound(settings)
        decay = settings.get("weight_decay", 0.0)
        if decay:
            options["optimizer"] = partial(torch.optim.AdamW, weight_decay=decay, fused=True)
    elif settings["model"] == "flow":
        options["optimizer"] = partial(torch.optim.AdamW, weight_decay=1e-2, fused=True)
    if settings["decay"]:
        options["schedule"] = partial(_falling, settings["epochs"])
    return options


def divergence(settings: dict[str, Any]) -> dict[str, Any]:
    """Options of every `ContrastiveDivergence` of a run; older ones name fewer."""
    from ppgen.inference import Langevin, Tempered, Trajectory

    samplers = {
        "gibbs": None,
        "langevin": Langevin(),
        "trajectory": Trajectory(),
        "tempering": Tempered(settings.get("temperatures") or 5),
    }
    steps = settings["gibbs_steps"]
    if not isinstance(steps, int):
        steps = partial(_in_parts, settings["epochs"], steps=tuple(steps))
    return {
        "gibbs_steps": steps,
        "persistent": settings["persistent"],
        "posterior_sweeps": settings.get("posterior_sweeps", 0),
        "weight_decay": settings.get("weight_decay", 0.0),
        "sparsity": settings.get("sparsity", 0.0),
        "sparsity_target": settings.get("sparsity_target") or 0.1,
        "sampler": samplers[settings.get("sampler", "gibbs")],
    }


@contextmanager
def quick_mean_field(story: Any, settings: dict[str, Any]) -> Iterator[None]:
    """For as long as a DBM is trained; its likelihood is measured with the steps that it had."""
    if settings["model"] != "dbm" or "mean_field_steps" not in settings:
        yield
        return
    usual = story.mean_field_steps, story.tolerance
    story.mean_field_steps = settings["mean_field_steps"]
    if settings.get("compile"):
        story.tolerance = 0.0
    try:
        yield
    finally:
        story.mean_field_steps, story.tolerance = usual


def arguments(examples: Dataset, settings: dict[str, Any]) -> Any:
    """What `ppgen.train` hands to the pair: of molecules also their properties."""
    return (examples.x, examples.labels) if settings["model"] == "molecules" else examples


def hold_out(examples: Dataset) -> tuple[Dataset, Dataset]:
    """What is trained on, and what the validation curve is of."""
    return examples.hold_out(held_out(examples))


def held_out(examples: Dataset) -> int:
    """How many of them are not trained on."""
    return max(1, round(_HELD_OUT * len(examples)))


def _in_parts(epochs: int, epoch: int, *, steps: tuple[int, ...]) -> int:
    """The first of `steps` in the first of as many equal parts of the epochs, and so on."""
    return steps[min(epoch * len(steps) // epochs, len(steps) - 1)]


def _falling(epochs: int, epoch: int) -> float:
    """A learning rate that falls linearly, to nothing after the last epoch."""
    return 1.0 - epoch / epochs
