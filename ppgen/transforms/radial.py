"""Radial flows, with their inverse."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.transforms.vector import RAW_ONE, positive


class Radial:
    r"""Stretches and squeezes space around a point.

    .. math::
        y = x_0 + \frac{\sigma + r}{\alpha + r} (x - x_0), \quad r = \|x - x_0\|, \quad
        \left|\det \frac{dy}{dx}\right| = \left(\frac{\sigma + r}{\alpha + r}\right)^{D-1}
        \frac{r^2 + 2 \alpha r + \alpha \sigma}{(\alpha + r)^2}

    with positive :math:`\alpha` and :math:`\sigma = \alpha + \beta`, the paper's
    :math:`\beta \ge -\alpha`. (Both are at least 0.001.) No root finding: the distance r is
    that of a quadratic,

    .. math:: r^2 + (\sigma - \rho) r - \alpha \rho = 0, \quad \rho = \|y - x_0\|

    Args:
        dim: coordinates, D.

    Shapes: raw parameters ``(*, D + 2)``: x_0, alpha and sigma before their softplus.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), appendix A
        | https://arxiv.org/abs/1505.05770
    """

    def __init__(self, dim: int) -> None:
        require_whole(self, dim=dim)
        self.dim, self.parameters = dim, dim + 2

    def initial(self) -> Tensor:
        """The identity around a random point."""
        return torch.cat([torch.randn(self.dim), torch.full((2,), RAW_ONE)])

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        centre, alpha, sigma = self._split(raw)
        away = x - centre
        r = torch.linalg.vector_norm(away, dim=-1)
        ratio = (sigma + r) / (alpha + r)
        return centre + ratio[..., None] * away, self._log_det(r, alpha, sigma)

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        centre, alpha, sigma = self._split(raw)
        away = y - centre
        rho = torch.linalg.vector_norm(away, dim=-1)
        half = (rho - sigma) / 2
        root = (half.square() + alpha * rho).sqrt()
        # the form that does not subtract what is nearly equal
        r = torch.where(half > 0, half + root, alpha * rho / (root + half.abs()))
        ratio = (alpha + r) / (sigma + r)
        return centre + ratio[..., None] * away, -self._log_det(r, alpha, sigma)

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centre, alpha, sigma = raw.split([self.dim, 1, 1], -1)
        return centre, positive(alpha.squeeze(-1)), positive(sigma.squeeze(-1))

    def _log_det(self, r: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        across = torch.log((sigma + r) / (alpha + r))
        along = torch.log((r.square() + alpha * (2 * r + sigma)) / (alpha + r).square())
        return (self.dim - 1) * across + along
