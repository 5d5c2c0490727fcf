r"""Bennett's acceptance ratio: log Z from draws along a ladder, from both sides of each step.

Between the unnormalised laws ``p*_k`` and ``p*_{k+1}`` of neighbouring rungs, with as many draws of
each, the estimate of ``Delta = log Z_{k+1} - log Z_k`` of least variance solves

.. math:: \sum_{s \sim p_k} \sigma(r(s) - \Delta) = \sum_{s \sim p_{k+1}} \sigma(\Delta - r(s)),
          \qquad r = \log p^*_{k+1} - \log p^*_k

The steps add up from a first rung of known log Z. A sampler that swaps along the ladder has these
draws anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.inference.ladder import LadderKernel
from ppgen.progress import Progress


@dataclass(frozen=True)
class BennettEstimate:
    """Log Z in nats; consistent as the draws grow, and a bound of neither kind.

    Args:
        value: the estimate.
        error: its standard error, from the spread of the chains, which are independent.
        steps: the differences of log Z from rung to rung.
        acceptance: share of accepted swaps between neighbours; where one is near zero, the two do
            not overlap and neither `value` nor `error` can be trusted.
        chains: independent ladders.
        draws: states of each replica.
    """

    value: float
    error: float
    steps: tuple[float, ...]
    acceptance: tuple[float, ...]
    chains: int
    draws: int

    def __str__(self) -> str:
        return (
            f"log Z about {self.value:.2f} +- {self.error:.2f} nats (Bennett's ratio along "
            f"{len(self.steps) + 1} rungs, {self.chains} chains x {self.draws} draws, at least "
            f"{min(self.acceptance):.0%} of the swaps accepted; no bound)"
        )


@torch.no_grad()
def ladder_log_partition(
    kernel: LadderKernel, *, draws: int = 200, warmup: int = 100, seed: int | None = None
) -> BennettEstimate:
    """Log Z of the last rung of a tempering kernel.

    Args:
        kernel: goes on from where it stands, as after a run of ``pyro.infer.MCMC``.
        draws: states of each replica that count.
        warmup: steps before.
        seed: for this call alone; torch's global generator if None.

    Raises:
        ValueError: for a kernel of one chain, or with clamped units, whose sum is no log Z.

    References:
        | Efficient estimation of free energy differences from Monte Carlo data (Bennett, 1976)

    Example:
        >>> from ppgen.inference import ParallelTempering; from ppgen.models.rbm import RBM
        >>> rbm = RBM(6, 4, weight_scale=0.0)
        >>> kernel = ParallelTempering(rbm, start=torch.zeros(20, 6), temperatures=2)
        >>> round(ladder_log_partition(kernel, draws=5, warmup=1).value, 4)  # 10 log 2
        6.9315
    """
    for name, number, least in (("draws", draws, 1), ("warmup", warmup, 0)):
        if number < least:
            raise ValueError(f"{name}: expected at least {least}, got {number}")
    if kernel.clamp is not None:
        raise ValueError("kernel: its units are clamped, and log Z sums over all of them")
    params = kernel.initial_params
    chains = len(next(iter(params.values())))
    if chains < 2:
        raise ValueError(f"kernel: expected at least 2 chains (for a standard error), got {chains}")
    ratios = []
    with (
        torch.random.fork_rng(enabled=seed is not None),
        Progress("tempering", warmup + draws) as progress,
    ):
        if seed is not None:
            torch.manual_seed(seed)
        for k in range(warmup + draws):
            params = kernel.sample(params)
            progress.advance()
            if k >= warmup:
                ratios.append(kernel.log_ratios())
    steps, errors = bennett(torch.stack(ratios, -1))
    influence = errors.sum(0)
    return BennettEstimate(
        value=kernel.base_log_partition() + steps.sum().item(),
        error=(chains / (chains - 1) * influence.square().sum()).sqrt().item(),
        steps=tuple(steps.tolist()),
        acceptance=tuple(kernel.diagnostics()["swap acceptance"]),
        chains=chains,
        draws=draws,
    )


def bennett(ratios: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of log Z, ``(rungs - 1,)``, and what each chain adds to their errors.

    Args:
        ratios: ``r`` at draws of both rungs, ``(rungs - 1, 2, chains, draws)``.

    Returns:
        The differences, and influences ``(rungs - 1, chains)`` whose sum over chains is zero and
        whose sum of squares is their variance.
    """
    early, late = ratios.double().unbind(1)
    low, high = ratios.amin((1, 2, 3)).double(), ratios.amax((1, 2, 3)).double()
    for _ in range(60):  # the balance falls in Delta: bisection, to 2^-60 of the range
        middle = (low + high) / 2
        balance = _balance(early, late, middle).sum(1)
        low, high = torch.where(balance > 0, middle, low), torch.where(balance > 0, high, middle)
    delta = (low + high) / 2
    share = (ratios.double().flatten(1) - delta[:, None]).sigmoid()
    slope = (share * (1 - share)).sum(1)
    return delta, _balance(early, late, delta) / slope[:, None]


def _balance(early: Tensor, late: Tensor, delta: Tensor) -> Tensor:
    """Left minus right of the equation, of each chain: ``(rungs - 1, chains)``."""
    shift = delta[:, None, None]
    return ((early - shift).sigmoid() - (shift - late).sigmoid()).sum(-1)
