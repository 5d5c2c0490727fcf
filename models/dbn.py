"""Deep belief network: directed sigmoid layers under a restricted Boltzmann machine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ppgen.arguments import require_nonnegative, require_whole, require_widths
from ppgen.data.errors import check_rows
from ppgen.distributions.units import sample_units
from ppgen.models.bipartite import affine, count_examples
from ppgen.models.rbm import RBM


class DBN(PyroModule):
    r"""Deep belief network: layers x, h1, ..., hL, of which the two highest are an RBM.

    .. math:: p(x, h) = p_\mathrm{top}(h_{L-1}) \prod_{l=1}^{L-1} p(h_{l-1} \mid h_l), \qquad
              p(h_{l-1} \mid h_l) = \mathrm{Bernoulli}(\sigma(W_l h_l + b_{l-1})), \quad h_0 = x

    with hL summed out. The guide is the recognition pass,
    ``q(h_l | h_{l-1}) = Bernoulli(sigmoid(R_l^T h_{l-1} + c_l))``, in which R is W itself until
    `untie`. The sites are ``h1``, ..., ``h{L-1}`` and ``x``.

    Args:
        visible: D, units of x.
        hidden: units of h1, h2, ..., hL.
        weight_scale: standard deviation of the initial weights.
        tied: whether the recognition weights are the generative ones.
    Shapes:
        ``x``: ``(*, D)`` in {0, 1}; ``weight_l``, ``recognition_weight_l``: (units of layer l - 1,
        units of layer l); ``bias_l`` of layer l = 0, ...; ``recognition_bias_l``.

    References:
        | A fast learning algorithm for deep belief nets (Hinton, Osindero, Teh, 2006)
        | https://www.cs.toronto.edu/~hinton/absps/fastnc.pdf

    Example:
        >>> dbn = DBN(6, (4, 3))
        >>> [tuple(layer.shape) for layer in dbn.recognise(torch.ones(2, 6))]
        [(2, 6), (2, 4)]
        >>> tuple(dbn.sample(5, gibbs_steps=10).shape)
        (5, 6)
    """

    def __init__(
        self,
        visible: int,
        hidden: Sequence[int],
        *,
        weight_scale: float = 0.01,
        tied: bool = True,
    ) -> None:
        require_whole(self, visible=visible)
        require_widths(self, hidden=hidden)
        require_nonnegative(self, weight_scale=weight_scale)
        super().__init__()
        self.sizes = (visible, *hidden)
        if not hidden:
            raise ValueError("DBN(hidden=...) must have at least one layer, got ()")
        self.visible, self.hidden, self.tied = visible, tuple(hidden), True
        for layer, (below, above) in enumerate(pairwise(self.sizes[:-1]), start=1):
            weight = weight_scale * torch.randn(below, above)
            setattr(self, f"weight_{layer}", nn.Parameter(weight))
            setattr(self, f"bias_{layer - 1}", nn.Parameter(torch.zeros(below)))
            setattr(self, f"recognition_bias_{layer}", nn.Parameter(torch.zeros(above)))
        self.top = RBM(*self.sizes[-2:], weight_scale=weight_scale)
        if not tied:
            self.untie()

    @classmethod
    def from_rbms(cls, stack: Sequence[RBM]) -> DBN:
        """The network that a greedily trained stack is, its weights tied."""
        if any(below.hidden != above.visible for below, above in pairwise(stack)) or not stack:
            raise ValueError(
                "stack: expected RBMs, each with as many visible units as the one below has "
                f"hidden ones, got {[(rbm.visible, rbm.hidden) for rbm in stack]}"
            )
        dbn = cls(stack[0].visible, [rbm.hidden for rbm in stack]).to(stack[0].weight)
        dbn.assemble(stack)
        return dbn

    @torch.no_grad()
    def assemble(self, stack: Sequence[RBM]) -> None:
        """Take over the parameters of a greedily trained stack, also in the recognition pass."""
        shapes = [tuple(rbm.weight.shape) for rbm in stack]
        if shapes != list(pairwise(self.sizes)):
            raise ValueError(
                f"stack: expected machines of {list(pairwise(self.sizes))} units, got {shapes}"
            )
        if not all(rbm.units.binary and rbm.hidden_units.binary for rbm in stack):
            raise ValueError("stack: expected RBMs of binary units")
        for layer, rbm in enumerate(stack[:-1], start=1):
            getattr(self, f"weight_{layer}").copy_(rbm.weight)
            getattr(self, f"bias_{layer - 1}").copy_(rbm.visible_bias)
            getattr(self, f"recognition_bias_{layer}").copy_(rbm.hidden_bias)
            if not self.tied:
                getattr(self, f"recognition_weight_{layer}").copy_(rbm.weight)
        for ours, theirs in zip(self.top.parameters(), stack[-1].parameters(), strict=True):
            ours.copy_(theirs)

    def untie(self) -> None:
        """Give the recognition pass weights of its own, equal to the generative ones so far."""
        if self.tied:
            for layer in range(1, len(self.hidden)):
                weight = getattr(self, f"weight_{layer}").detach().clone()
                setattr(self, f"recognition_weight_{layer}", nn.Parameter(weight))
        self.tied = False

    @pyro_method
    def model(self, x: Tensor | None = None, *, examples: int = 1) -> Tensor:
        """Without `x`, draws `examples` of them, exactly (small machine on top)."""
        with pyro.plate("data", count_examples(x, examples)):
            name = f"h{len(self.hidden) - 1}" if len(self.hidden) > 1 else "x"
            side = pyro.sample(name, self.top.marginal(), obs=x if name == "x" else None)
            for layer in range(len(self.hidden) - 1, 0, -1):
                below = dist.Bernoulli(logits=self.generative_logits(layer, side)).to_event(1)
                name, seen = (f"h{layer - 1}", None) if layer > 1 else ("x", x)
                side = pyro.sample(name, below, obs=seen)
        return side

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """The recognition pass."""
        below = x
        with pyro.plate("data", len(check_rows(x))):
            for layer in range(1, len(self.hidden)):
                q = dist.Bernoulli(logits=self.recognition_logits(layer, below)).to_event(1)
                below = pyro.sample(f"h{layer}", q)

    def generative_logits(self, layer: int, above: Tensor) -> Tensor:
        """Log-odds of layer ``layer - 1`` given `above`, the states of `layer`."""
        bias = getattr(self, f"bias_{layer - 1}")
        return affine(above, getattr(self, f"weight_{layer}").T, bias)

    def recognition_logits(self, layer: int, below: Tensor) -> Tensor:
        """Log-odds of `layer` in the recognition pass, given the states `below` it."""
        kind = "weight" if self.tied else "recognition_weight"
        bias = getattr(self, f"recognition_bias_{layer}")
        return affine(below, getattr(self, f"{kind}_{layer}"), bias)

    @torch.no_grad()
    def recognise(self, x: Tensor) -> list[Tensor]:
        """Draws ``[x, h1, ..., h{L-1}]`` of the guide, the last one a side of the top machine."""
        layers = [x]
        for layer in range(1, len(self.hidden)):
            layers.append(sample_units(self.recognition_logits(layer, layers[-1]).sigmoid_()))
        return layers

    @torch.no_grad()
    def generate(self, side: Tensor) -> list[Tensor]:
        """Draws ``[x, h1, ..., h{L-1}]`` downwards from `side`, the last of them."""
        layers = [side]
        for layer in range(len(self.hidden) - 1, 0, -1):
            layers.append(sample_units(self.generative_logits(layer, layers[-1]).sigmoid_()))
        return layers[::-1]

    def log_generative(self, layers: Sequence[Tensor]) -> Tensor:
        """``log p(x, h1, ..., h{L-2} | h{L-1})``, ``(*)``, nats."""
        total = layers[0].new_zeros(layers[0].shape[:-1])
        for layer, (below, above) in enumerate(pairwise(layers), start=1):
            total = total + _log_bernoulli(self.generative_logits(layer, above), below)
        return total

    def log_recognition(self, layers: Sequence[Tensor]) -> Tensor:
        """``log q(h1, ..., h{L-1} | x)``, ``(*)``, nats."""
        total = layers[0].new_zeros(layers[0].shape[:-1])
        for layer, (below, above) in enumerate(pairwise(layers), start=1):
            total = total + _log_bernoulli(self.recognition_logits(layer, below), above)
        return total

    # Where log p(x) is known up to the log Z of the machine on top

    @property
    def machine(self) -> RBM:
        return self.top

    def machine_side(self, x: Tensor) -> Tensor:
        """Draws of h{L-1} in the recognition pass, ``(N, units)``."""
        return self.recognise(x)[-1]

    def log_unnormalised(self, x: Tensor) -> Tensor | None:
        """None, but for a network that is all top."""
        return -self.top.free_energy(x) if len(self.hidden) == 1 else None

    def unnormalised_log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(x, h) + log Z - log q(h | x)``, h ~ q: ``(N, D) -> (samples, N)``, nats."""
        layers = self.recognise(x.expand(samples, *x.shape))
        top = -self.top.free_energy(layers[-1])
        return top + self.log_generative(layers) - self.log_recognition(layers)

    @torch.no_grad()
    def sample(self, count: int, *, gibbs_steps: int = 1000, start: Tensor | None = None) -> Tensor:
        """New examples, ``(count, D)``: long chains of the machine on top, then one pass down.

        Args:
            count: how many.
            gibbs_steps: sweeps of each chain.
            start: data whose recognition the chains start from; else the top's own biases.
        """
        if start is None:
            side = sample_units(self.top.visible_bias.sigmoid().expand(count, -1))
        else:
            rows = torch.randint(len(start), (count,), device=start.device)
            side = self.machine_side(start[rows].to(self.top.weight))
        for _ in range(gibbs_steps):
            side = self.top.sweep(side)
        return self.generate(side)[0]


def _log_bernoulli(logits: Tensor, value: Tensor) -> Tensor:
    return -binary_cross_entropy_with_logits(logits, value, reduction="none").sum(-1)
