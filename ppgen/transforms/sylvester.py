"""Sylvester flows with the right log-determinant, and their inverse."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ppgen.arguments import require_whole
from ppgen.transforms.hyperbolic import tanh_root, tanh_slope
from ppgen.transforms.ridge import Ridges, push
from ppgen.transforms.vector import RAW_ONE, positive, times

_STEEPEST = 3.0  # nats: the largest |log S_ii|
_SHORTEST = 1e-18  # half the square of a mirror's normal


class Sylvester:
    r"""M planar flows at once, along orthogonal directions that are mixed by triangles.

    .. math::
        y = x + Q R \tanh(S Q^T x + b), \quad
        \log \left|\det \frac{dy}{dx}\right| = \sum_i \log(1 + m_i \tanh'(s_i)), \quad
        m_i = R_{ii} S_{ii}, \quad s = S Q^T x + b

    R and S are upper triangular, M x M, and Q has M orthonormal columns: a product of
    Householder reflections (H-SNF), or none and a fixed order of the coordinates (T-SNF). In
    the paper's :math:`y = x + A \tanh(B x + b)` that is :math:`A = Q R, B = S Q^T`, and only so
    is B A triangular and the determinant that product.

    It is invertible if every :math:`m_i > -1`, which a softplus ensures as in
    :class:`Planar` (the paper's tanh keeps it below 1 besides). The inverse, in
    :math:`v = Q^T x`, is back-substitution: from the last coordinate to the first, each is the
    root of one monotone equation.

    Args:
        dim: coordinates, D.
        columns: M; D by default.
        reflections: of the orthogonal factor; M by default, as the paper's H-SNF; 0 for T-SNF.
        flip: whether Q reverses the order of the coordinates, which triangular layers take in
            turns.

    Shapes: raw parameters ``(*, reflections D + M (M + 2))``.

    References:
        | Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018)
        | https://arxiv.org/abs/1803.05649
    """

    def __init__(
        self,
        dim: int,
        columns: int | None = None,
        *,
        reflections: int | None = None,
        flip: bool = False,
    ) -> None:
        self.dim, self.columns = dim, dim if columns is None else columns
        self.reflections = self.columns if reflections is None else reflections
        self.flip = flip
        require_whole(self, dim=dim, columns=self.columns)
        require_whole(self, least=0, reflections=self.reflections)
        if self.columns > dim:
            raise ValueError(f"Sylvester(columns=...) must be at most dim={dim}, got {columns}")
        above = self.columns * (self.columns - 1) // 2
        self._sizes = [self.reflections * dim, above, above, *[self.columns] * 3]
        self.parameters = sum(self._sizes)
        # entry (i, j) of a triangle is number index[i, j] of its list, after a leading zero
        self._index = torch.zeros(self.columns, self.columns, dtype=torch.long)
        rows, columns_ = torch.triu_indices(self.columns, self.columns, offset=1)
        self._index[rows, columns_] = torch.arange(1, above + 1)

    def initial(self) -> Tensor:
        """The identity, with random reflections and thresholds."""
        mirrors, above_r, above_s, m, scale, b = (torch.zeros(n) for n in self._sizes)
        random = torch.randn_like(mirrors), torch.randn_like(b)
        return torch.cat([random[0], above_r, above_s, m + RAW_ONE, scale, random[1]])

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return push(x, self.ridges(raw[None]))

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        V, X, R, S, m, b = self._split(raw)
        goal = self._select(y) - times(X.mT, times(V, y))  # Q^T y
        v = s = h = goal[..., :0]  # those solved so far, the last coordinates
        for i in reversed(range(self.columns)):
            rest = goal[..., i] - (R[..., i, i + 1 :] * h).sum(-1)
            offset = (S[..., i, i + 1 :] * v).sum(-1) + b[..., i]
            root = tanh_root(S[..., i, i] * rest + offset, m[..., i])
            pushed = rest - R[..., i, i] * torch.tanh(root)
            s, v = _before(root, s), _before(pushed, v)
            h = torch.tanh(s)
        x = y - times(self._outward(V, X, R), h)
        return x, -torch.log1p(m * tanh_slope(s)).sum(-1)

    def ridges(self, raw: Tensor) -> Ridges:
        V, X, R, S, m, b = self._split(raw)
        inward = self._spread(S) - (S @ X.mT) @ V
        return Ridges(self._outward(V, X, R), inward, b, m)

    def _outward(self, V: Tensor, X: Tensor, R: Tensor) -> Tensor:
        """``Q R``, ``(*, D, M)``."""
        return self._spread(R.mT).mT - V.mT @ (X @ R)

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        r"""``V, X, R, S, m, b``, the first two for :math:`Q = E - V^T X`.

        E are M columns of the identity and the rows of V the mirrors' normals, r of them, of any
        length: the product of all reflections is :math:`I - V^T T V`, where :math:`T^{-1}` is the
        upper triangle of :math:`V V^T` with its diagonal halved (Puglisi, 1992), and X is T V E.
        """
        mirrors, above_r, above_s, m, scale, b = raw.split(self._sizes, -1)
        V = mirrors.unflatten(-1, (self.reflections, self.dim))
        gram = V @ V.mT
        half = gram.diagonal(dim1=-2, dim2=-1) / 2
        half = torch.where(half > _SHORTEST, half, 1.0)  # one without a direction mirrors nothing
        X = torch.linalg.solve_triangular(
            gram.triu(1) + torch.diag_embed(half), self._select(V), upper=True
        )
        m = positive(m) - 1
        scale = torch.exp(_STEEPEST * torch.tanh(scale / _STEEPEST))
        R = self._triangle(above_r) + torch.diag_embed(m / scale)
        return V, X, R, self._triangle(above_s) + torch.diag_embed(scale), m, b

    def _triangle(self, above: Tensor) -> Tensor:
        return F.pad(above, (1, 0))[..., self._index]

    def _select(self, x: Tensor) -> Tensor:
        """The coordinates in E, ``(*, D) -> (*, M)``."""
        return (x.flip(-1) if self.flip else x)[..., : self.columns]

    def _spread(self, v: Tensor) -> Tensor:
        """Back at their places, and zeros: ``(*, M) -> (*, D)``."""
        x = F.pad(v, (0, self.dim - self.columns))
        return x.flip(-1) if self.flip else x


def _before(first: Tensor, others: Tensor) -> Tensor:
    return torch.cat([first[..., None], others.expand(*first.shape, -1)], -1)
