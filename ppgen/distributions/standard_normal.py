"""The normal law of vectors from which most flows start."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def even_normal(points: Tensor, batch: Sequence[int] = ()) -> Tensor:
    """Standard normal draws that fill space more evenly than independent ones.

    All points of a set of low discrepancy are turned by one random vector on the torus of the unit
    cube. Each draw is exactly normal, and the mean of a smooth function over them varies less, up
    to tens of dimensions. They depend on each other: a standard error for independent draws is
    too large.

    Args:
        points: in the unit cube, such as ``SobolEngine(D, scramble=True).draw(B)``.
        batch: independent sets of draws.

    Shapes: ``(B, D) -> (*batch, B, D)``.

    References:
        | Quasi-Monte Carlo Variational Inference (Buchholz et al., 2018)
        | https://arxiv.org/abs/1807.01604
    """
    turn = torch.rand(*batch, 1, points.shape[-1], dtype=points.dtype, device=points.device)
    least = torch.finfo(points.dtype).eps  # the quantiles of 0 and 1 are infinite
    return torch.special.ndtri((points + turn).remainder(1.0).clamp(least, 1 - least))
