r"""Two Gaussian processes of posteriordb, with squared exponential kernel.

.. math::
    \rho \sim \mathrm{Gamma}(25, 4), \quad \alpha \sim N^+(0, 2), \quad
    K_{ij} = \alpha^2 \exp(-(x_i - x_j)^2 / 2 \rho^2)

References:
    | posteriordb (Magnusson et al., 2024) | https://arxiv.org/abs/2407.04967
    | Gaussian processes for machine learning (Rasmussen & Williams, 2006)
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

JITTER = 1e-10  # on the diagonal, as in Stan's program: 1e-6 is another posterior


def _hyperparameters() -> tuple[Tensor, Tensor]:
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    return rho, alpha


def covariance(x: Tensor, rho: Tensor, alpha: Tensor, diagonal: Tensor | float) -> Tensor:
    """``K + diagonal I``, ``(..., N, N)``, for hyperparameters ``(...)``."""
    square = (x.unsqueeze(-1) - x).square()
    scaled = square / (2 * rho.square())[..., None, None]
    eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
    return alpha.square()[..., None, None] * torch.exp(-scaled) + diagonal * eye


def gp_regr(x: Tensor, y: Tensor) -> None:
    r"""Regression: :math:`\sigma \sim N^+(0, 1), y \sim N(0, K + \sigma I)`.

    The variance of the noise is :math:`\sigma` itself, not its square.
    """
    rho, alpha = _hyperparameters()
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    factor = torch.linalg.cholesky(covariance(x, rho, alpha, sigma))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(x), scale_tril=factor), obs=y)


def gp_pois_regr(x: Tensor, k: Tensor | None = None) -> None:
    r"""Counts, :math:`k_i \sim \mathrm{Poisson}(e^{f_i})`, by a process that is not centred.

    :math:`f = L \tilde f` with :math:`\tilde f \sim N(0, I)` and `L` the factor of
    :math:`K + 10^{-10} I`, which in float32 does not exist at many points.
    """
    rho, alpha = _hyperparameters()
    with pyro.plate("data", len(x)):
        whitened = pyro.sample("f_tilde", dist.Normal(x.new_zeros(()), 1.0))
        factor = torch.linalg.cholesky(covariance(x, rho, alpha, JITTER))
        f = pyro.deterministic("f", (factor @ whitened.unsqueeze(-1)).squeeze(-1))
        pyro.sample("k", dist.Poisson(f.exp()), obs=k)
