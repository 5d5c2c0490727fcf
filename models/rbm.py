"""Restricted Boltzmann machine, binary units."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppgen.distributions.restricted_boltzmann import (
    KnownLogPartition,
    RestrictedBoltzmann,
    base_rate_logits,
    sample_units,
    softplus,
)
from ppgen.types import Statistics


class RBM(PyroModule):
    r"""Restricted Boltzmann machine: binary visible and hidden units, no ties within a side.

    .. math:: p(x, h) = e^{-E(x, h)} / Z, \qquad E(x, h) = -a^\top x - b^\top h - x^\top W h

    Its pair runs under ``SVI`` with ``ContrastiveDivergence`` and under ``MCMC`` with
    ``BlockGibbs``. ELBOs need log Z: exact up to 20 units on the smaller side; for larger
    machines the log density raises (see `normalise`).

    Args:
        visible: D, the number of visible units.
        hidden: H, the number of hidden units.
        weight_scale: standard deviation of the initial weights.
    Shapes:
        ``x``: ``(*, D)`` and ``h``: ``(*, H)`` in {0, 1}; energies ``(*)`` in nats;
        ``weight`` W: ``(D, H)``, ``visible_bias`` a: ``(D,)``, ``hidden_bias`` b: ``(H,)``.

    References:
        | Information processing in dynamical systems: harmony theory (Smolensky, 1986)
        | A practical guide to training restricted Boltzmann machines (Hinton, 2012)
        | https://www.cs.toronto.edu/~hinton/absps/guideTR.pdf
    """

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor

    def __init__(self, visible: int, hidden: int, *, weight_scale: float = 0.01) -> None:
        super().__init__()
        for side, units in (("visible", visible), ("hidden", hidden)):
            if units < 1:
                raise ValueError(f"RBM: expected at least one {side} unit, got {units}")
        self.visible, self.hidden = visible, hidden
        self.weight = nn.Parameter(weight_scale * torch.randn(visible, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self._known: KnownLogPartition | None = None

    @classmethod
    def from_data(cls, x: Tensor, hidden: int, *, weight_scale: float = 0.01) -> RBM:
        """A machine that starts near the base rates of `x`, ``(N, D)``: biases are log-odds."""
        if x.dim() != 2 or len(x) == 0:
            raise ValueError(f"x: expected shape (N, D) with N > 0, got {tuple(x.shape)}")
        rbm = cls(x.shape[1], hidden, weight_scale=weight_scale)
        with torch.no_grad():
            rbm.visible_bias.copy_(base_rate_logits(x))
        return rbm

    @pyro_method
    def model(self, x: Tensor | None = None, *, examples: int = 1) -> Tensor:
        """Without `x`, draws `examples` of them, exactly (small machines)."""
        with pyro.plate("data", examples if x is None else len(x)):
            x = pyro.sample("x", self.marginal(), obs=x)
            pyro.sample("h", self.hidden_given_visible(x))
        return x

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """Exact: the ELBO equals ``log p(x)``, for every draw of h."""
        with pyro.plate("data", len(x)):
            pyro.sample("h", self.hidden_given_visible(x))

    def energy(self, x: Tensor, h: Tensor) -> Tensor:
        return -(self.hidden_logits(x) * h).sum(-1) - x @ self.visible_bias

    def free_energy(self, x: Tensor) -> Tensor:
        """``-log sum_h exp(-energy(x, h))``: ``(*, D) -> (*)``, nats."""
        return -softplus(self.hidden_logits(x)).sum(-1) - x @ self.visible_bias

    def hidden_logits(self, x: Tensor) -> Tensor:
        return _affine(x, self.weight, self.hidden_bias)

    def visible_logits(self, h: Tensor) -> Tensor:
        return _affine(h, self.weight.T, self.visible_bias)

    def hidden_given_visible(self, x: Tensor) -> TorchDistribution:
        return dist.Bernoulli(logits=self.hidden_logits(x)).to_event(1)

    def visible_given_hidden(self, h: Tensor) -> TorchDistribution:
        return dist.Bernoulli(logits=self.visible_logits(h)).to_event(1)

    def marginal(self) -> RestrictedBoltzmann:
        """The law of x, normalised where log Z is known."""
        return RestrictedBoltzmann(
            self.weight, self.visible_bias, self.hidden_bias, known=self._known
        )

    def log_partition(self, limit: int = 25) -> Tensor:
        """Exact, differentiable log Z, nats; the smaller side has at most `limit` units."""
        return self.marginal().log_partition(limit)

    def normalise(self, log_partition: float) -> None:
        """Take `log_partition` for log Z (nats) until a parameter moves."""
        parameters = (self.weight, self.visible_bias, self.hidden_bias)
        copies = tuple(p.detach().clone() for p in parameters)
        self._known = KnownLogPartition(float(log_partition), copies)

    @torch.no_grad()
    def sample_visible(self, h: Tensor) -> Tensor:
        """Draw x given h, ``(*, H) -> (*, D)``."""
        return sample_units(self.visible_logits(h).sigmoid_())

    @torch.no_grad()
    def sweep(self, x: Tensor) -> Tensor:
        """One block Gibbs update of the visible side: h given x, then x given h."""
        return self.sample_visible(sample_units(self.hidden_logits(x).sigmoid_()))

    @torch.no_grad()
    def statistics(self, x: Tensor) -> Statistics:
        """What a phase whose visible side is `x`, ``(N, D)``, contributes to the gradient."""
        logits = self.hidden_logits(x)
        visible_mean = x.mean(0)
        free_energy = -visible_mean @ self.visible_bias - softplus(logits).sum() / len(x)
        hidden = logits.sigmoid_()
        return Statistics(x, hidden, visible_mean, hidden.mean(0), free_energy)

    def positive_phase(self, x: Tensor) -> Statistics:
        """Data clamped: the guide is the exact conditional, so its means are the statistics."""
        return self.statistics(x)


def _affine(side: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if side.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"expected units of shape (..., {weight.shape[0]}), got {tuple(side.shape)}"
        )
    return torch.addmm(bias, side, weight) if side.dim() == 2 else side @ weight + bias
