r"""Annealed importance sampling of log Z from both sides.

Between a base of independent units with biases ``a0`` and the machine stand

.. math:: \log p^*_\beta(x) = ((1-\beta) a_0 + \beta a)^\top x
          + \sum_j \operatorname{softplus}(\beta (b_j + (W^\top x)_j))

with ``log Z_0 = sum softplus(a0) + H log 2``; visible units that are not binary have natural
parameters and statistics in the place of a and x, and their log normaliser in log Z_0; hidden units
that are not have theirs in the place of softplus, their ``h^2 / 2`` left as it is. A forward pass
starts at exact draws from the base: its estimate of Z is unbiased, so the estimate of log Z is
low on average. A reverse pass starts at draws from the machine: its estimate of 1 / Z is unbiased,
so that of log Z is high.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ppgen.inference.gibbs import require_sides
from ppgen.progress import Progress
from ppgen.threads import LITTLE, one_thread_if
from ppgen.types import BoltzmannMachine

Schedule = int | Sequence[float] | Tensor  # a number of steps, or the betas themselves


@dataclass(frozen=True)
class LogPartition:
    """Log Z in nats, between two stochastic bounds that hold on average.

    Args:
        lower: forward AIS; the point estimate of log Z, below it on average.
        lower_error: its standard error.
        upper: reverse AIS; above log Z on average if `exact`, else only nominally so.
        upper_error: its standard error.
        effective_chains: ``(sum w)^2 / sum w^2`` of the forward pass.
        chains: number of chains of each pass.
        temperatures: number of transitions of each pass.
        base: what the forward pass starts from, in words.
        exact: whether the reverse pass started at exact draws from the machine; else it started
            at the end of long chains, and the upper bound holds only as far as those have mixed.
    """

    lower: float
    lower_error: float
    upper: float
    upper_error: float
    effective_chains: float
    chains: int
    temperatures: int
    base: str
    exact: bool

    def __str__(self) -> str:
        return (
            f"log Z between {self.lower:.2f} +- {self.lower_error:.2f} and {self.upper:.2f} +- "
            f"{self.upper_error:.2f} nats ({self.text})"
        )

    @property
    def text(self) -> str:
        """How it was computed."""
        return (
            f"AIS, {self.chains} chains ({self.effective_chains:.0f} effective), "
            f"{self.temperatures} temperatures, base: {self.base}, reverse pass from "
            + ("exact draws" if self.exact else "long chains (nominal)")
        )


@torch.no_grad()
def annealed_importance_sampling(
    machine: BoltzmannMachine,
    *,
    chains: int = 100,
    temperatures: Schedule = 1000,
    base: Tensor | None = None,
    base_name: str = "given biases",
    burn_in: int = 1000,
    seed: int | None = None,
) -> LogPartition:
    """Bracket log Z by a forward and a reverse pass.

    Args:
        machine: a bipartite machine.
        chains: number of independent chains of each pass.
        temperatures: number of equal steps of beta, or the betas themselves: increasing, from 0
            to 1 exactly.
        base: biases ``a0`` of the visible side, ``(D,)`` (natural parameters of units that are not
            binary); if None uniform, or for real units the machine's own biases. Log-odds of the
            data's base rates bring the two bounds much closer.
        base_name: what `base` is, for the result's text.
        burn_in: Gibbs sweeps before the reverse pass where exact draws are out of reach.
        seed: for this call alone; torch's global generator if None.

    References:
        | Annealed importance sampling (Neal, 2001)
        | On the quantitative analysis of deep belief networks (Salakhutdinov, Murray, 2008)
        | Sandwiching the marginal likelihood using bidirectional Monte Carlo
          (Grosse, Ghahramani, Adams, 2015)
    """
    require_sides(machine)
    betas = schedule(temperatures)
    if chains < 2:
        raise ValueError(f"chains: expected at least 2 (for a standard error), got {chains}")
    if burn_in < 0:
        raise ValueError(f"burn_in: expected 0 or more, got {burn_in}")
    uniform = "uniform" if machine.units.support.is_discrete else "own biases"
    name = uniform if base is None else base_name
    base = base_biases(machine, base)
    exact = machine.marginal().enumerable
    total = 2 * (len(betas) - 1) + (0 if exact else burn_in)
    numbers = machine.weight.numel() + chains * sum(machine.weight.shape)
    with (
        torch.random.fork_rng(enabled=seed is not None),
        one_thread_if(numbers < LITTLE),
        Progress("AIS", total) as progress,
    ):
        if seed is not None:
            torch.manual_seed(seed)
        forward, side = forward_pass(machine, base, betas, chains, progress)
        if exact:
            side = machine.marginal().sample(torch.Size([chains]))
        else:
            side = side[torch.multinomial(torch.softmax(forward, 0), chains, replacement=True)]
            for _ in range(burn_in):
                side = machine.sweep(side)
                progress.advance()
        reverse = reverse_pass(machine, base, betas, side, progress)
    log_base = base_log_partition(machine, base)
    lower, lower_error = _log_mean_exp(forward)
    upper, upper_error = _log_mean_exp(-reverse)
    weights = torch.softmax(forward, 0)
    return LogPartition(
        lower=log_base + lower,
        lower_error=lower_error,
        upper=log_base - upper,
        upper_error=upper_error,
        effective_chains=1 / weights.square().sum().item(),
        chains=chains,
        temperatures=len(betas) - 1,
        base=name,
        exact=exact,
    )


def base_biases(machine: BoltzmannMachine, base: Tensor | None) -> Tensor:
    """Natural parameters of the base, ``(M,)``, as given or uniform; refused if they do not fit.

    Where the units have no uniform law, the machine's own with all hidden units off.
    """
    bias = machine.visible_natural()
    if base is None:
        return torch.zeros_like(bias) if machine.units.support.is_discrete else bias.detach()
    base = base.to(bias)
    normal = machine.units.log_normaliser(base) if base.shape == bias.shape else base
    if base.shape != bias.shape or not (base.isfinite().all() and normal.isfinite().all()):
        raise ValueError(
            f"base: expected {len(bias)} finite biases, one for each visible unit (or the natural "
            f"parameters of a law of such units), got shape {tuple(base.shape)}"
        )
    return base


def base_log_partition(machine: BoltzmannMachine, base: Tensor) -> float:
    """``log Z_0`` of the base, nats."""
    hidden = torch.zeros_like(machine.hidden_bias, dtype=torch.float64)
    visible = machine.units.log_normaliser(base.double())
    return (visible + machine.hidden_units.log_normaliser(hidden)).item()


def schedule(temperatures: Schedule) -> list[float]:
    """Betas of a pass, ``temperatures + 1`` of them, from 0 to 1 exactly."""
    if isinstance(temperatures, int):
        if temperatures < 1:
            raise ValueError(f"temperatures: expected at least 1, got {temperatures}")
        return [k / temperatures for k in range(temperatures + 1)]  # no sum, so no drift
    betas = torch.as_tensor(temperatures, dtype=torch.float64).flatten().tolist()
    if len(betas) < 2 or betas[0] != 0 or betas[-1] != 1:
        raise ValueError(
            "temperatures: expected a whole number, or betas that start at 0 and end at exactly 1 "
            f"as torch.linspace(0, 1, K + 1) does, got {betas[:1]} ... {betas[-1:]}"
        )
    if any(later <= earlier for earlier, later in pairwise(betas)):
        raise ValueError("temperatures: expected betas that increase from each to the next")
    return betas


def forward_pass(
    machine: BoltzmannMachine, base: Tensor, betas: list[float], chains: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Log weights (float64) and final visible sides of chains that start at the base."""
    side = machine.units.sample(base.expand(chains, -1).clone())
    log_weights = side.new_zeros(chains, dtype=torch.float64)
    for previous, current in pairwise(betas):
        logits = machine.hidden_logits(side)
        log_weights += increment(machine, base, side, logits, previous, current)  # then move
        side = move(machine, base, logits, current)
        progress.advance()
    return log_weights, side


def reverse_pass(
    machine: BoltzmannMachine, base: Tensor, betas: list[float], side: Tensor, progress: Progress
) -> Tensor:
    """Log weights (float64) of chains that start at draws from the machine.

    Alternating the sides is reversible on one of them, so the transitions are the forward ones.
    """
    log_weights = side.new_zeros(len(side), dtype=torch.float64)
    logits = machine.hidden_logits(side)
    for current, previous in pairwise(reversed(betas)):
        side = move(machine, base, logits, current)  # move, then weight
        logits = machine.hidden_logits(side)
        log_weights += increment(machine, base, side, logits, previous, current)
        progress.advance()
    return log_weights


def increment(
    machine: BoltzmannMachine,
    base: Tensor,
    side: Tensor,
    logits: Tensor,
    previous: float,
    current: float,
) -> Tensor:
    """``log p*_current(side) - log p*_previous(side)``, ``(chains,)``, float64."""
    linear = machine.units.statistics(side) @ (machine.visible_natural() - base)
    return (current - previous) * linear.double() + machine.hidden_units.change(
        logits, previous, current
    )


def move(machine: BoltzmannMachine, base: Tensor, logits: Tensor, beta: float | Tensor) -> Tensor:
    """One block Gibbs update of the visible side that leaves ``p_beta`` invariant.

    `logits` are the hidden side's given the state that is updated; `beta` broadcasts with them.
    """
    hidden = machine.hidden_units.sample(beta * logits)
    return machine.units.sample(torch.lerp(base, machine.visible_natural(hidden), beta))


def _log_mean_exp(log_weights: Tensor) -> tuple[float, float]:
    """Log of the mean weight and its standard error (delta method)."""
    top = log_weights.max()
    weights = (log_weights - top).exp()
    error = weights.std() / weights.mean() / math.sqrt(len(weights))
    return (top + weights.mean().log()).item(), error.item()
