"""Restricted Boltzmann machine."""

from __future__ import annotations

from typing import Any, Self

import pyro
import torch
from pyro.nn import pyro_method
from torch import Tensor, nn

from ppgen.arguments import require_nonnegative, require_whole
from ppgen.data.errors import check_rows
from ppgen.distributions.hidden_units import UnitGaussian
from ppgen.distributions.restricted_boltzmann import RestrictedBoltzmann
from ppgen.distributions.units import Beside, Binary, Gaussian, HiddenUnits, Units
from ppgen.models.bipartite import Bipartite, count_examples, require_rows


class RBM(Bipartite):
    r"""Restricted Boltzmann machine: visible and hidden units, no ties within a side.

    .. math:: p(x, h) = e^{-E(x, h)} / Z, \qquad E(x, h) = -a^\top x - b^\top h - x^\top W h

    Its pair runs under ``SVI`` with ``ContrastiveDivergence`` and under ``MCMC`` with
    ``BlockGibbs``. ELBOs need log Z: exact up to 20 units on the smaller side; for larger
    machines the log density raises (see `normalise`).

    Args:
        visible: D, the number of visible units.
        hidden: H, the number of hidden units.
        weight_scale: standard deviation of the initial weights.
        units: the kind of the visible units; `ppgen.distributions.OneHot(K)` makes groups of K of
            them categorical. Real data have a `GaussianRBM`.
        hidden_units: the kind of the hidden units: `ppgen.distributions.UnitGaussian()`, or
            `Rectified()` for ReLUs, whose energies have a term ``h^2 / 2`` each.
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

    def __init__(
        self,
        visible: int,
        hidden: int,
        *,
        weight_scale: float = 0.01,
        units: Units = Binary(),  # noqa: B008 (it has no state)
        hidden_units: HiddenUnits = Binary(),  # noqa: B008
    ) -> None:
        require_whole(self, visible=visible, hidden=hidden)
        require_nonnegative(self, weight_scale=weight_scale)
        super().__init__()
        if isinstance(units, UnitGaussian | Gaussian):
            raise ValueError(f"units: expected discrete ones, got {units}; real data: GaussianRBM")
        self.units, self.hidden_units = units, hidden_units
        units.variables(visible)  # complains where there are no whole variables
        if not hasattr(hidden_units, "moments"):
            raise ValueError(
                "hidden_units: expected Binary(), UnitGaussian() or Rectified(), got "
                f"{hidden_units}"
            )
        self.visible, self.hidden = visible, hidden
        self.weight = nn.Parameter(weight_scale * torch.randn(visible, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    @classmethod
    def from_data(cls, x: Tensor, hidden: int, **options: Any) -> Self:
        """A machine that starts near the base rates of `x`, ``(N, D)``; `options` as of RBM."""
        require_rows(x)
        rbm = cls(x.shape[1], hidden, **options)
        rbm.start_at(x)
        return rbm

    @torch.no_grad()
    def start_at(self, x: Tensor) -> None:
        """Set the visible biases to the log-odds of the base rates of `x`, ``(N, D)``."""
        self.visible_bias.copy_(self.units.fitted(x))

    @torch.no_grad()
    def transposed(self, hidden: int | None = None, *, weight_scale: float = 0.01) -> RBM:
        """A copy with its sides exchanged.

        On top of this machine it makes a DBN with the same law of x: where greedy training starts
        there, no layer makes the bound worse.

        Args:
            hidden: units of the copy's hidden side, D or more. Those beyond D have small random
                weights, whose mean pull the visible biases take back: the law of x is nearly the
                same. None: D.
            weight_scale: standard deviation of those weights.
        """
        if not (self.units.binary and self.hidden_units.binary):
            raise ValueError(
                f"transposed: expected binary units, these are {self.units} and {self.hidden_units}"
            )
        hidden = self.visible if hidden is None else hidden
        if hidden < self.visible:
            raise ValueError(
                f"transposed: expected at least {self.visible} hidden units, one for each unit of "
                f"x, got {hidden}"
            )
        rbm = RBM(self.hidden, hidden, weight_scale=weight_scale).to(self.weight)
        rbm.weight[:, : self.visible] = self.weight.T
        rbm.visible_bias.copy_(self.hidden_bias - rbm.weight[:, self.visible :].sum(1) / 2)
        rbm.hidden_bias[: self.visible] = self.visible_bias
        return rbm

    # Missing units

    def missing_given_observed(self, x: Tensor, observed: Tensor) -> RestrictedBoltzmann:
        """The law of the units that are not `observed`, given those that are, in their order.

        It is that of a smaller machine, exact where that can be enumerated. Larger ones are sampled
        by ``BlockGibbs(..., clamp=observed)``.

        Args:
            x: one example, ``(D,)``; what is not observed is not looked at.
            observed: mask, ``(D,)``, bool; of a categorical variable all units or none.
        """
        if x.shape != (self.visible,) or observed.shape != x.shape or observed.all():
            raise ValueError(
                f"expected x and observed of shape ({self.visible},), and a unit that is not "
                f"observed; got {tuple(x.shape)} and {tuple(observed.shape)}"
            )
        variables = self.units.variables(self.visible).to(observed.device)
        if torch.isin(variables[observed], variables[~observed]).any():
            raise ValueError("observed: a categorical variable is observed in part of its units")
        return RestrictedBoltzmann(
            self.weight[~observed],
            self._natural_of(~observed),
            self.hidden_bias + x[observed] @ self.weight[observed],
            units=self.units.only(~observed) if isinstance(self.units, Beside) else self.units,
            hidden_units=self.hidden_units,
        )

    def log_observed(self, x: Tensor, observed: Tensor) -> Tensor:
        """``log p(observed units) + log Z``, the others summed out: ``(N, D) -> (N,)``, nats.

        `observed` is ``(D,)`` or ``(N, D)``, bool. Exact: the smaller of the missing and the hidden
        side of each example has at most 20 units.
        """
        rows = zip(x, observed.expand(x.shape), strict=True)
        return torch.stack([self._log_observed(row, mask) for row, mask in rows])

    def _log_observed(self, x: Tensor, observed: Tensor) -> Tensor:
        if observed.all():
            return -self.free_energy(x)
        rest = self.missing_given_observed(x, observed).log_partition()
        return self.units.statistics(x[observed]) @ self._natural_of(observed) + rest

    def _natural_of(self, units: Tensor) -> Tensor:
        """Natural parameters of some of the units, a mask ``(D,)``, with all hidden units off."""
        return self.visible_natural().reshape(-1, self.visible)[:, units].flatten()

    @pyro_method
    def model(self, x: Tensor | None = None, *, examples: int = 1) -> Tensor:
        """Without `x`, draws `examples` of them, exactly (small machines)."""
        with pyro.plate("data", count_examples(x, examples)):
            x = pyro.sample("x", self.marginal(), obs=x)
            pyro.sample("h", self.hidden_given_visible(x))
        return x

    def sites(self, s: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The values of the pair's sites in a state of both sides."""
        return {"x": s, "h": t}

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """Exact: the ELBO equals ``log p(x)``, for every draw of h."""
        with pyro.plate("data", len(check_rows(x))):
            pyro.sample("h", self.hidden_given_visible(x))
