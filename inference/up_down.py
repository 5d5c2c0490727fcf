"""Training a deep belief network: its top alone, or all layers by up-down (wake-sleep)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.distributions.unit_checks import require_levels
from ppgen.distributions.units import Binary
from ppgen.inference.contrastive_divergence import (
    ContrastiveDivergence,
    Info,
    Sampler,
    State,
)
from ppgen.inference.svi_loss import SVILoss, show_parameters
from ppgen.types import DirectedLayers


class TopLayer(SVILoss):
    """Loss that trains the machine on top of a deep belief network, the layers below held fixed.

    It is the greedy step for the highest layer, whose data the recognition pass draws anew for each
    batch (`greedy` draws them once). Where the top started as the transpose of the machine below,
    the network's bound rises with the top's likelihood.

    Args:
        gibbs_steps: sweeps of the machine on top a step, or a function of the epoch.
        persistent: its chains go on across steps; else each step starts at the data.
        options: others of its `ContrastiveDivergence`.

    References:
        | A fast learning algorithm for deep belief nets (Hinton, Osindero, Teh, 2006), section 4
    """

    reduction = "mean"

    def __init__(
        self,
        gibbs_steps: int | Callable[[int], int] = 5,
        persistent: bool = True,
        **options: Any,
    ) -> None:
        self.top = ContrastiveDivergence(gibbs_steps, persistent, **options)
        self.options = {
            "persistent": persistent,
            "chains": self.top.chains,
            "sampler": self.top.sampler,
            **self.top.options,
        }

    @property
    def state(self) -> State | None:
        """Of the machine on top."""
        return self.top.state

    @property
    def sampler(self) -> Sampler | None:
        return self.top.sampler

    def check_data(self, network: Any, batch: Tensor, *_: Tensor) -> None:
        """Refuse data that are no levels from 0 to 1; of steps only the first one looks."""
        batch = _checked(batch, _network(network, None))
        require_levels(batch, Binary(), type(self).__name__)

    def begin_epoch(self, epoch: int) -> None:
        self.top.begin_epoch(epoch)

    def loss_and_grads(self, model: Callable, guide: Callable | None, batch: Tensor) -> float:
        network = _network(model, guide)
        batch = self._first_checked(network, batch)
        show_parameters(network)
        side = network.recognise(batch)[-1]
        return float(self.top.accumulate(network.machine, side).contrast)

    def accumulate_in_place(self, network: DirectedLayers, batch: Tensor) -> Tensor:
        """The number of a step in memory that stays, ``()``, for ``train(compile=True)``."""
        side = network.recognise(_checked(batch, network))[-1]
        return self.top.accumulate_in_place(network.machine, side)

    def loss(self, model: Callable, guide: Callable | None, batch: Tensor) -> float:
        """The contrast alone: no gradient, and the chains stay where they are."""
        network = _network(model, guide)
        side = network.recognise(self._first_checked(network, batch))[-1]
        return float(self.top.observe(network.machine, side).contrast)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that a resumed run needs: chains and offsets of the machine on top."""
        return self.top.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self.top.load_state_dict(tensors)

    def _first_checked(self, network: DirectedLayers, batch: Tensor) -> Tensor:
        if self.state is None:
            self.check_data(network, batch)
        return _checked(batch, network)


class UpDown(TopLayer):
    r"""Loss that trains all layers of a deep belief network at once.

    Up (wake): layers drawn by the recognition pass from the data teach the generative weights,
    ``-log p(x, h1, ... | s)``, and s teaches the machine on top by contrastive divergence. Down
    (sleep): layers drawn by the generative pass from the machine's own states teach the recognition
    weights, ``-log q(h1, ..., s | x)``. Each phase averages over its own count.

    In Pyro: ``SVI(dbn.model, dbn.guide, optim, loss=UpDown())``; also a loss for ``ppgen.train``.
    The float that comes back is the variational free energy of the data less that of what the
    network generates, nats: neither a likelihood nor the objective.

    Args:
        gibbs_steps: sweeps of the machine on top a step, or a function of the epoch.
        persistent: its chains go on across steps; else each step starts at the data.
        options: others of its `ContrastiveDivergence`.

    Raises:
        ValueError: from a step, when the network is still tied: `untie` it first.

    References:
        | The wake-sleep algorithm for unsupervised neural networks (Hinton et al., 1995)
        | A fast learning algorithm for deep belief nets (Hinton, Osindero, Teh, 2006), appendix B
    """

    def loss_and_grads(self, model: Callable, guide: Callable | None, batch: Tensor) -> float:
        network = _untied(model, guide)
        batch = self._first_checked(network, batch)
        show_parameters(network)
        layers = network.recognise(batch)
        return float(_directed(network, layers, self.top.accumulate(network.machine, layers[-1])))

    def accumulate_in_place(self, network: DirectedLayers, batch: Tensor) -> Tensor:
        layers = network.recognise(_checked(batch, network))
        return _directed(network, layers, self.top.step_in_place(network.machine, layers[-1]))

    def loss(self, model: Callable, guide: Callable | None, batch: Tensor) -> float:
        """The number alone: no gradient, and the chains stay where they are."""
        network = _untied(model, guide)
        layers = network.recognise(self._first_checked(network, batch))
        info = self.top.observe(network.machine, layers[-1])
        return float(_contrast(network, layers, network.generate(info.fantasies), info))


def _directed(network: DirectedLayers, layers: list[Tensor], info: Info) -> Tensor:
    """The gradients of the directed layers, after those of the top; what `UpDown` returns."""
    wake = -network.log_generative(layers).mean()
    dreams = network.generate(info.fantasies)
    sleep = -network.log_recognition(dreams).mean()
    if (wake + sleep).requires_grad:
        (wake + sleep).backward()
    return _contrast(network, layers, dreams, info)


@torch.no_grad()
def _contrast(
    network: DirectedLayers, layers: list[Tensor], dreams: list[Tensor], info: Info
) -> Tensor:
    seen, dreamt = (
        (network.log_recognition(part) - network.log_generative(part)).mean()
        for part in (layers, dreams)
    )
    return seen - dreamt + info.contrast


def _network(model: Callable, guide: Callable | None) -> DirectedLayers:
    network = getattr(model, "__self__", model)
    if not isinstance(network, DirectedLayers):
        raise TypeError(
            f"expected the `model` of a deep belief network (dbn.model), got {model!r}; a "
            "Boltzmann machine has ContrastiveDivergence, other stories an ELBO"
        )
    if guide is not None and getattr(guide, "__self__", guide) is not network:
        raise ValueError("model and guide belong to different networks")
    return network


def _untied(model: Callable, guide: Callable | None) -> DirectedLayers:
    network = _network(model, guide)
    if network.tied:
        raise ValueError(
            "UpDown: the recognition pass shares the generative weights, so that the phases would "
            "train them against each other: call `untie()` on the network first"
        )
    return network


def _checked(batch: Tensor, network: DirectedLayers) -> Tensor:
    units = network.visible
    if batch.dim() != 2 or batch.shape[1] != units or len(batch) == 0:
        raise ValueError(
            f"expected a batch of shape (B, {units}) with B > 0, got {tuple(batch.shape)}"
        )
    return batch.to(network.machine.visible_bias)
