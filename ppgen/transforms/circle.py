r"""Maps of the circle, as angles: the parts of flows on circles, tori and the globe's longitude.

They are scalar maps (see `ppgen.transforms.scalar`) of angles in [0, 2 pi), increasing and of
one turn, so that 0 and 2 pi are the same point with the same density. `Coupling` over them is a
flow on a torus: it gives its network cosines and sines.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import constraints

from ppgen.arguments import require_whole
from ppgen.transforms.rational_quadratic import RationalQuadratic

TURN = 2 * math.pi
angle = constraints.interval(0.0, TURN)
FARTHEST = 0.99  # of a Moebius centre: slopes from 1/199 to 199
_START = 0.3  # of several centres, so that their gradients differ
_HALVINGS = 60


class Moebius:
    r"""A weighted mean of K Moebius transformations of the circle, turned by a phase.

    .. math::
        f(\theta) = \sum_k \rho_k f_{\omega_k}(\theta), \qquad
        \frac{d f_\omega}{d\theta} = \frac{1 - |\omega|^2}{|z - \omega|^2},
        \quad z = e^{i \theta}, |\omega| < 1

    from data to base, each with :math:`f_\omega(0) = 0`. The inverse is by bisection, with
    gradients by implicit differentiation. Zeros are the identity where K is 1; else the centres
    start round the circle at distance .3, for equal ones would stay equal, and the map is the
    identity but for slopes of ``1 +- 2 * .3^K``.

    Args:
        components: K.

    Shapes: raw parameters ``(*, 3K + 1)``: centres, weights, phase.

    References:
        | Normalizing Flows on Tori and Spheres (Rezende et al., 2020)
        | https://arxiv.org/abs/2002.02428
    """

    domain = angle

    def __init__(self, components: int = 8) -> None:
        require_whole(self, components=components)
        self.components, self.parameters = components, 3 * components + 1
        self._start = 0.0 if components == 1 else _START

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        phase, shape = raw[..., -1], self._shape(raw)
        x, slope = _mean(wrap(y - phase), *shape)
        return wrap(x), slope.log()

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        phase, shape = raw[..., -1], self._shape(raw)
        y, slope = invert(lambda t: _mean(t, *shape), x, 0.0, TURN)
        return wrap(y + phase), -slope.log()

    def _shape(self, raw: Tensor) -> tuple[Tensor, ...]:
        """Centres (a, b) and weights, ``(*, K)`` each."""
        K = self.components
        a, b, logits = raw[..., : 3 * K].unflatten(-1, (3, K)).unbind(-2)
        round_about = TURN / K * torch.arange(K, dtype=raw.dtype, device=raw.device)
        a, b = a + self._start * round_about.cos(), b + self._start * round_about.sin()
        shrink = FARTHEST * (1 + a.square() + b.square()).rsqrt()
        return a * shrink, b * shrink, logits.softmax(-1)


def _mean(theta: Tensor, a: Tensor, b: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    r"""The mean map and its slope.

    The integral of the Poisson kernel, in a form without branches: for :math:`|\omega| < 1` the
    second argument of each atan2 is positive.
    """
    c, s = theta.cos()[..., None], theta.sin()[..., None]
    bend = torch.atan2(a * s - b * c, 1 - a * c - b * s) + torch.atan2(b, 1 - a)
    slope = (1 - a * a - b * b) / ((c - a).square() + (s - b).square())
    return theta + 2 * (rho * bend).sum(-1), (rho * slope).sum(-1)


class CircularSpline:
    r"""Monotone rational-quadratic spline of the circle: equal slopes at 0 and 2 pi, and a phase.

    Args:
        bins: K.

    Shapes: raw parameters ``(*, 3K + 1)``: widths, heights, slopes, phase.

    References:
        | Normalizing Flows on Tori and Spheres (Rezende et al., 2020)
        | https://arxiv.org/abs/2002.02428
    """

    domain = angle

    def __init__(self, bins: int = 8) -> None:
        self.spline = RationalQuadratic(bins, None)
        self.parameters = 3 * bins + 1

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        inner, phase = self._split(y, raw)
        x, slope = self.spline.to_base(wrap(y - phase) / TURN, inner)
        return TURN * x, slope

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        inner, phase = self._split(x, raw)
        y, slope = self.spline.to_data(x / TURN, inner)
        return wrap(TURN * y + phase), slope

    def _split(self, value: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        raw = raw.expand(*value.shape, self.parameters)
        slopes = 2 * self.spline.bins
        first = raw[..., slopes : slopes + 1]
        return torch.cat([raw[..., :-1], first], -1), raw[..., -1]


def wrap(theta: Tensor) -> Tensor:
    """The same angle in [0, 2 pi)."""
    turned = theta.remainder(TURN)
    # rounding: -1e-20 is a whole turn
    return torch.where(turned >= TURN, turned - TURN, turned)


def invert(
    f: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """The root y of ``f(y) = x`` for an increasing `f` with its slope, and the slope there.

    Bisection finds it; one differentiable step of Newton's method gives it the digits that are
    left and the gradients of the implicit function, in `x` and in what `f` depends on.
    """
    with torch.no_grad():
        bottom, top = torch.full_like(x, low), torch.full_like(x, high)
        for _ in range(_HALVINGS if x.dtype == torch.float64 else _HALVINGS // 2):
            middle = (bottom + top) / 2
            below = f(middle)[0] < x
            bottom, top = torch.where(below, middle, bottom), torch.where(below, top, middle)
        found = (bottom + top) / 2
    value, slope = f(found)
    y = found - (value - x) / slope.detach()
    return y, f(y)[1]
