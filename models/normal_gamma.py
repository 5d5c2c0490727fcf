r"""Mean and precision of a normal, both unknown: the normal-gamma prior is conjugate.

.. math::
    \tau \sim \mathrm{Gamma}(a, b), \quad \mu \mid \tau \sim N(m, (\kappa \tau)^{-1/2}), \quad
    x_n \sim N(\mu, \tau^{-1/2})

The variance :math:`1 / \tau` is inverse-gamma: this is the normal-inverse-gamma prior. Mean field
:math:`q(\mu) q(\tau)` is an approximation, with updates in closed form (Bishop 10.1.3).

References:
    | Pattern Recognition and Machine Learning, sections 2.3.6 and 10.1.3 (Bishop, 2006)
    | Conjugate Bayesian analysis of the Gaussian distribution (Murphy, 2007)
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
from ppgen.moments import expected_log_gamma, mean_log, second_moment
from ppgen.types import Coordinate, Factors

_DENSITY_OF_THE_EARTH = """
    5.50 5.61 4.88 5.07 5.26 5.55 5.36 5.29 5.58 5.65 5.57 5.53 5.62 5.29 5.44 5.34 5.79 5.10 5.27
    5.39 5.42 5.47 5.63 5.34 5.46 5.30 5.75 5.68 5.85
"""


def data() -> dict[str, Tensor]:
    """The density of the Earth in units of that of water, 29 measurements (Cavendish, 1798)."""
    numbers = [float(word) for word in _DENSITY_OF_THE_EARTH.split()]
    return {"x": torch.tensor(numbers, dtype=torch.float64)}


@dataclass(frozen=True)
class NormalGamma:
    """A mean and a precision; `x` are real numbers, ``(N,)``.

    Args:
        mean: m, of the prior of mu.
        count: kappa, the observations that this prior is worth.
        shape: a, of the precision.
        rate: b, of the precision; in squared units of `x`.
    """

    mean: float = 0.0
    count: float = 0.01
    shape: float = 1.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        require_finite(self, mean=self.mean)
        require_positive(self, count=self.count, shape=self.shape, rate=self.rate)

    def model(self, x: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(self.shape, self.rate))
        mu = pyro.sample("mu", dist.Normal(self.mean, (self.count * tau).rsqrt()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=x)

    def guide(self, x: Tensor) -> None:
        """The exact posterior, jointly."""
        loc, count, shape, rate = self._updated(x)
        tau = pyro.sample("tau", dist.Gamma(shape, rate))
        pyro.sample("mu", dist.Normal(loc, (count * tau).rsqrt()))

    def exact_posterior(self, x: Tensor) -> dict[str, TorchDistribution]:
        loc, count, shape, rate = self._updated(x)
        scale = (rate / (shape * count)).sqrt()
        return {"tau": dist.Gamma(shape, rate), "mu": dist.StudentT(2 * shape, loc, scale)}

    def log_evidence(self, x: Tensor) -> Tensor:
        _, count, shape, rate = self._updated(x)
        before = self.shape * math.log(self.rate) - math.lgamma(self.shape)
        after = shape * rate.log() - math.lgamma(shape)
        constants = math.log(self.count / count) - len(x) * math.log(2 * math.pi)
        return before - after + 0.5 * constants

    def predictive(self, x: Tensor) -> TorchDistribution:
        loc, count, shape, rate = self._updated(x)
        return dist.StudentT(2 * shape, loc, (rate * (1 + 1 / count) / shape).sqrt())

    # -- mean field and Gibbs ----------------------------------------------------------------

    def start(self, count: int, x: Tensor) -> dict[str, Tensor]:
        """Precisions around that of the data."""
        spread = x.var(correction=0) if len(x) > 1 else x.new_ones(())
        return {"tau": torch.rand(count).to(x).add(0.5) / (spread + self.rate / self.shape)}

    def coordinates(self, x: Tensor) -> dict[str, Coordinate]:
        loc, count, *_ = self._updated(x)

        def mu(q: Factors) -> TorchDistribution:
            return dist.Normal(loc, (count * q["tau"].mean).rsqrt())

        def tau(q: Factors) -> TorchDistribution:
            shape = self.shape + 0.5 * (len(x) + 1)
            return dist.Gamma(shape, self.rate + 0.5 * self._square(q, x))

        return {"mu": mu, "tau": tau}

    def expected_log_joint(self, factors: Factors, x: Tensor) -> Tensor:
        log_tau, terms = mean_log(factors["tau"]), len(x) + 1
        quadratic = factors["tau"].mean * self._square(factors, x)
        normals = terms * (log_tau - math.log(2 * math.pi)) + math.log(self.count) - quadratic
        return 0.5 * normals + expected_log_gamma(factors["tau"], self.shape, self.rate)

    def _square(self, q: Factors, x: Tensor) -> Tensor:
        """``E[sum_n (x_n - mu)^2 + kappa (mu - m)^2]``, ``(*batch)``."""
        data = (x - q["mu"].mean[..., None]).square().sum(-1) + len(x) * q["mu"].variance
        return data + self.count * second_moment(q["mu"], self.mean)

    def _updated(self, x: Tensor) -> tuple[Tensor, float, float, Tensor]:
        """Mean, count, shape and rate of the posterior."""
        gap, count = x - self.mean, self.count + len(x)
        rate = self.rate + 0.5 * (gap.square().sum() - gap.sum() ** 2 / count)
        return self.mean + gap.sum() / count, count, self.shape + 0.5 * len(x), rate
