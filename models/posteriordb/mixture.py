r"""A mixture of two normals of posteriordb, summed over the assignments.

.. math::
    \mu_1 < \mu_2, \quad \mu_k \sim N(0, 2), \quad \sigma_k \sim N^+(0, 2), \quad
    \theta \sim \mathrm{Beta}(5, 5), \quad
    y_n \sim \theta N(\mu_1, \sigma_1) + (1 - \theta) N(\mu_2, \sigma_2)

The order of the means names the components; :math:`\theta` weighs the lower one.

References:
    | posteriordb (Magnusson et al., 2024) | https://arxiv.org/abs/2407.04967
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import OrderedTransform
from torch import Tensor


def low_dim_gauss_mix(y: Tensor | None = None, count: int = 1000) -> None:
    """Outcomes `y`, ``(N,)``; or None to draw `count`."""
    ordered = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), [OrderedTransform()]
    )
    # The base only draws; the density of an ordered pair is that of two normals, up to 2!.
    mu = pyro.sample("mu", ordered.mask(False))
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.full((2,), 2.0)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    mixture = dist.MixtureSameFamily(
        dist.Categorical(probs=torch.stack([theta, 1 - theta], -1)), dist.Normal(mu, sigma)
    )
    with pyro.plate("data", count if y is None else len(y)):
        pyro.sample("y", mixture, obs=y)
