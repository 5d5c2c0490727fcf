"""Greedy layer-wise training of a stack of Boltzmann machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ppgen.distributions.units import sample_units
from ppgen.inference.contrastive_divergence import ContrastiveDivergence
from ppgen.inference.train import TrainResult, train
from ppgen.inference.training.randomness import seeded, stream
from ppgen.types import BoltzmannMachine


class Stackable(BoltzmannMachine, Protocol):
    """A machine with one hidden layer, as a member of a stack."""

    def start_at(self, x: Tensor) -> None:
        """Set the visible biases to the base rates of `x`."""
        ...


def greedy(
    stack: Sequence[Stackable],
    x: Tensor,
    *,
    loss: Callable[[], Any] = ContrastiveDivergence,
    upwards: Literal["samples", "means"] = "samples",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> list[TrainResult]:
    """Train a stack from the bottom up: each machine on the hidden layer of the one below.

    The result is a deep belief network (``DBN.from_rbms(stack)``), or, if the outer machines are
    duplicated, the start of a deep Boltzmann machine (``dbm.assemble(stack)``).

    Args:
        stack: machines, each with as many visible units as the one below has hidden ones; they
            are trained in place.
        x: data, ``(N, D)`` in {0, 1}.
        loss: makes the loss of each: a class, or a functools.partial of one.
        upwards: what is shown to the next machine: one draw of the hidden layer for each example,
            on which the bound of a DBN rests, or its means, which are less noisy.
        seed: of the trainings and of the draws.
        out: a folder for the runs, ``layer-1`` and so on.
        resume: go on with what is in `out`, bit for bit: finished layers are read, one that was
            stopped is continued, the others are begun.
        options: of every `train`.

    Returns:
        One result a machine; fewer where a layer was interrupted or diverged, whose is the last.

    References:
        | A fast learning algorithm for deep belief nets (Hinton, Osindero, Teh, 2006)
    """
    results = []
    for layer, machine in enumerate(stack, start=1):
        if x.shape[-1] != machine.visible:
            raise ValueError(
                f"stack: machine {layer} has {machine.visible} visible units, and the layer below "
                f"it {x.shape[-1]}"
            )
        if layer < len(stack) and not machine.hidden_units.binary:
            raise ValueError(
                f"stack: machine {layer} has {machine.hidden_units} below another; want binary"
            )
        if not isinstance(machine, nn.Module):
            raise TypeError(f"stack: expected modules, got {type(machine).__name__}")
        machine.start_at(x)
        folder = None if out is None else Path(out) / f"layer-{layer}"
        again = resume and folder is not None and folder.is_dir()
        result = train(machine, x, loss=loss(), seed=seed, out=folder, resume=again, **options)
        results.append(result)
        if result.stopped in ("interrupted", "diverged"):
            break
        bias = machine.visible_bias
        with seeded(stream(seed, "greedy", layer), bias.device), torch.no_grad():
            means = machine.positive_phase(x.to(bias)).hidden
            x = sample_units(means) if upwards == "samples" else means
    return results
