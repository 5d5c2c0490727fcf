r"""Invertible maps of whole vectors whose parameters are an argument.

As with :mod:`ppgen.transforms.scalar`, *data* is the side that is observed, *base* the side of
the simple distribution. The raw parameters may be the same for all rows, and then
:class:`VectorTransform` owns and learns them, or other ones for each row, put out by an encoder,
and then :class:`ConditionedTransform` takes them (an amortised flow posterior).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from ppgen.transforms.bijection import Bijection
from ppgen.transforms.ridge import RidgeMap, push

MIN_SLOPE = 1e-3  # the least slope along a map's direction: at 0 it would not be invertible


class VectorMap(Protocol):
    """An invertible map between data and base vectors.

    Shapes: vectors ``(*, dim)``, raw parameters ``(*, parameters)`` that broadcast against them;
    log-determinants ``(*)``.
    """

    @property
    def dim(self) -> int:
        """Coordinates, D."""
        ...

    @property
    def parameters(self) -> int:
        """Raw numbers that it needs."""
        ...

    def initial(self) -> Tensor:
        """Raw parameters at, or near, the identity, ``(parameters,)``; random where symmetric."""
        ...

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The data value ``y`` of base `x`, and ``log |det dy/dx|``."""
        ...

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The base value ``x`` of data `y`, and ``log |det dx/dy|``."""
        ...


class VectorChain:
    """Several maps, one after the other, from base to data; their raw parameters side by side.

    A planar or Sylvester map that is there several times, as ``VectorChain([Planar(L)] * 80)``, is
    prepared for all layers at once.
    """

    def __init__(self, maps: Sequence[VectorMap]) -> None:
        if not maps or len({m.dim for m in maps}) > 1:
            raise ValueError(
                "a chain needs one map or more, all of the same dimension; "
                f"got dimensions {[m.dim for m in maps]}"
            )
        self.maps = list(maps)
        self.dim = self.maps[0].dim
        self.sizes = [m.parameters for m in self.maps]
        self.parameters = sum(self.sizes)

    def initial(self) -> Tensor:
        return torch.cat([m.initial() for m in self.maps])

    def to_data(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        first = self.maps[0]
        if isinstance(first, RidgeMap) and all(m is first for m in self.maps):
            return push(x, first.ridges(raw.unflatten(-1, (len(self.maps), -1)).movedim(-2, 0)))
        total = x.new_zeros(())
        for m, part in zip(self.maps, raw.split(self.sizes, -1), strict=True):
            x, log_det = m.to_data(x, part)
            total = total + log_det
        return x, total

    def to_base(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(())
        for m, part in reversed(list(zip(self.maps, raw.split(self.sizes, -1), strict=True))):
            y, log_det = m.to_base(y, part)
            total = total + log_det
        return y, total


class _Mapped(Bijection):
    """A map and its raw parameters as a transform."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    vector_map: VectorMap
    raw: Tensor

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _check(x, self.vector_map)
        return self.vector_map.to_data(x, self.raw)

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        _check(y, self.vector_map)
        return self.vector_map.to_base(y, self.raw)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """With other parameters for each row, a single base becomes one for each row."""
        batch = torch.broadcast_shapes(tuple(shape[:-1]), self.raw.shape[:-1])
        return torch.Size([*batch, shape[-1]])

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        return self.forward_shape(shape)


class VectorTransform(_Mapped, TransformModule):
    """A vector map with parameters of its own, that start at the map's `initial()`.

    Args:
        vector_map: Planar, Radial, Sylvester, a chain of them, ...

    Shapes: ``(*, D) -> (*, D)``, log-determinants ``(*)``.

    Example:
        >>> from ppgen.transforms.planar import Planar
        >>> flow = VectorTransform(Planar(2))
        >>> x, log_det = flow.inverse_with_log_det(torch.zeros(5, 2))
        >>> x.shape, log_det.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, vector_map: VectorMap) -> None:
        super().__init__()
        self.vector_map = vector_map
        self.raw = nn.Parameter(vector_map.initial())


class ConditionedTransform(_Mapped):
    """A vector map whose parameters are given, other ones for each row if need be.

    An encoder that puts out `raw` should start near the map's `initial()`: let that be the bias
    of its last layer, or add it.

    Args:
        vector_map: Planar, Radial, Sylvester, a chain of them, ...
        raw: its parameters, ``(*, vector_map.parameters)``.

    Shapes: ``(*, D) -> (*, D)``, log-determinants ``(*)``.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770
    """

    def __init__(self, vector_map: VectorMap, raw: Tensor) -> None:
        super().__init__()
        if raw.shape[-1:] != (vector_map.parameters,):
            raise ValueError(
                f"{type(vector_map).__name__} of {vector_map.dim} dimensions needs "
                f"{vector_map.parameters} raw parameters, the last axis of raw; "
                f"got raw of shape {tuple(raw.shape)}"
            )
        self.vector_map, self.raw = vector_map, raw


def _check(value: Tensor, vector_map: VectorMap) -> None:
    if value.shape[-1:] != (vector_map.dim,):
        raise ValueError(
            f"{type(vector_map).__name__} is of {vector_map.dim} dimensions, the last axis; "
            f"got a value of shape {tuple(value.shape)}"
        )


def positive(raw: Tensor) -> Tensor:
    """A number above :data:`MIN_SLOPE`; 1 at :data:`RAW_ONE`."""
    return F.softplus(raw) + MIN_SLOPE


def unit(v: Tensor) -> Tensor:
    """The direction of `v`; zero where `v` is zero (or has a length of less than 1e-9)."""
    length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return torch.where(length > 1e-9, v / length.clamp(min=1e-9), 0.0)


def times(matrix: Tensor, v: Tensor) -> Tensor:
    """The product of each vector with its matrix; one matrix for all is one product, not many."""
    return v @ matrix.mT if matrix.ndim == 2 else (matrix @ v[..., None]).squeeze(-1)


RAW_ONE = math.log(math.expm1(1 - MIN_SLOPE))
