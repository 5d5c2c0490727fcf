r"""Monotone rational-quadratic splines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from ppgen.arguments import require_positive, require_whole
from ppgen.transforms.scalar import below_one

MIN_BIN, MIN_SLOPE = 1e-3, 1e-3  # a bin's share of the interval; the slope at a knot
_SHIFT = math.log(math.expm1(1 - MIN_SLOPE))  # softplus(_SHIFT) + MIN_SLOPE = 1
_LEAST = 1e-12  # far below the terms of any root, the product of a bin and a slope


class RationalQuadratic:
    r"""Monotone rational-quadratic spline with K bins.

    Args:
        bins: K.
        bound: the spline lives on ``[-bound, bound]``, and outside it the map is the identity.
            None: on [0, 1], with free slopes at the ends.

    Shapes: raw parameters ``(*, 3K - 1)``, on [0, 1] ``(*, 3K + 1)``: widths, heights, slopes.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032
    """

    def __init__(self, bins: int = 8, bound: float | None = 3.0) -> None:
        require_whole(self, bins=bins)
        if bins >= 1 / MIN_BIN:
            raise ValueError(
                f"RationalQuadratic(bins=...) must be below {round(1 / MIN_BIN)}, as each takes "
                f"{MIN_BIN} of the interval at least; got {bins}"
            )
        if bound is not None:
            require_positive(self, bound=bound)
        self.bins, self.bound = bins, bound
        self.parameters = 3 * bins + (1 if bound is None else -1)
        self.domain = constraints.unit_interval if bound is None else constraints.real

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(_to_base, y, raw)

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply(_to_data, x, raw)

    def _apply(
        self,
        direction: Callable[[Tensor, Knots], tuple[Tensor, Tensor]],
        value: Tensor,
        raw: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if self.bound is None:
            out, slope = direction(value.clamp(0, 1), self.knots(raw))
            return below_one(out), slope
        # clamped before the search: masking the result alone leaves NaN in the gradient
        unit = (value / (2 * self.bound) + 0.5).clamp(0, 1)
        out, slope = direction(unit, self.knots(raw))
        inside = value.abs() < self.bound
        out = torch.where(inside, (2 * out - 1) * self.bound, value)
        return out, torch.where(inside, slope, 0.0)

    def knots(self, raw: Tensor) -> Knots:
        """The spline on the unit square, from its raw parameters."""
        K = self.bins
        shares = raw[..., : 2 * K].unflatten(-1, (2, K)).softmax(-1)
        shares = MIN_BIN + (1 - MIN_BIN * K) * shares
        slopes = raw[..., 2 * K :]
        if self.bound is not None:
            slopes = F.pad(slopes, (1, 1))
        return Knots(shares.cumsum(-1) - shares, shares, slopes)


class Knots(NamedTuple):
    """A spline on the unit square: data side first, then base side."""

    starts: Tensor  # where each bin begins, (*, 2, K)
    shares: Tensor  # how long it is, (*, 2, K)
    slopes: Tensor  # how steep the spline is at each knot, raw: one at zero; (*, K + 1)


def _to_base(y: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    y0, x0, width, height, d0, d1 = _bin(y, 0, knots)
    s, t = height / width, ((y - y0) / width).clamp(max=1)
    bottom, slope = _slope(t, s, d0, d1)
    return x0 + height * (t * (s * t + d0 * (1 - t))) / bottom, slope


def _to_data(x: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    y0, x0, width, height, d0, d1 = _bin(x, 1, knots)
    s, rise = height / width, x - x0
    bend = rise * (d0 + d1 - 2 * s)
    a, b, c = height * (s - d0) + bend, height * d0 - bend, -s * rise
    # by rounding alone negative, or not below zero: at the end of a bin that begins very steep
    root = (b * b - 4 * a * c).clamp(min=_LEAST * _LEAST).sqrt()
    below = -b - root
    t = (2 * c / torch.where(below < -_LEAST, below, -_LEAST)).clamp(0, 1)
    return y0 + t * width, -_slope(t, s, d0, d1)[1]


def _bin(value: Tensor, side: int, knots: Knots) -> list[Tensor]:
    """Of each value's bin: where it begins, data and base side, its width, height, end slopes."""
    index = (value[..., None] >= knots.starts[..., side, 1:]).sum(-1, keepdim=True)
    shape = value.shape
    # one look-up for four numbers, and the softplus of two slopes instead of all
    table = torch.cat([knots.starts, knots.shares], -2).expand(*shape, 4, -1)
    place = table.gather(-1, index[..., None].expand(*shape, 4, 1)).squeeze(-1)
    ends = knots.slopes.expand(*shape, -1).gather(-1, torch.cat([index, index + 1], -1))
    return [*place.unbind(-1), *(F.softplus(ends + _SHIFT) + MIN_SLOPE).unbind(-1)]


def _slope(t: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """The denominator of the spline and ``log dx/dy``, at the share `t` of a bin."""
    u = t * (1 - t)
    bottom = s + (d0 + d1 - 2 * s) * u
    top = d1 * t * t + 2 * s * u + d0 * (1 - t) ** 2
    return bottom, 2 * s.log() + top.log() - 2 * bottom.log()
