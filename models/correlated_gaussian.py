r"""A normal distribution with a known answer, as correlated and as badly scaled as wanted.

.. math:: x \sim N(0, \Sigma), \quad \Sigma_{ij} = s_i s_j \rho^{|i - j|}

Independent normals that minimise the reverse Kullback-Leibler divergence have variances
:math:`1 / (\Sigma^{-1})_{ii} = s_i^2 (1 - \rho^2) / (1 + \rho^2)`, at both ends
:math:`s_i^2 (1 - \rho^2)`: known as well, and too small.

References:
    | Pattern Recognition and Machine Learning, section 10.1.2 (Bishop, 2006)
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def covariance(dimension: int, correlation: float, widest: float) -> Tensor:
    r"""Sigma, ``(D, D)``, with s from 1 to `widest` in equal ratios."""
    scale = torch.logspace(0.0, 1.0, dimension, base=widest, dtype=torch.float64)
    index = torch.arange(dimension)
    decay = correlation ** (index - index.unsqueeze(-1)).abs().to(scale)
    return scale * scale.unsqueeze(-1) * decay


def correlated_gaussian(dimension: int = 2, correlation: float = 0.9, widest: float = 1.0) -> None:
    """One site ``x``, ``(D,)``: `correlation` of neighbours, the last `widest` times as wide."""
    sigma = covariance(dimension, correlation, widest).to(torch.get_default_dtype())
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(dimension), sigma))
