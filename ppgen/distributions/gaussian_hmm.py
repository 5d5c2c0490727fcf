r"""Linear state-space models: Pyro's ``GaussianHMM``, scored in few operations.

.. math:: z_t = z_{t-1} F + \epsilon_t, \qquad x_t = z_t G + \eta_t

A step is a quadratic form in :math:`(z_{t-1}, z_t, 1)`, a matrix of 2 H + 1 rows. Two steps in a
row are one: their sum, with the state between them integrated out, which is a Schur complement.
Steps are joined in pairs, pairs of pairs and so on, log2 T times, all pairs of a round at once.
Pyro does the same with six tensors to a step, in several times as many operations.

In a recording the gradient is that of the complete data's density averaged over the states, whose
moments come from one way down the same tree; elsewhere autograd goes back through the way up.

References:
    | Temporal parallelization of Bayesian smoothers (Särkkä & García-Fernández, 2021)
    | https://arxiv.org/abs/1905.13002
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from pyro.ops.gaussian import Gaussian
from torch import Tensor

from ppgen.lean import recording

_LOG_TWO_PI = math.log(2 * math.pi)
_SMALL = 4  # dimensions of a state; beyond, the arithmetic costs more than the operations


class GaussianHMM(dist.GaussianHMM):
    r"""As ``pyro.distributions.GaussianHMM``, with a log density that records in fewer operations.

    Args: as Pyro's: ``initial_dist``, ``transition_matrix`` F, ``transition_dist``,
        ``observation_matrix`` G, ``observation_dist``, ``duration``. The first transition comes
        before the first observation.

    Shapes:
        values are ``(*batch, T, O)``; F is ``(H, H)`` and G ``(H, O)``, or with T in front.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self.hidden_dim > _SMALL:
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        step = self._trans + self._obs.condition(value).event_pad(left=self.hidden_dim)
        return joined(_form(step.expand(step.batch_shape)), _form(self._init), self.hidden_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GaussianHMM:
        return super().expand(batch_shape, self._get_checked_instance(GaussianHMM, _instance))


def joined(steps: Tensor, start: Tensor, hidden: int) -> Tensor:
    r"""Log of the integral of :math:`e^{-Q / 2}` over all states.

    Args:
        steps: quadratic forms Q in ``(z_{t-1}, z_t, 1)``, ``(..., T, 2 H + 1, 2 H + 1)``.
        start: that in ``(z_0, 1)``, ``(..., H + 1, H + 1)``.
        hidden: H.
    """
    steps = _filled(steps, hidden)
    if not recording():
        return _swept(steps, start, hidden).log_integral
    found = _swept(steps.detach(), start.detach(), hidden)
    moments, first = _moments(found, hidden)
    tilt = (moments * steps).sum((-3, -2, -1)) + (first * start).sum((-2, -1))
    return found.log_integral - 0.5 * (tilt - tilt.detach())


class _Sweep(NamedTuple):
    """The way up: pairs of steps, and what was integrated out of them."""

    log_integral: Tensor  # (...)
    forms: list[Tensor]  # of each round, the state between two steps first
    root: Tensor  # form of first state, last state and 1


def _swept(steps: Tensor, start: Tensor, hidden: int) -> _Sweep:
    places = _pair_places(hidden).to(steps)
    states = steps.shape[-3] + 1
    total, forms = 0.5 * hidden * states * _LOG_TWO_PI, []
    while steps.shape[-3] > 1:
        pairs = steps.reshape(*steps.shape[:-3], -1, len(places)) @ places
        forms.append(pairs.unflatten(-1, (3 * hidden + 1,) * 2))
        steps, logs = _integrated(forms[-1], hidden)
        total = total - logs.sum((-2, -1))
    begin = _places(hidden, [0, 2], 2).to(start)
    root = steps.squeeze(-3) + begin.mT @ start @ begin
    rest, logs = _integrated(root, 2 * hidden)
    return _Sweep(total - logs.sum(-1) - 0.5 * rest[..., 0, 0], forms, root)


def _moments(found: _Sweep, hidden: int) -> tuple[Tensor, Tensor]:
    r"""The way down: E[v v'] of each step's :math:`v = (z_{t-1}, z_t, 1)`, and of ``(z_0, 1)``.

    They are minus twice the gradient of the log integral (Fisher's identity), at a third of the
    operations that going back through the way up takes.
    """
    places = _pair_places(hidden).to(found.root)
    begin = _places(hidden, [0, 2], 2).to(found.root)
    whole = _widened(torch.ones_like(found.root[..., :1, :1]), found.root, 2 * hidden)
    first = begin @ whole @ begin.mT
    moments, batch = whole.unsqueeze(-3), whole.shape[:-2]
    for form in reversed(found.forms):
        wide = _widened(moments, form, hidden).flatten(-2)
        moments = (wide @ places.mT).reshape(*batch, -1, 2 * hidden + 1, 2 * hidden + 1)
    return moments, first


def _widened(moments: Tensor, form: Tensor, count: int) -> Tensor:
    """Moments of all variables of a form from those of all but its first `count`."""
    inner, across, _ = _blocks(form, count)
    if count == 1:
        covariance, slope = inner.reciprocal(), across / -inner
        above = (slope.mT * moments).sum(-2, keepdim=True)
        corner = covariance + (above * slope).sum(-1, keepdim=True)
    else:
        covariance = torch.linalg.inv(inner)
        slope = -covariance @ across
        above = slope @ moments
        corner = covariance + above @ slope.mT
    left, right = torch.cat([corner, above.mT], -2), torch.cat([above, moments], -2)
    return torch.cat([left, right], -1)


def _integrated(form: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The form without its first `count` variables, and the logs of their widths' inverses."""
    inner, across, rest = _blocks(form, count)
    if count == 1:
        return rest - across.mT * (across / inner), 0.5 * inner.log().flatten(-2)
    factor = torch.linalg.cholesky(inner)
    white = torch.linalg.solve_triangular(factor, across, upper=False)
    return rest - white.mT @ white, factor.diagonal(dim1=-2, dim2=-1).log()


def _blocks(form: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the first `count` variables, of these and the others, of the others."""
    sizes = [count, form.shape[-1] - count]
    top, bottom = form.split(sizes, -2)
    inner, across = top.split(sizes, -1)
    return inner, across, bottom.split(sizes, -1)[1]


def _form(factor: Gaussian) -> Tensor:
    """The quadratic form of a factor ``exp(c + h z - z P z / 2)``: ``[[P, -h], [-h, -2 c]]``."""
    h, c = factor.info_vec.unsqueeze(-1), factor.log_normalizer[..., None, None]
    batch = broadcast_shape(factor.precision.shape[:-2], h.shape[:-2], c.shape[:-2])
    top = torch.cat([factor.precision.expand(*batch, -1, -1), -h.expand(*batch, -1, -1)], -1)
    bottom = torch.cat([-h.mT.expand(*batch, -1, -1), -2 * c.expand(*batch, -1, -1)], -1)
    return torch.cat([top, bottom], -2)


def _filled(steps: Tensor, hidden: int) -> Tensor:
    """A power of two of them, by steps of a random walk that nobody sees: they integrate to one."""
    length = steps.shape[-3]
    missing = 2 ** (length - 1).bit_length() - length
    if not missing:
        return steps
    unit = torch.eye(hidden).to(steps)
    walk = torch.cat([torch.cat([unit, -unit]), torch.cat([-unit, unit])], 1)
    walk = torch.block_diag(walk, torch.full((1, 1), hidden * _LOG_TWO_PI).to(steps))
    return torch.cat([steps, walk.expand(*steps.shape[:-3], missing, -1, -1)], -3)


def _pair_places(hidden: int) -> Tensor:
    """From two steps, flat, to the form of the state between them, the outer ones and 1, flat."""
    first, second = _places(hidden, [1, 0, 3], 3), _places(hidden, [0, 2, 3], 3)
    return torch.cat([torch.kron(first, first), torch.kron(second, second)])


def _places(hidden: int, blocks: list[int], states: int) -> Tensor:
    """Where the variables of a form, block by block, stand among `states` states and the 1."""
    sizes = [hidden] * states + [1]
    rows = torch.eye(sum(sizes)).split(sizes)
    return torch.cat([rows[block] for block in blocks])
