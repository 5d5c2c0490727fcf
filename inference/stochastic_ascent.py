r"""Stochastic gradient ascent that notices when it has settled.

Steps at one learning rate go on until the objective no longer rises within its own noise; then
the iterates of the last windows are averaged, the learning rate drops, and so on, until a drop
gains no more than the tolerance, as far as can be told.

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

_FACTOR = 0.25  # of a drop of the learning rate
_LEVELS = 6  # at most
_PATIENCE = 20  # steps in a row whose objective is not finite


class Step(NamedTuple):
    """One stochastic evaluation of the objective."""

    gradients: Sequence[Tensor | None]  # of the objective, one of each parameter
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
        level: drops of the rate to begin with, where the start is nearly an optimum: then the first
            level has to gain more than the tolerance too.
        window: steps between two looks.
    """

    rate: float
    max_steps: int
    tolerance: float
    level: int = 0
    window: int = 100


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
    run = _Run(objective, evaluate, parameters, schedule, interrupt, progress)
    try:
        run.levels()
    except _Unsettled as reason:
        return Ascent(run.history, False, str(reason))
    return Ascent(run.history, True, "")


class Adam:
    """Adam on a few tensors; a parameter without gradient stays where it is.

    ``torch.optim`` imports the compiler, which takes longer than the whole of a small fit.
    """

    def __init__(
        self, parameters: Sequence[Tensor], betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        self.parameters, self.betas, self.taken = list(parameters), betas, 0
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], rate: float) -> None:
        """Ascend by one step."""
        self.taken += 1
        first, second = self.betas
        for x, g, mean, square in zip(
            self.parameters, gradients, self.means, self.squares, strict=True
        ):
            if g is None:
                continue
            mean.lerp_(g, 1 - first)
            square.mul_(second).addcmul_(g, g, value=1 - second)
            scale = (square / (1 - second**self.taken)).sqrt_().add_(1e-8)
            x.addcdiv_(mean, scale, value=rate / (1 - first**self.taken))


class _Unsettled(Exception):
    """The ascent has to end before it settled; the message says why."""


class _Run:
    def __init__(
        self,
        objective: Callable[[], Step],
        evaluate: Callable[[], Tensor],
        parameters: Sequence[Tensor],
        schedule: Schedule,
        interrupt: Interrupt,
        progress: Progress,
    ) -> None:
        self.objective, self.evaluate, self.parameters = objective, evaluate, parameters
        self.schedule, self.interrupt, self.progress = schedule, interrupt, progress
        self.adam = Adam(parameters)
        self.rate = schedule.rate
        self.history: list[float] = []
        self.steps = 0

    def levels(self) -> None:
        """Lower the learning rate until that gains less than the tolerance."""
        gain, before = 0.0, copied(self.parameters)
        for level in range(self.schedule.level, _LEVELS):
            self.rate = self.schedule.rate * _FACTOR**level
            self.settle()
            gain, error = self.difference(copied(self.parameters), before)
            if level > 0 and gain - error < self.schedule.tolerance:
                if gain < 0:  # the last level was noise
                    assign(self.parameters, before)
                return
            before = copied(self.parameters)
        raise _Unsettled(f"the last drop of the learning rate still gained {gain:.2g} nats")

    def settle(self) -> None:
        """Step at one learning rate until nothing rises; leave the average of the last steps."""
        windows: list[list[float]] = []
        averages: list[list[Tensor]] = []
        while True:
            values, average = self.window()
            windows.append(values)
            averages.append(average)
            if len(windows) < 2 or _rising(windows, self.schedule.tolerance):
                continue
            # common random numbers see what the noise of the steps hides
            gain, error = self.difference(averages[-1], averages[-2])
            if gain - error < self.schedule.tolerance:
                pairs = zip(averages[-1], averages[-2], strict=True)
                assign(self.parameters, [(a + b) / 2 for a, b in pairs])
                return

    def window(self) -> tuple[list[float], list[Tensor]]:
        """Some steps: the objective at each, and the average of the parameters."""
        totals = [torch.zeros_like(p) for p in self.parameters]
        values = []
        count = self.schedule.window
        for _ in range(count):
            values.append(self.step())
            self.history.append(values[-1])
            with torch.no_grad():
                for total, parameter in zip(totals, self.parameters, strict=True):
                    total += parameter
        self.progress.advance(count, elbo=sum(values) / count)
        return values, [total / count for total in totals]

    def step(self) -> float:
        """One step of Adam; noise that is not finite is drawn again, at a lower rate."""
        taken = self.steps
        if self.interrupt:
            raise _Unsettled(f"interrupted after {taken} steps")
        if taken >= self.schedule.max_steps:
            raise _Unsettled(
                f"the ELBO was still rising, or too noisy to tell, after {taken} steps (max_steps)"
            )
        for _ in range(_PATIENCE):
            gradients, value = self.objective()
            if math.isfinite(value) and _finite(gradients):
                self.adam.step(gradients, self.rate)
                self.steps += 1
                return value
            self.rate *= 0.8
        raise _Unsettled(
            f"the ELBO or its gradient was not finite {_PATIENCE} times in a row at step "
            f"{taken}: a smaller learning_rate may help"
        )

    def difference(self, here: Sequence[Tensor], there: Sequence[Tensor]) -> tuple[float, float]:
        return difference(self.evaluate, self.parameters, here, there)


@torch.no_grad()
def difference(
    evaluate: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    here: Sequence[Tensor],
    there: Sequence[Tensor],
) -> tuple[float, float]:
    """Objective at `here` less that at `there`, and its standard error, nats.

    Both are evaluated with the same random numbers; the parameters stay as they are.
    """
    now = copied(parameters)
    assign(parameters, here)
    with torch.random.fork_rng(devices=[]):
        new = evaluate()
    assign(parameters, there)
    old = evaluate()
    assign(parameters, now)
    change = new - old
    change = change[torch.isfinite(change)]
    if len(change) < 2:
        return -math.inf, 0.0
    return float(change.mean()), float(change.std()) / math.sqrt(len(change))


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


def _finite(gradients: Sequence[Tensor | None]) -> bool:
    return all(g is None or bool(torch.isfinite(g).all()) for g in gradients)


def copied(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Their values as they are now."""
    return [p.detach().clone() for p in parameters]


def assign(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Give the parameters these values."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
