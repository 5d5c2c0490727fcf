r"""Linear regression with the conjugate normal-gamma prior.

.. math::
    \tau \sim \mathrm{Gamma}(a, b), \quad w \mid \tau \sim N(0, (s^2 / \tau) I), \quad
    y_n \sim N(x_n \cdot w, \tau^{-1/2})

    \Lambda = X^T X + s^{-2} I, \quad m = \Lambda^{-1} X^T y, \quad
    w \mid \tau, y \sim N(m, (\tau \Lambda)^{-1})

The prior of the coefficients is in units of the noise, which is what makes it conjugate. An
intercept is a column of ones.

References:
    | Bayesian Data Analysis, section 14.2 (Gelman et al., 2013)
    | Pattern Recognition and Machine Learning, exercises 3.12 and 3.13 (Bishop, 2006)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.arguments import require_positive
from ppgen.moments import expected_log_gamma, expected_square, mean_log, square_length
from ppgen.types import Coordinate, Factors


def data() -> dict[str, Tensor]:
    """A small set of known origin: coefficients (1, 2, -1), noise 0.5; 30 rows."""
    grid = torch.linspace(-1.5, 1.5, 30, dtype=torch.float64)
    x = torch.stack([torch.ones_like(grid), grid, torch.sin(5 * grid)], -1)
    wobble = 0.5 * torch.sin(37.0 * torch.arange(30, dtype=torch.float64) ** 1.5) * 2**0.5
    return {"x": x, "y": x @ torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64) + wobble}


class _Updated(NamedTuple):
    loc: Tensor  # m, (K,)
    factor: Tensor  # Cholesky factor of Lambda, (K, K)
    shape: float
    rate: Tensor


@dataclass(frozen=True)
class ConjugateRegression:
    """Coefficients and noise precision; predictors `x`, ``(N, K)``, outcome `y`, ``(N,)``.

    Args:
        scale: s, prior standard deviation of a coefficient in units of the noise.
        shape: a, of the precision.
        rate: b, of the precision; in squared units of `y`.
    """

    scale: float = 10.0
    shape: float = 1.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, scale=self.scale, shape=self.shape, rate=self.rate)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        tau = pyro.sample("tau", dist.Gamma(self.shape, self.rate))
        scale = self.scale * tau.rsqrt()[..., None].to(x)
        w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), scale).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, tau.rsqrt()), obs=y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """The exact posterior, jointly."""
        loc, factor, shape, rate = self._updated(x, y)
        tau = pyro.sample("tau", dist.Gamma(shape, rate))
        precision = tau[..., None, None] * (factor @ factor.mT)
        pyro.sample("w", dist.MultivariateNormal(loc, precision_matrix=precision))

    def exact_posterior(self, x: Tensor, y: Tensor) -> dict[str, TorchDistribution]:
        loc, factor, shape, rate = self._updated(x, y)
        covariance = torch.cholesky_inverse(factor) * rate / shape
        law = dist.MultivariateStudentT(2 * shape, loc, torch.linalg.cholesky(covariance))
        return {"tau": dist.Gamma(shape, rate), "w": law}

    def log_evidence(self, x: Tensor, y: Tensor) -> Tensor:
        _, factor, shape, rate = self._updated(x, y)
        before = self.shape * math.log(self.rate) - math.lgamma(self.shape)
        after = shape * rate.log() - math.lgamma(shape)
        log_det = x.shape[1] * math.log(self.scale) + factor.diagonal().log().sum()
        return before - after - log_det - 0.5 * len(x) * math.log(2 * math.pi)

    def predictive(self, x: Tensor, y: Tensor, x_new: Tensor | None = None) -> TorchDistribution:
        """At the predictors `x_new`, ``(M, K)``, each by itself; at `x` again where None."""
        loc, factor, shape, rate = self._updated(x, y)
        x_new = x if x_new is None else x_new
        leverage = torch.linalg.solve_triangular(factor, x_new.mT, upper=False).square().sum(0)
        return dist.StudentT(2 * shape, x_new @ loc, (rate / shape * (1 + leverage)).sqrt())

    # -- mean field and Gibbs ----------------------------------------------------------------

    def start(self, count: int, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Precisions around that of the residuals."""
        *_, shape, rate = self._updated(x, y)
        return {"tau": torch.rand(count).to(y).add(0.5) * shape / rate}

    def coordinates(self, x: Tensor, y: Tensor) -> dict[str, Coordinate]:
        loc, factor, *_ = self._updated(x, y)
        gram = factor @ factor.mT

        def w(q: Factors) -> TorchDistribution:
            precision = q["tau"].mean[..., None, None] * gram
            return dist.MultivariateNormal(loc, precision_matrix=precision)

        def tau(q: Factors) -> TorchDistribution:
            shape = self.shape + 0.5 * (len(y) + x.shape[1])
            return dist.Gamma(shape, self.rate + 0.5 * self._square(q, x, y))

        return {"w": w, "tau": tau}

    def expected_log_joint(self, factors: Factors, x: Tensor, y: Tensor) -> Tensor:
        terms = len(y) + x.shape[1]
        quadratic = factors["tau"].mean * self._square(factors, x, y)
        normals = terms * (mean_log(factors["tau"]) - math.log(2 * math.pi)) - quadratic
        prior = expected_log_gamma(factors["tau"], self.shape, self.rate)
        return 0.5 * normals - x.shape[1] * math.log(self.scale) + prior

    def _square(self, q: Factors, x: Tensor, y: Tensor) -> Tensor:
        """``E[|y - X w|^2 + |w|^2 / s^2]``, ``(*batch)``."""
        return expected_square(x, y, q["w"]) + square_length(q["w"]) / self.scale**2

    def _updated(self, x: Tensor, y: Tensor) -> _Updated:
        factor = torch.linalg.cholesky(x.mT @ x + torch.eye(x.shape[1]).to(x) / self.scale**2)
        loc = torch.cholesky_solve((x.mT @ y)[:, None], factor)[:, 0]
        # y'y - m' Lambda m, as the sum of squares that it is
        square = (y - x @ loc).square().sum() + loc.square().sum() / self.scale**2
        return _Updated(loc, factor, self.shape + 0.5 * len(y), self.rate + 0.5 * square)
