"""Gradients through the draws alone: sticking the landing, and doubly reparameterised."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.inference.importance_weighted import WeightedLoss
from ppgen.inference.importance_weights import (
    Pair,
    Weights,
    check_reparameterised,
    log_density,
    weigh,
)
from ppgen.inference.pair import Record, Sites

Shares = Callable[[Tensor], tuple[Tensor | float, Tensor | None]]


class StickingTheLanding(WeightedLoss):
    r"""The ELBO, without the guide's score in its gradient.

    .. math:: \nabla_\phi = E \Big[\nabla_z (\log p(x, z) - \log q(z)) \,
        \frac{\partial z}{\partial \phi}\Big]

    The score ``grad_phi log q(z)``, at z held fixed, has mean zero, and is noise. Without it the
    gradient has no noise at all where the guide is exact: near the optimum it sticks.

    Args:
        draws: averaged.

    Raises:
        ValueError: as from `ImportanceWeightedELBO`.

    References:
        | Sticking the Landing (Roeder et al., 2017)
        | https://arxiv.org/abs/1703.09194
    """

    def __init__(self, draws: int = 1) -> None:
        super().__init__(draws)

    def _bound(self, weights: Weights) -> Tensor:
        return weights.elbo()

    def _objective(self, pair: Pair) -> tuple[Weights, Tensor]:
        return _along_the_path(pair, type(self).__name__, lambda log_w: (1 / len(log_w), None))


class DReG(WeightedLoss):
    r"""The importance weighted bound with doubly reparameterised gradients.

    .. math:: \nabla_\phi = E \sum_k \tilde w_k^2 \, \frac{\partial \log w_k}{\partial z_k}
        \frac{\partial z_k}{\partial \phi}, \quad
        \nabla_\theta = E \sum_k \tilde w_k \nabla_\theta \log p(x, z_k), \quad
        \tilde w_k = \frac{w_k}{\sum_j w_j}

    In the mean the gradient of `ImportanceWeightedELBO`, and its encoder's part keeps its
    signal-to-noise ratio as K grows.

    Args:
        draws: K.

    Raises:
        ValueError: as from `ImportanceWeightedELBO`.

    References:
        | Doubly Reparameterized Gradient Estimators (Tucker et al., 2019)
        | https://arxiv.org/abs/1810.04152
    """

    def _objective(self, pair: Pair) -> tuple[Weights, Tensor]:
        def shares(log_w: Tensor) -> tuple[Tensor, Tensor]:
            share = log_w.softmax(0)
            return share, share

        return _along_the_path(pair, type(self).__name__, shares)


def _along_the_path(pair: Pair, loss: str, shares: Shares) -> tuple[Weights, Tensor]:
    """An objective whose gradient in the guide goes through its draws, and through nothing else.

    Args:
        pair: the two programs.
        loss: whose it is, for messages.
        shares: of ``log w (K, *parts)``, the weight of each term in the model's gradient, and the
            factor by which the path's gradient is weighted on top (None: 1).
    """
    drawn = pair.run_guide()
    check_reparameterised(drawn.sites, loss)
    # the model sees the draws through a gate, whose weights are only known after it has run
    gate: dict[str, Tensor] = {}
    weights = weigh(pair, drawn, {**drawn.values, **_gated(drawn.sites, gate)})
    log_w = weights.log_w.detach()
    share, extra = shares(log_w)
    if extra is not None:
        gate["weight"] = extra
    objective = (share * weights.log_p).sum()
    path = share if extra is None else share * extra
    for value, gradient in _guide_gradients(pair, drawn, log_w, path):
        objective = objective - (gradient * value).sum()
    return weights, weights.scale * objective


def _gated(sites: Sites, gate: dict[str, Tensor]) -> dict[str, Tensor]:
    """The draws, with gradients that will be multiplied by the gate's weight, ``(K, *parts)``."""
    gated = {}
    for name, site in sites.items():
        if not site.value.requires_grad:
            continue
        events = site.fn.event_dim

        def weigh_gradient(gradient: Tensor, events: int = events) -> Tensor:
            weight = gate.get("weight")
            if weight is None:
                return gradient
            return gradient * weight.reshape(weight.shape + (1,) * events)

        value = site.value.view_as(site.value)
        value.register_hook(weigh_gradient)
        gated[name] = value
    return gated


def _guide_gradients(
    pair: Pair, drawn: Record, like: Tensor, path: Tensor | float
) -> list[tuple[Tensor, Tensor]]:
    """Each draw with the gradient of ``sum path * log q`` in it, the guide's parameters fixed."""
    moving = {n: s.value for n, s in drawn.sites.items() if s.value.requires_grad}
    if not moving:
        return []
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in moving.items()}
        if len(drawn.sites) == 1:  # no site of the guide depends on another
            sites = {name: drawn.sites[name]._replace(value=leaves[name]) for name in leaves}
        else:
            sites = pair.run_guide({**drawn.values, **leaves}).sites
        total = (path * log_density(sites, like)).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()), retain_graph=True)
    return list(zip(moving.values(), gradients, strict=True))
