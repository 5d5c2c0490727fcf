r"""L-BFGS on many points at once, in lock-step: one call of the target gives each its trial point.

The last m differences of positions `s` and of descent gradients `y` of a climb are its model of
the curvature. Every climb has a step length and a history of its own; a trial that does not rise
enough leaves the point where it is, and the next one is shorter.

References:
    | Numerical Optimization (Nocedal & Wright, 2006), section 7.2
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.inference import hmc
from ppgen.inference.hmc import ValueAndGrad

_SUFFICIENT = 1e-4  # Armijo's constant
_TOO_STEEP = 0.9  # a slope that fell by less asks for a longer step (Wolfe)
_SHORTEST = 1e-12  # a step length at which the model of the curvature is taken to be wrong


class State(NamedTuple):
    """What the next step needs."""

    at: hmc.State  # points ``z (C, D)`` with log density and gradient
    moves: Tensor  # differences of positions, oldest first, (m, C, D); zeros where there is none
    turns: Tensor  # differences of descent gradients, (m, C, D)
    direction: Tensor  # of the next trial, (C, D)
    length: Tensor  # of the next trial, in directions, (C,)

    @property
    def curved(self) -> Tensor:
        """Whether anything is known of the curvature, ``(C,)``."""
        return (self.turns[-1] != 0).any(-1)

    @property
    def slope(self) -> Tensor:
        """Derivative of the log density along the direction, ``(C,)``: nats that a step gains.

        Once the curvature is known this is ``g' H g``, with H the inverse of the curvature.
        """
        return (self.at.gradient * self.direction).sum(-1)


class Info(NamedTuple):
    """What a step saw."""

    slope: Tensor  # before it, (C,), nats
    gain: Tensor  # of the trial, (C,), nats; not finite where the trial failed
    moved: Tensor  # the trial was taken, (C,)
    steep: Tensor  # the trial still ascends as steeply, (C,)
    hopeless: Tensor  # the model of the curvature was forgotten, (C,)


def init(at: hmc.State, memory: int) -> State:
    """Nothing known yet: steepest ascent, by a step of length one at most."""
    nothing = at.z.new_zeros(memory, *at.z.shape)
    return State(at, nothing, nothing, _unit(at.gradient), torch.ones_like(at.log_density))


def step(
    state: State, value_and_grad: ValueAndGrad, active: Tensor | None = None
) -> tuple[State, Info]:
    """One trial of every climb; those that are not `active` ``(C,)`` stay where they are."""
    at, direction, length = state.at, state.direction, state.length
    slope, noise = state.slope, torch.finfo(at.z.dtype).eps ** 0.5
    trial = hmc.init(at.z + length.unsqueeze(-1) * direction, value_and_grad)
    gain = trial.log_density - at.log_density
    sound = torch.isfinite(gain) & torch.isfinite(trial.gradient).all(-1)
    moved = sound & (gain >= _SUFFICIENT * length * slope)
    moved = moved if active is None else moved & active
    steep = (trial.gradient * direction).sum(-1) > _TOO_STEEP * slope

    move, turn = trial.z - at.z, at.gradient - trial.gradient
    # A smaller change of the slope is rounding, and no curvature to learn from.
    curved = moved & ((move * turn).sum(-1) > noise * length * slope)
    hopeless = ~moved & (length < _SHORTEST)
    forgotten = hopeless.unsqueeze(-1)
    moves = torch.where(forgotten, 0.0, _append(state.moves, move, curved))
    turns = torch.where(forgotten, 0.0, _append(state.turns, turn, curved))

    at = choose(moved, trial, at)
    length = torch.where(moved, torch.where(steep, 2.0 * length, 1.0), 0.25 * length)
    length = torch.where(hopeless, 1.0, length)
    newton = _newton(at.gradient, moves, turns)
    direction = torch.where((moved | hopeless).unsqueeze(-1), newton, direction)
    return (
        State(at, moves, turns, direction, length),
        Info(slope, gain, moved, steep, hopeless),
    )


def choose(where: Tensor, yes: hmc.State, no: hmc.State) -> hmc.State:
    """Row by row, `yes` where ``where (C,)``, else `no`."""
    row = where.unsqueeze(-1)
    return hmc.State(
        torch.where(row, yes.z, no.z),
        torch.where(where, yes.log_density, no.log_density),
        torch.where(row, yes.gradient, no.gradient),
    )


def _newton(gradient: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
    """Two-loop recursion; pairs of zeros are skipped. ``(C, D)``, ``(m, C, D)`` -> ``(C, D)``."""
    products = (moves * turns).sum(-1)
    inverse = torch.where(products > 0, 1.0 / products.clamp(min=1e-300), 0.0)
    q, steps = gradient, []
    for k in reversed(range(len(moves))):
        step = inverse[k] * (moves[k] * q).sum(-1)
        q = q - step.unsqueeze(-1) * turns[k]
        steps.append(step)
    known = products[-1] > 0
    size = products[-1] / turns[-1].square().sum(-1).clamp(min=1e-300)
    q = torch.where(known.unsqueeze(-1), size.unsqueeze(-1) * q, _unit(q))
    for k, step in zip(range(len(moves)), reversed(steps), strict=True):
        back = inverse[k] * (turns[k] * q).sum(-1)
        q = q + (step - back).unsqueeze(-1) * moves[k]
    # Rounding can spoil the direction; steepest ascent never is.
    ascends = torch.isfinite(q).all(-1) & ((q * gradient).sum(-1) > 0)
    return torch.where(ascends.unsqueeze(-1), q, _unit(gradient))


def _unit(gradient: Tensor) -> Tensor:
    norm = gradient.norm(dim=-1, keepdim=True)
    return gradient / norm.clamp(min=1.0)


def _append(history: Tensor, entry: Tensor, where: Tensor) -> Tensor:
    shifted = torch.cat([history[1:], entry.unsqueeze(0)])
    return torch.where(where.unsqueeze(-1), shifted, history)
