"""A normal of unit variance of which only the sign is known."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

_LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)
_ONE = Size()
_FAR = -30.0  # beyond, the tail is exponential to 1e-3 of its own width


class SignedNormal(TorchDistribution):
    r"""``N(loc, 1)`` restricted to positive or to negative numbers.

    With :math:`t = s \cdot \mathrm{loc}` and :math:`h = \phi(t) / \Phi(t)` the mean is
    :math:`s (t + h)` and the variance :math:`1 - h (h + t)`.

    Args:
        loc: mean of the unrestricted normal.
        sign: s, +1 or -1, of the same shape up to broadcasting.

    References:
        | Bayesian Analysis of Binary and Polychotomous Response Data (Albert & Chib, 1993)
        | https://doi.org/10.1080/01621459.1993.10476321
    """

    arg_constraints: ClassVar[dict] = {  # pyright: ignore[reportIncompatibleMethodOverride]
        "loc": constraints.real,
        "sign": constraints.real,
    }
    support = constraints.real  # type: ignore[assignment]
    has_rsample = False

    def __init__(self, loc: Tensor, sign: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.sign = torch.broadcast_tensors(loc, sign)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SignedNormal:
        return SignedNormal(self.loc.expand(batch_shape), self.sign.expand(batch_shape))

    @property
    def _toward(self) -> Tensor:
        return self.sign * self.loc

    @property
    def _hazard(self) -> Tensor:
        t = self._toward
        return (-0.5 * t.square() - _LOG_ROOT_TWO_PI - torch.special.log_ndtr(t)).exp()

    @property
    def mean(self) -> Tensor:
        return self.loc + self.sign * self._hazard

    @property
    def variance(self) -> Tensor:
        h = self._hazard
        return 1 - h * (h + self._toward)

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        t = self._toward.expand(shape)
        # in (0, 1]: log and ndtri of zero are infinite
        u = 1 - torch.rand(shape, dtype=t.dtype, device=t.device)
        near = t - torch.special.ndtri(u * torch.special.ndtr(t.clamp(min=_FAR)))
        size = torch.where(t > _FAR, near, u.log() / t)
        return self.sign * size.clamp(min=torch.finfo(t.dtype).tiny)

    def log_prob(self, value: Tensor) -> Tensor:
        normal = -0.5 * (value - self.loc).square() - _LOG_ROOT_TWO_PI
        inside = normal - torch.special.log_ndtr(self._toward)
        return torch.where(value * self.sign > 0, inside, -torch.inf)

    def entropy(self) -> Tensor:
        t = self._toward
        return _LOG_ROOT_TWO_PI + torch.special.log_ndtr(t) + 0.5 * (1 - self._hazard * t)
