"""Options of a training run: their ranges, how they are written down, what a resumed run keeps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from typing import Any

from torch import nn

from ppgen import checkpoint
from ppgen.types import BoltzmannMachine, DirectedLayers

LARGEST_LEARNING_RATE = 100.0
_KEPT = ("batch_size", "learning_rate", "averaging", "seed", "loss", "optimizer", "schedule")
_SURROUNDINGS = {"format", "schema", "versions", "git", "machine", "options"}


def check_numbers(options: Mapping[str, Any]) -> None:
    """Refuse an option that is out of its range, by name and range.

    Raises:
        TypeError: for anything but a number.
        ValueError: outside the range.
    """
    for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
        _whole(name, options[name], least)
    for name in ("patience", "checkpoint_every"):
        if options[name] is not None:
            _whole(name, options[name], 1)
    rate = _number("learning_rate", options["learning_rate"])
    if not 0 < rate <= LARGEST_LEARNING_RATE:
        raise ValueError(
            f"learning_rate={rate:g}: expected a number above 0, at most {LARGEST_LEARNING_RATE:g}"
        )
    if not 0 <= _number("averaging", options["averaging"]) < 1:
        raise ValueError(
            f"averaging={options['averaging']:g}: expected the decay of a moving average, from 0 "
            "(none) to below 1, such as 0.999"
        )


def check_story(story: nn.Module) -> list[nn.Parameter]:
    """The parameters to train; refuse what is no story."""
    if not isinstance(story, nn.Module):
        raise TypeError(f"story: expected a torch.nn.Module, not {type(story).__name__}")
    for name in ("model", "guide"):
        if not callable(getattr(story, name, None)):
            raise TypeError(f"story: {type(story).__name__} has no method `{name}`")
    parameters = [p for p in story.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            f"{type(story).__name__} has no parameter to train; if its parts make theirs at the "
            "first call, as autoguides do, call story.guide(data) once before"
        )
    return parameters


def default_loss(story: nn.Module) -> Any:
    """Contrastive divergence for a Boltzmann machine, up-down for a DBN, else an ELBO."""
    if isinstance(story, BoltzmannMachine):
        from ppgen.inference.contrastive_divergence import ContrastiveDivergence

        return ContrastiveDivergence()
    if isinstance(story, DirectedLayers):
        from ppgen.inference.up_down import UpDown

        return UpDown()
    from ppgen.inference.elbo import ELBO

    return ELBO()


def averages_over_batch(loss: Any, story: nn.Module) -> bool:
    """Whether the loss is a mean over the batch and not a sum: its attribute `reduction`."""
    default = "mean" if isinstance(story, BoltzmannMachine) else "sum"
    reduction = getattr(loss, "reduction", default)
    if reduction not in ("sum", "mean"):
        raise ValueError(
            f'{type(loss).__name__}.reduction={reduction!r}: expected "sum" or "mean", over the '
            "batch"
        )
    return reduction == "mean"


def describe(thing: Any) -> Any:
    """A loss, an optimizer or a schedule in plain words, for ``config.json``."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, partial):
        given = {"arguments": thing.args} if thing.args else {}
        return {"name": describe(thing.func), "options": _plain(given | thing.keywords)}
    if hasattr(thing, "__qualname__"):
        return thing.__qualname__
    # Of its attributes the constructor's options; others may be counters that its use moves.
    options = {*inspect.signature(type(thing)).parameters, "options"}
    kept = {name: value for name, value in vars(thing).items() if name in options}
    return {"name": type(thing).__qualname__, "options": _plain(kept)}


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse additions to ``config.json`` that are no JSON or that take a name in use."""
    taken = sorted(_SURROUNDINGS & config.keys())
    if taken:
        raise ValueError(f"config: the key {taken[0]!r} is written by train itself")
    checkpoint.encode(config, "config")


def check_same(recorded: Mapping[str, Any], now: Mapping[str, Any], where: object) -> None:
    """Refuse to go on with other options or data than the run was made with."""
    now = checkpoint.decode(checkpoint.encode(now))
    # first: of other data the size of a batch may be another too
    if recorded.get("data") != now["data"]:
        raise ValueError(f"{where}: the run was made with other data: resume it with the same")
    for name in _KEPT:
        if recorded.get(name) != now[name]:
            raise ValueError(
                f"{where}: the run was made with {name}={recorded.get(name)}, not {now[name]}: "
                "resume it with the same, or start a new run"
            )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of these is plain, and not set by the first use of its owner."""
    plain = {}
    for name, value in values.items():
        # Pyro's ELBOs find max_plate_nesting out when they are first used.
        if name == "max_plate_nesting":
            continue
        if isinstance(value, Mapping):
            plain[name] = _plain(value)
        elif isinstance(value, (str, bool, int, float)):
            plain[name] = value
        elif isinstance(value, (tuple, list)) and all(isinstance(v, (int, float)) for v in value):
            plain[name] = list(value)
        elif isinstance(value, partial) or (is_dataclass(value) and not isinstance(value, type)):
            # as a schedule, or a sampler, inside a loss
            plain[name] = describe(value)
    return plain


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: expected a whole number")
    if value < least:
        raise ValueError(f"{name}={value}: expected a whole number, at least {least}")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: expected a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value}: expected a finite number")
    return float(value)
