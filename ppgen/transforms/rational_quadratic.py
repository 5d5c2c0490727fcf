r"""Monotone rational-quadratic splines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from ppgen.transforms.scalar import below_one

MIN_BIN, MIN_SLOPE = 1e-3, 1e-3  # a bin's share of the interval; the slope at a knot


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
        if not 1 <= bins < 1 / MIN_BIN or (bound is not None and bound <= 0):
            raise ValueError(
                f"a spline needs 1 to {round(1 / MIN_BIN) - 1} bins and a positive bound; "
                f"got bins={bins}, bound={bound}"
            )
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
        knots = self.knots(raw.expand(*value.shape, self.parameters))
        if self.bound is None:
            out, slope = direction(value.clamp(0, 1), knots)
            return below_one(out), slope
        # clamped before the search: masking the result alone leaves NaN in the gradient
        out, slope = direction(value.clamp(-self.bound, self.bound), knots)
        inside = value.abs() < self.bound
        return torch.where(inside, out, value), torch.where(inside, slope, 0.0)

    def knots(self, raw: Tensor) -> Knots:
        low, high = (0.0, 1.0) if self.bound is None else (-self.bound, self.bound)
        widths, heights, slopes = raw.split(
            [self.bins, self.bins, self.parameters - 2 * self.bins], -1
        )
        # softplus(shift) + MIN_SLOPE = 1: zeros mean slope one
        shift = math.log(math.expm1(1 - MIN_SLOPE))
        slopes = F.softplus(slopes + shift) + MIN_SLOPE
        if self.bound is not None:
            slopes = F.pad(slopes, (1, 1), value=1.0)
        return Knots(_edges(widths, low, high), _edges(heights, low, high), slopes)


class Knots(NamedTuple):
    """Where the bins begin and end, and how steep the spline is there; each ``(*, K + 1)``."""

    y: Tensor  # data side, from the lower bound to the upper
    x: Tensor  # base side, likewise
    slope: Tensor  # dx/dy, positive


def _to_base(y: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    y0, width, x0, height, d0, d1 = _bin(y, knots.y, knots)
    s, t = height / width, (y - y0) / width
    bottom, slope = _slope(t, s, d0, d1)
    return x0 + height * (s * t * t + d0 * t * (1 - t)) / bottom, slope


def _to_data(x: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    y0, width, x0, height, d0, d1 = _bin(x, knots.x, knots)
    s, rise = height / width, x - x0
    bend = rise * (d0 + d1 - 2 * s)
    a, b, c = height * (s - d0) + bend, height * d0 - bend, -s * rise
    root = (b * b - 4 * a * c).clamp(min=0).sqrt()  # negative by rounding alone
    t = (2 * c / (-b - root)).clamp(0, 1)
    return y0 + t * width, -_slope(t, s, d0, d1)[1]


def _bin(value: Tensor, edges: Tensor, knots: Knots) -> tuple[Tensor, ...]:
    """Of each value's bin: data side and its width, base side and its height, end slopes."""
    index = (value[..., None] >= edges[..., 1:-1]).sum(-1, keepdim=True)
    (y0, x0, d0), (y1, x1, d1) = (
        [t.gather(-1, i).squeeze(-1) for t in knots] for i in (index, index + 1)
    )
    return y0, y1 - y0, x0, x1 - x0, d0, d1


def _slope(t: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """The denominator of the spline and ``log dx/dy``, at the share `t` of a bin."""
    u = t * (1 - t)
    bottom = s + (d0 + d1 - 2 * s) * u
    top = d1 * t * t + 2 * s * u + d0 * (1 - t) ** 2
    return bottom, 2 * s.log() + top.log() - 2 * bottom.log()


def _edges(raw: Tensor, low: float, high: float) -> Tensor:
    bins = raw.shape[-1]
    shares = MIN_BIN + (1 - MIN_BIN * bins) * raw.softmax(-1)
    inner = low + (high - low) * shares[..., :-1].cumsum(-1)
    # the ends are exact: a sum of shares that rounds to 1 - 1e-16 would leave a gap
    end = torch.ones_like(raw[..., :1])
    return torch.cat([low * end, inner, high * end], -1)
