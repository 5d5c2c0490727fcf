"""Fully visible Boltzmann machine: every unit is tied to every other."""

from __future__ import annotations

import pyro
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppgen.arguments import require_nonnegative, require_whole
from ppgen.distributions.boltzmann import Boltzmann
from ppgen.distributions.units import base_rate_logits, softplus
from ppgen.models.bipartite import affine, count_examples, require_rows


class FullyVisibleBoltzmannMachine(PyroModule):
    r"""Boltzmann machine without hidden units (an Ising model with units in {0, 1}).

    .. math:: p(x) = e^{-E(x)} / Z, \qquad E(x) = -a^\top x - \sum_{i < j} W_{ij} x_i x_j

    No side is independent given the other, as there are no sides: a Gibbs sweep goes from unit to
    unit, and log Z is a sum over all ``2^D`` states. That is what a *restricted* machine saves.

    Up to 20 units its pair is normalised and runs under plain ``SVI`` with the exact gradient. Any
    size trains with ``SingleSiteDivergence`` or ``PseudoLikelihood``, and is sampled with
    ``SingleSiteGibbs``.

    Args:
        visible: D, the number of units.
        weight_scale: standard deviation of the initial weights.
    Shapes:
        ``x``: ``(*, D)`` in {0, 1}; energies ``(*)`` in nats; ``pairs``: ``(D (D - 1) / 2,)``, the
        W above the diagonal, row by row.

    References:
        | A learning algorithm for Boltzmann machines (Ackley, Hinton, Sejnowski, 1985)
        | Statistical analysis of non-lattice data (Besag, 1975): the pseudo-likelihood

    Example:
        >>> machine = FullyVisibleBoltzmannMachine(3, weight_scale=0.0)
        >>> machine.log_prob(torch.ones(3)).exp().item()
        0.125
    """

    pairs: Tensor
    visible_bias: Tensor

    def __init__(self, visible: int, *, weight_scale: float = 0.01) -> None:
        require_whole(self, least=2, visible=visible)
        require_nonnegative(self, weight_scale=weight_scale)
        super().__init__()
        self.visible = visible
        self.pairs = nn.Parameter(weight_scale * torch.randn(visible * (visible - 1) // 2))
        self.visible_bias = nn.Parameter(torch.zeros(visible))

    @classmethod
    def from_data(cls, x: Tensor, *, weight_scale: float = 0.01) -> FullyVisibleBoltzmannMachine:
        """A machine that starts near the base rates of `x`, ``(N, D)``: biases are log-odds."""
        require_rows(x)
        machine = cls(x.shape[1], weight_scale=weight_scale)
        with torch.no_grad():
            machine.visible_bias.copy_(base_rate_logits(x))
        return machine

    @pyro_method
    def model(self, x: Tensor | None = None, *, examples: int = 1) -> Tensor:
        """Without `x`, draws `examples` of them, exactly (small machines)."""
        with pyro.plate("data", count_examples(x, examples)):
            return pyro.sample("x", self.marginal(), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """Empty: nothing is latent."""

    @property
    def weight(self) -> Tensor:
        """W, ``(D, D)``, symmetric with a zero diagonal."""
        upper = self.pairs.new_zeros(self.visible, self.visible)
        upper[tuple(self._above())] = self.pairs
        return upper + upper.T

    def energy(self, x: Tensor) -> Tensor:
        return -(affine(x, self.weight, 2 * self.visible_bias) * x).sum(-1) / 2

    def unit_logits(self, x: Tensor) -> Tensor:
        """Log-odds of each unit given all others, ``(*, D) -> (*, D)``."""
        return affine(x, self.weight, self.visible_bias)

    def pseudo_log_likelihood(self, x: Tensor) -> Tensor:
        """``sum_i log p(x_i | all other units)``: ``(*, D) -> (*)``, nats.

        What it is maximised by tends to the machine that made the data, without log Z; it is no
        likelihood, and is not to be compared with one.
        """
        return -softplus((1 - 2 * x) * self.unit_logits(x)).sum(-1)

    def marginal(self) -> Boltzmann:
        """The law of x."""
        return Boltzmann(self.weight, self.visible_bias)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact, for at most 20 units: ``(*, D) -> (*)``, nats."""
        return self.marginal().log_prob(x)

    def log_partition(self, limit: int = 20) -> Tensor:
        """Exact, differentiable log Z, nats; there are at most `limit` units."""
        return self.marginal().log_partition(limit)

    def by_parameter(self, weight: Tensor, visible_bias: Tensor) -> dict[str, Tensor]:
        """A gradient in the W_ij, i < j, and in a as that in each parameter, by name."""
        return {"pairs": weight[tuple(self._above())], "visible_bias": visible_bias}

    def _above(self) -> Tensor:
        return torch.triu_indices(self.visible, self.visible, 1, device=self.pairs.device)
