r"""Linear regression that learns from the data how far to shrink, and the noise.

.. math::
    \alpha \sim \mathrm{Gamma}(a, b), \quad \tau \sim \mathrm{Gamma}(c, d), \quad
    w_k \sim N(0, \alpha^{-1/2}), \quad y_n \sim N(x_n \cdot w, \tau^{-1/2})

Each block is conjugate given the others, all three together are not.

References:
    | Pattern Recognition and Machine Learning, section 10.3 (Bishop, 2006)
    | Variational Bayesian inference for linear and logistic regression (Drugowitsch, 2013)
    | https://arxiv.org/abs/1310.5438
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.arguments import require_positive
from ppgen.moments import (
    expected_log_gamma,
    expected_log_normal,
    expected_square,
    mean_log,
    square_length,
)
from ppgen.types import Coordinate, Factors


def data() -> dict[str, Tensor]:
    """A cubic through noise 0.3, by powers up to the fifth; 25 rows."""
    grid = torch.linspace(-1.0, 1.0, 25, dtype=torch.float64)
    wobble = 0.3 * torch.sin(37.0 * torch.arange(25, dtype=torch.float64) ** 1.5) * 2**0.5
    powers = torch.stack([grid**k for k in range(6)], -1)
    return {"x": powers, "y": 1.0 - 2.0 * grid + 2.5 * grid**3 + wobble}


@dataclass(frozen=True)
class ShrinkageRegression:
    """Coefficients, their precision, and the noise's; `x` ``(N, K)``, outcome `y` ``(N,)``.

    Args:
        weight_shape: a, of the precision of the coefficients.
        weight_rate: b.
        noise_shape: c, of the precision of the noise.
        noise_rate: d; in squared units of `y`.
    """

    weight_shape: float = 1.0
    weight_rate: float = 1.0
    noise_shape: float = 1.0
    noise_rate: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, **vars(self))

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        alpha = pyro.sample("alpha", dist.Gamma(self.weight_shape, self.weight_rate))
        tau = pyro.sample("tau", dist.Gamma(self.noise_shape, self.noise_rate))
        scale = alpha.rsqrt()[..., None].to(x)
        w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), scale).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, tau.rsqrt()), obs=y)

    def start(self, count: int, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Precisions around those of the coefficients and residuals of a ridge regression."""
        ridge = x.mT @ x + torch.eye(x.shape[1]).to(x)
        w = torch.linalg.solve(ridge, x.mT @ y)
        noise = (y - x @ w).square().mean() + self.noise_rate / len(y)
        weight = w.square().mean() + self.weight_rate / len(w)
        jitter = torch.rand(2, count).to(y) + 0.5
        return {"alpha": jitter[0] / weight, "tau": jitter[1] / noise}

    def coordinates(self, x: Tensor, y: Tensor) -> dict[str, Coordinate]:
        gram, product, eye = x.mT @ x, x.mT @ y, torch.eye(x.shape[1]).to(x)

        def w(q: Factors) -> TorchDistribution:
            alpha, tau = q["alpha"].mean[..., None, None], q["tau"].mean[..., None, None]
            precision = alpha * eye + tau * gram
            loc = torch.linalg.solve(
                precision, (tau * product[:, None]).expand_as(precision[..., :1])
            )
            return dist.MultivariateNormal(loc[..., 0], precision_matrix=precision)

        def alpha(q: Factors) -> TorchDistribution:
            shape = self.weight_shape + 0.5 * x.shape[1]
            return dist.Gamma(shape, self.weight_rate + 0.5 * square_length(q["w"]))

        def tau(q: Factors) -> TorchDistribution:
            shape = self.noise_shape + 0.5 * len(y)
            return dist.Gamma(shape, self.noise_rate + 0.5 * expected_square(x, y, q["w"]))

        return {"w": w, "alpha": alpha, "tau": tau}

    def expected_log_joint(self, factors: Factors, x: Tensor, y: Tensor) -> Tensor:
        alpha, tau, w = factors["alpha"], factors["tau"], factors["w"]
        # sums over N observations and over K coefficients, as means times counts
        data = expected_log_normal(expected_square(x, y, w) / len(y), tau.mean, mean_log(tau))
        weights = expected_log_normal(square_length(w) / x.shape[1], alpha.mean, mean_log(alpha))
        priors = expected_log_gamma(alpha, self.weight_shape, self.weight_rate)
        priors = priors + expected_log_gamma(tau, self.noise_shape, self.noise_rate)
        return len(y) * data + x.shape[1] * weights + priors
