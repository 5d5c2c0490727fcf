"""The normal law of vectors from which most flows start."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

_ONE = Size()


class StandardNormal(TorchDistribution):
    """``N(0, I)`` of vectors: without a mean to subtract, a scale to divide by or to check.

    A density costs half of what it costs with ``Normal(zeros, ones).to_event(1)``, which a flow
    of a few small layers notices.

    Args:
        zeros: the mean, ``(*batch, D)``, which sets the dtype and the device of draws.

    Shapes: values ``(*, D)``; densities ``(*)``, nats.
    """

    arg_constraints: ClassVar[dict] = {}  # pyright: ignore[reportIncompatibleMethodOverride]
    support = constraints.real_vector  # type: ignore[assignment]
    has_rsample = True

    def __init__(self, zeros: Tensor, *, validate_args: bool | None = None) -> None:
        self.zeros = zeros
        super().__init__(zeros.shape[:-1], zeros.shape[-1:], validate_args=validate_args)
        self._constant = 0.5 * zeros.shape[-1] * math.log(2 * math.pi)

    @property
    def mean(self) -> Tensor:
        return self.zeros

    @property
    def variance(self) -> Tensor:
        return torch.ones_like(self.zeros)

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return torch.randn(shape, dtype=self.zeros.dtype, device=self.zeros.device)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return -0.5 * value.square().sum(-1) - self._constant

    def expand(self, batch_shape: Any, _instance: Any = None) -> StandardNormal:
        zeros = self.zeros.expand(*batch_shape, *self.event_shape)
        return StandardNormal(zeros, validate_args=self._validate_args)
