"""Sylvester flows with the right log-determinant, and their inverse."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ppgen.transforms.hyperbolic import tanh_root, tanh_slope
from ppgen.transforms.vector import RAW_ONE, positive, times, unit

_STEEPEST = 3.0  # nats: the largest |log S_ii|


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
        if not 1 <= self.columns <= dim or self.reflections < 0:
            raise ValueError(
                "a Sylvester flow needs 1 to dim columns and no fewer than 0 reflections; got "
                f"dim={dim}, columns={columns}, reflections={reflections}"
            )
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
        mirrors, R, S, m, b = self._split(raw)
        s = times(S, self._rotate(x, mirrors)) + b
        y = x + self._rotate_back(times(R, torch.tanh(s)), mirrors)
        return y, torch.log1p(m * tanh_slope(s)).sum(-1)

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        mirrors, R, S, m, b = self._split(raw)
        goal = self._rotate(y, mirrors)
        v = s = h = goal[..., :0]  # those solved so far, the last coordinates
        for i in reversed(range(self.columns)):
            rest = goal[..., i] - (R[..., i, i + 1 :] * h).sum(-1)
            offset = (S[..., i, i + 1 :] * v).sum(-1) + b[..., i]
            root = tanh_root(S[..., i, i] * rest + offset, m[..., i])
            pushed = rest - R[..., i, i] * torch.tanh(root)
            s, v = _before(root, s), _before(pushed, v)
            h = torch.tanh(s)
        x = y - self._rotate_back(times(R, h), mirrors)
        return x, -torch.log1p(m * tanh_slope(s)).sum(-1)

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``mirrors, R, S, m, b``; mirrors are unit vectors, ``(*, reflections, D)``."""
        mirrors, above_r, above_s, m, scale, b = raw.split(self._sizes, -1)
        mirrors = unit(mirrors.unflatten(-1, (self.reflections, self.dim)))
        m = positive(m) - 1
        scale = torch.exp(_STEEPEST * torch.tanh(scale / _STEEPEST))
        R = self._triangle(above_r) + torch.diag_embed(m / scale)
        return mirrors, R, self._triangle(above_s) + torch.diag_embed(scale), m, b

    def _triangle(self, above: Tensor) -> Tensor:
        return F.pad(above, (1, 0))[..., self._index]

    def _rotate(self, x: Tensor, mirrors: Tensor) -> Tensor:
        """``Q^T x``, ``(*, D) -> (*, M)``."""
        for k in range(self.reflections):
            x = _reflect(x, mirrors[..., k, :])
        return (x.flip(-1) if self.flip else x)[..., : self.columns]

    def _rotate_back(self, v: Tensor, mirrors: Tensor) -> Tensor:
        """``Q v``, ``(*, M) -> (*, D)``."""
        x = F.pad(v, (0, self.dim - self.columns))
        x = x.flip(-1) if self.flip else x
        for k in reversed(range(self.reflections)):
            x = _reflect(x, mirrors[..., k, :])
        return x


def _reflect(x: Tensor, mirror: Tensor) -> Tensor:
    return x - 2 * (x * mirror).sum(-1, keepdim=True) * mirror


def _before(first: Tensor, others: Tensor) -> Tensor:
    return torch.cat([first[..., None], others.expand(*first.shape, -1)], -1)
