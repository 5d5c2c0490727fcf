r"""Bayesian logistic regression, and the latent precisions that make it conjugate.

.. math::
    w \sim N(0, s^2 I), \quad y_n \sim \mathrm{Bernoulli}(\mathrm{logit}^{-1}(x_n \cdot w)); \qquad
    p(y_n, \omega_n | w) = \tfrac12 e^{(y_n - 1/2) x_n \cdot w - \omega_n (x_n \cdot w)^2 / 2}
    \, \mathrm{PG}(\omega_n | 1, 0)

The latent precisions omega are integrated out in `model`; Gibbs (Polson, Scott and Windle) and
coordinate ascent (whose bound is that of Jaakkola and Jordan) keep them.

References:
    | Bayesian Inference for Logistic Models Using Polya-Gamma Latent Variables
      (Polson, Scott & Windle, 2013) | https://arxiv.org/abs/1205.0310
    | Conditionally Conjugate Mean-Field Variational Bayes for Logistic Models
      (Durante & Rigon, 2019) | https://arxiv.org/abs/1711.06999
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.anatomy import innermost
from ppgen.distributions import PolyaGamma
from ppgen.models.binary_regression import BinaryRegression
from ppgen.models.logistic_regression import data as logistic_data
from ppgen.moments import covariance
from ppgen.types import Coordinate, Factors


def data() -> dict[str, Tensor]:
    """That of `logistic_regression`, with a column for the intercept; 80 rows."""
    known = logistic_data()
    x = known["x"]
    return {"x": torch.cat([x.new_ones(len(x), 1), x], 1), "y": known["y"]}


class LogitRegression(BinaryRegression):
    """Outcomes by their log odds; see :class:`BinaryRegression`."""

    def _logits(self, predictor: Tensor) -> Tensor:
        return predictor

    def coordinates(self, x: Tensor, y: Tensor) -> dict[str, Coordinate]:
        prior = self._prior_precision(x)
        pull = x.mT @ (y - 0.5)

        def omega(q: Factors) -> TorchDistribution:
            return PolyaGamma(_square(x, q["w"]).sqrt()).to_event(1)

        def w(q: Factors) -> TorchDistribution:
            precision = (x.mT * q["omega"].mean[..., None, :]) @ x + prior
            factor = torch.linalg.cholesky(precision)
            loc = torch.cholesky_solve(pull[:, None], factor)[..., 0]
            return dist.MultivariateNormal(loc, precision_matrix=precision)

        return {"omega": omega, "w": w}

    def expected_log_joint(self, factors: Factors, x: Tensor, y: Tensor) -> Tensor:
        """With the density of the latent precisions."""
        w, omega = factors["w"], factors["omega"]
        law = innermost(omega)
        if isinstance(law, PolyaGamma):
            base = law.expected_log_untilted()
        else:
            base = PolyaGamma(torch.zeros_like(omega.mean)).log_prob(omega.mean)
        exponent = (y - 0.5) * (w.mean @ x.mT) - omega.mean * _square(x, w) / 2
        return (exponent + base - math.log(2)).sum(-1) + self._expected_log_prior(w, x)


def _square(x: Tensor, w: TorchDistribution) -> Tensor:
    """``E[(x_n . w)^2]``: x ``(N, K)``, w a law of ``(K,)`` -> ``(*batch, N)``."""
    return (w.mean @ x.mT).square() + (x @ covariance(w) * x).sum(-1)
