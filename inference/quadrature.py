r"""Expectations of scalars by double-exponential quadrature or a sum, and their exact gradients.

.. math:: \int_a^\infty g(x)\, dx = \sum_k g(x_k)\, x'(t_k)\, h, \quad
          x(t) = a + s \exp(\tfrac{\pi}{2} \sinh t)

Converges exponentially for analytic g, whatever its power-law singularity at a or decay. The ends
of the support stay attached to the parameters, so that autograd sees a boundary that moves.

References:
    | Double Exponential Formulas for Numerical Integration (Takahasi & Mori, 1974)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ppgen.inference.gradient_estimators import Family, Integrand

_REACH = 5.5  # of t: x goes from 1e-83 to 1e83 times its scale
_POINTS = 2001  # on each side
_MASS = 1e-8  # error of the density's integral that is taken for a density out of sight
_NOTHING = 1e-140  # mass of a point below which squares of what its density is made of underflow
_TAIL = 1e-9  # share of the outermost points from which an integral is taken for infinite


class _Nodes(NamedTuple):
    x: Tensor  # (N,)
    weight: Tensor  # dx, (N,)


def expectation(q: Distribution, f: Integrand) -> Tensor:
    """E_q[f(x)] of a scalar distribution, ``()``, to about ten digits in float64.

    f may have kinks only at the ends of the support, at ``q.loc`` or, without one, at the mean.
    Finitely many values are summed over.

    Raises:
        ValueError: where q is no scalar, or discrete with infinitely many values; where its density
            is not integrated to one, or the expectation is infinite.
    """
    support: Any = q.support
    if q.has_enumerate_support and not q.batch_shape and not q.event_shape:
        values = q.enumerate_support()
        return (f(values.to(torch.float64)) * q.log_prob(values).exp()).sum()
    if q.batch_shape or q.event_shape or support.is_discrete:
        raise ValueError(
            f"quadrature: expected one scalar distribution, continuous or finite, got "
            f"{type(q).__name__} of batch shape {tuple(q.batch_shape)} and event shape "
            f"{tuple(q.event_shape)}: give the exact gradient yourself"
        )
    total, mass = torch.zeros(()), torch.zeros(())
    for nodes in _nodes(q, support):
        with torch.no_grad():  # beyond, f may overflow, and the gradient of a density of nothing
            kept = q.log_prob(nodes.x).exp() * nodes.weight > _NOTHING
        x, weight = nodes.x[kept], nodes.weight[kept]
        density = q.log_prob(x).exp() * weight
        terms = f(x) * density
        _check_ends(q, terms.detach())
        total, mass = total + terms.sum(), mass + density.detach().sum()
    if abs(float(mass) - 1) > _MASS:
        raise ValueError(
            f"quadrature: the density of {type(q).__name__} integrates to {float(mass):.9f}, not "
            "1: use float64, or give the exact gradient yourself"
        )
    return total


def exact_gradient(family: Family, parameters: Tensor, f: Integrand) -> Tensor:
    """The gradient of E[f] with respect to the parameters of a scalar family, ``(P,)``."""
    with torch.enable_grad():
        leaf = parameters.detach().double().requires_grad_()
        (gradient,) = torch.autograd.grad(expectation(family(leaf), f), leaf)
    if not bool(gradient.isfinite().all()):
        raise ValueError(
            f"quadrature: the gradient of E[f] under {type(family(leaf)).__name__} comes out as "
            f"{gradient.tolist()}: give the exact gradient yourself"
        )
    return gradient.to(parameters.dtype)


def _nodes(q: Distribution, support: Any) -> list[_Nodes]:
    low, high = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    t = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
    step = t[1] - t[0]
    if low is not None and high is not None:
        inner = torch.sigmoid(math.pi * t.sinh())
        width = torch.as_tensor(high - low)
        slope = inner * torch.sigmoid(-math.pi * t.sinh()) * math.pi * t.cosh()
        return [_Nodes(low + width * inner, width * slope * step)]
    centre, scale = _place(q)
    away = scale * (0.5 * math.pi * t.sinh()).exp()
    weight = away * 0.5 * math.pi * t.cosh() * step
    if low is not None:
        return [_Nodes(low + away, weight)]
    if high is not None:
        return [_Nodes(high - away, weight)]
    return [_Nodes(centre + away, weight), _Nodes(centre - away, weight)]


def _place(q: Distribution) -> tuple[Tensor, Tensor]:
    """Where the density is: its location and scale, detached."""
    with torch.no_grad():
        one = torch.ones((), dtype=torch.float64)
        found: list[Tensor] = []
        for names, default in ((("loc", "mean"), 0 * one), (("scale", "stddev"), one)):
            values = (getattr(q, name, None) for name in names)
            usable = (
                v.double() for v in values if isinstance(v, Tensor) and bool(torch.isfinite(v))
            )
            found.append(next(usable, default))
    return found[0], found[1]


def _check_ends(q: Distribution, terms: Tensor) -> None:
    edge = terms[:3].abs().sum() + terms[-3:].abs().sum()
    if not bool(torch.isfinite(terms).all()) or float(edge) > _TAIL * float(terms.abs().sum()):
        raise ValueError(
            f"quadrature: E[f] under {type(q).__name__} does not exist, or f has no finite value "
            "somewhere in the support: choose an f that grows more slowly than the tails fall"
        )
