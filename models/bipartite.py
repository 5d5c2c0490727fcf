"""What every bipartite Boltzmann machine can do: written once, on its two sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor

from ppgen.arguments import require_finite, require_whole
from ppgen.data.errors import check_rows
from ppgen.distributions.restricted_boltzmann import KnownLogPartition, RestrictedBoltzmann
from ppgen.distributions.units import Binary, Gaussian, HiddenUnits, Units, sample_units
from ppgen.types import Statistics


class Bipartite(PyroModule):
    r"""Boltzmann machine of two sides, without ties within a side.

    .. math:: p(s, t) = e^{-E(s, t)} / Z, \qquad E(s, t) = -a^\top s - b^\top t - s^\top W t

    A layered machine is one: the even layers, ``s = (x, h2, h4, ...)``, are its visible side, the
    odd ones, ``t = (h1, h3, ...)``, its hidden side. A machine is a subclass that has `weight` W,
    `visible_bias` a and `hidden_bias` b, as parameters or assembled from those of its layers.
    Visible units are binary, or of another kind in `ppgen.distributions.units`: then ``a^T s`` is
    ``eta^T T(s)``, with natural parameters `visible_natural` and the statistics of those units.
    Hidden units are binary, or of a kind in `ppgen.distributions.hidden_units`, whose energies have
    a term ``t^2 / 2`` each.

    Shapes:
        ``s``: ``(*, D)`` and ``t``: ``(*, H)`` in {0, 1}; energies ``(*)`` in nats; W ``(D, H)``.
    """

    if TYPE_CHECKING:  # tensors: parameters, or properties
        weight: Any
        visible_bias: Any
        hidden_bias: Any
    visible: int  # units of x, the first of the visible side
    units: Units = Binary()  # the kind of the visible side
    hidden_units: HiddenUnits = Binary()  # the kind of the hidden side
    _known: KnownLogPartition | None = None

    def energy(self, s: Tensor, t: Tensor) -> Tensor:
        own = 0 if self.hidden_units.binary else t.square().sum(-1) / 2
        return own - (self.hidden_logits(s) * t).sum(-1) - self._linear(s)

    def free_energy(self, s: Tensor) -> Tensor:
        """``-log sum_t exp(-energy(s, t))``: ``(*, D) -> (*)``, nats."""
        return -self.hidden_units.log_normaliser(self.hidden_logits(s)) - self._linear(s)

    def hidden_logits(self, s: Tensor) -> Tensor:
        """Natural parameters of the hidden side, log-odds where it is binary."""
        return affine(s, self.weight, self.hidden_bias)

    def visible_logits(self, t: Tensor) -> Tensor:
        """What the couplings and biases add up to at each visible unit: ``(*, H) -> (*, D)``."""
        return affine(t, self.weight.T, self.visible_bias)

    def visible_natural(self, t: Tensor | None = None) -> Tensor:
        """Natural parameters of the visible side given the hidden, or with all of it off."""
        return self.visible_bias if t is None else self.visible_logits(t)

    def hidden_given_visible(self, s: Tensor) -> TorchDistribution:
        return self.hidden_units.law(self.hidden_logits(s))

    def visible_given_hidden(self, t: Tensor) -> TorchDistribution:
        return self.units.law(self.visible_natural(t))

    def marginal(self) -> RestrictedBoltzmann:
        """The law of the visible side, normalised where log Z is known."""
        return RestrictedBoltzmann(
            *self._sides(), units=self.units, hidden_units=self.hidden_units, known=self._known
        )

    def hidden_marginal(self) -> TorchDistribution:
        """The law of the hidden side, normalised where log Z is known."""
        if not (self.units.binary and self.hidden_units.binary):
            raise ValueError(f"the law of {self.hidden_units} under {self.units} is not written")
        weight, visible, hidden = self._sides()
        known = self._known
        if known is not None:
            W, a, b = known.parameters
            known = KnownLogPartition(known.value, (W.T, b, a))
        return RestrictedBoltzmann(weight.T, hidden, visible, known=known)

    def log_partition(self, limit: int = 25) -> Tensor:
        """Exact, differentiable log Z, nats; the smaller side has at most `limit` units."""
        return self.marginal().log_partition(limit)

    def normalise(self, log_partition: float) -> None:
        """Take `log_partition` for log Z (nats) until a parameter moves."""
        copies = tuple(p.detach().clone() for p in self._sides())
        require_finite("normalise", log_partition=log_partition)
        self._known = KnownLogPartition(float(log_partition), copies)

    @torch.no_grad()
    def sample_visible(self, t: Tensor) -> Tensor:
        """Draw the visible side given the hidden, ``(*, H) -> (*, D)``."""
        return self.units.sample(self.visible_natural(t))

    @torch.no_grad()
    def sample_hidden(self, s: Tensor) -> Tensor:
        """Draw the hidden side given the visible, ``(*, D) -> (*, H)``."""
        return self.hidden_units.sample(self.hidden_logits(s))

    @torch.no_grad()
    def hidden_states(self, phase: Statistics) -> Tensor:
        """Draw the hidden side of a phase, ``(N, H)``: of binary units by the means at hand."""
        binary = self.hidden_units.binary
        return sample_units(phase.hidden) if binary else self.sample_hidden(phase.visible)

    @torch.no_grad()
    def sweep(self, s: Tensor) -> Tensor:
        """One block Gibbs update of the visible side: the hidden given it, then it anew."""
        return self.sample_visible(self.sample_hidden(s))

    @torch.no_grad()
    def statistics(self, s: Tensor) -> Statistics:
        """What a phase whose visible side is `s`, ``(N, D)``, contributes to the gradient."""
        logits = self.hidden_logits(s)
        visible_mean = self.units.statistics(s).mean(0)
        linear = visible_mean @ self.visible_natural()
        hidden, total = self.hidden_units.moments(logits)
        free_energy = -torch.add(linear, total, alpha=1 / len(s))
        return Statistics(s, hidden, visible_mean, hidden.mean(0), free_energy)

    def positive_phase(self, x: Tensor) -> Statistics:
        """Data clamped, ``(N, visible)``; here x is the whole visible side."""
        return self.statistics(x)

    @property
    def couplings(self) -> tuple[tuple[slice, slice], ...]:
        """Blocks of `weight`, (rows, columns), outside of which it is zero by design."""
        return ((slice(None), slice(None)),)

    def by_parameter(
        self, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor
    ) -> dict[str, Tensor]:
        """A gradient in the sides as the gradient in each parameter, by name.

        That of the visible side is the gradient in its natural parameters.
        """
        return {"weight": weight, "visible_bias": visible_bias, "hidden_bias": hidden_bias}

    # Where log p(x) is known up to log Z

    @property
    def machine(self) -> Bipartite:
        """The machine whose log Z normalises this story: itself."""
        return self

    def machine_side(self, x: Tensor) -> Tensor:
        """The visible side, its mean where it is latent, with the data clamped: ``(N, D)``."""
        return self.positive_phase(x).visible

    def log_unnormalised(self, x: Tensor) -> Tensor | None:
        """``log p(x) + log Z``, ``(N,)``, nats; None where it is no feasible sum."""
        return -self.free_energy(x)

    def unnormalised_log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(x) + log Z`` itself, `samples` times: nothing is left to be sampled."""
        return (-self.free_energy(x)).expand(samples, -1)

    def _linear(self, s: Tensor) -> Tensor:
        return self.units.statistics(s) @ self.visible_natural()

    def _sides(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.visible_natural(), self.hidden_bias


def affine(side: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``side @ weight + bias``; names the number of units where it is wrong."""
    if side.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"expected units of shape (..., {weight.shape[0]}), got {tuple(side.shape)}"
        )
    return torch.addmm(bias, side, weight) if side.dim() == 2 else side @ weight + bias


def count_examples(x: Tensor | None, examples: int) -> int:
    """How many examples a machine's `model` is about: those that it is given, or is to draw."""
    require_whole("model", examples=examples)
    if x is None:
        return examples
    rows = len(check_rows(x))
    if examples not in (1, rows):  # 1 is what it is where nothing is said
        raise ValueError(f"examples={examples}: x has {rows}; leave one of the two out")
    return rows


def require_rows(x: Tensor) -> None:
    """Refuse what is not ``(N, D)`` with N > 0, or not finite."""
    if x.dim() != 2 or len(x) == 0:
        raise ValueError(f"x: expected shape (N, D) with N > 0, got {tuple(x.shape)}")
    Gaussian().require(x, x.shape[1])  # any finite numbers
