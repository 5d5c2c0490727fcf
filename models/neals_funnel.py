r"""Neal's funnel: a scale that is latent, and no data.

.. math:: v \sim N(0, 3), \quad x_k \sim N(0, e^{v/2}), \quad k = 1 \dots 9

The answer is known: v is normal with standard deviation 3, whatever a sampler says. No step size
fits both the mouth and the neck, where x is :math:`e^{-4.5}` wide at three standard deviations of
v: samplers stop short of it and report a v that is too large.

References:
    | Slice sampling, section 8 (Neal, 2003) | https://doi.org/10.1214/aos/1056562461
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch


def neals_funnel(dimension: int = 10, scale: float = 3.0) -> None:
    """The centred form, as published: v and `dimension` - 1 others."""
    v = pyro.sample("v", dist.Normal(0.0, scale))
    with pyro.plate("k", dimension - 1):
        pyro.sample("x", dist.Normal(0.0, torch.exp(v / 2)))
