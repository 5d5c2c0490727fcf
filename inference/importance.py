"""A normal that importance sampling draws from, its weights, and the moments under them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen import diagnostics
from ppgen.inference.guides import standard_normal
from ppgen.inference.mode import Batched

_FREEDOM, _SHARE = 4.0, 0.2  # of the Student-t part that keeps the weights bounded
_EFFICIENT = 0.1  # IS-ESS/S below which weights are tempered


class Normal(NamedTuple):
    """A normal by its mean ``(D,)`` and the Cholesky factor of its covariance ``(D, D)``."""

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> Normal:
        unit = covariance.diagonal().sqrt()  # scales that differ by 1e6 cost no digits
        return cls(mean, unit[:, None] * torch.linalg.cholesky(covariance / unit / unit[:, None]))

    def push(self, noise: Tensor) -> Tensor:
        return self.mean + noise @ self.factor.mT

    def whiten(self, z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, (z - self.mean).mT, upper=False).mT

    @property
    def log_det(self) -> Tensor:
        return self.factor.diagonal().log().sum()

    def log_prob(self, z: Tensor) -> Tensor:
        return standard_normal(self.whiten(z)) - self.log_det

    def log_student(self, z: Tensor) -> Tensor:
        """Log density of the multivariate t of the same location and scale."""
        dim, half = len(self.mean), 0.5 * (_FREEDOM + len(self.mean))
        constant = math.lgamma(half) - math.lgamma(0.5 * _FREEDOM)
        constant -= 0.5 * dim * math.log(_FREEDOM * math.pi)
        square = self.whiten(z).square().sum(-1)
        return constant - self.log_det - half * torch.log1p(square / _FREEDOM)


class Sample(NamedTuple):
    """Draws of a proposal with their weights."""

    z: Tensor  # (S, D)
    log_density: Tensor  # log p(data, z), (S,), nats
    log_weights: Tensor  # log p(data, z) - log r(z); -infinity where it cannot be computed


def draw(normal: Normal, function: Batched, count: int) -> Sample:
    """From the normal with its Student-t part (a defensive mixture, Hesterberg 1995)."""
    noise = torch.randn(count, len(normal.mean)).to(normal.mean)
    heavy = torch.rand(count, 1).to(noise) < _SHARE
    chi2 = 2 * torch.distributions.Gamma(0.5 * _FREEDOM, 1.0).sample((count, 1)).to(noise)
    z = normal.push(torch.where(heavy, noise * (_FREEDOM / chi2).sqrt(), noise))
    log_proposal = torch.logaddexp(
        normal.log_prob(z) + math.log(1 - _SHARE), normal.log_student(z) + math.log(_SHARE)
    )
    value = function.value(z)
    weights = (value - log_proposal).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    if not bool(torch.isfinite(weights).any()):
        raise ValueError(
            "ForwardKL: the log density is finite at none of the draws of the proposal; check the "
            "data against the supports, or use HMC"
        )
    return Sample(z, value, weights)


def temper(log_weights: Tensor) -> tuple[float, Tensor]:
    """The largest power up to 1 at which the weights are worth a tenth of the draws.

    Returns:
        The power, and the smoothed weights under it, ``(S,)``, which sum to 1.
    """
    low, high, power = 0.0, 1.0, 1.0
    shifted = log_weights - log_weights.max()
    for _ in range(20):
        weights = (power * shifted).softmax(0)
        if 1 / float(weights.square().sum()) >= _EFFICIENT * len(weights):
            low = power
            if power == 1.0:
                break
        else:
            high = power
        power = 0.5 * (low + high)
    return power, smoothed(power * shifted)


def smoothed(log_weights: Tensor) -> Tensor:
    """Pareto-smoothed weights that sum to 1."""
    return torch.as_tensor(np.exp(diagnostics.psis(log_weights)[0])).to(log_weights)


def moments(z: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(D,)`` and covariance ``(D, D)`` under weights that sum to 1."""
    mean = weights @ z
    centred = z - mean
    return mean, (weights[:, None] * centred).mT @ centred
