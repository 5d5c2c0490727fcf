"""Normal of unit scale, cut off below zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor
from torch.special import erfcx, log_ndtr, ndtr, ndtri

_LOG_ROOT_2PI = math.log(2 * math.pi) / 2
_TAIL = -5.0  # below, the quantile is found from the logarithm of the distribution function
_NEWTON = 4  # steps; three are enough for all of float64


class PositiveNormal(TorchDistribution):
    r"""A normal of mean `loc` and scale 1 before it is restricted to the positive numbers.

    .. math:: p(h) = e^{l h - h^2 / 2} / e^{A(l)}, \quad h \ge 0, \qquad
              A(l) = \log \int_0^\infty e^{l h - h^2 / 2} dh
                   = \tfrac{l^2}{2} + \log \sqrt{2 \pi} + \log \Phi(l)

    Args:
        loc: l, any real number; far below zero the law tends to an exponential of rate ``-l``.

    Example:
        >>> half = PositiveNormal(torch.tensor(0.0))
        >>> bool((half.mean - math.sqrt(2 / math.pi)).abs() < 1e-6)
        True
    """

    arg_constraints: ClassVar[dict] = {"loc": constraints.real}  # pyright: ignore
    support = constraints.nonnegative  # type: ignore[assignment]

    def __init__(self, loc: Tensor, validate_args: bool | None = None) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> PositiveNormal:
        return PositiveNormal(self.loc.expand(Size(batch_shape)), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.loc * value - value.square() / 2 - log_mass(self.loc)

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008 (it has no state)
        return draw(self.loc.expand(self._extended_shape(sample_shape)))

    @property
    def mean(self) -> Tensor:
        return mean(self.loc)

    @property
    def variance(self) -> Tensor:
        found = self.mean
        return 1 + self.loc * found - found.square()


def log_mass(loc: Tensor) -> Tensor:
    """A(l) of each, nats; its derivative is the mean."""
    low, high = loc.clamp_max(0), loc.clamp_min(0)
    below = erfcx(-low / math.sqrt(2)).log() + math.log(math.pi / 2) / 2
    above = high.square() / 2 + log_ndtr(high) + _LOG_ROOT_2PI
    return torch.where(loc < 0, below, above)


def mean(loc: Tensor) -> Tensor:
    """``l + phi(l) / Phi(l)``."""
    # far above zero erfcx is infinite, and the quotient 0
    return (loc + math.sqrt(2 / math.pi) / erfcx(-loc / math.sqrt(2))).clamp_min(0)


def draw(loc: Tensor) -> Tensor:
    """One draw of each by inversion, in float64: h solves ``Phi(l - h) = u Phi(l)``."""
    l = loc.double()  # noqa: E741 (as in the formula)
    u = 1 - torch.rand_like(l)  # in (0, 1]
    h = l - ndtri(u * ndtr(l))
    tail = l < _TAIL
    if tail.is_cuda or tail.any():  # there a look costs more than the rest
        h = torch.where(tail, _in_the_tail(l.clamp_max(_TAIL), u.log()), h)
    return h.clamp_min(0).to(loc)


def _in_the_tail(l: Tensor, log_u: Tensor) -> Tensor:  # noqa: E741
    """The same by Newton's method on logarithms, from the quantile of Marsaglia's tail law."""
    h = -2 * log_u / (-l + (l.square() - 2 * log_u).sqrt())
    target = log_ndtr(l) + log_u
    for _ in range(_NEWTON):
        value = log_ndtr(l - h)
        slope = (-(l - h).square() / 2 - _LOG_ROOT_2PI - value).exp()
        h = h + (value - target) / slope
    return h
