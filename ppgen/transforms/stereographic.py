r"""The sphere as a constraint, and its stereographic chart."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Transform, constraints


class Sphere(constraints.Constraint):
    """Vectors of length one.

    The tolerance admits single precision, also where it was widened to double.
    """

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        eps = max(torch.finfo(value.dtype).eps, 1e-7)
        length = torch.linalg.vector_norm(value, dim=-1)
        return (length - 1).abs() <= 10 * eps * value.shape[-1] ** 0.5

    def __repr__(self) -> str:
        return "Sphere()"


sphere = Sphere()


class Stereographic(Transform):
    r"""The plane on the sphere, seen from the north pole: :math:`R^n \to S^n` but for one point.

    .. math::
        x = \frac{(2u, |u|^2 - 1)}{1 + |u|^2}, \qquad
        \ln \sqrt{\det J^T J} = n \ln \frac{2}{1 + |u|^2}

    The log-determinant is with respect to surface area; a density that drops it is not
    normalised. The south pole is ``u = 0``; the uniform law on the sphere is a multivariate t
    with n degrees of freedom and scale ``1 / sqrt(n)``. A law of `u` with lighter tails leaves
    a hole at the north pole ``(0, ..., 0, 1)``, and a law concentrated there is far from `u`'s
    origin: rotate the story if its posterior stands there.

    Shapes: ``(*, n) -> (*, n + 1)``, log-determinants ``(*)``.

    References:
        | Normalizing Flows on Riemannian Manifolds (Gemici, Rezende and Mohamed, 2016)
        | https://arxiv.org/abs/1611.02304

    Example:
        >>> Stereographic()(torch.zeros(2))
        tensor([ 0.,  0., -1.])
    """

    domain = constraints.real_vector
    codomain = sphere
    bijective = True

    def forward_shape(self, shape: Any) -> Size:
        return Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Any) -> Size:
        return Size((*shape[:-1], shape[-1] - 1))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -x.shape[-1] * (x.square().sum(-1).log1p() - math.log(2))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stereographic)

    def __hash__(self) -> int:
        return hash(Stereographic)

    def _call(self, x: Tensor) -> Tensor:
        # 1 - 2 / (1 + s): nothing overflows where s would
        share = 2 / (1 + x.square().sum(-1, keepdim=True))
        return torch.cat([x * share, 1 - share], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        side, height = y[..., :-1], y[..., -1:]
        # 1 - height, near the pole without the cancellation; there the image is far, but finite
        below = torch.where(
            height > 0, side.square().sum(-1, keepdim=True) / (1 + height), 1 - height
        )
        return side / below.clamp(min=torch.finfo(y.dtype).tiny ** 0.5)
