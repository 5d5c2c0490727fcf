"""The law of a Boltzmann machine whose units are all tied to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ppgen.distributions.restricted_boltzmann import EXACT_UNITS, binary_states, expanded
from ppgen.distributions.unit_checks import require_binary

_TABLE_UNITS = 12  # states that are summed at once: 2**12 rows


class Boltzmann(TorchDistribution):
    r"""Fully visible Boltzmann machine (Ising model with units in {0, 1}).

    .. math:: \log p(x) = a^\top x + \tfrac12 x^\top W x - \log Z

    log Z is the sum over all ``2^D`` states, up to 20 units: differentiable; beyond, `log_prob` and
    `sample` raise.

    Args:
        weight: W, ``(D, D)``, symmetric with a zero diagonal.
        bias: a, ``(D,)``.
    Shapes:
        ``x``: ``(*, D)`` in {0, 1}; `log_prob` ``(*)`` in nats.

    Raises:
        ValueError: when there are too many units for the sum; when x is not binary.

    References:
        | A learning algorithm for Boltzmann machines (Ackley, Hinton, Sejnowski, 1985)

    Example:
        >>> pair = Boltzmann(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), -torch.ones(2))
        >>> round((pair.log_prob(torch.ones(2)) - pair.log_prob(torch.zeros(2))).item(), 4)
        0.0
    """

    arg_constraints: ClassVar[dict] = {  # pyright: ignore[reportIncompatibleMethodOverride]
        "weight": constraints.independent(constraints.real, 2),
        "bias": constraints.real_vector,
    }
    support: ClassVar = constraints.independent(constraints.boolean, 1)  # pyright: ignore

    def __init__(self, weight: Tensor, bias: Tensor, *, validate_args: bool | None = None) -> None:
        if bias.dim() != 1 or weight.shape != bias.shape * 2:
            raise ValueError(
                "Boltzmann: expected weight (D, D) and bias (D,), got "
                f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        self.weight, self.bias = weight, bias
        super().__init__(torch.Size(), bias.shape, validate_args=validate_args)
        if self._validate_args and (weight.diagonal().any() or not weight.allclose(weight.T)):
            raise ValueError("Boltzmann: expected a symmetric weight with a zero diagonal")

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Boltzmann:
        return expanded(self, batch_shape)

    def energy(self, x: Tensor) -> Tensor:
        """Minus the unnormalised log density, ``(*, D) -> (*)``, nats."""
        return -x @ self.bias - ((x @ self.weight) * x).sum(-1) / 2

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            require_binary(value, len(self.bias))
        return (-self.energy(value.to(self.bias.dtype)) - self.log_partition()).expand(
            torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        )

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Independent exact draws."""
        shape = torch.Size(sample_shape) + self.batch_shape
        weights = self._log_weights(EXACT_UNITS)
        states = torch.multinomial((weights - weights.max()).exp(), max(shape.numel(), 1), True)
        x = binary_states(states, len(self.bias), self.weight)
        return x[: shape.numel()].reshape(shape + self.event_shape)

    def log_partition(self, limit: int = EXACT_UNITS) -> Tensor:
        """Exact log Z, nats; there are at most `limit` units."""
        return torch.logsumexp(self._log_weights(limit), 0)

    def _log_weights(self, limit: int) -> Tensor:
        """``-energy`` of each state, ``(2**D,)``."""
        units = len(self.bias)
        if units > limit:
            raise ValueError(
                f"this machine has {units} units, and at most {limit} are summed exactly "
                f"(2**{limit} states): train it with its pseudo-likelihood or with "
                "contrastive divergence, and draw from it with SingleSiteGibbs"
            )
        # The last units run fastest: a table of their states, and for each state of the others one
        # product of their fields with the table.
        low = min(units, _TABLE_UNITS)
        head, W, a = units - low, self.weight, self.bias
        table = binary_states(torch.arange(2**low, device=W.device), low, W)
        high = binary_states(torch.arange(2**head, device=W.device), head, W)
        inner = table @ a[head:] + ((table @ W[head:, head:]) * table).sum(-1) / 2
        outer = high @ a[:head] + ((high @ W[:head, :head]) * high).sum(-1) / 2
        # both halves of W, so that its gradient is symmetric
        across = (high @ (W[:head, head:] + W[head:, :head].T) / 2) @ table.T
        return (across + inner + outer[:, None]).flatten()
