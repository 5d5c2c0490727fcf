"""Continuous flows: the solution of a differential equation as a map."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.arguments import require_positive, require_whole
from ppgen.transforms.hyperbolic import tanh_slope
from ppgen.transforms.vector import times

State = tuple[Tensor, Tensor]  # where it is, and the log-determinant so far


class Continuous:
    r"""A continuous planar flow: vectors drift from time 0 to 1 in a field of `hidden` waves.

    .. math::
        \frac{dx}{dt} = \sum_h u_h \tanh(w_h \cdot x + b_h + c_h t), \quad
        \frac{d \log p}{dt} = -\sum_h w_h \cdot u_h \tanh'(w_h \cdot x + b_h + c_h t)

    Any u and w will do: drift is invertible, and the trace of its Jacobian is a sum, exact at
    the cost of the field itself. The equation is solved by the method of Gragg, Bulirsch and
    Stoer: midpoint steps of 2, 4, 6 and 8 parts, extrapolated to no length at all, of eighth
    order.

    Args:
        dim: coordinates, D.
        hidden: waves, H.
        steps: of the solver, equal ones; nothing is then looked at, so that programs with the
            map can be recorded. None: as many as `tolerance` asks for, 256 at most, chosen for
            the batch.
        tolerance: of the sixth-order error of each step, relative to ``1 + |x|``, in single
            precision 1e-5 at least. That of the eighth order, which counts, is a hundred times
            less.

    Shapes: raw parameters ``(*, H (2 D + 2))``: w, u, b, c.

    References:
        | Neural Ordinary Differential Equations (Chen et al., 2018), section 4
        | https://arxiv.org/abs/1806.07366
        | Solving Ordinary Differential Equations I (Hairer, Norsett and Wanner, 1993), II.9
    """

    def __init__(
        self, dim: int, hidden: int = 32, *, steps: int | None = None, tolerance: float = 1e-8
    ) -> None:
        require_whole(self, dim=dim, hidden=hidden, steps=1 if steps is None else steps)
        require_positive(self, tolerance=tolerance)
        self.dim, self.hidden, self.steps, self.tolerance = dim, hidden, steps, tolerance
        self._sizes = [hidden * dim, hidden * dim, hidden, hidden]
        self.parameters = sum(self._sizes)

    def initial(self) -> Tensor:
        """No drift, in random waves."""
        w, u, b, c = self._sizes
        return torch.cat([torch.randn(w), torch.zeros(u), torch.randn(b), torch.zeros(c)])

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._drift(x, raw, 0.0, 1.0)

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._drift(y, raw, 1.0, 0.0)

    def _drift(self, x: Tensor, raw: Tensor, begin: float, end: float) -> tuple[Tensor, Tensor]:
        w, u, b, c = raw.split(self._sizes, -1)
        w, u = w.unflatten(-1, (-1, self.dim)), u.unflatten(-1, (-1, self.dim))
        trace = (w * u).sum(-1)

        def field(at: State, t: float) -> State:
            s = times(w, at[0]) + b + c * t
            return times(u.mT, torch.tanh(s)), (trace * tanh_slope(s)).sum(-1)

        state = x, x.new_zeros(())
        if self.steps is not None:
            h = (end - begin) / self.steps
            for step in range(self.steps):
                state, _ = _extrapolated(field, state, begin + step * h, h)
            return state
        allowed = max(self.tolerance, _SINGLE if x.dtype == torch.float32 else 0.0)
        done, h, way = 0.0, 1.0, end - begin
        while done < 1:
            h = min(h, 1 - done)
            found, lower = _extrapolated(field, state, begin + way * done, way * h)
            error = _distance(found, lower) / allowed
            # the error of a step grows with its seventh power
            factor = min(4.0, 0.9 * error ** (-1 / 7)) if error > 0 else 4.0
            if not error > 1 or h <= _SHORTEST:  # nan, too, goes on
                state, done = found, done + h
            h = max(h * factor, _SHORTEST)
        return state


def _extrapolated(
    field: Callable[[State, float], State], start: State, t: float, h: float
) -> tuple[State, State]:
    """A step of eighth order, and the same of sixth order."""
    slope = field(start, t)
    ends = []
    for parts in _PARTS:
        eta, before = h / parts, start
        now = _moved(start, slope, eta)
        for i in range(1, parts):
            before, now = now, _moved(before, field(now, t + i * eta), 2 * eta)
        ends.append(now)
    return _mixed(ends, _EIGHTH), _mixed(ends, _SIXTH)


def _moved(at: State, slope: State, h: float) -> State:
    return at[0] + h * slope[0], at[1] + h * slope[1]


def _mixed(ends: list[State], weights: list[float]) -> State:
    values = [sum(w * end[i] for w, end in zip(weights, ends, strict=False)) for i in (0, 1)]
    return values[0], values[1]  # type: ignore[return-value]


def _distance(found: State, lower: State) -> float:
    """The largest difference of two states, relative to 1 + their size; zero of nothing."""
    gaps = [((a - b).abs() / (1 + a.abs())).flatten() for a, b in zip(found, lower, strict=True)]
    gap = torch.cat(gaps).detach()
    return gap.amax().item() if len(gap) else 0.0


def _weights(parts: tuple[int, ...]) -> list[float]:
    """Of midpoint results in so many parts, whose errors are even powers of the parts' length."""
    return [math.prod(n * n / (n * n - m * m) for m in parts if m != n) for n in parts]


_PARTS = (2, 4, 6, 8)
_EIGHTH, _SIXTH = _weights(_PARTS), _weights(_PARTS[:3])
_SHORTEST = 1 / 256  # step
_SINGLE = 1e-5  # above what rounding in single precision makes of a step
