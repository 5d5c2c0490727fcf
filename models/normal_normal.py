r"""The mean of a normal with known noise: the normal prior is conjugate.

.. math::
    \mu \sim N(m, s), \quad x_n \sim N(\mu, \sigma), \qquad
    \mu \mid x \sim N\Bigl(m + \frac{s^2 \sum_n (x_n - m)}{\sigma^2 + N s^2},
                           \frac{s \sigma}{\sqrt{\sigma^2 + N s^2}}\Bigr)

References:
    | Bayesian Data Analysis, section 2.5 (Gelman et al., 2013)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.arguments import require_finite, require_positive


def data() -> dict[str, Tensor]:
    """Five measurements with noise of standard deviation 1."""
    return {"x": torch.tensor([2.1, 3.4, 1.7, 2.9, 2.4], dtype=torch.float64)}


@dataclass(frozen=True)
class NormalNormal:
    """A mean; `x` are real numbers, ``(N,)``.

    Args:
        mean: m, of the prior.
        scale: s, standard deviation of the prior.
        noise: sigma, standard deviation of an observation.
    """

    mean: float = 0.0
    scale: float = 10.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        require_finite(self, mean=self.mean)
        require_positive(self, scale=self.scale, noise=self.noise)

    def model(self, x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(self.mean, self.scale))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, self.noise), obs=x)

    def guide(self, x: Tensor) -> None:
        """The exact posterior."""
        pyro.sample("mu", self.exact_posterior(x)["mu"])

    def exact_posterior(self, x: Tensor) -> dict[str, TorchDistribution]:
        total = self._total(len(x))
        loc = self.mean + self.scale**2 * (x - self.mean).sum() / total
        return {"mu": dist.Normal(loc, self.scale * self.noise / math.sqrt(total))}

    def log_evidence(self, x: Tensor) -> Tensor:
        """Of a normal with covariance ``noise^2 I + scale^2 1 1'``."""
        gap, total = x - self.mean, self._total(len(x))
        square = (gap.square().sum() - self.scale**2 * gap.sum() ** 2 / total) / self.noise**2
        log_det = (len(x) - 1) * math.log(self.noise**2) + math.log(total)
        return -0.5 * (len(x) * math.log(2 * math.pi) + log_det + square)

    def predictive(self, x: Tensor) -> TorchDistribution:
        law = self.exact_posterior(x)["mu"]
        return dist.Normal(law.mean, (law.variance + self.noise**2).sqrt())

    def _total(self, count: int) -> float:
        return self.noise**2 + count * self.scale**2
