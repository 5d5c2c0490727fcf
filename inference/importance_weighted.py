"""Importance weighted bounds as losses: IWAE and reweighted wake-sleep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.inference.importance_weights import (
    Pair,
    Weights,
    check_reparameterised,
    complaint,
    depth_of,
    weigh,
)
from ppgen.inference.recorded_steps import RecordedSteps
from ppgen.inference.svi_loss import SVILoss


class WeightedLoss(SVILoss):
    """A loss made of K weighted draws from the guide: for ``pyro.infer.SVI`` and for ``train``.

    It is the negative bound in nats, summed over the batch and scaled by plates, like an ELBO's.

    Args:
        draws: K, drawn at once: under one more plate around model and guide.
    """

    reduction = "sum"

    def __init__(self, draws: int = 8) -> None:
        require_whole(self, draws=draws)
        self.draws = draws
        self._depth: int | None = None
        self._steps = RecordedSteps()

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The negative bound; the gradient is added to every parameter's ``.grad``."""
        value = self._steps.run(self._surrogate, model, guide, args, kwargs, 1.0)
        if value is None:
            loss = self._surrogate(model, guide, *args, **kwargs)
            value = loss.item()
            if not math.isfinite(value):
                self._refuse(model, guide, args, kwargs)
            if loss.requires_grad:
                loss.backward()
        return value

    @torch.no_grad()
    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The negative bound, without gradients."""
        pair = self._pair(model, guide, args, kwargs)
        value = -self._bound(weigh(pair, pair.run_guide())).item()
        if not math.isfinite(value):
            self._refuse(model, guide, args, kwargs)
        return value

    def _bound(self, weights: Weights) -> Tensor:
        return weights.bound()

    def _objective(self, pair: Pair) -> tuple[Weights, Tensor]:
        """The weights, and a scalar whose gradient is to be followed upwards."""
        raise NotImplementedError

    def _surrogate(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound by its value; by its gradient that of the objective."""
        weights, objective = self._objective(self._pair(model, guide, args, kwargs))
        if objective.requires_grad:
            return objective.detach() - objective - self._bound(weights).detach()
        return -self._bound(weights)

    def _pair(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> Pair:
        if self._depth is None:
            self._depth = depth_of(model, guide, args, kwargs)
        return Pair(model, guide, args, kwargs, self.draws, self._depth)

    def _refuse(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        pair = self._pair(model, guide, args, kwargs)
        raise ValueError(complaint(weigh(pair, pair.run_guide())))


class ImportanceWeightedELBO(WeightedLoss):
    r"""The importance weighted bound (IWAE), with gradients through the draws.

    .. math:: \mathcal{L}_K = \sum_b E \log \frac1K \sum_k w_{bk} \le \log p(x), \quad
        w_{bk} = \frac{p(x_b, z_{bk})}{q(z_{bk} \mid x_b)}

    b runs over the plates that are around *every* site, so that each example has weights of its
    own; where there is a site outside (a global latent) all examples share one. The factor of a
    subsampled plate stands outside the logarithm. (Pyro's ``RenyiELBO(alpha=0)`` has it inside,
    where it is no bound, and gives a guide without reparameterised draws a zero gradient.)

    The encoder's gradient drowns in its noise as K grows: `DReG` does not.

    Args:
        draws: K.

    Raises:
        ValueError: when a guide site has no reparameterised draws, or is scaled otherwise than
            others (both by name).

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
    """

    def _objective(self, pair: Pair) -> tuple[Weights, Tensor]:
        weights = weigh(pair, pair.run_guide())
        check_reparameterised(weights.drawn, type(self).__name__)
        return weights, weights.bound()


class ReweightedWakeSleep(WeightedLoss):
    r"""Reweighted wake-sleep, wake phase: weighted draws teach both programs.

    .. math:: \nabla_\theta: \sum_k \tilde w_k \nabla \log p(x, z_k), \quad
        \nabla_\phi: \sum_k \tilde w_k \nabla \log q(z_k \mid x)

    The guide comes near the posterior by ``KL(p || q)``, which covers it. No gradient goes through
    a draw, so that discrete latents are as good as others. Here, too, weights belong to an example
    (Pyro's class of this name has one weight for a batch). The number is that of
    `ImportanceWeightedELBO`.

    Args:
        draws: K >= 2; with one draw the weights say nothing.

    References:
        | Reweighted Wake-Sleep (Bornschein and Bengio, 2015)
        | https://arxiv.org/abs/1406.2751
        | Revisiting Reweighted Wake-Sleep (Le et al., 2019)
    """

    def __init__(self, draws: int = 8) -> None:
        require_whole(self, least=2, draws=draws)
        super().__init__(draws)

    def _objective(self, pair: Pair) -> tuple[Weights, Tensor]:
        with torch.no_grad():
            values = pair.run_guide().values
        # once more, at values that know nothing of the parameters
        weights = weigh(pair, pair.run_guide(values))
        share = weights.log_w.detach().softmax(0)
        return weights, weights.scale * (share * (weights.log_p + weights.log_q)).sum()
