r"""Bayesian probit regression, and the latent outcomes that make it conjugate.

.. math::
    w \sim N(0, s^2 I), \quad y_n \sim \mathrm{Bernoulli}(\Phi(x_n \cdot w)); \qquad
    l_n \sim N(x_n \cdot w, 1), \quad y_n = [l_n > 0]

The latent outcomes l are integrated out in `model`; Gibbs (Albert and Chib) and coordinate ascent
keep them.

References:
    | Bayesian Analysis of Binary and Polychotomous Response Data (Albert & Chib, 1993)
    | https://doi.org/10.1080/01621459.1993.10476321
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.distributions import SignedNormal
from ppgen.hyperparameters import require_positive
from ppgen.moments import expected_square, square_length
from ppgen.types import Coordinate, Factors


def data() -> dict[str, Tensor]:
    """A small set of known origin: intercept -0.3, slope 1; 40 rows."""
    grid = torch.linspace(-2.0, 2.0, 40, dtype=torch.float64)
    x = torch.stack([torch.ones_like(grid), grid], -1)
    # a low-discrepancy sequence in the place of random thresholds
    threshold = (0.5 + 0.6180339887498949 * torch.arange(40, dtype=torch.float64)) % 1.0
    return {"x": x, "y": (torch.special.ndtr(grid - 0.3) > threshold).double()}


@dataclass(frozen=True)
class ProbitRegression:
    """Coefficients; predictors `x`, ``(N, K)``, outcome `y` in {0, 1}, ``(N,)``.

    Args:
        scale: s, prior standard deviation of a coefficient.
    """

    scale: float = 2.5

    def __post_init__(self) -> None:
        require_positive(self, "scale")

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), self.scale).to_event(1))
        with pyro.plate("data", len(x)):
            mean = x @ w
            logits = _log_phi(mean) - _log_phi(-mean)
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    def start(self, count: int, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Coefficients from a narrow prior: far out, every latent outcome would be extreme."""
        return {"w": narrow_start(count, x, self.scale)}

    def coordinates(self, x: Tensor, y: Tensor) -> dict[str, Coordinate]:
        precision = x.mT @ x + torch.eye(x.shape[1]).to(x) / self.scale**2
        factor = torch.linalg.cholesky(precision)

        def latent(q: Factors) -> TorchDistribution:
            return SignedNormal(q["w"].mean @ x.mT, 2 * y - 1).to_event(1)

        def w(q: Factors) -> TorchDistribution:
            product = (q["latent"].mean @ x)[..., None]
            loc = torch.cholesky_solve(product, factor)[..., 0]
            return dist.MultivariateNormal(loc, precision_matrix=precision)

        return {"latent": latent, "w": w}

    def expected_log_joint(self, factors: Factors, x: Tensor, y: Tensor) -> Tensor:
        """With the density of the latent outcomes; their signs are those of y."""
        w, latent = factors["w"], factors["latent"]
        gaps = expected_square(x, latent.mean, w) + latent.variance.sum(-1)
        constants = (len(y) + x.shape[1]) * math.log(2 * math.pi)
        logs = 2 * x.shape[1] * math.log(self.scale)
        return -0.5 * (constants + logs + gaps + square_length(w) / self.scale**2)


def narrow_start(count: int, x: Tensor, scale: float) -> Tensor:
    """Coefficients ``(count, K)`` for which ``x . w`` is of order 1, none wider than `scale`."""
    size = x.square().mean(0).clamp(min=1e-12).rsqrt() / math.sqrt(x.shape[1])
    return torch.randn(count, x.shape[1]).to(x) * size.clamp(max=scale)


def _log_phi(t: Tensor) -> Tensor:
    """``log Phi(t)``, without underflow; `torch.special.log_ndtr` takes minutes to record."""
    low, high = t.clamp(max=0.0), t.clamp(min=0.0)
    tail = (0.5 * torch.special.erfcx(-low / math.sqrt(2))).log() - 0.5 * low.square()
    return torch.where(t < 0, tail, (-0.5 * torch.erfc(high / math.sqrt(2))).log1p())
