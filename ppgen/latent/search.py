r"""Gradient ascent of a property in latent space, kept where the prior puts its mass.

Far from the prior a predictor promises what no decoder keeps. So the ascent stays in the region

.. math:: \{z : \log p(z) \ge c\}, \quad P_{z \sim p}(\log p(z) \ge c) = \text{mass},

for a standard normal the ball whose squared radius is a quantile of chi-square.

References:
    | Automatic Chemical Design (Gomez-Bombarelli et al., 2018) | https://arxiv.org/abs/1610.02415
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

_DRAWS = 20_000  # that the region's edge is found by
_SMALLEST = 1e-6  # of the first radius: a row whose radius is smaller has arrived
_RETURN = 20  # Newton steps back to the edge


class Ascent(NamedTuple):
    """Ways up, one for each starting code; a row that has arrived stays where it is."""

    path: Tensor  # (steps + 1, N, L)
    property: Tensor  # predicted there, (steps + 1, N)
    log_prior: Tensor  # (steps + 1, N), nats
    floor: Tensor  # the log prior below which a row does not go, (N,), nats


def ascend(
    z: Tensor,
    predict: Callable[[Tensor], Tensor],
    prior: Distribution,
    *,
    mass: float = 0.95,
    radius: float = 0.5,
    steps: int = 100,
) -> Ascent:
    """Climb from each code, by steps at most `radius` long that are taken only if they gain.

    Args:
        z: starting codes, ``(N, L)``. One outside the region never gets farther outside.
        predict: the property of codes, ``(N, L) -> (N,)``, differentiable; of decoded examples
            as ``lambda z: predictor(model.decode(z).mean)``.
        prior: of one code, event shape ``(L,)``.
        mass: of the prior inside the region.
        radius: of the trust region at first; halved where a step gains nothing.
        steps: at most.

    Raises:
        ValueError: where the shapes do not fit, or an option is out of range.
    """
    _check(z, prior, mass, radius, steps)
    edge = torch.quantile(prior.log_prob(prior.sample(torch.Size([_DRAWS]))), 1 - mass)
    point = z.detach()
    floor = torch.minimum(prior.log_prob(point), edge).detach()
    value, gradient = _gradient(predict, point, "predict")
    reach = torch.full_like(value, radius)
    path, values, priors = [point], [value], [prior.log_prob(point)]
    for _ in range(steps):
        length = gradient.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        trial = _inside(point + reach[:, None] * gradient / length, prior, floor)
        new_value, new_gradient = _gradient(predict, trial, "predict")
        better = (new_value > value) & (prior.log_prob(trial) >= floor - 1e-6 * floor.abs())
        point = torch.where(better[:, None], trial, point)
        gradient = torch.where(better[:, None], new_gradient, gradient)
        value = torch.where(better, new_value, value)
        reach = torch.where(better, (1.5 * reach).clamp(max=radius), 0.5 * reach)
        path.append(point)
        values.append(value)
        priors.append(prior.log_prob(point))
        if bool((reach < _SMALLEST * radius).all()):
            break
    return Ascent(torch.stack(path), torch.stack(values), torch.stack(priors).detach(), floor)


def _inside(z: Tensor, prior: Distribution, floor: Tensor) -> Tensor:
    """Codes outside the region, moved up the prior's gradient to its edge."""
    for _ in range(_RETURN):
        log_prior, slope = _gradient(prior.log_prob, z, "the prior")
        missing = (floor - log_prior).clamp(min=0)
        if not bool((missing > 0).any()):
            break
        square = slope.square().sum(-1).clamp(min=torch.finfo(z.dtype).tiny)
        z = z + (missing / square)[:, None] * slope
    return z


def _gradient(f: Callable[[Tensor], Tensor], z: Tensor, what: str) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = f(leaf)
        if value.shape != z.shape[:1]:
            raise ValueError(
                f"{what}: expected one number for each of {len(z)} codes, got shape "
                f"{tuple(value.shape)}"
            )
        if not value.requires_grad:
            raise ValueError(f"{what}: has no gradient with respect to the codes")
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def _check(z: Tensor, prior: Distribution, mass: float, radius: float, steps: int) -> None:
    if z.ndim != 2 or prior.batch_shape or prior.event_shape != z.shape[1:]:
        raise ValueError(
            f"expected codes (N, L) and a prior of event shape (L,), got {tuple(z.shape)}, batch "
            f"shape {tuple(prior.batch_shape)} and event shape {tuple(prior.event_shape)}"
        )
    if not 0 < mass < 1:
        raise ValueError(f"mass must be between 0 and 1, got {mass}")
    if radius <= 0 or steps < 1:
        raise ValueError(f"radius must be positive and steps at least 1, got {radius} and {steps}")
