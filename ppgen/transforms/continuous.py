"""Continuous flows: the solution of a differential equation as a map."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.transforms.hyperbolic import tanh_slope
from ppgen.transforms.vector import times


class Continuous:
    r"""A continuous planar flow: vectors drift from time 0 to 1 in a field of `hidden` waves.

    .. math::
        \frac{dx}{dt} = \sum_h u_h \tanh(w_h \cdot x + b_h + c_h t), \quad
        \frac{d \log p}{dt} = -\sum_h w_h \cdot u_h \tanh'(w_h \cdot x + b_h + c_h t)

    Any u and w will do: drift is invertible, and the trace of its Jacobian is a sum, exact at
    the cost of the field itself. The equation is solved by Runge-Kutta's method of fourth order
    in equal steps, back and forth, so that log-determinants and round trips are as exact as the
    steps are many: with s steps the error falls as :math:`s^{-4}`.

    Args:
        dim: coordinates, D.
        hidden: waves, H.
        steps: of the solver.

    Shapes: raw parameters ``(*, H (2 D + 2))``: w, u, b, c.

    References:
        | Neural Ordinary Differential Equations (Chen et al., 2018), section 4
        | https://arxiv.org/abs/1806.07366
    """

    def __init__(self, dim: int, hidden: int = 32, *, steps: int = 16) -> None:
        if min(dim, hidden, steps) < 1:
            raise ValueError(
                "a continuous flow needs dim, hidden and steps of at least 1; "
                f"got dim={dim}, hidden={hidden}, steps={steps}"
            )
        self.dim, self.hidden, self.steps = dim, hidden, steps
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

        def field(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
            s = times(w, x) + b + c * t
            return times(u.mT, torch.tanh(s)), (trace * tanh_slope(s)).sum(-1)

        h, log_det = (end - begin) / self.steps, x.new_zeros(())
        for step in range(self.steps):
            t = begin + step * h
            k1, l1 = field(x, t)
            k2, l2 = field(x + h / 2 * k1, t + h / 2)
            k3, l3 = field(x + h / 2 * k2, t + h / 2)
            k4, l4 = field(x + h * k3, t + h)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            log_det = log_det + h / 6 * (l1 + 2 * l2 + 2 * l3 + l4)
        return x, log_det
