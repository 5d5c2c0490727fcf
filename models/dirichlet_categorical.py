r"""Shares of K classes: the Dirichlet prior is conjugate.

.. math::
    \theta \sim \mathrm{Dirichlet}(\alpha), \quad x_n \sim \mathrm{Categorical}(\theta), \qquad
    \theta \mid x \sim \mathrm{Dirichlet}(\alpha + c), \quad c_k = \#\{n: x_n = k\}

References:
    | Bayesian Data Analysis, section 3.4 (Gelman et al., 2013)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.arguments import require_positive


def data() -> dict[str, Tensor]:
    """Mendel's 556 peas: round yellow, wrinkled yellow, round green, wrinkled green (1866)."""
    return {"x": torch.arange(4).repeat_interleave(torch.tensor([315, 101, 108, 32]))}


@dataclass(frozen=True)
class DirichletCategorical:
    """Shares of classes; `x` are whole numbers from 0 to K - 1, ``(N,)``.

    Args:
        concentration: alpha, what the prior is worth in observations of each class, K numbers.
    """

    concentration: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.concentration, Sequence) or len(self.concentration) < 2:
            raise ValueError(
                "DirichletCategorical(concentration=...) must hold at least two positive numbers, "
                f"got {self.concentration!r}"
            )
        for alpha in self.concentration:
            require_positive(self, concentration=alpha)

    def model(self, x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Dirichlet(torch.tensor(self.concentration)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(theta), obs=x)

    def guide(self, x: Tensor) -> None:
        """The exact posterior."""
        pyro.sample("theta", self.exact_posterior(x)["theta"])

    def exact_posterior(self, x: Tensor) -> dict[str, TorchDistribution]:
        return {"theta": dist.Dirichlet(self._alpha + self._counts(x))}

    def log_evidence(self, x: Tensor) -> Tensor:
        before, counts = self._alpha, self._counts(x)
        per_class = (before + counts).lgamma() - before.lgamma()
        total = before.sum()
        return total.lgamma() - (total + len(x)).lgamma() + per_class.sum()

    def predictive(self, x: Tensor) -> TorchDistribution:
        return dist.Categorical(self.exact_posterior(x)["theta"].mean)

    @property
    def _alpha(self) -> Tensor:
        return torch.tensor(self.concentration, dtype=torch.float64)

    def _counts(self, x: Tensor) -> Tensor:
        classes = len(self.concentration)
        if bool(((x < 0) | (x >= classes) | (x != x.round())).any()):
            raise ValueError(
                f"x must hold whole numbers from 0 to {classes - 1}, one class for each number of "
                f"`concentration`; it reaches from {x.min():g} to {x.max():g}"
            )
        return torch.bincount(x.long(), minlength=classes)
