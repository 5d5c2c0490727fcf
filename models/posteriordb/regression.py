r"""Five linear regressions of posteriordb: flat and weak priors, predictors as they were measured.

.. math:: y_n \sim N(x_n \cdot \beta, \sigma)

Nothing is centred or scaled, which is what makes them hard: intercept and slopes are correlated
up to -.999. A flat prior is a proper distribution of the right support, masked: its density counts
nothing, but its draws give predictive checks and guides a place to start from.

References:
    | posteriordb (Magnusson et al., 2024) | https://arxiv.org/abs/2407.04967
    | Data analysis using regression and multilevel/hierarchical models (Gelman & Hill, 2007)
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor


def flat(size: int) -> TorchDistribution:
    """Density 1 on all vectors of `size`, not normalised."""
    return dist.Normal(torch.zeros(size), 1.0).to_event(1).mask(False)


def flat_positive() -> TorchDistribution:
    """Density 1 on the positive numbers, not normalised."""
    return dist.HalfNormal(1.0).mask(False)


def _likelihood(mean: Tensor, sigma: Tensor, y: Tensor | None) -> None:
    with pyro.plate("data", mean.shape[-1]):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def kidscore_interaction(mom_hs: Tensor, mom_iq: Tensor, kid_score: Tensor | None = None) -> None:
    r"""Test scores of children by their mothers' school, IQ and both; :math:`\beta` flat.

    .. math:: \sigma \sim \mathrm{Cauchy}^+(0, 2.5)
    """
    beta = pyro.sample("beta", flat(4))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    x = torch.stack([torch.ones_like(mom_iq), mom_hs, mom_iq, mom_hs * mom_iq], -1)
    _likelihood(x @ beta, sigma, kid_score)


def logearn_interaction(height: Tensor, male: Tensor, log_earn: Tensor | None = None) -> None:
    r"""Log earnings by height, sex and both; :math:`\beta` and :math:`\sigma` flat."""
    beta = pyro.sample("beta", flat(4))
    sigma = pyro.sample("sigma", flat_positive())
    x = torch.stack([torch.ones_like(height), height, male, height * male], -1)
    _likelihood(x @ beta, sigma, log_earn)


def logmesquite(x: Tensor, log_weight: Tensor | None = None) -> None:
    r"""Log weight of bushes; :math:`\beta` and :math:`\sigma` flat.

    Args:
        x: logs of diameters, canopy height, total height and density, and the group, ``(N, 6)``.
        log_weight: ``(N,)``.
    """
    beta = pyro.sample("beta", flat(7))
    sigma = pyro.sample("sigma", flat_positive())
    _likelihood(beta[0] + x @ beta[1:], sigma, log_weight)


def blr(x: Tensor, y: Tensor | None = None) -> None:
    r"""Five predictors, no intercept: :math:`\beta_k \sim N(0, 10), \sigma \sim N^+(0, 10)`."""
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(x.shape[-1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    _likelihood(x @ beta, sigma, y)


def kilpisjarvi(
    x: Tensor,
    y: Tensor | None = None,
    *,
    alpha_loc: float,
    alpha_scale: float,
    beta_loc: float,
    beta_scale: float,
) -> None:
    r"""Summer temperatures by year, the years not centred; :math:`\sigma` flat.

    .. math:: \alpha \sim N(m_\alpha, s_\alpha), \quad \beta \sim N(m_\beta, s_\beta), \quad
              y_n \sim N(\alpha + \beta x_n, \sigma)
    """
    alpha = pyro.sample("alpha", dist.Normal(alpha_loc, alpha_scale))
    beta = pyro.sample("beta", dist.Normal(beta_loc, beta_scale))
    sigma = pyro.sample("sigma", flat_positive())
    _likelihood(alpha + beta * x, sigma, y)
