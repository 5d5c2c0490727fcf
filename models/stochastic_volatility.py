r"""Returns whose volatility wanders.

.. math::
    \mu \sim N(0, 3), \quad (\phi + 1) / 2 \sim \mathrm{Beta}(20, 1.5), \quad
    \sigma \sim N^+(0, 1), \\
    h_1 \sim N(\mu, \sigma / \sqrt{1 - \phi^2}), \quad
    h_t \sim N(\mu + \phi (h_{t-1} - \mu), \sigma), \quad y_t \sim N(0, e^{h_t / 2})

Written by its first state and its innovations, :math:`h` is a linear recursion
(:mod:`ppgen.recursion`): log T operations instead of a loop of T, and no funnel between sigma and
h. The first state is centred: the data know it well, and its spread grows without bound as phi
approaches 1, where an innovation in its place would make a funnel.

References:
    | Stochastic volatility: likelihood inference and comparison with ARCH models
      (Kim, Shephard & Chib, 1998) | https://doi.org/10.1111/1467-937X.00050
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen.recursion import linear_recursion


def data(length: int = 100) -> dict[str, Tensor]:
    """A series with mu = -1, phi = 0.95, sigma = 0.3, simulated with a generator of its own."""
    noise = torch.randn(2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    phi, sigma = torch.tensor([0.95, 0.3], dtype=torch.float64)
    first = stationary_scale(phi, sigma) * noise[0, 0]
    h = -1.0 + log_volatility(phi, sigma, first, noise[0, 1:])
    return {"y": (h / 2).exp() * noise[1]}


def stationary_scale(phi: Tensor, sigma: Tensor) -> Tensor:
    """Standard deviation of every ``h_t``, ``(...)``."""
    return sigma * (1.0 - phi.square()).rsqrt()


def log_volatility(phi: Tensor, sigma: Tensor, first: Tensor, innovations: Tensor) -> Tensor:
    """``h - mu``, ``(..., T)``, of ``h_1 - mu`` and T - 1 standard normal innovations."""
    drive = torch.cat([first[..., None], sigma[..., None] * innovations], -1)
    return linear_recursion(phi[..., None], drive)


def stochastic_volatility(y: Tensor) -> None:
    """Returns `y`, ``(T,)``, of mean zero; the log variance is the site ``h``."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 3.0))
    half = pyro.sample("persistence", dist.Beta(y.new_full((), 20.0), 1.5))
    phi = pyro.deterministic("phi", 2.0 * half - 1.0)
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_ones(())))
    first = pyro.sample("first", dist.Normal(mu, stationary_scale(phi, sigma)))
    with pyro.plate("steps", len(y) - 1):
        innovation = pyro.sample("innovation", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("time", len(y)):
        h = pyro.deterministic("h", mu + log_volatility(phi, sigma, first - mu, innovation))
        pyro.sample("y", dist.Normal(0.0, (h / 2).exp()), obs=y)
