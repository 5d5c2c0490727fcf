"""Deep Boltzmann machine, binary units, any number of hidden layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from torch import Tensor, nn

from ppgen.arguments import require_nonnegative, require_whole, require_widths
from ppgen.data.errors import check_rows
from ppgen.distributions.restricted_boltzmann import RestrictedBoltzmann
from ppgen.distributions.units import base_rate_logits, softplus
from ppgen.models.bipartite import Bipartite, affine, count_examples, require_rows
from ppgen.models.duplicated_rbm import DuplicatedRBM
from ppgen.models.rbm import RBM
from ppgen.types import Statistics

_EVEN, _ODD = 0, 1
EXACT_LATENTS = 12  # latent units of the smaller side up to which log p*(x) is summed


class DBM(Bipartite):
    r"""Deep Boltzmann machine: layers x, h1, ..., hL, each tied to its neighbours alone.

    .. math:: E(x, h) = -\sum_{l=0}^L b_l^\top h_l - \sum_{l=1}^L h_{l-1}^\top W_l h_l,
              \qquad h_0 = x

    Its visible side is ``(x, h2, ...)``, its hidden side ``(h1, h3, ...)``. The Pyro pair has the
    sites ``odd`` = (h1, h3, ...), ``x`` and ``even`` = (h2, h4, ...): sides and no layers, since
    the layers of a side depend on each other once the other side is summed out.

    The guide is the mean-field fixed point ``q(h | x)``, found by coordinate ascent: a side is
    updated at once, as its units are independent given the other, so that the bound never falls.
    Gradients do not pass through it.

    Args:
        visible: D, units of x.
        hidden: units of h1, h2, ..., at least two layers (with one it is an `RBM`).
        weight_scale: standard deviation of the initial weights.
        mean_field_steps: updates of both sides at most; fewer where no mean moves by `tolerance`.
        tolerance: see there; 0 for all of them, without a look that waits for the device.
    Shapes:
        ``x``: ``(*, D)``; ``weight_l``: ``(units of layer l - 1, units of layer l)``; ``bias_l``.

    References:
        | Deep Boltzmann Machines (Salakhutdinov, Hinton, 2009)
        | https://proceedings.mlr.press/v5/salakhutdinov09a.html
        | Deep Boltzmann machines and the centering trick (Montavon, Müller, 2012)

    Example:
        >>> dbm = DBM(6, (4, 3))
        >>> side = dbm.machine_side(torch.ones(2, 6))  # (x, mean of h2)
        >>> tuple(side.shape), tuple(dbm.sweep(side).shape)
        ((2, 9), (2, 9))
    """

    def __init__(
        self,
        visible: int,
        hidden: Sequence[int],
        *,
        weight_scale: float = 0.01,
        mean_field_steps: int = 30,
        tolerance: float = 1e-6,
    ) -> None:
        require_whole(self, visible=visible, mean_field_steps=mean_field_steps)
        require_widths(self, hidden=hidden)
        require_nonnegative(self, weight_scale=weight_scale, tolerance=tolerance)
        super().__init__()
        self.sizes = (visible, *hidden)
        if len(hidden) < 2:
            raise ValueError(
                f"DBM(hidden=...) must have at least two layers, got {tuple(hidden)}; one is an RBM"
            )
        self.visible, self.hidden = visible, tuple(hidden)
        self.mean_field_steps, self.tolerance = mean_field_steps, tolerance
        for layer, (below, above) in enumerate(pairwise(self.sizes), start=1):
            weights = weight_scale * torch.randn(below, above)
            setattr(self, f"weight_{layer}", nn.Parameter(weights))
        for layer, units in enumerate(self.sizes):
            setattr(self, f"bias_{layer}", nn.Parameter(torch.zeros(units)))

    @classmethod
    def from_data(
        cls, x: Tensor, hidden: Sequence[int], *, weight_scale: float = 0.01, **options: int
    ) -> DBM:
        """A machine that starts near the base rates of `x`, ``(N, D)``: biases are log-odds."""
        require_rows(x)
        dbm = cls(x.shape[1], hidden, weight_scale=weight_scale, **options)
        with torch.no_grad():
            dbm.biases[0].copy_(base_rate_logits(x))
        return dbm

    @torch.no_grad()
    def assemble(self, stack: Sequence[RBM | DuplicatedRBM]) -> None:
        """Take over a pretrained stack (see `pretraining_machines`).

        The RBMs between the lowest and the highest were trained without knowing that a layer is
        driven from both its sides, and are halved; the two biases of a shared layer are averaged.
        """
        rbms = [part.rbm if isinstance(part, DuplicatedRBM) else part for part in stack]
        shapes = [tuple(rbm.weight.shape) for rbm in rbms]
        if shapes != list(pairwise(self.sizes)):
            raise ValueError(
                f"stack: expected machines of {list(pairwise(self.sizes))} units, got {shapes}"
            )
        for layer, rbm in enumerate(rbms):
            inner = 0 < layer < len(rbms) - 1
            self.weights[layer].copy_(rbm.weight).mul_(0.5 if inner else 1.0)
        self.biases[0].copy_(rbms[0].visible_bias)
        self.biases[-1].copy_(rbms[-1].hidden_bias)
        for bias, (below, above) in zip(self.biases[1:-1], pairwise(rbms), strict=True):
            bias.copy_((below.hidden_bias + above.visible_bias) / 2)

    @torch.no_grad()
    def start_from(self, rbm: RBM) -> None:
        """Take over a trained RBM as the lowest two layers; the weights above stay as they are.

        As far as those are small, the law of x is the RBM's and the bound tight, so that joint
        training starts where the RBM's ended; halved stacks (`assemble`) have no such guarantee.
        The biases take back the mean pull of the layer above, whose units start at one half.
        """
        if not (rbm.units.binary and rbm.hidden_units.binary):
            raise ValueError(f"rbm: expected binary units, got {rbm.units} and {rbm.hidden_units}")
        if (rbm.visible, rbm.hidden) != self.sizes[:2]:
            raise ValueError(
                f"rbm: expected layers of {self.sizes[:2]} units, got {(rbm.visible, rbm.hidden)}"
            )
        self.weights[0].copy_(rbm.weight)
        self.biases[0].copy_(rbm.visible_bias)
        self.biases[1].copy_(rbm.hidden_bias)
        for bias, W in zip(self.biases[1:], self.weights[1:], strict=False):
            bias.sub_(W.sum(1) / 2)

    @pyro_method
    def model(self, x: Tensor | None = None, *, examples: int = 1) -> Tensor:
        """Without `x`, draws `examples` of them, exactly (small machines)."""
        with pyro.plate("data", count_examples(x, examples)):
            odd = pyro.sample("odd", self.hidden_marginal())
            given = self.visible_logits(odd)
            data, latent = given[..., : self.visible], given[..., self.visible :]
            x = pyro.sample("x", dist.Bernoulli(logits=data).to_event(1), obs=x)
            pyro.sample("even", dist.Bernoulli(logits=latent).to_event(1))
        return x

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """The mean-field fixed point; the ELBO is at most ``log p(x)``."""
        means = self.mean_field(check_rows(x))
        with pyro.plate("data", len(x)):
            pyro.sample("odd", dist.Bernoulli(torch.cat(means[1::2], -1)).to_event(1))
            pyro.sample("even", dist.Bernoulli(torch.cat(means[2::2], -1)).to_event(1))

    def sites(self, s: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The values of the pair's sites in a state of both sides."""
        return {"odd": t, "x": s[..., : self.visible], "even": s[..., self.visible :]}

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """W_1, ..., W_L."""
        return tuple(getattr(self, f"weight_{layer}") for layer in range(1, len(self.sizes)))

    @property
    def biases(self) -> tuple[Tensor, ...]:
        """b_0 (of x), b_1, ..., b_L."""
        return tuple(getattr(self, f"bias_{layer}") for layer in range(len(self.sizes)))

    # The sides

    @property
    def weight(self) -> Tensor:
        """Between the sides; zero between layers that are no neighbours."""
        units = [sum(self.sizes[side::2]) for side in (0, 1)]
        whole = self.biases[0].new_zeros(units)
        for layer, ((rows, columns), W) in enumerate(
            zip(self.couplings, self.weights, strict=True)
        ):
            whole[rows, columns] = W.T if layer % 2 else W
        return whole

    @property
    def visible_bias(self) -> Tensor:
        return torch.cat(self.biases[::2])

    @property
    def hidden_bias(self) -> Tensor:
        return torch.cat(self.biases[1::2])

    @property
    def couplings(self) -> tuple[tuple[slice, slice], ...]:
        places = [self._place(layer) for layer in range(len(self.sizes))]
        return tuple(
            (b, a) if layer % 2 else (a, b) for layer, (a, b) in enumerate(pairwise(places))
        )

    def by_parameter(
        self, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor
    ) -> dict[str, Tensor]:
        found = {}
        for layer, (rows, columns) in enumerate(self.couplings, start=1):
            block = weight[rows, columns]
            found[f"weight_{layer}"] = block if layer % 2 else block.T
        for layer in range(len(self.sizes)):
            side = hidden_bias if layer % 2 else visible_bias
            found[f"bias_{layer}"] = side[self._place(layer)]
        return found

    def hidden_logits(self, s: Tensor) -> Tensor:
        return self._other_side(s, 0)

    def visible_logits(self, t: Tensor) -> Tensor:
        return self._other_side(t, 1)

    def layers(self, s: Tensor, t: Tensor) -> list[Tensor]:
        """``[x, h1, ..., hL]`` of the two sides."""
        parts = (s.split(self.sizes[::2], -1), t.split(self.sizes[1::2], -1))
        return [parts[layer % 2][layer // 2] for layer in range(len(self.sizes))]

    # Given the data

    @torch.no_grad()
    def mean_field(self, x: Tensor) -> list[Tensor]:
        """Means ``[x, m1, ..., mL]`` of the factorised posterior, by coordinate ascent.

        The bound that belongs to them never falls from one update of a side to the next.
        """
        weights, biases, top = self.weights, self.biases, len(self.weights)
        bottom = affine(x, weights[0], biases[1])
        means = [x, *self._upwards(bottom)]

        def update(side: int) -> None:
            for layer in range(side or 2, top + 1, 2):
                below, W = means[layer - 1], weights[layer - 1]
                logits = bottom if layer == 1 else affine(below, W, biases[layer])
                if layer < top:
                    logits = affine(means[layer + 1], weights[layer].T, logits)
                means[layer] = torch.sigmoid(logits)

        for _ in range(self.mean_field_steps):
            before = means[2::2]
            update(_ODD)
            update(_EVEN)
            if self.tolerance and _most_moved(means[2::2], before) < self.tolerance:
                break
        update(_ODD)  # now exact given the even layers, as the statistics take it to be
        return means

    def bound(self, x: Tensor) -> Tensor:
        """Variational bound: at most ``log p(x) + log Z``, ``(N, D) -> (N,)``, nats."""
        means = self.mean_field(x)
        return _entropy(means) - self.free_energy(torch.cat(means[::2], -1))

    @torch.no_grad()
    def positive_phase(self, x: Tensor) -> Statistics:
        """Data clamped, latent layers at their mean-field means; `free_energy` is ``-bound``."""
        means = self.mean_field(x)
        found = self.statistics(torch.cat(means[::2], -1))
        entropy = _entropy(means).mean()
        return found._replace(free_energy=found.free_energy - entropy, entropy=entropy)

    @torch.no_grad()
    def log_unnormalised(self, x: Tensor) -> Tensor | None:
        """Exact ``log p(x) + log Z``, ``(N,)``: up to 12 latent units on the smaller side.

        Given x the latent layers are a bipartite machine; the sum over them is its log Z.
        """
        if min(sum(self.sizes[1::2]), sum(self.sizes[2::2])) > EXACT_LATENTS:
            return None
        weight, even, odd = self.weight, self.visible_bias[self.visible :], self.hidden_bias
        fields = x @ weight[: self.visible] + odd
        rest = weight[self.visible :]
        sums = [RestrictedBoltzmann(rest, even, f).log_partition(EXACT_LATENTS) for f in fields]
        return x @ self.biases[0] + torch.stack(sums)

    def unnormalised_log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(x, odd) + log Z - log q(odd | x)``, odd ~ q, even layers summed out.

        ``(N, D) -> (samples, N)``, nats; the log of their mean bounds ``log p(x) + log Z``
        from below, and no less tightly than `bound`.
        """
        q = self.hidden_given_visible(torch.cat(self.mean_field(x)[::2], -1))
        odd = q.sample(torch.Size([samples]))
        given = self.visible_logits(odd)
        data, latent = given[..., : self.visible], given[..., self.visible :]
        joint = odd @ self.hidden_bias + (data * x).sum(-1) + softplus(latent).sum(-1)
        return joint - q.log_prob(odd)

    def _upwards(self, bottom: Tensor) -> list[Tensor]:
        """Where mean field starts: one pass upwards.

        The input of a layer that has one above it counts twice, for the one not there yet.
        """
        means: list[Tensor] = []
        for layer, bias in enumerate(self.biases[1:], start=1):
            logits = affine(means[-1], self.weights[layer - 1], bias) if means else bottom
            last = layer == len(self.weights)
            means.append(torch.sigmoid(logits if last else 2 * logits - bias))
        return means

    def _place(self, layer: int) -> slice:
        """Of a layer in its side."""
        start = sum(self.sizes[layer % 2 : layer : 2])
        return slice(start, start + self.sizes[layer])

    def _other_side(self, states: Tensor, side: int) -> Tensor:
        """Log-odds of one side given `states` of the other, ``side`` 0 (even) or 1 (odd)."""
        sizes = self.sizes[side::2]
        if states.shape[-1] != sum(sizes):
            raise ValueError(
                f"expected units of shape (..., {sum(sizes)}): the layers of {sizes} units side "
                f"by side, got {tuple(states.shape)}"
            )
        weights, biases, top = self.weights, self.biases, len(self.weights)
        parts = states.split(sizes, -1)
        logits = []
        for layer in range(1 - side, top + 1, 2):
            field = biases[layer]
            if layer > 0:
                field = affine(parts[(layer - 1) // 2], weights[layer - 1], field)
            if layer < top:
                field = affine(parts[(layer + 1) // 2], weights[layer].T, field)
            logits.append(field)
        return torch.cat(logits, -1) if len(logits) > 1 else logits[0]


def _most_moved(means: list[Tensor], before: list[Tensor]) -> Tensor:
    return max((m - b).abs().max() for m, b in zip(means, before, strict=True))


def _entropy(means: list[Tensor]) -> Tensor:
    """Of the even latent layers, ``(N,)``, nats."""
    even = torch.cat(means[2::2], -1)
    return (torch.special.entr(even) + torch.special.entr(1 - even)).sum(-1)
