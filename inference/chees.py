r"""Tuning of many-chain HMC: one step size and one trajectory length for all chains.

The trajectory length ``tau`` climbs the gradient of the ChEES criterion, the change in the
estimator of the expected square, in coordinates whitened by the metric,

.. math:: \tfrac14 E\left[\left(\|x' - \mu'\|^2 - \|x - \mu\|^2\right)^2\right],

where ``x'`` is the proposal, accepted or not. The step size follows dual averaging on the
harmonic mean of the chains' acceptance probabilities, which the slowest chains dominate.

References:
    | An adaptive MCMC scheme for setting trajectory lengths in Hamiltonian Monte Carlo
      (Hoffman, Radul & Sountsov, 2021) | https://proceedings.mlr.press/v130/hoffman21a.html
    | The No-U-Turn sampler (Hoffman & Gelman, 2014), section 3.2 | https://arxiv.org/abs/1111.4246
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.inference.hmc import DIVERGENCE, Info, Metric

_RATE = 0.025  # of the ascent on log tau
_FLOOR = 0.05  # acceptance of one hopeless chain: it must not stop the other chains


def halton(iteration: int, bits: int = 10) -> float:
    """Base-2 Halton sequence in (0, 1): 1/2, 1/4, 3/4, 1/8, ... for iterations 0, 1, 2, 3, ..."""
    return sum(((iteration + 1) >> b & 1) * 0.5 ** (b + 1) for b in range(bits))


def leapfrogs(iteration: int, trajectory: float, step_size: float, *, jitter: float) -> int:
    """Number of steps, the same for every chain: ``u tau / epsilon`` to the nearest, at least 1.

    Rounding up, as the paper does, overshoots by half a step: with the few steps of a well
    scaled target that cost a fifth more gradients for no more effective draws.
    """
    return max(1, round(jittered(iteration, jitter) * trajectory / step_size))


def jittered(iteration: int, jitter: float) -> float:
    """Share ``u`` of the trajectory that this iteration runs: in ``(1 - jitter, 1)``.

    Full jitter (1) spends half of the iterations on trajectories too short to help; none (0)
    resonates with directions whose half period the trajectory happens to hit.
    """
    return 1.0 - jitter + jitter * halton(iteration)


def harmonic_acceptance(info: Info) -> float:
    """Harmonic mean over the chains that did not diverge, times their share."""
    kept = info.acceptance[info.energy_error <= DIVERGENCE].clamp(min=_FLOOR)
    if not len(kept):
        return 0.0
    return float(len(kept) / kept.reciprocal().sum()) * len(kept) / len(info.acceptance)


class StepSize(NamedTuple):
    """Dual averaging of the log step size."""

    log: float  # step size of the next iteration
    log_average: float  # what to freeze
    centre: float  # where the iterates are pulled to
    gap: float  # running mean of target - acceptance
    iteration: int


def start_step_size(step_size: float) -> StepSize:
    """Dual averaging from a first guess."""
    log = math.log(step_size)
    return StepSize(log, log, log + math.log(2.0), 0.0, 0)


def update_step_size(state: StepSize, acceptance: float, target: float) -> StepSize:
    """One iteration of dual averaging (gamma .05, t0 10, kappa .75)."""
    t = state.iteration + 1
    gap = state.gap + (target - acceptance - state.gap) / (t + 10)
    log = state.centre - math.sqrt(t) / 0.05 * gap
    weight = t**-0.75
    average = weight * log + (1 - weight) * state.log_average
    return StepSize(log, average, state.centre, gap, t)


class Trajectory(NamedTuple):
    """Stochastic ascent on the log of the trajectory length (whitened time units)."""

    log: float
    log_average: float  # what to freeze
    second_moment: float  # running mean square of the gradient
    iteration: int


def start_trajectory(length: float) -> Trajectory:
    """Ascent from a first guess."""
    return Trajectory(math.log(length), math.log(length), 0.0, 0)


def criterion_gradient(z: Tensor, info: Info, metric: Metric, share: float) -> float:
    """Derivative of the criterion to ``tau``, averaged over chains by acceptance.

    Args:
        z: positions before the step, ``(C, D)``.
        info: of the step from there.
        metric: in force during the step.
        share: ``u``, the share of ``tau`` that the trajectory ran.
    """
    usable = torch.isfinite(info.proposal).all(-1) & torch.isfinite(info.momentum).all(-1)
    usable = usable & (info.acceptance > 1e-4)
    if not bool(usable.any()):
        return 0.0
    # The proposal, accepted or not: the accepted state would reward rejections.
    weight = info.acceptance[usable]
    end, momentum = info.proposal[usable], info.momentum[usable]
    end_mean = (weight.unsqueeze(-1) * end).sum(0) / weight.sum()
    end = metric.whiten(end - end_mean)
    start = metric.whiten(z - z.mean(0))[usable]
    change = end.square().sum(-1) - start.square().sum(-1)
    gradient = share * change * (end * momentum).sum(-1)
    mean = float((weight * gradient).sum() / (weight.sum() + 1e-20))
    return mean if math.isfinite(mean) else 0.0


def update_trajectory(
    state: Trajectory, gradient: float, *, shortest: float, longest: float
) -> Trajectory:
    """One step of the ascent, in units of the gradient's running root mean square."""
    t = state.iteration + 1
    second = 0.95 * state.second_moment + 0.05 * gradient**2
    scale = math.sqrt(second / (1 - 0.95**t)) + 1e-20
    move = min(max(_RATE * gradient / scale, -0.35), 0.35)
    log = min(max(state.log + move, math.log(shortest)), math.log(longest))
    weight = t**-0.5
    average = weight * log + (1 - weight) * state.log_average
    return Trajectory(log, average, second, t)
