"""Learning of a fully visible Boltzmann machine: contrastive divergence, pseudo-likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.distributions.unit_checks import require_binary, require_levels
from ppgen.distributions.units import Binary
from ppgen.inference import single_site_gibbs
from ppgen.inference.svi_loss import show_parameters
from ppgen.types import PairwiseMachine


@torch.no_grad()
def gradient(x: Tensor, fantasies: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``-mean log p`` in W and a: second and first moments of the machine less the data's."""
    weight = fantasies.T @ fantasies / len(fantasies) - x.T @ x / len(x)
    return weight, fantasies.mean(0) - x.mean(0)


class _Loss:
    """What SVI and ``train`` ask of both losses."""

    reduction = "mean"

    def check_data(self, machine: Any, batch: Tensor, *_: Tensor) -> None:
        """Refuse what is no data of the machine."""
        self._checked(machine, batch)

    def __call__(self, model: Callable, guide: Callable | None, batch: Tensor) -> float:
        """What SVI calls; without gradients (`SVI.evaluate_loss`) nothing moves."""
        machine, batch = self._checked(model, batch)
        if not torch.is_grad_enabled():
            return self._observe(machine, batch)
        show_parameters(machine)
        return self._accumulate(machine, batch)

    loss_and_grads = __call__

    @torch.no_grad()
    def loss(self, model: Callable, guide: Callable | None, batch: Tensor) -> float:
        """The number alone: no gradient, nothing moves."""
        return self._observe(*self._checked(model, batch))

    def _checked(self, model: Any, batch: Tensor) -> tuple[PairwiseMachine, Tensor]:
        """The machine that `model` belongs to, and the batch in its dtype, of the right shape."""
        name, machine = type(self).__name__, getattr(model, "__self__", model)
        if not isinstance(machine, PairwiseMachine):
            raise TypeError(
                f"{name}: expected the `model` of a FullyVisibleBoltzmannMachine, got {model!r}; "
                "an RBM, DBM or DBN has ContrastiveDivergence, other stories an ELBO"
            )
        if batch.dim() != 2 or batch.shape[1] != machine.visible or len(batch) == 0:
            raise ValueError(
                f"{name}: expected a batch of shape (B, {machine.visible}) with B > 0, got "
                f"{tuple(batch.shape)}"
            )
        batch = batch.to(machine.visible_bias)
        self._require(batch)
        return machine, batch

    def _require(self, batch: Tensor) -> None:
        """Refuse what is neither states of the units nor means of states."""
        require_levels(batch, Binary(), type(self).__name__)

    def _accumulate(self, machine: PairwiseMachine, batch: Tensor) -> float:
        raise NotImplementedError

    def _observe(self, machine: PairwiseMachine, batch: Tensor) -> float:
        raise NotImplementedError


class SingleSiteDivergence(_Loss):
    """Contrastive divergence of a fully visible machine, by single-site Gibbs sweeps.

    For SVI, a torch loop and ``train``, as `ContrastiveDivergence`. The float that comes back is
    the contrast, mean E(data) - mean E(chains) in nats: neither a likelihood nor the objective.

    Args:
        gibbs_steps: sweeps a step.
        persistent: chains go on across steps (one from each row of the first batch); else each
            step starts at the data.

    References:
        | Training products of experts by minimizing contrastive divergence (Hinton, 2002)
    """

    def __init__(self, gibbs_steps: int = 1, persistent: bool = False) -> None:
        require_whole(self, gibbs_steps=gibbs_steps)
        self.gibbs_steps, self.persistent = gibbs_steps, persistent
        self.chains: Tensor | None = None  # states, (C, D)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs: persistent chains."""
        return {} if self.chains is None else {"chains": self.chains}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self.chains = tensors.get("chains")

    def _accumulate(self, machine: PairwiseMachine, batch: Tensor) -> float:
        fantasies, contrast = self._negative_phase(machine, batch)
        parameters = dict(machine.named_parameters())
        for name, value in machine.by_parameter(*gradient(batch, fantasies)).items():
            if not parameters[name].requires_grad:
                continue
            grad = parameters[name].grad
            parameters[name].grad = value.clone() if grad is None else grad + value
        if self.persistent:
            self.chains = fantasies
        return contrast

    def _observe(self, machine: PairwiseMachine, batch: Tensor) -> float:
        return self._negative_phase(machine, batch)[1]

    @torch.no_grad()
    def _negative_phase(self, machine: PairwiseMachine, batch: Tensor) -> tuple[Tensor, float]:
        x = batch if self.chains is None else self.chains
        for _ in range(self.gibbs_steps):
            x = single_site_gibbs.step(x, machine=machine)
        contrast = (machine.energy(batch).mean() - machine.energy(x).mean()).item()
        if contrast != contrast or abs(contrast) == float("inf"):
            raise ValueError(
                "the energy is not finite: look for missing values in the batch, or use a smaller "
                "learning rate"
            )
        return x, contrast


class PseudoLikelihood(_Loss):
    """Minus the mean log pseudo-likelihood, nats per example; deterministic, needs no sampling.

    References:
        | Statistical analysis of non-lattice data (Besag, 1975)
        | Consistency of pseudolikelihood estimation of fully visible Boltzmann machines
          (Hyvärinen, 2006)
    """

    def _require(self, batch: Tensor) -> None:
        """Refuse all but 0 and 1: the law of a unit given grey levels is none of the machine's."""
        require_binary(batch, batch.shape[1])

    def _accumulate(self, machine: PairwiseMachine, batch: Tensor) -> float:
        loss = -machine.pseudo_log_likelihood(batch).mean()
        loss.backward()
        return loss.item()

    def _observe(self, machine: PairwiseMachine, batch: Tensor) -> float:
        return -machine.pseudo_log_likelihood(batch).mean().item()
