r"""Moebius maps of spheres: one pull towards a place, in any dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppgen.arguments import require_whole
from ppgen.transforms.sphere import SphereMap

FARTHEST = 1 - 1e-4  # of a centre that is learned: there bumps are 1e-4 radians wide


def moebius(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    r"""The map of :math:`S^n` onto itself that draws mass towards `centre`, and its log-det.

    .. math::
        x \mapsto \frac{1 - |\psi|^2}{|x + \psi|^2} (x + \psi) + \psi, \qquad
        \left|\det\right| = \left(\frac{1 - |\psi|^2}{|x + \psi|^2}\right)^n,
        \quad |\psi| < 1

    The map of :math:`-\psi` is its inverse.

    Shapes: `x` and `centre` ``(*, n + 1)``, which broadcast; log-determinants ``(*)``, with
        respect to surface area.
    """
    moved = x + centre
    apart = moved.square().sum(-1)
    inside = 1 - centre.square().sum(-1)
    ratio = inside / apart
    return ratio[..., None] * moved + centre, (x.shape[-1] - 1) * ratio.log()


class Moebius(SphereMap):
    r"""A Moebius map of :math:`S^n`, one layer of a flow: its centre is learned.

    The uniform law becomes a spherical Cauchy law. Both directions are the same formula.

    Args:
        dim: n, at least 1.

    Shapes: ``(*, n + 1) -> (*, n + 1)``, log-determinants ``(*)``.

    References:
        | Normalizing Flows on Tori and Spheres (Rezende et al., 2020)
        | https://arxiv.org/abs/2002.02428
        | Moebius transformation and a Cauchy family on the sphere (Kato & McCullagh, 2015)
        | https://arxiv.org/abs/1510.07679
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        require_whole(self, dim=dim)
        self.dim = dim
        self.raw = nn.Parameter(torch.zeros(dim + 1))  # the identity

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return moebius(x, self._centre())

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return moebius(y, -self._centre())

    def _centre(self) -> Tensor:
        return FARTHEST * self.raw * (1 + self.raw.square().sum()).rsqrt()
