r"""Stochastic gradient ascent that notices when it has settled.

Steps at one learning rate go on until the objective no longer rises within its own noise; then
the iterates of the last windows are averaged, the learning rate drops, and so on, until a drop
gains less than the tolerance.

References:
    | A Framework for Improving the Reliability of Black-box Variational Inference
    | (Welandawe, Andersen, Vehtari & Huggins, 2024) | https://jmlr.org/papers/v25/22-0327.html
    | Acceleration of stochastic approximation by averaging (Polyak & Juditsky, 1992)
    | Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015)
    | https://arxiv.org/abs/1412.6980
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.progress import Interrupt, Progress

_WINDOW = 100  # steps between two looks
_FACTOR = 0.25  # of a drop of the learning rate
_LEVELS = 6  # at most
_PATIENCE = 20  # steps in a row whose objective is not finite


class Step(NamedTuple):
    """One stochastic evaluation of the objective."""

    surrogate: Tensor  # (), its gradient is that of the objective
    value: float  # estimate of the objective, nats


class Ascent(NamedTuple):
    """How an ascent went."""

    history: list[float]  # the objective at each step, nats
    settled: bool
    message: str  # why it did not settle; empty if it did


@dataclass(frozen=True)
class Schedule:
    """When to drop the learning rate and when to stop.

    Args:
        rate: first learning rate of Adam.
        max_steps: steps at most.
        tolerance: nats that a drop of the learning rate has to gain for the ascent to go on.
    """

    rate: float
    max_steps: int
    tolerance: float


def ascend(
    objective: Callable[[], Step],
    evaluate: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    schedule: Schedule,
    interrupt: Interrupt,
    progress: Progress,
) -> Ascent:
    """Maximise in place over `parameters`, leaf tensors.

    Args:
        objective: a noisy evaluation with gradients.
        evaluate: independent estimates of the objective without gradients, ``(S,)``, nats; with
            the same random numbers it gives the same.
        parameters: what to change.
        schedule: learning rates and the stopping rule.
        interrupt: stops the ascent.
        progress: is advanced by each window.
    """
    optimizer = torch.optim.Adam(parameters, lr=schedule.rate, betas=(0.9, 0.99))
    history: list[float] = []
    before, gain = _copy(parameters), 0.0
    for level in range(_LEVELS):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * _FACTOR**level
        message = _settle(objective, parameters, optimizer, schedule, history, interrupt, progress)
        if message:
            return Ascent(history, False, message)
        gain = _gain(evaluate, parameters, before)
        if level > 0 and gain < schedule.tolerance:
            if gain < 0:  # the last level was noise
                _assign(parameters, before)
            return Ascent(history, True, "")
        before = _copy(parameters)
    return Ascent(
        history, False, f"the last drop of the learning rate still gained {gain:.2g} nats"
    )


def _settle(
    objective: Callable[[], Step],
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    history: list[float],
    interrupt: Interrupt,
    progress: Progress,
) -> str:
    """Run one level and leave the average of its last half; why it stopped, if unsettled."""
    windows: list[list[float]] = []
    averages: list[list[Tensor]] = []
    while True:
        sums = [torch.zeros_like(p) for p in parameters]
        values: list[float] = []
        failures = 0
        while len(values) < _WINDOW:
            if interrupt:
                return f"stopped by Ctrl-C after {len(history)} steps"
            if len(history) >= schedule.max_steps:
                return (
                    f"the ELBO was still rising, or too noisy to tell, after {len(history)} steps "
                    "(max_steps)"
                )
            step = objective()
            gradients = torch.autograd.grad(-step.surrogate, parameters, allow_unused=True)
            if not (math.isfinite(step.value) and _finite(gradients)):
                failures += 1
                if failures > _PATIENCE:
                    return (
                        f"the ELBO or its gradient was not finite {failures} times in a row at "
                        f"step {len(history)}: a smaller learning_rate may help"
                    )
                for group in optimizer.param_groups:
                    group["lr"] *= 0.8
                continue
            failures = 0
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            optimizer.zero_grad()
            history.append(step.value)
            values.append(step.value)
            with torch.no_grad():
                for total, parameter in zip(sums, parameters, strict=True):
                    total += parameter
        progress.advance(_WINDOW, elbo=sum(values) / _WINDOW)
        windows.append(values)
        averages.append([total / _WINDOW for total in sums])
        if len(windows) >= 2 and not _rising(windows, schedule.tolerance):
            kept = averages[len(averages) // 2 :]
            _assign(parameters, [torch.stack(ts).mean(0) for ts in zip(*kept, strict=True)])
            return ""


def _rising(windows: list[list[float]], tolerance: float) -> bool:
    """Whether the recent half of the windows has a slope above its standard error.

    Medians, since a single draw far out in a heavy tail would hide any slope.
    """
    recent = windows[len(windows) // 2 :] if len(windows) > 3 else windows[-2:]
    y = torch.tensor(recent, dtype=torch.float64)
    heights = y.median(1).values
    spread = (y.quantile(0.75, 1) - y.quantile(0.25, 1)) / 1.349
    error = 1.2533 * spread / math.sqrt(y.shape[1])  # of a median of normals
    x = torch.arange(len(recent), dtype=torch.float64)
    x = x - x.mean()
    slope = float((x * heights).sum() / x.square().sum())
    slope_error = float((x.square() * error.square()).sum().sqrt() / x.square().sum())
    return slope > max(slope_error, 0.1 * tolerance)


def _gain(
    evaluate: Callable[[], Tensor], parameters: Sequence[Tensor], before: Sequence[Tensor]
) -> float:
    """Rise of the objective since `before`, under common random numbers, nats."""
    with torch.no_grad():
        with torch.random.fork_rng(devices=[]):
            new = evaluate()
        now = _copy(parameters)
        _assign(parameters, before)
        old = evaluate()
        _assign(parameters, now)
    difference = new - old
    difference = difference[torch.isfinite(difference)]
    return float(difference.mean()) if len(difference) else -math.inf


def _finite(gradients: Sequence[Tensor | None]) -> bool:
    return all(g is None or bool(torch.isfinite(g).all()) for g in gradients)


def _copy(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def _assign(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
