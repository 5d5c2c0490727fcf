"""From real numbers to the unit cube, where dequantised data live."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from ppgen.arguments import require_widths
from ppgen.transforms.bijection import Bijection

_EDGE = 1e-6  # how near the cube's walls a point may be: their images are infinite


class ToCube(Bijection):
    """The logistic function of each coordinate, and images laid out flat.

    Points within a millionth of a wall are taken for points at that distance.

    Args:
        shape: of the real side's event, such as ``(C, H, W)``.

    Shapes: ``(*, *shape) -> (*, D)``; log-determinants ``(*)``.
    """

    codomain = constraints.independent(constraints.unit_interval, 1)

    def __init__(self, shape: Sequence[int]) -> None:
        require_widths(self, shape=shape)
        super().__init__()
        self.shape = torch.Size(shape)
        self.domain = constraints.independent(constraints.real, len(self.shape))

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        return torch.Size([*shape[: len(shape) - len(self.shape)], self.shape.numel()])

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        return torch.Size([*shape[:-1], *self.shape])

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(-len(self.shape))
        return flat.sigmoid(), -_steepness(flat)

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        flat = y.clamp(_EDGE, 1 - _EDGE).logit()
        return flat.unflatten(-1, self.shape), _steepness(flat)


def _steepness(x: Tensor) -> Tensor:
    """Log slope of the logit at ``sigmoid(x)``, summed."""
    return (F.softplus(x) + F.softplus(-x)).sum(-1)
