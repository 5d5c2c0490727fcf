r"""Families of densities on the flat unconstrained vector: what :class:`VI` fits.

A family pushes standard normal noise through a map with trainable parameters,

.. math:: u = T_\phi(\epsilon), \quad
          \log q_\phi(u) = \log N(\epsilon; 0, I) - \log |\det \partial T_\phi / \partial \epsilon|

(where the map is invertible). It knows nothing of the story: :class:`VI` places it on the
posterior by an affine map.

References:
    | Automatic Differentiation Variational Inference (Kucukelbir et al., 2017)
    | https://arxiv.org/abs/1603.00788
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_LOG_TWO_PI = math.log(2 * math.pi)


def standard_normal(noise: Tensor) -> Tensor:
    """``log N(noise; 0, I)``, ``(K, D) -> (K,)``, nats."""
    return -0.5 * (noise.square().sum(-1) + noise.shape[-1] * _LOG_TWO_PI)


class FlatGuide(nn.Module):
    """A density on ``(D,)`` vectors that starts as, or near, the standard normal.

    Args:
        dim: dimensions, D.

    Shapes:
        ``forward``: noise ``(K, noise_dim)`` -> draws u ``(K, D)`` and log q(u) ``(K,)``, nats.
    """

    rate = 0.05  # learning rate that suits its parameters
    has_score = True  # whether `score` is cheap
    dense = True  # whether a full affine map of it is still in the family

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = self.noise_dim = dim

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def score(self, u: Tensor, noise: Tensor) -> Tensor:
        """Gradient of ``log q(u)`` with respect to `u` at draws ``(K, D)``, parameters held."""
        raise NotImplementedError


class MeanField(FlatGuide):
    r"""Independent normals: :math:`u = m + s \odot \epsilon`."""

    dense = False

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def begin(self, loc: Tensor, log_scale: Tensor) -> None:
        """Start as other normals, ``(D,)`` each."""
        self.loc.copy_(loc)
        self.log_scale.copy_(log_scale)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        log_q = standard_normal(noise) - self.log_scale.sum()
        return self.loc + self.log_scale.exp() * noise, log_q

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density of any points, ``(K, D) -> (K,)``, nats."""
        noise = (u - self.loc) * (-self.log_scale).exp()
        return standard_normal(noise) - self.log_scale.sum()

    def score(self, u: Tensor, noise: Tensor) -> Tensor:
        return -noise * (-self.log_scale).exp()


class FullRank(FlatGuide):
    r"""A normal with any covariance: :math:`u = m + L \epsilon`, L lower triangular."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_diagonal = nn.Parameter(torch.zeros(dim))
        self.below = nn.Parameter(torch.zeros(dim, dim))

    def factor(self) -> Tensor:
        """L, ``(D, D)``."""
        return self.below.tril(-1) + self.log_diagonal.exp().diag()

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        log_q = standard_normal(noise) - self.log_diagonal.sum()
        return self.loc + noise @ self.factor().mT, log_q

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density of any points, ``(K, D) -> (K,)``, nats."""
        noise = torch.linalg.solve_triangular(self.factor(), (u - self.loc).mT, upper=False).mT
        return standard_normal(noise) - self.log_diagonal.sum()

    def score(self, u: Tensor, noise: Tensor) -> Tensor:
        return -torch.linalg.solve_triangular(self.factor(), noise, upper=False, left=False)


class LowRank(FlatGuide):
    r"""A normal with covariance :math:`S (I + W W^T) S`, S diagonal, W of `rank` columns.

    Its noise has `rank` dimensions more than the draw: :math:`u = m + S (\epsilon + W \eta)`.

    Args:
        dim: dimensions, D.
        rank: columns of W.

    References:
        | Gaussian variational approximation with a factor covariance structure
        | (Ong, Nott & Smith, 2018) | https://arxiv.org/abs/1701.03208
    """

    dense = False

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__(dim)
        self.noise_dim = dim + rank
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        # not zero, where the gradient of W vanishes
        self.columns = nn.Parameter(0.1 / math.sqrt(dim) * torch.randn(dim, rank))

    @torch.no_grad()
    def begin(self, log_scale: Tensor, columns: Tensor) -> None:
        """Start with another covariance: log S ``(D,)`` and W ``(D, rank)``."""
        self.log_scale.copy_(log_scale)
        self.columns.copy_(columns)

    def _inner(self) -> Tensor:
        """Cholesky factor of ``I + W^T W``, ``(rank, rank)``."""
        gram = self.columns.mT @ self.columns
        return torch.linalg.cholesky(gram + torch.eye(len(gram), dtype=gram.dtype).to(gram))

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        own, shared = noise[:, : self.dim], noise[:, self.dim :]
        spread = own + shared @ self.columns.mT
        return self.loc + self.log_scale.exp() * spread, self._log_prob(spread)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density of any points, ``(K, D) -> (K,)``, nats."""
        return self._log_prob((u - self.loc) * (-self.log_scale).exp())

    def _log_prob(self, spread: Tensor) -> Tensor:
        inner = self._inner()
        # Woodbury: v' (I + W W')^-1 v = v'v - |C^-1 W'v|^2 with C C' = I + W'W
        less = torch.linalg.solve_triangular(inner, (spread @ self.columns).mT, upper=False)
        square = spread.square().sum(-1) - less.square().sum(0)
        log_det = self.log_scale.sum() + inner.diagonal().log().sum()
        return -0.5 * (square + self.dim * _LOG_TWO_PI) - log_det

    def score(self, u: Tensor, noise: Tensor) -> Tensor:
        spread = (u - self.loc) * (-self.log_scale).exp()
        solved = torch.cholesky_solve((spread @ self.columns).mT, self._inner()).mT
        return -(spread - solved @ self.columns.mT) * (-self.log_scale).exp()


@dataclass(frozen=True)
class Family:
    """How to build a flat guide once the number of dimensions is known.

    Args:
        name: what reports call it.
        build: from the number of dimensions to the guide.
        options: what distinguishes this one, for reports.
    """

    name: str
    build: Callable[[int], FlatGuide] = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        inside = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.name}({inside})" if inside else self.name


def mean_field_guide() -> Family:
    """Independent normals, one for each unconstrained dimension."""
    return Family("mean-field", MeanField)


def full_rank_guide() -> Family:
    """One normal with a full covariance matrix; D (D + 3) / 2 parameters."""
    return Family("full-rank", FullRank)


def low_rank_guide(rank: int | None = None) -> Family:
    """A normal whose covariance is diagonal plus low rank; the rank is sqrt(D) by default."""
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")

    def build(dim: int) -> LowRank:
        return LowRank(dim, min(dim, rank or max(1, round(math.sqrt(dim)))))

    return Family("low-rank", build, {"rank": rank or "sqrt(D)"})
