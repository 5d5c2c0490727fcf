"""The law of one side of a bipartite Boltzmann machine, normalised where log Z is known."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import ClassVar, NamedTuple, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ppgen.distributions.hidden_units import UnitGaussian
from ppgen.distributions.units import Binary, Gaussian, HiddenUnits, Units

EXACT_UNITS = 20  # up to 2**20 states are summed without being asked
Law = TypeVar("Law", bound=TorchDistribution)
_TABLE_UNITS = 12  # states that are summed at once: 2**12 rows


class KnownLogPartition(NamedTuple):
    """A value of log Z and the parameters that it was made for."""

    value: float  # nats
    parameters: tuple[Tensor, ...]  # copies of weight, visible_bias, hidden_bias


class RestrictedBoltzmann(TorchDistribution):
    r"""Distribution of the visible side of a restricted Boltzmann machine, hidden side summed out.

    .. math:: \log p(x) = a^\top x + \sum_j \operatorname{softplus}(b_j + (W^\top x)_j) - \log Z

    A layered machine is bipartite, so its even layers have this law too: `weight` then holds the
    weights between all even and all odd layers. Visible units of another kind have their natural
    parameters for ``a`` and their statistics for x in the linear term (see `units`), hidden units
    of another kind (see `hidden_units`) their log normaliser for softplus.

    log Z is the exact sum where the smaller side has at most 20 units, or the one that is binary
    where the other is not: differentiable, at ``2**20`` times the other side's cost; of two
    Gaussian sides it is an integral in closed form. Beyond that `log_prob` raises, unless a value
    was given for these very parameters; such a value has no gradient. `sample` is exact, or raises.

    Args:
        weight: W, ``(D, H)``.
        visible_bias: a, ``(D,)``; natural parameters ``(M,)`` of units with M statistics.
        hidden_bias: b, ``(H,)``.
        units: the kind of the visible units; binary if None.
        hidden_units: the kind of the hidden units; binary if None.
        known: log Z of a machine too large to be summed, with the parameters it belongs to.
    Shapes:
        ``x``: ``(*, D)`` in the support of the units; `log_prob` ``(*)`` in nats.

    Raises:
        ValueError: from `log_prob` when log Z is unknown, was made for other parameters, or x is
            no data of these units; from `sample` when the smaller side is too large to be summed;
            where two Gaussian sides are coupled too strongly to have a density.

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

    @constraints.dependent_property(event_dim=1)
    def support(self) -> constraints.Constraint:  # pyright: ignore
        return constraints.independent(self.units.support, 1)

    def __init__(
        self,
        weight: Tensor,
        visible_bias: Tensor,
        hidden_bias: Tensor,
        *,
        units: Units | None = None,
        hidden_units: HiddenUnits | None = None,
        known: KnownLogPartition | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.units = Binary() if units is None else units
        self.hidden_units = Binary() if hidden_units is None else hidden_units
        if (
            weight.dim() != 2
            or hidden_bias.shape != weight.shape[1:]
            or visible_bias.shape != self.units.statistics(weight[:, 0]).shape
        ):
            raise ValueError(
                "RestrictedBoltzmann: expected weight (D, H), visible_bias (D,), hidden_bias (H,), "
                f"got {tuple(weight.shape)}, {tuple(visible_bias.shape)}, "
                f"{tuple(hidden_bias.shape)}"
            )
        self.weight, self.visible_bias, self.hidden_bias = weight, visible_bias, hidden_bias
        self.known = known
        super().__init__(torch.Size(), weight.shape[:1], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> RestrictedBoltzmann:
        return expanded(self, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self.units.require(value, len(self.weight))
        x = value.to(self.weight.dtype)
        return (-self.free_energy(x) - self.log_normalizer()).expand(
            torch.broadcast_shapes(self.batch_shape, x.shape[:-1])
        )

    def free_energy(self, x: Tensor) -> Tensor:
        """Minus the unnormalised log density, ``(*, D) -> (*)``, nats."""
        linear = self.units.statistics(x) @ self.visible_bias
        return -linear - self.hidden_units.log_normaliser(x @ self.weight + self.hidden_bias)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Independent exact draws: a state of the smaller side, then the other side given it."""
        shape = torch.Size(sample_shape) + self.batch_shape
        if (gaussian := self._gaussian()) is not None:
            return gaussian.sample(shape)
        weights = self._log_weights(EXACT_UNITS)  # raises with what to do instead
        states = torch.multinomial((weights - weights.max()).exp(), max(shape.numel(), 1), True)
        if self._sums_hidden:
            hidden = binary_states(states, len(self.hidden_bias), self.weight)
            x = self.units.sample(shifted(self.visible_bias, hidden @ self.weight.T))
        else:
            x = binary_states(states, len(self.weight), self.weight)
        return x[: shape.numel()].reshape(shape + self.event_shape)

    def log_partition(self, limit: int = EXACT_UNITS) -> Tensor:
        """Exact log Z, nats, summed over the smaller side, which has at most `limit` units."""
        if (gaussian := self._gaussian()) is not None:
            nothing = torch.zeros_like(gaussian.loc)
            return -self.free_energy(nothing) - gaussian.log_prob(nothing)
        return torch.logsumexp(self._log_weights(limit), 0)

    def log_normalizer(self) -> Tensor:
        """Log Z: exact where that is cheap, else the value known for these parameters."""
        if self.enumerable:
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
    def enumerable(self) -> bool:
        """Whether log Z is a formula, or a sum of few enough terms to be taken unasked."""
        if not (self.units.binary or self.hidden_units.binary):
            return self._precision() is not None
        return (len(self.hidden_bias) if self._sums_hidden else len(self.weight)) <= EXACT_UNITS

    @property
    def _sums_hidden(self) -> bool:
        if self.units.binary and self.hidden_units.binary:
            return len(self.hidden_bias) <= len(self.weight)
        return self.hidden_units.binary

    def _precision(self) -> Tensor | None:
        """Of the visible units alone, ``(D,)``, where both sides are Gaussian."""
        if type(self.hidden_units) is not UnitGaussian or not isinstance(self.units, Gaussian):
            return None
        return -2 * self.visible_bias.chunk(2)[1]

    def _gaussian(self) -> dist.MultivariateNormal | None:
        """The law itself where both sides are Gaussian."""
        own = self._precision()
        if own is None:
            return None
        precision = torch.diag(own) - self.weight @ self.weight.T
        factor, failed = torch.linalg.cholesky_ex(precision)
        if failed:
            raise ValueError(
                "RestrictedBoltzmann: two Gaussian sides are coupled too strongly to have a "
                "density: 1 / sigma^2 - W W^T is not positive definite; use smaller weights"
            )
        linear = self.visible_bias[: len(own)] + self.weight @ self.hidden_bias
        mean = torch.cholesky_solve(linear[:, None], factor)[:, 0]
        return dist.MultivariateNormal(mean, precision_matrix=precision, validate_args=False)

    def _log_weights(self, limit: int) -> Tensor:
        """Log of the sum over the larger side, for each state of the smaller: ``(2**n,)``."""
        W, linear, other, summed = self.weight.T, self.hidden_bias, self.visible_bias, self.units
        if not self._sums_hidden:
            W, linear, other = self.weight, self.visible_bias, self.hidden_bias
            summed = self.hidden_units
        if not (self.units.binary or self.hidden_units.binary):
            raise ValueError(
                f"{self.units} under {self.hidden_units}: no side can be summed by its states; use "
                "annealed importance sampling for log Z and BlockGibbs for samples"
            )
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
        table = binary_states(torch.arange(2**low, device=W.device), low, W)
        fields = shifted(other, table @ W[units - low :])
        weights = table @ linear[units - low :]
        if units == low:
            return weights + summed.log_normaliser(fields)
        high = binary_states(torch.arange(2 ** (units - low), device=W.device), units - low, W)
        shifts, constants = high @ W[: units - low], high @ linear[: units - low]
        block = partial(_block, summed)
        blocks: list[Tensor] = [
            # Recomputed in the backward pass: one block's activations at a time.
            checkpoint(
                block, fields, shift, weights, c, use_reentrant=False, preserve_rng_state=False
            )
            if torch.is_grad_enabled()
            else block(fields, shift, weights, c)
            for shift, c in zip(shifts, constants, strict=True)
        ]  # type: ignore[misc]
        return torch.cat(blocks)


def expanded(law: Law, batch_shape: Sequence[int]) -> Law:
    """A copy of `law` of that batch shape, whose own it must fit."""
    own, shape = law.batch_shape, torch.Size(batch_shape)
    tails = zip(own[::-1], shape[::-1], strict=False)
    if len(own) > len(shape) or any(ours not in (1, theirs) for ours, theirs in tails):
        raise ValueError(f"expand: expected a shape that {tuple(own)} fits, got {tuple(shape)}")
    new = copy(law)
    new._batch_shape = shape
    return new


def shifted(natural: Tensor, fields: Tensor) -> Tensor:
    """Natural parameters ``(M,)`` or ``(*, M)`` with `fields` added to the D first: ``(*, M)``."""
    units = fields.shape[-1]
    if natural.shape[-1] == units:
        return fields + natural
    rest = natural[..., units:]
    rest = rest.expand(*torch.broadcast_shapes(fields.shape[:-1], rest.shape[:-1]), -1)
    return torch.cat([fields + natural[..., :units], rest], -1)


def _block(
    summed: Units | HiddenUnits, fields: Tensor, shift: Tensor, weights: Tensor, constant: Tensor
) -> Tensor:
    return summed.log_normaliser(shifted(fields, shift)) + weights + constant


def binary_states(states: Tensor, units: int, like: Tensor) -> Tensor:
    """Binary digits, most significant first: ``(S,) -> (S, units)``."""
    shifts = torch.arange(units - 1, -1, -1, device=states.device)
    return ((states[:, None] >> shifts) & 1).to(like)


def _text(weight: Tensor) -> str:
    return f"{weight.shape[0]} x {weight.shape[1]}"
