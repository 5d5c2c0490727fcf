"""The law of one side of a bipartite Boltzmann machine, normalised where log Z is known."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import ClassVar, NamedTuple

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.utils.checkpoint import checkpoint

EXACT_UNITS = 20  # up to 2**20 states are summed without being asked
_TABLE_UNITS = 12  # states that are summed at once: 2**12 rows


class KnownLogPartition(NamedTuple):
    """A value of log Z and the parameters that it was made for."""

    value: float  # nats
    parameters: tuple[Tensor, ...]  # copies of weight, visible_bias, hidden_bias


class RestrictedBoltzmann(TorchDistribution):
    r"""Distribution of the visible side of a restricted Boltzmann machine, hidden side summed out.

    .. math:: \log p(x) = a^\top x + \sum_j \operatorname{softplus}(b_j + (W^\top x)_j) - \log Z

    A layered machine is bipartite, so its even layers have this law too: `weight` then holds the
    weights between all even and all odd layers.

    log Z is the exact sum where the smaller side has at most 20 units: differentiable, at
    ``2**20`` times the other side's cost. Beyond that `log_prob` raises, unless a value was given
    for these very parameters; such a value has no gradient. `sample` is exact, or raises.

    Args:
        weight: W, ``(D, H)``.
        visible_bias: a, ``(D,)``.
        hidden_bias: b, ``(H,)``.
        known: log Z of a machine too large to be summed, with the parameters it belongs to.
    Shapes:
        ``x``: ``(*, D)`` in {0, 1}; `log_prob` ``(*)`` in nats.

    Raises:
        ValueError: from `log_prob` when log Z is unknown, was made for other parameters, or x is
            not binary; from `sample` when the smaller side is too large to be summed.

    References:
        | Information processing in dynamical systems (Smolensky, 1986)

    Example:
        >>> coin = RestrictedBoltzmann(torch.zeros(2, 3), torch.zeros(2), torch.zeros(3))
        >>> round(coin.log_prob(torch.ones(2)).exp().item(), 4)
        0.25
    """

    arg_constraints: ClassVar[dict] = {  # pyright: ignore[reportIncompatibleMethodOverride]
        "weight": constraints.independent(constraints.real, 2),
        "visible_bias": constraints.real_vector,
        "hidden_bias": constraints.real_vector,
    }
    support: ClassVar = constraints.independent(constraints.boolean, 1)  # pyright: ignore

    def __init__(
        self,
        weight: Tensor,
        visible_bias: Tensor,
        hidden_bias: Tensor,
        *,
        known: KnownLogPartition | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if weight.shape != visible_bias.shape + hidden_bias.shape or weight.dim() != 2:
            raise ValueError(
                "RestrictedBoltzmann: expected weight (D, H), visible_bias (D,), hidden_bias (H,), "
                f"got {tuple(weight.shape)}, {tuple(visible_bias.shape)}, "
                f"{tuple(hidden_bias.shape)}"
            )
        self.weight, self.visible_bias, self.hidden_bias = weight, visible_bias, hidden_bias
        self.known = known
        super().__init__(torch.Size(), visible_bias.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> RestrictedBoltzmann:
        new = copy(self)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        x = value
        if self._validate_args:
            require_binary(x, units=len(self.visible_bias))
        return (-self.free_energy(x) - self.log_normalizer()).expand(
            torch.broadcast_shapes(self.batch_shape, x.shape[:-1])
        )

    def free_energy(self, x: Tensor) -> Tensor:
        """Minus the unnormalised log density, ``(*, D) -> (*)``, nats."""
        return -x @ self.visible_bias - softplus(x @ self.weight + self.hidden_bias).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Independent exact draws: a state of the smaller side, then the other side given it."""
        shape = torch.Size(sample_shape) + self.batch_shape
        weights = self._log_weights(EXACT_UNITS)  # raises with what to do instead
        states = torch.multinomial((weights - weights.max()).exp(), max(shape.numel(), 1), True)
        if self._sums_hidden:
            hidden = _binary(states, len(self.hidden_bias), self.weight)
            x = sample_units(torch.sigmoid(hidden @ self.weight.T + self.visible_bias))
        else:
            x = _binary(states, len(self.visible_bias), self.weight)
        return x[: shape.numel()].reshape(shape + self.event_shape)

    def log_partition(self, limit: int = EXACT_UNITS) -> Tensor:
        """Exact log Z, nats, summed over the smaller side, which has at most `limit` units."""
        return torch.logsumexp(self._log_weights(limit), 0)

    def log_normalizer(self) -> Tensor:
        """Log Z: exact where that is cheap, else the value known for these parameters."""
        if min(self.weight.shape) <= EXACT_UNITS:
            return self.log_partition()
        if self.known is None:
            raise ValueError(
                f"log Z of a machine with {_text(self.weight)} units is unknown, so x has no log "
                "density: an ELBO on the unnormalised density would fall for ever while the "
                "likelihood gets worse. Train with ContrastiveDivergence; for a likelihood use "
                "annealed importance sampling, or give its value to the machine's `normalise`"
            )
        if not all(map(torch.equal, self._parameters(), self.known.parameters)):
            raise ValueError(
                "the parameters have moved since log Z was estimated: estimate it again and call "
                "`normalise` with the new value"
            )
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._parameters()):
            raise ValueError(
                "an estimated log Z has no gradient, so this log density cannot be trained: use "
                "ContrastiveDivergence to train, and torch.no_grad() to evaluate"
            )
        return self.visible_bias.new_tensor(self.known.value)

    def _parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.visible_bias, self.hidden_bias

    @property
    def _sums_hidden(self) -> bool:
        return len(self.hidden_bias) <= len(self.visible_bias)

    def _log_weights(self, limit: int) -> Tensor:
        """Log of the sum over the larger side, for each state of the smaller: ``(2**n,)``."""
        W, linear, other = self.weight.T, self.hidden_bias, self.visible_bias
        if not self._sums_hidden:
            W, linear, other = self.weight, self.visible_bias, self.hidden_bias
        units = len(linear)
        if units > limit:
            raise ValueError(
                f"the smaller side of this machine ({_text(self.weight)} units) has {units} units, "
                f"and at most {limit} are summed exactly (2**{limit} states): use annealed "
                "importance sampling for log Z and BlockGibbs for samples"
            )
        # The last units run fastest. Their states' fields are computed once and shared by all
        # blocks, so that a block costs one addition and one softplus, and no matrix product.
        low = min(units, _TABLE_UNITS)
        table = _binary(torch.arange(2**low, device=W.device), low, W)
        fields, weights = table @ W[units - low :] + other, table @ linear[units - low :]
        if units == low:
            return weights + softplus(fields).sum(-1)
        high = _binary(torch.arange(2 ** (units - low), device=W.device), units - low, W)
        shifts, constants = high @ W[: units - low], high @ linear[: units - low]
        blocks: list[Tensor] = [
            # Recomputed in the backward pass: one block's activations at a time.
            checkpoint(
                _block, fields, shift, weights, c, use_reentrant=False, preserve_rng_state=False
            )
            if torch.is_grad_enabled()
            else _block(fields, shift, weights, c)
            for shift, c in zip(shifts, constants, strict=True)
        ]  # type: ignore[misc]
        return torch.cat(blocks)


def softplus(logits: Tensor) -> Tensor:
    """``log(1 + exp(logits))``; torch's own threshold of 20 costs 2e-9, this one nothing."""
    return torch.nn.functional.softplus(logits, threshold=40.0)


def sample_units(probabilities: Tensor) -> Tensor:
    """Independent units in {0, 1}; four times faster on a CPU than ``torch.bernoulli``."""
    uniform = torch.rand_like(probabilities)
    return torch.lt(uniform, probabilities, out=uniform)


def base_rate_logits(x: Tensor) -> Tensor:
    """Log-odds of each unit's base rate, clamped to [1e-4, 1 - 1e-4]: ``(N, D) -> (D,)``."""
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return torch.logit(x.mean(0), eps=1e-4)


def require_binary(x: Tensor, units: int) -> None:
    """Refuse what is not ``(*, units)`` in {0, 1}.

    The unnormalised log density is convex in x: a grey image scores at most the mean over its
    binarizations, a number about no distribution over images.
    """
    if x.dim() == 0 or x.shape[-1] != units:
        raise ValueError(f"x: expected shape (..., {units}), got {tuple(x.shape)}")
    bad = ((x != 0) & (x != 1)).nonzero()
    if len(bad):
        *row, column = bad[0].tolist()
        value = x[tuple(bad[0])].item()
        raise ValueError(
            f"x: expected 0 or 1, got {value:g} in row {', '.join(map(str, row)) or 0}, column "
            f"{column} ({len(bad)} such entries): binarize the data first and say how"
        )


def _block(fields: Tensor, shift: Tensor, weights: Tensor, constant: Tensor) -> Tensor:
    return softplus(fields + shift).sum(-1) + weights + constant


def _binary(states: Tensor, units: int, like: Tensor) -> Tensor:
    """Binary digits, most significant first: ``(S,) -> (S, units)``."""
    shifts = torch.arange(units - 1, -1, -1, device=states.device)
    return ((states[:, None] >> shifts) & 1).to(like)


def _text(weight: Tensor) -> str:
    return f"{weight.shape[0]} x {weight.shape[1]}"
