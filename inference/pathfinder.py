r"""Pathfinder: the normals that lie along the way up to a mode, and the best of them.

A climb by L-BFGS passes through the bulk of the posterior before it reaches a mode, if there is
one. Every iterate with the inverse curvature that L-BFGS has learnt there is a normal,

.. math:: q(z) = N(\theta + \Sigma \nabla \log p(\theta), \Sigma)

and the one of the largest ELBO is kept. So a density that rises without limit in a corner of
small mass (a centred hierarchy) does not lead astray, as its mode would. All paths advance
together: one call of the target gives each its trial point.

References:
    | Pathfinder: Parallel quasi-Newton variational inference
    | (Zhang, Carpenter, Gelman & Vehtari, 2022) | https://jmlr.org/papers/v23/21-0889.html
    | Stability of the product form of the BFGS update: Brodlie, Gourlay & Greenstadt (1973)
    | https://doi.org/10.1093/imamat/11.1.73
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.inference import hmc, lbfgs
from ppgen.inference.guides import standard_normal
from ppgen.inference.hmc import ValueAndGrad

_CURVED = 1e12  # |y|^2 / s'y beyond which a pair of differences is left out
_LEAST = 1e-10  # nats: s'y below which a pair of differences is rounding
_TOP = 1e-5  # nats that a further step promises: no better normal is to be found
_FLAT = 1e-14  # the same where no curvature is known, so that the scale may be a thousand times off


class Normals(NamedTuple):
    r"""One normal for each of C paths, ``z = mean + F noise``.

    .. math:: F = (I - s_m v_m^T) \cdots (I - s_1 v_1^T) \, \mathrm{diag}(\sigma)

    With :math:`v_k = \rho_k y_k - \sqrt{\rho_k / s_k^T B s_k} \, B s_k` and
    :math:`\rho_k = 1 / s_k^T y_k`, B the inverse of the covariance so far, each factor is one
    BFGS update: positive definite by construction, at a cost of m D.
    """

    mean: Tensor  # (C, D)
    scale: Tensor  # sigma, (C, D)
    moves: Tensor  # s, (m, C, D)
    turns: Tensor  # v, (m, C, D); zero where there is no update
    log_det: Tensor  # log |det F|, (C,)

    def push(self, noise: Tensor) -> Tensor:
        """Standard normal noise to draws, ``(..., C, D)``."""
        return self.mean + _forward(self.scale * noise, self.moves, self.turns)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log densities ``(..., C)`` of points ``(..., C, D)``, nats."""
        noise = _backward(z - self.mean, self.moves, self.turns) / self.scale
        return standard_normal(noise) - self.log_det

    def wider(self, factor: float) -> Normals:
        """With standard deviations that many times as large."""
        more = self.mean.shape[-1] * math.log(factor)
        return self._replace(scale=factor * self.scale, log_det=self.log_det + more)

    def rows(self, which: Tensor) -> Normals:
        """Those of some paths only; `which` are their numbers."""
        return Normals(
            self.mean[which],
            self.scale[which],
            self.moves[:, which],
            self.turns[:, which],
            self.log_det[which],
        )


class Paths(NamedTuple):
    """Where the climbs are, and the best normal that each has passed."""

    climb: lbfgs.State
    diagonal: Tensor  # of the inverse curvature to start L-BFGS's updates from, (C, D)
    best: Normals
    elbo: Tensor  # of `best`, (C,), nats; -inf where there is none yet
    at: Tensor  # where `best` was met, (C, D)
    idle: Tensor  # iterations since the ELBO rose, (C,)


def init(z: Tensor, value_and_grad: ValueAndGrad, noise: Tensor, *, memory: int) -> Paths:
    """Paths that start at ``z (C, D)``; the first normal of each has unit covariance."""
    climb = lbfgs.init(hmc.init(z, value_and_grad), memory)
    one = torch.ones_like(z)
    best = normals(climb, one)
    elbo = elbos(best, value_and_grad, noise)
    return Paths(climb, one, best, elbo, z, torch.zeros_like(elbo))


def search(
    z: Tensor,
    value_and_grad: ValueAndGrad,
    noise: Tensor,
    *,
    iterations: int = 100,
    patience: int = 5,
    memory: int = 6,
) -> Paths:
    """The best normal on the way up from each start ``z (C, D)``.

    A path ends at the top, or once `patience` iterates have not raised its ELBO.

    Args:
        z: starts of finite log density.
        value_and_grad: of the target; called with ``(C, D)`` and with ``(K C, D)``.
        noise: standard normal, ``(K, C, D)``; the same for every iterate, so that their ELBOs
            differ by less than their errors.
        iterations: of L-BFGS, at most.
        patience: iterates.
        memory: pairs of differences that the curvature is made of.
    """
    paths = init(z, value_and_grad, noise, memory=memory)
    for _ in range(iterations):
        least = torch.where(paths.climb.curved, _TOP, _FLAT)
        active = (paths.climb.slope > least) & (paths.idle < patience)
        if not bool(active.any()):
            break
        paths = step(paths, value_and_grad, noise, active)
    return paths


def step(paths: Paths, value_and_grad: ValueAndGrad, noise: Tensor, active: Tensor) -> Paths:
    """One trial of every `active` climb ``(C,)``, and the ELBO of the normals where it led."""
    before = paths.climb.turns[-1]
    climb, info = lbfgs.step(paths.climb, value_and_grad, active)
    learnt = info.moved & (climb.turns[-1] != before).any(-1)
    diagonal = torch.where(
        learnt.unsqueeze(-1),
        _diagonal(paths.diagonal, climb.moves[-1], climb.turns[-1]),
        paths.diagonal,
    )
    found = normals(climb, diagonal)
    elbo = elbos(found, value_and_grad, noise)
    better = info.moved & (elbo > paths.elbo)
    return Paths(
        climb,
        diagonal,
        _choose(better, found, paths.best),
        torch.where(better, elbo, paths.elbo),
        torch.where(better.unsqueeze(-1), climb.at.z, paths.at),
        torch.where(better, 0.0, paths.idle + info.moved.to(elbo)),
    )


def elbos(found: Normals, value_and_grad: ValueAndGrad, noise: Tensor) -> Tensor:
    """ELBO of each normal from standard normal `noise`, ``(K, C, D) -> (C,)``, nats."""
    z = found.push(noise)
    values = hmc.value(value_and_grad, z.flatten(0, 1)).reshape(z.shape[:-1])
    elbo = (values - standard_normal(noise)).mean(0) + found.log_det
    return elbo.nan_to_num(nan=-torch.inf, posinf=-torch.inf)


def normals(climb: lbfgs.State, diagonal: Tensor) -> Normals:
    """The normal of every climb's present place."""
    at, moves = climb.at, climb.moves
    scale = diagonal.sqrt()
    turns = torch.zeros_like(climb.turns)
    log_det = scale.log().sum(-1)
    for k in range(len(moves)):
        s, y = moves[k], climb.turns[k]
        product = (s * y).sum(-1, keepdim=True)
        usable = _usable(product, y)
        rho = torch.where(usable, 1.0 / product.clamp(min=1e-300), 0.0)
        white = _backward(s, moves[:k], turns[:k]) / scale
        curvature = white.square().sum(-1, keepdim=True)  # s' B s
        root = torch.where(usable, (rho / curvature.clamp(min=1e-300)).sqrt(), 0.0)
        turns[k] = rho * y - root * _backward_transposed(white / scale, moves[:k], turns[:k])
        stretched = torch.where(usable, 0.5 * (rho * curvature).log(), 0.0)
        log_det = log_det + stretched.squeeze(-1)
    pulled = scale * _forward_transposed(at.gradient, moves, turns)
    mean = at.z + _forward(scale * pulled, moves, turns)
    return Normals(mean, scale, moves, turns, log_det)


def _forward(x: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
    """``(I - s_m v_m') ... (I - s_1 v_1') x``."""
    for s, v in zip(moves, turns, strict=True):
        x = x - s * (v * x).sum(-1, keepdim=True)
    return x


def _forward_transposed(x: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
    for s, v in zip(reversed(moves), reversed(turns), strict=True):
        x = x - v * (s * x).sum(-1, keepdim=True)
    return x


def _backward(x: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
    """The inverse of `_forward`, by Sherman and Morrison."""
    for s, v in zip(reversed(moves), reversed(turns), strict=True):
        x = x + s * (v * x).sum(-1, keepdim=True) / (1.0 - (v * s).sum(-1, keepdim=True))
    return x


def _backward_transposed(x: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
    for s, v in zip(moves, turns, strict=True):
        x = x + v * (s * x).sum(-1, keepdim=True) / (1.0 - (v * s).sum(-1, keepdim=True))
    return x


def _diagonal(alpha: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """Gilbert and Lemarechal's diagonal update of the inverse curvature, ``(C, D)``."""
    a = (y * alpha * y).sum(-1, keepdim=True)
    b = (y * s).sum(-1, keepdim=True)
    c = (s * s / alpha).sum(-1, keepdim=True)
    updated = b / (a / alpha + y.square() - (a / c) * (s / alpha).square())
    good = _usable(b, y) & (torch.isfinite(updated) & (updated > 0)).all(-1, keepdim=True)
    return torch.where(good, updated, alpha)


def _usable(product: Tensor, y: Tensor) -> Tensor:
    return (product > _LEAST) & (y.square().sum(-1, keepdim=True) <= _CURVED * product)


def _choose(where: Tensor, yes: Normals, no: Normals) -> Normals:
    row = where.unsqueeze(-1)
    return Normals(
        torch.where(row, yes.mean, no.mean),
        torch.where(row, yes.scale, no.scale),
        torch.where(row, yes.moves, no.moves),
        torch.where(row, yes.turns, no.turns),
        torch.where(where, yes.log_det, no.log_det),
    )
