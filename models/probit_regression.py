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

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.distributions import SignedNormal
from ppgen.models.binary_regression import BinaryRegression
from ppgen.moments import expected_square
from ppgen.types import Coordinate, Factors


def data() -> dict[str, Tensor]:
    """A small set of known origin: intercept -0.3, slope 1; 40 rows."""
    grid = torch.linspace(-2.0, 2.0, 40, dtype=torch.float64)
    x = torch.stack([torch.ones_like(grid), grid], -1)
    # a low-discrepancy sequence in the place of random thresholds
    threshold = (0.5 + 0.6180339887498949 * torch.arange(40, dtype=torch.float64)) % 1.0
    return {"x": x, "y": (torch.special.ndtr(grid - 0.3) > threshold).double()}


class ProbitRegression(BinaryRegression):
    """Outcomes by the sign of a normal; see :class:`BinaryRegression`."""

    def _logits(self, predictor: Tensor) -> Tensor:
        return _log_phi(predictor) - _log_phi(-predictor)

    def coordinates(self, x: Tensor, y: Tensor) -> dict[str, Coordinate]:
        precision = x.mT @ x + self._prior_precision(x)
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
        outcomes = -0.5 * (len(y) * math.log(2 * math.pi) + gaps)
        return outcomes + self._expected_log_prior(w, x)


def _log_phi(t: Tensor) -> Tensor:
    """``log Phi(t)``, without underflow; `torch.special.log_ndtr` takes minutes to record."""
    low, high = t.clamp(max=0.0), t.clamp(min=0.0)
    tail = (0.5 * torch.special.erfcx(-low / math.sqrt(2))).log() - 0.5 * low.square()
    return torch.where(t < 0, tail, (-0.5 * torch.erfc(high / math.sqrt(2))).log1p())
