r"""Hamiltonian Monte Carlo on many chains at once.

The state of all chains is one tensor ``(C, D)``; one call gives every chain's log density and
gradient. The kinetic energy is :math:`\tfrac12 p^T M^{-1} p` with :math:`M^{-1} = L L^T`; momenta
are kept whitened, :math:`r = L^T p \sim N(0, I)`, so that a diagonal and a dense metric run
through the same few lines:

.. math:: r \leftarrow r + \tfrac{\epsilon}{2} L^T \nabla \log p(z), \quad
          z \leftarrow z + \epsilon L r, \quad
          r \leftarrow r + \tfrac{\epsilon}{2} L^T \nabla \log p(z)

References:
    | MCMC using Hamiltonian dynamics (Neal, 2011) | https://arxiv.org/abs/1206.1901
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``z (C, D)`` -> log density ``(C,)`` in nats and its gradient ``(C, D)``.

It may have a method ``slope_like``, which gives for some ``z`` the function from its like to the
gradient: a trajectory needs the value at its end alone; one, ``trajectory``, that runs it as a
whole (`compiled_trajectory.CompiledTarget`); and one, ``value``, ``z -> log density``: an estimate
of an ELBO needs no gradient.
"""

Onward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""A leapfrog that is not the last: positions and momenta ``(C, D)`` to those after it."""

DIVERGENCE = 1000.0  # nats of energy error beyond which a trajectory counts as divergent


class State(NamedTuple):
    """What the next step needs; the three belong together, so that rejection is a `where`."""

    z: Tensor  # positions, (C, D)
    log_density: Tensor  # at z, (C,), nats
    gradient: Tensor  # of the log density at z, (C, D)


class Info(NamedTuple):
    """What a caller may log or adapt to."""

    acceptance: Tensor  # probability min(1, exp(-energy_error)), (C,); 0 where not finite
    accepted: Tensor  # (C,), bool
    energy: Tensor  # of the state that the step returns, with its momentum, (C,), nats
    energy_error: Tensor  # of the proposal, (C,), nats; infinite where not finite
    diverging: Tensor  # (C,), bool
    proposal: Tensor  # end of the trajectory, accepted or not, (C, D)
    momentum: Tensor  # whitened momentum at that end, before the flip, (C, D)


class Metric(NamedTuple):
    """Inverse mass matrix ``L L^T``: an estimate of the target's covariance."""

    factor: Tensor  # L: its diagonal, (D,), or lower triangular, (D, D)

    @property
    def dense(self) -> bool:
        """Whether `factor` is a matrix."""
        return self.factor.ndim == 2

    def push(self, r: Tensor) -> Tensor:
        """Whitened vectors to positions: ``L r``, ``(..., D)``."""
        return r @ self.factor.mT if self.dense else r * self.factor

    def pull(self, gradient: Tensor) -> Tensor:
        """Gradients to whitened coordinates: ``L^T g``, ``(..., D)``."""
        return gradient @ self.factor if self.dense else gradient * self.factor

    def whiten(self, x: Tensor) -> Tensor:
        """Positions (differences) to whitened vectors: ``L^{-1} x``, ``(N, D)``."""
        if not self.dense:
            return x / self.factor
        return torch.linalg.solve_triangular(self.factor, x.mT, upper=False).mT

    @property
    def log_det(self) -> Tensor:
        """Log |det L|, nats."""
        return (self.factor.diagonal() if self.dense else self.factor).log().sum()

    def inside(self, value_and_grad: ValueAndGrad) -> ValueAndGrad:
        """The target in whitened coordinates ``r``, ``z = L r``, with its Jacobian."""
        return _Whitened(value_and_grad, self)


class _Whitened:
    def __init__(self, value_and_grad: ValueAndGrad, metric: Metric) -> None:
        self.function, self.metric = value_and_grad, metric

    def __call__(self, r: Tensor) -> tuple[Tensor, Tensor]:
        log_density, gradient = self.function(self.metric.push(r))
        return log_density + self.metric.log_det, self.metric.pull(gradient)

    def value(self, r: Tensor) -> Tensor:
        return value(self.function, self.metric.push(r)) + self.metric.log_det


def value(value_and_grad: ValueAndGrad, z: Tensor) -> Tensor:
    """Log densities ``(C,)`` at ``z (C, D)``, without gradients where the target can."""
    alone = getattr(value_and_grad, "value", None)
    return value_and_grad(z)[0] if alone is None else alone(z)


def init(z: Tensor, value_and_grad: ValueAndGrad) -> State:
    """State at the positions ``z (C, D)``."""
    return State(z, *value_and_grad(z))


def leapfrog(
    state: State,
    momentum: Tensor,
    *,
    value_and_grad: ValueAndGrad,
    metric: Metric,
    step_size: float,
    leapfrogs: int,
) -> tuple[State, Tensor]:
    """Trajectory of `leapfrogs` steps; neighbouring half kicks are merged.

    Returns: the state at its end and the whitened momentum there, ``(C, D)``, not flipped.
    """
    whole = getattr(value_and_grad, "trajectory", lambda *_: None)
    z, r, gradient = state.z, momentum, state.gradient
    scaled = step_size * metric.factor
    found = whole(z, r, gradient, scaled, leapfrogs)
    if found is not None:
        *end, r = found
        return State(*end), r
    slope_like = getattr(value_and_grad, "slope_like", None)
    slope = slope_like(z) if slope_like and leapfrogs > 1 else lambda z: value_and_grad(z)[1]
    *end, r = trajectory(
        z, r, gradient, scaled, leapfrogs - 1, value_and_slope=value_and_grad, slope=slope
    )
    return State(*end), r


def _in_turn(times: int, onward: Onward, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    for _ in range(times):
        z, r = onward(z, r)
    return z, r


def trajectory(
    z: Tensor,
    r: Tensor,
    gradient: Tensor,
    scaled: Tensor,
    inner: Any,
    *,
    value_and_slope: ValueAndGrad,
    slope: Callable[[Tensor], Tensor],
    repeat: Callable[[Any, Onward, Tensor, Tensor], tuple[Tensor, Tensor]] = _in_turn,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``inner + 1`` leapfrogs as a function of tensors, which can be compiled as it stands.

    Args:
        z: positions, ``(C, D)``.
        r: whitened momenta there, ``(C, D)``.
        gradient: of the log density there, ``(C, D)``.
        scaled: the metric's factor times the step size, ``(D,)`` or ``(D, D)``.
        inner: how many steps are not the last, as `repeat` takes it.
        value_and_slope: log density and gradient.
        slope: the gradient alone.
        repeat: applies a step to ``z`` and ``r`` as often as `inner` says.

    Returns: position, log density, gradient and momentum at its end.
    """
    dense = scaled.ndim == 2
    add = torch.addmm if dense else torch.addcmul

    def drift(z: Tensor, r: Tensor) -> Tensor:
        # t(), not mT: an attribute would enter a compiled loop as an input of the same memory
        return add(z, r, scaled.t() if dense else scaled)

    def onward(z: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        r = add(r, slope(z), scaled)
        return drift(z, r), r

    r = add(r, 0.5 * gradient, scaled)
    z, r = repeat(inner, onward, drift(z, r), r)
    log_density, gradient = value_and_slope(z)
    return z, log_density, gradient, add(r, 0.5 * gradient, scaled)


def step(
    state: State,
    *,
    value_and_grad: ValueAndGrad,
    metric: Metric,
    step_size: float,
    leapfrogs: int,
) -> tuple[State, Info]:
    """One transition of every chain: fresh momentum, a trajectory, accept or reject.

    A proposal whose energy or gradient is not finite is rejected and counts as divergent.
    """
    start = torch.randn_like(state.z)
    proposal, end = leapfrog(
        state,
        start,
        value_and_grad=value_and_grad,
        metric=metric,
        step_size=step_size,
        leapfrogs=leapfrogs,
    )
    before = 0.5 * start.square().sum(-1) - state.log_density
    after = 0.5 * end.square().sum(-1) - proposal.log_density
    # The last half kick puts a gradient that is not finite into the kinetic energy.
    error = torch.where(torch.isfinite(after), after - before, torch.inf)
    acceptance = torch.exp(-error).clamp(max=1.0)
    accepted = torch.rand_like(acceptance) < acceptance
    moved = accepted.unsqueeze(-1)
    new = State(
        torch.where(moved, proposal.z, state.z),
        torch.where(accepted, proposal.log_density, state.log_density),
        torch.where(moved, proposal.gradient, state.gradient),
    )
    energy = torch.where(accepted, after, before)
    return new, Info(acceptance, accepted, energy, error, error > DIVERGENCE, proposal.z, end)
