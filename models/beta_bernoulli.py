r"""A coin of unknown bias: the beta prior is conjugate.

.. math::
    \theta \sim \mathrm{Beta}(a, b), \quad x_n \sim \mathrm{Bernoulli}(\theta), \qquad
    \theta \mid x \sim \mathrm{Beta}(a + s, b + N - s), \quad s = \sum_n x_n

References:
    | Bayesian Data Analysis, section 2.4 (Gelman et al., 2013)
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.arguments import require_positive


def data() -> dict[str, Tensor]:
    """Seven heads in ten tosses."""
    return {"x": (torch.arange(10) < 7).double()}


@dataclass(frozen=True)
class BetaBernoulli:
    """A coin; `x` in {0, 1}, ``(N,)``.

    Args:
        a: heads that the prior is worth.
        b: tails that the prior is worth.
    """

    a: float = 1.0
    b: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, a=self.a, b=self.b)

    def model(self, x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Beta(self.a, self.b))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(theta), obs=x)

    def guide(self, x: Tensor) -> None:
        """The exact posterior."""
        pyro.sample("theta", self.exact_posterior(x)["theta"])

    def exact_posterior(self, x: Tensor) -> dict[str, TorchDistribution]:
        heads = x.sum()
        return {"theta": dist.Beta(self.a + heads, self.b + len(x) - heads)}

    def log_evidence(self, x: Tensor) -> Tensor:
        heads = x.sum()
        return _log_beta(self.a + heads, self.b + len(x) - heads) - _log_beta(
            torch.as_tensor(self.a).to(heads), torch.as_tensor(self.b).to(heads)
        )

    def predictive(self, x: Tensor) -> TorchDistribution:
        """Laplace's rule of succession where a = b = 1."""
        return dist.Bernoulli((self.a + x.sum()) / (self.a + self.b + len(x)))


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return a.lgamma() + b.lgamma() - (a + b).lgamma()
