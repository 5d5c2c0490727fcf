r"""Expectations under exponential families, and under a point mass.

An update of coordinate ascent and a full conditional of Gibbs are one formula,

.. math:: q_j(\theta_j) \propto \exp E_{\prod_{i \neq j} q_i} [\log p(x, \theta)],

read with factors :math:`q_i` that have a spread, or with point masses (``Delta``) at the current
state. A story writes it once with these expectations.

References:
    | Variational message passing (Winn & Bishop, 2005) | https://jmlr.org/papers/v6/winn05a.html
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn.functional import one_hot

from ppgen.anatomy import innermost

_LOG_TWO_PI = math.log(2 * math.pi)


def point(value: Tensor, batch_dims: int = 1) -> dist.Delta:
    """A point mass at `value`, ``(*batch, *event)``, with so many batch dimensions."""
    return dist.Delta(value, event_dim=value.dim() - batch_dims)


def second_moment(law: TorchDistribution, around: Tensor | float = 0.0) -> Tensor:
    """``E[(x - around)^2]``, elementwise."""
    return (law.mean - around).square() + law.variance


def mean_log(law: TorchDistribution) -> Tensor:
    """``E[log x]`` of a gamma, Dirichlet or point law, elementwise."""
    inner = innermost(law)
    if isinstance(inner, dist.Delta):
        return inner.mean.log()
    if isinstance(inner, dist.Gamma):
        return inner.concentration.digamma() - inner.rate.log()
    if isinstance(inner, dist.Dirichlet):
        alpha = inner.concentration
        return alpha.digamma() - alpha.sum(-1, keepdim=True).digamma()
    raise TypeError(f"E[log x] is known here for Gamma, Dirichlet and Delta, not for {law}")


def covariance(law: TorchDistribution) -> Tensor:
    """Covariance matrix of a law of vectors, ``(*batch, K, K)``; zero for a point."""
    inner = innermost(law)
    if isinstance(inner, dist.Delta):
        return inner.variance[..., None] * torch.eye(inner.variance.shape[-1]).to(inner.variance)
    if isinstance(inner, dist.MultivariateNormal):
        return inner.covariance_matrix
    raise TypeError(f"the covariance is known here for MultivariateNormal and Delta, not for {law}")


def shares(law: TorchDistribution, classes: int, dtype: torch.dtype) -> Tensor:
    """Probabilities of each class, ``(*batch, classes)``; one-hot for a point."""
    inner = innermost(law)
    if isinstance(inner, dist.Delta):
        return one_hot(inner.mean.long(), classes).to(dtype)
    if isinstance(inner, dist.Categorical):
        return inner.probs
    raise TypeError(f"shares are known here for Categorical and Delta, not for {law}")


def square_length(law: TorchDistribution) -> Tensor:
    """``E |w|^2`` of a law of vectors, ``(*batch)``."""
    return law.mean.square().sum(-1) + covariance(law).diagonal(0, -2, -1).sum(-1)


def expected_square(x: Tensor, y: Tensor, w: TorchDistribution) -> Tensor:
    """``E |y - X w|^2``: x ``(N, K)``, y ``(*batch, N)``, w a law of ``(K,)`` -> ``(*batch)``."""
    gap = y - w.mean @ x.mT
    return gap.square().sum(-1) + (covariance(w) * (x.mT @ x)).sum((-2, -1))


# -- E[log p(x)] under a law of x, elementwise, nats -----------------------------------------


def expected_log_normal(square: Tensor, precision: Tensor, log_precision: Tensor) -> Tensor:
    """Of a normal: from ``E[(x - mean)^2]``, ``E[tau]`` and ``E[log tau]``, independent."""
    return 0.5 * (log_precision - _LOG_TWO_PI - precision * square)


def expected_log_gamma(law: TorchDistribution, shape: float, rate: float) -> Tensor:
    """Of a gamma with this shape and rate."""
    constant = shape * math.log(rate) - math.lgamma(shape)
    return constant + (shape - 1) * mean_log(law) - rate * law.mean


def expected_log_dirichlet(law: TorchDistribution, concentration: float) -> Tensor:
    """Of a symmetric Dirichlet, ``(*batch)``."""
    logs = mean_log(law)
    classes = logs.shape[-1]
    constant = math.lgamma(classes * concentration) - classes * math.lgamma(concentration)
    return constant + (concentration - 1) * logs.sum(-1)
