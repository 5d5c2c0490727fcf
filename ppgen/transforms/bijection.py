"""What all transforms here have in common."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from ppgen.arguments import require_whole


class Bijection(Transform):
    """A transform that gives the value and the log-determinant together, in both directions.

    A subclass says how; :class:`~ppgen.transforms.pushforward.Pushforward` asks for the pairs,
    and torch's own interface is served from them. Nothing is cached, so that no value outlives
    a parameter update. With parameters of its own it is also a `TransformModule`, named second.

    A round trip closes to rounding times the steepness of the way back: 1e-10 where slopes are of
    order one. Coupling and autoregressive layers of splines whose networks have weights of order
    one can squeeze some direction of five by 1e12 or more, and then a double precision number no
    longer tells where it came from. Log-determinants agree with autograd's to 1e-9 all the same.
    """

    bijective = True

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The data value ``y`` of base `x`, and ``log |det dy/dx|``."""
        raise NotImplementedError

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The base value ``x`` of data `y`, and ``log |det dx/dy|``."""
        raise NotImplementedError

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.forward_with_log_det(x)[1]

    def with_cache(self, cache_size: int = 1) -> Self:
        """Itself: it never caches."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        return self.forward_with_log_det(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_with_log_det(y)[0]


def per_channel(owner: object, channels: int, event_dim: int) -> Any:
    """The constraint of real vectors ``(*, C)`` or images ``(*, C, H, W)``.

    Raises:
        ValueError: for fewer than one channel or event dimension of `owner`.
    """
    require_whole(owner, channels=channels, event_dim=event_dim)
    return constraints.independent(constraints.real, event_dim)
