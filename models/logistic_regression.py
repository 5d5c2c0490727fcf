r"""Bayesian logistic regression.

.. math::
    \alpha \sim N(0, s), \quad \beta_k \sim N(0, s), \quad
    y_n \sim \mathrm{Bernoulli}(\mathrm{logit}^{-1}(\alpha + x_n \cdot \beta))
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def data() -> dict[str, Tensor]:
    """A small set of known origin: intercept -0.5, slopes (1.5, -1); 80 rows."""
    grid = torch.linspace(-2.0, 2.0, 80, dtype=torch.float64)
    x = torch.stack([grid, torch.cos(7 * grid)], -1)
    logits = -0.5 + x @ torch.tensor([1.5, -1.0], dtype=torch.float64)
    # a low-discrepancy sequence in the place of random thresholds
    threshold = (0.5 + 0.6180339887498949 * torch.arange(80, dtype=torch.float64)) % 1.0
    return {"x": x, "y": (torch.sigmoid(logits) > threshold).to(x.dtype)}


def logistic_regression(x: Tensor, y: Tensor | None = None, scale: float = 2.5) -> None:
    """Predictors `x`, ``(N, K)``; outcome `y` in {0, 1}, ``(N,)``, or None to predict."""
    zero = x.new_zeros(x.shape[-1])
    intercept = pyro.sample("intercept", dist.Normal(x.new_zeros(()), scale))
    slope = pyro.sample("slope", dist.Normal(zero, scale).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=intercept + x @ slope), obs=y)
