r"""Modified Bessel functions of the first kind, their logarithms, for real orders."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

FAR = 30.0  # from here on, sqrt(order^2 + x^2) is large enough for Debye's expansion
SERIES_TERMS = 64  # at x = 30 the next one is 1e-40 of the sum
DEBYE_TERMS = 14  # at FAR the next one is 1e-14


def log_bessel_i(order: float, x: Tensor) -> Tensor:
    r""":math:`\ln I_\nu(x)` for :math:`\nu \ge 0, x > 0`, differentiable in x.

    Example:
        >>> round(float(log_bessel_i(0.5, torch.tensor(10.0)).exp()), 1)  # sqrt(2/(pi x)) sinh x
        2778.8
    """
    return log_mean_exp(order, x) + x + order * (x / 2).log() - math.lgamma(order + 1)


def log_mean_exp(order: float, x: Tensor) -> Tensor:
    r"""Log of the mean of :math:`e^{x (t - 1)}`, t one coordinate of a uniform point on a sphere.

    .. math::
        \ln E\, e^{x (t - 1)} = \ln {}_0F_1(; \nu + 1; x^2/4) - x
        = \ln \Gamma(\nu + 1) + \nu \ln(2/x) + \ln I_\nu(x) - x

    on :math:`S^{2\nu + 1}`. It is finite where the Bessel function over- or underflows, and zero
    at x = 0. Below ``sqrt(order^2 + x^2) = 30`` the power series, whose terms are positive;
    beyond it Debye's expansion, uniform in the order, which at order 0 is Hankel's. The
    relative error of its exponential is below 1e-12. Computed in float64.

    Args:
        order: :math:`\nu \ge 0`.
        x: at least 0, any shape.

    References:
        | NIST Digital Library of Mathematical Functions, 10.25.2 and 10.41.3
        | https://dlmf.nist.gov/10.41
    """
    if order < 0:
        raise ValueError(f"the order of a Bessel function is at least 0 here; got {order}")
    wide = x.to(torch.float64)
    if order >= FAR:
        return _debye(order, wide).to(x.dtype)
    near = order**2 + wide.square() < FAR**2
    # each branch sees harmless values where the other one rules: no NaN in its gradient
    series = _series(order, torch.where(near, wide, 1.0))
    debye = _debye(order, torch.where(near, FAR, wide))
    return torch.where(near, series, debye).to(x.dtype)


def bessel_ratio(order: float, x: Tensor) -> Tensor:
    r""":math:`I_{\nu + 1}(x) / I_\nu(x)`: the mean of t under a density that tilts by x."""
    tilt = log_mean_exp(order + 1, x) - log_mean_exp(order, x)
    return x / (2 * (order + 1)) * tilt.exp()


def _series(order: float, x: Tensor) -> Tensor:
    m = torch.arange(SERIES_TERMS, dtype=x.dtype, device=x.device)
    logs = math.lgamma(order + 1) - torch.lgamma(m + 1) - torch.lgamma(m + order + 1)
    half = (x / 2).clamp(min=1e-100).log()
    return torch.logsumexp(2 * m * half[..., None] + logs, -1) - x


def _debye(order: float, x: Tensor) -> Tensor:
    w = (order**2 + x.square()).sqrt()
    table = torch.tensor(_debye_coefficients(), dtype=x.dtype, device=x.device)
    powers = torch.arange(DEBYE_TERMS, dtype=x.dtype, device=x.device)
    shape = (order / w).square()[..., None] ** powers
    correction = ((shape @ table.T) * w[..., None] ** -powers).sum(-1)
    constant = math.lgamma(order + 1) + order * math.log(2) - 0.5 * math.log(2 * math.pi)
    # w - x, without the cancellation
    rise = order**2 / (w + x)
    return constant + rise - order * (order + w).log() - 0.5 * w.log() + correction.log()


@cache
def _debye_coefficients() -> tuple[tuple[float, ...], ...]:
    r"""Rows k: the i-th is the coefficient of :math:`t^{k + 2i}` in Debye's :math:`u_k(t)`.

    .. math::
        u_{k+1}(t) = \tfrac12 t^2 (1 - t^2) u_k'(t) + \tfrac18 \int_0^t (1 - 5 s^2) u_k(s) ds
    """
    rows, u = [], {0: Fraction(1)}
    for k in range(DEBYE_TERMS):
        rows.append(tuple(float(u.get(k + 2 * i, 0)) for i in range(DEBYE_TERMS)))
        after: dict[int, Fraction] = {}
        for power, c in u.items():
            for degree, part in (
                (power + 1, c * Fraction(power, 2) + c / (8 * (power + 1))),
                (power + 3, -c * Fraction(power, 2) - 5 * c / (8 * (power + 3))),
            ):
                after[degree] = after.get(degree, Fraction(0)) + part
        u = after
    return tuple(rows)
