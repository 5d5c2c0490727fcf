"""Invertible maps of one number, the parts that autoregressive and coupling flows are made of.

A map takes its parameters, unconstrained, as an argument; zeros make it the identity. *Data* is
the side that is observed, *base* the side of the simple distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import constraints

from ppgen.arguments import require_nonnegative, require_positive, require_share, require_whole


class ScalarMap(Protocol):
    """An increasing map between data and base, elementwise.

    Shapes: values ``(*)``, raw parameters ``(*, parameters)``; results ``(*)``.
    """

    @property
    def parameters(self) -> int:
        """Raw numbers that it needs."""
        ...

    @property
    def domain(self) -> Any:
        """The constraint of one coordinate, the same on both sides."""
        ...

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The base value ``x`` of data `y`, and ``log dx/dy``."""
        ...

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The data value ``y`` of base `x`, and ``log dy/dx``."""
        ...


class Affine:
    """Shift and scale: ``y = loc + exp(s) x``, with a smooth bound on s.

    Args:
        bound: the largest absolute log scale.
    """

    domain = constraints.real
    parameters = 2

    def __init__(self, bound: float = 7.0) -> None:
        require_positive(self, bound=bound)
        self.bound = bound

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        loc, s = self._split(raw)
        down = -s
        return (y - loc) * torch.exp(down), down

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        loc, s = self._split(raw)
        return torch.addcmul(loc, x, torch.exp(s)), s

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        loc, s = raw.unbind(-1)
        return loc, self.bound * torch.tanh(s / self.bound)


class Chain:
    """Several maps, one after the other, from base to data."""

    def __init__(self, maps: Sequence[ScalarMap]) -> None:
        if not maps:
            raise ValueError("a chain needs one map or more; got none")
        self.maps = list(maps)
        self.sizes = [m.parameters for m in self.maps]
        self.parameters = sum(self.sizes)
        self.domain = self.maps[0].domain

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(y)
        for m, part in reversed(list(zip(self.maps, raw.split(self.sizes, -1), strict=True))):
            y, slope = m.to_base(y, part)
            total = total + slope
        return y, total

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(x)
        for m, part in zip(self.maps, raw.split(self.sizes, -1), strict=True):
            x, slope = m.to_data(x, part)
            total = total + slope
        return x, total


class LinearSpline:
    r"""Piecewise linear distribution function on [0, 1]: a density of K equal steps.

    With K the number of levels of the data it gives each level its own probability, which a
    smooth spline can only approach.

    References:
        | Neural Importance Sampling (Müller et al., 2019), section 4.1
        | https://arxiv.org/abs/1808.03856

    Args:
        bins: steps, K.
        floor: the least share of a step, so that no step is empty.
    """

    domain = constraints.unit_interval

    def __init__(self, bins: int, *, floor: float = 1e-6) -> None:
        require_whole(self, bins=bins)
        require_nonnegative(self, floor=floor)
        require_share(self, floor=bins * floor)  # of all steps together
        self.parameters, self.floor = bins, floor

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        shares, edges = self._steps(y, raw)
        place = y.clamp(0, 1) * self.parameters
        index = place.long().clamp(max=self.parameters - 1)
        share, edge = _at(shares, index), _at(edges, index)
        x = edge + (place - index) * share
        return below_one(x), torch.log(share * self.parameters)

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        shares, edges = self._steps(x, raw)
        index = (x[..., None] >= edges[..., 1:]).sum(-1)
        share, edge = _at(shares, index), _at(edges, index)
        within = ((x - edge) / share).clamp(0, 1)
        return below_one((index + within) / self.parameters), -torch.log(share * self.parameters)

    def _steps(self, value: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        raw = raw.expand(*value.shape, self.parameters)
        shares = self.floor + (1 - self.parameters * self.floor) * raw.softmax(-1)
        return shares, shares.cumsum(-1) - shares  # where each step begins


def _at(table: Tensor, index: Tensor) -> Tensor:
    return table.gather(-1, index[..., None]).squeeze(-1)


def below_one(x: Tensor) -> Tensor:
    """`x` in [0, 1): the uniform base has no density at 1, where rounding can end."""
    return x.clamp(0, 1 - torch.finfo(x.dtype).eps / 2)
