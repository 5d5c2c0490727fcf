r"""Bayesian linear regression with unknown noise.

.. math::
    \alpha \sim N(0, s), \quad \beta_k \sim N(0, s), \quad \sigma \sim N^+(0, s), \quad
    y_n \sim N(\alpha + x_n \cdot \beta, \sigma)

The prior scale :math:`s` is in units of the outcome for predictors of unit scale: standardise
the predictors, or give the scale.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def data() -> dict[str, Tensor]:
    """A small set of known origin: intercept 1, slopes (2, -1), noise 0.5; 40 rows."""
    grid = torch.linspace(-1.5, 1.5, 40, dtype=torch.float64)
    x = torch.stack([grid, torch.sin(5 * grid)], -1)
    wobble = 0.5 * torch.sin(37.0 * torch.arange(40, dtype=torch.float64) ** 1.5) * 2**0.5
    return {"x": x, "y": 1.0 + x @ torch.tensor([2.0, -1.0], dtype=torch.float64) + wobble}


def linear_regression(x: Tensor, y: Tensor | None = None, scale: float = 10.0) -> None:
    """Predictors `x`, ``(N, K)``; outcome `y`, ``(N,)``, or None to predict."""
    zero = x.new_zeros(x.shape[-1])
    intercept = pyro.sample("intercept", dist.Normal(x.new_zeros(()), scale))
    slope = pyro.sample("slope", dist.Normal(zero, scale).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(x.new_full((), scale)))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(intercept + x @ slope, noise), obs=y)
