r"""Gaussian mixture with diagonal covariances and conditionally conjugate priors.

.. math::
    \pi \sim \mathrm{Dirichlet}(\alpha, \ldots, \alpha), \quad \mu_{kd} \sim N(m, s), \quad
    \tau_{kd} \sim \mathrm{Gamma}(a, b), \quad z_n \sim \mathrm{Categorical}(\pi), \quad
    x_{nd} \sim N(\mu_{z_n d}, \tau_{z_n d}^{-1/2})

The assignments z are summed out by `ppgen.Program` and by Pyro's ``TraceEnum_ELBO``; coordinate
ascent and Gibbs keep them. Components have no numbers of their own: the posterior has K! equal
modes. Each approximation by mean field lies in one of them, so that its ELBO may be raised by
log K! where they are far apart.

References:
    | Pattern Recognition and Machine Learning, section 10.2 (Bishop, 2006)
    | Variational Inference: A Review for Statisticians (Blei, Kucukelbir & McAuliffe, 2017)
    | https://arxiv.org/abs/1601.00670
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.arguments import require_finite, require_positive, require_whole
from ppgen.moments import (
    expected_log_dirichlet,
    expected_log_gamma,
    expected_log_normal,
    mean_log,
    second_moment,
    shares,
)
from ppgen.types import Coordinate, Factors


def data() -> dict[str, Tensor]:
    """Quantiles of two normals, 18 around -2 and 12 around 2, standard deviation 0.8."""

    def normal(center: float, count: int) -> Tensor:
        levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        return center + 0.8 * torch.special.ndtri(levels)

    return {"x": torch.cat([normal(-2.0, 18), normal(2.0, 12)])}


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of `components`; data `x` are ``(N, D)``, or ``(N,)`` in one dimension.

    Args:
        components: K.
        concentration: alpha; below 1 weights may vanish, so that superfluous components empty.
        mean: m, of the prior of the component means.
        scale: s, its standard deviation.
        shape: a, of the component precisions.
        rate: b; in squared units of `x`.
    """

    components: int = 2
    concentration: float = 1.0
    mean: float = 0.0
    scale: float = 5.0
    shape: float = 2.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        require_whole(self, components=self.components)
        require_finite(self, mean=self.mean)
        require_positive(self, concentration=self.concentration)
        require_positive(self, scale=self.scale, shape=self.shape, rate=self.rate)

    def model(self, x: Tensor) -> None:
        rows = _rows(x)
        many = rows.new_ones(rows.shape[1])
        alpha = rows.new_full((self.components,), self.concentration)
        weights = pyro.sample("weights", dist.Dirichlet(alpha))
        with pyro.plate("component", self.components):
            mu = pyro.sample("mu", dist.Normal(self.mean * many, self.scale).to_event(1))
            tau = pyro.sample("tau", dist.Gamma(self.shape * many, self.rate).to_event(1))
        with pyro.plate("data", len(rows)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mu[z], tau[z].rsqrt()).to_event(1), obs=rows)

    def canonical(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Components in the order of their means in the first dimension."""
        found = dict(values)
        order = values["mu"][..., 0].argsort(-1)
        for name in ("weights", "mu", "tau"):
            if name in values:
                index = order if name == "weights" else order[..., None].expand_as(values[name])
                found[name] = values[name].gather(-1 if name == "weights" else -2, index)
        if "z" in values:
            found["z"] = order.argsort(-1).gather(-1, values["z"])
        return found

    # -- mean field and Gibbs ----------------------------------------------------------------

    def start(self, count: int, x: Tensor) -> dict[str, Tensor]:
        """Means at data points far from each other (k-means++), wide components of equal weight."""
        rows, k = _rows(x), self.components
        spread = rows.var(0, correction=0) + self.rate / self.shape / len(rows)
        mu = torch.stack([_spread_out(rows / spread.sqrt(), k) for _ in range(count)])
        tau = (1 / spread).expand(count, k, -1).clone()
        weights = rows.new_full((count, k), 1 / k)
        return {"weights": weights, "mu": mu * spread.sqrt(), "tau": tau}

    def coordinates(self, x: Tensor) -> dict[str, Coordinate]:
        rows = _rows(x)

        def z(q: Factors) -> TorchDistribution:
            logits = mean_log(q["weights"])[..., None, :] + _log_likelihood(q, rows)
            return dist.Categorical(logits=logits).to_event(1)

        def weights(q: Factors) -> TorchDistribution:
            return dist.Dirichlet(self.concentration + self._shares(q, rows).sum(-2))

        def mu(q: Factors) -> TorchDistribution:
            share, tau = self._shares(q, rows).mT, q["tau"].mean  # (*batch, K, N), (*batch, K, D)
            precision = self.scale**-2 + tau * share.sum(-1, keepdim=True)
            loc = (self.mean * self.scale**-2 + tau * (share @ rows)) / precision
            return dist.Normal(loc, precision.rsqrt()).to_event(2)

        def tau(q: Factors) -> TorchDistribution:
            share = self._shares(q, rows)
            square = (share[..., None] * _squares(q["mu"], rows)).sum(-3)
            shape = self.shape + 0.5 * share.sum(-2)[..., None]
            return dist.Gamma(shape, self.rate + 0.5 * square).to_event(2)

        return {"z": z, "weights": weights, "mu": mu, "tau": tau}

    def expected_log_joint(self, factors: Factors, x: Tensor) -> Tensor:
        rows = _rows(x)
        each = mean_log(factors["weights"])[..., None, :] + _log_likelihood(factors, rows)
        data = (self._shares(factors, rows) * each).sum((-2, -1))
        one = rows.new_ones(()) * self.scale**-2
        square = second_moment(factors["mu"], self.mean)
        priors = expected_log_normal(square, one, one.log())
        priors = priors + expected_log_gamma(factors["tau"], self.shape, self.rate)
        weights = expected_log_dirichlet(factors["weights"], self.concentration)
        return data + weights + priors.sum((-2, -1))

    def _shares(self, q: Factors, rows: Tensor) -> Tensor:
        """Responsibilities ``(*batch, N, K)``."""
        return shares(q["z"], self.components, rows.dtype)


def _rows(x: Tensor) -> Tensor:
    return x[:, None] if x.dim() == 1 else x


def _squares(mu: TorchDistribution, rows: Tensor) -> Tensor:
    """``E[(x_nd - mu_kd)^2]``, ``(*batch, N, K, D)``."""
    gaps = rows[:, None] - mu.mean[..., None, :, :]
    return gaps.square() + mu.variance[..., None, :, :]


def _log_likelihood(q: Factors, rows: Tensor) -> Tensor:
    """``E[log p(x_n | z_n = k)]``, ``(*batch, N, K)``, nats."""
    tau, log_tau = q["tau"].mean[..., None, :, :], mean_log(q["tau"])[..., None, :, :]
    return expected_log_normal(_squares(q["mu"], rows), tau, log_tau).sum(-1)


def _spread_out(rows: Tensor, count: int) -> Tensor:
    """Rows chosen with probability proportional to the squared distance to those before."""
    chosen = rows[torch.randint(len(rows), (1,))]
    for _ in range(count - 1):
        gaps = (rows[:, None] - chosen).square().sum(-1).amin(1) + 1e-12
        chosen = torch.cat([chosen, rows[torch.multinomial(gaps, 1)]])
    return chosen
