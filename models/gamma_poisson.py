r"""The rate of rare events: the gamma prior is conjugate.

.. math::
    \lambda \sim \mathrm{Gamma}(a, b), \quad x_n \sim \mathrm{Poisson}(\lambda), \qquad
    \lambda \mid x \sim \mathrm{Gamma}(a + \textstyle\sum_n x_n, b + N)

The next count is negative binomial.

References:
    | Bayesian Data Analysis, section 2.6 (Gelman et al., 2013)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.arguments import require_positive


def data() -> dict[str, Tensor]:
    """Deaths by horse kick in 10 Prussian corps over 20 years (Bortkiewicz, 1898)."""
    counts = torch.tensor([109, 65, 22, 3, 1])
    return {"x": torch.arange(5, dtype=torch.float64).repeat_interleave(counts)}


@dataclass(frozen=True)
class GammaPoisson:
    """A rate; `x` are counts, ``(N,)``.

    Args:
        shape: a, the events that the prior is worth.
        rate: b, the observations that they are spread over.
    """

    shape: float = 1.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, shape=self.shape, rate=self.rate)

    def model(self, x: Tensor) -> None:
        lam = pyro.sample("lambda", dist.Gamma(self.shape, self.rate))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(lam), obs=x)

    def guide(self, x: Tensor) -> None:
        """The exact posterior."""
        pyro.sample("lambda", self.exact_posterior(x)["lambda"])

    def exact_posterior(self, x: Tensor) -> dict[str, TorchDistribution]:
        return {"lambda": dist.Gamma(self.shape + x.sum(), self.rate + len(x))}

    def log_evidence(self, x: Tensor) -> Tensor:
        shape, rate = self.shape + x.sum(), self.rate + len(x)
        before = self.shape * math.log(self.rate) - math.lgamma(self.shape)
        after = shape * math.log(rate) - shape.lgamma()
        return before - after - (x + 1).lgamma().sum()

    def predictive(self, x: Tensor) -> TorchDistribution:
        return dist.GammaPoisson(self.shape + x.sum(), self.rate + len(x))
