"""Planar flows, with their inverse."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.transforms.hyperbolic import tanh_root, tanh_slope
from ppgen.transforms.ridge import Ridges, push
from ppgen.transforms.vector import RAW_ONE, positive, unit

_SHORTEST = 1e-3  # of w; a shorter one is stretched to it, unless it is zero and does nothing


class Planar:
    r"""Stretches and squeezes space at right angles to a plane.

    .. math::
        y = x + \hat u \tanh(w \cdot x + b), \quad
        \hat u = u + (m - w \cdot u) \frac{w}{\|w\|^2}, \quad
        \log \left|\det \frac{dy}{dx}\right| = \log(1 + m \tanh'(w \cdot x + b))

    It is invertible if :math:`m = w \cdot \hat u > -1`; m is the softplus of :math:`w \cdot u`,
    less 1, so that :math:`w \cdot u = \log(e - 1)` means no stretch. (0.001 above -1, in
    fact, so that the least slope is 0.001.) The inverse is the root of one monotone
    equation in :math:`s = w \cdot x + b`:

    .. math:: s + m \tanh(s) = w \cdot y + b, \quad x = y - \hat u \tanh(s)

    Args:
        dim: coordinates, D.

    Shapes: raw parameters ``(*, 2D + 1)``: w, u, b.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), appendix A
        | https://arxiv.org/abs/1505.05770
    """

    def __init__(self, dim: int) -> None:
        require_whole(self, dim=dim)
        self.dim, self.parameters = dim, 2 * dim + 1

    def initial(self) -> Tensor:
        """A random plane, and the u along w that makes the identity."""
        w = torch.randn(self.dim)
        w = w / w.norm().clamp(min=0.1)
        return torch.cat([w, RAW_ONE * w / w.square().sum(), torch.randn(1)])

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return push(x, self.ridges(raw[None]))

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        w, u, m, b = self._split(raw)
        s = tanh_root((w * y).sum(-1) + b, m)
        return y - u * torch.tanh(s)[..., None], -torch.log1p(m * tanh_slope(s))

    def ridges(self, raw: Tensor) -> Ridges:
        w, u, m, b = self._split(raw)
        return Ridges(u[..., None], w[..., None, :], b[..., None], m[..., None])

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``w, u-hat, m, b``."""
        w, u, b = raw.split([self.dim, self.dim, 1], -1)
        length, direction = torch.linalg.vector_norm(w, dim=-1), unit(w)
        faces = direction.any(-1)
        # a plane that hardly faces anywhere would push without bound along w / |w|^2
        length = length.clamp(min=_SHORTEST)
        along = length * (direction * u).sum(-1)
        m = torch.where(faces, positive(along) - 1, 0.0)
        u = u + ((m - along) / length)[..., None] * direction
        return length[..., None] * direction, u, m, b.squeeze(-1)
