r"""Eight schools: effects of coaching on test scores, partially pooled.

.. math::
    \mu \sim N(0, 5), \quad \tau \sim \mathrm{Cauchy}^+(0, 5), \quad
    \theta_j \sim N(\mu, \tau), \quad y_j \sim N(\theta_j, \sigma_j)

The centred form has a funnel between :math:`\tau` and :math:`\theta`; the non-centred form, with
:math:`\theta_j = \mu + \tau \eta_j`, has none. Both are the same model.

References:
    | Estimation in parallel randomized experiments (Rubin, 1981)
    | https://doi.org/10.3102/10769986006004377
    | Priors as in posteriordb, `eight_schools-eight_schools_noncentered`
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def data() -> dict[str, Tensor]:
    """Rubin's data: estimated effects `y` and their standard errors `sigma`, ``(8,)`` each."""
    return {
        "sigma": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
        "y": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    }


def eight_schools(sigma: Tensor, y: Tensor | None = None) -> None:
    """The non-centred form; `theta` is a deterministic site."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_centred(sigma: Tensor, y: Tensor | None = None) -> None:
    """The centred form."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)
