r"""Gaussian processes on a line: regression with its exact marginal likelihood, and counts.

.. math::
    \rho \sim \mathrm{LogNormal}(\log r, 1), \quad \alpha \sim N^+(0, 2), \quad
    K_{ij} = \alpha^2 \exp(-(x_i - x_j)^2 / 2 \rho^2)

The scale r of the prior of the length scale is a quarter of the range of `x`. The function is
integrated out of the regression; :func:`predictive` has it back.

References:
    | Gaussian processes for machine learning, chapter 2 (Rasmussen & Williams, 2006)
      | https://gaussianprocess.org/gpml/
    | Log Gaussian Cox processes (Møller, Syversveen & Waagepetersen, 1998), on a grid
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen.models.posteriordb.gaussian_process import covariance

JITTER = 1e-8  # of the variance of the process


def data() -> dict[str, Tensor]:
    """A wave of amplitude 1 and period 4 with noise 0.2, at 25 points."""
    x = torch.linspace(0.0, 6.0, 25, dtype=torch.float64)
    wobble = 0.2 * torch.sin(37.0 * torch.arange(25, dtype=torch.float64) ** 1.5) * 2**0.5
    return {"x": x, "y": torch.sin(0.5 * torch.pi * x) + wobble}


def counts() -> dict[str, Tensor]:
    """Counts whose rate is ``exp(1 + wave)``, at 20 points, rounded."""
    x = torch.linspace(0.0, 6.0, 20, dtype=torch.float64)
    wobble = torch.sin(37.0 * torch.arange(20, dtype=torch.float64) ** 1.5)
    rate = torch.exp(1.0 + torch.sin(0.5 * torch.pi * x))
    return {"x": x, "k": (rate + wobble * rate.sqrt()).clamp(min=0.0).round()}


def _hyperparameters(x: Tensor) -> tuple[Tensor, Tensor]:
    quarter = 0.25 * (x.amax() - x.amin())
    rho = pyro.sample("rho", dist.LogNormal(quarter.log(), 1.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(x.new_full((), 2.0)))
    return rho, alpha


def gaussian_process(x: Tensor, y: Tensor | None = None) -> None:
    r"""Regression: :math:`\sigma \sim N^+(0, 1), y \sim N(0, K + \sigma^2 I)`; ``(N,)`` each."""
    rho, alpha = _hyperparameters(x)
    sigma = pyro.sample("sigma", dist.HalfNormal(x.new_full((), 1.0)))
    noise = sigma.square() + JITTER * alpha.square()
    factor = torch.linalg.cholesky(covariance(x, rho, alpha, noise))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(x), scale_tril=factor), obs=y)


def poisson_gaussian_process(x: Tensor, k: Tensor | None = None) -> None:
    r"""Counts: :math:`m \sim N(0, 2), f = m + L \tilde f, k_i \sim \mathrm{Poisson}(e^{f_i})`.

    `L` is the factor of K: the process is not centred, since counts say little about one point.
    """
    rho, alpha = _hyperparameters(x)
    mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 2.0))
    with pyro.plate("data", len(x)):
        whitened = pyro.sample("f_tilde", dist.Normal(x.new_zeros(()), 1.0))
        factor = torch.linalg.cholesky(covariance(x, rho, alpha, JITTER * alpha.square()))
        f = pyro.deterministic("f", mean + factor @ whitened)
        pyro.sample("k", dist.Poisson(f.exp()), obs=k)


def predictive(
    x: Tensor, y: Tensor, x_new: Tensor, rho: Tensor, alpha: Tensor, sigma: Tensor
) -> dist.MultivariateNormal:
    """The law of outcomes at `x_new`, ``(M,)``, given the data and hyperparameters, ``(...)``."""
    noise = sigma.square() + JITTER * alpha.square()
    whole = covariance(torch.cat([x, x_new]), rho, alpha, 0.0)
    whole = whole + noise[..., None, None] * torch.eye(whole.shape[-1]).to(x)
    n = len(x)
    factor = torch.linalg.cholesky(whole[..., :n, :n])
    weights = torch.linalg.solve_triangular(factor, whole[..., :n, n:], upper=False)
    white = torch.linalg.solve_triangular(factor, y.unsqueeze(-1), upper=False)
    mean = (weights.mT @ white).squeeze(-1)
    return dist.MultivariateNormal(mean, whole[..., n:, n:] - weights.mT @ weights)
