"""Minibatches in an order that is a pure function of seed and epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ppgen.data.errors import DataError, check_finite
from ppgen.inference.training.randomness import stream


class Batches(Protocol):
    """What `ppgen.data.Dataset` offers: a tensor, and minibatches of it for an epoch."""

    @property
    def x(self) -> Tensor: ...

    def batches(self, size: int, *, generator: torch.Generator, epoch: int) -> Iterator[Tensor]: ...


Data = Tensor | Sequence[Tensor] | Batches


class Minibatches:
    """The batches of an epoch, each a tuple of arguments for the model and the guide.

    Args:
        data: a tensor ``(N, ...)``; several of one length, which then are the model's
            arguments; or a data set with ``x`` and ``batches`` (its binarisation is redrawn each
            epoch where it is dynamic).
        size: examples in a batch, at least 1; the last one of an epoch may be shorter, and fewer
            examples than that are one batch.
        seed: of the order, together with the epoch.
        device: where the batches go.
        dtype: of floating-point data: that of the story.
        name: how the caller knows the data.

    Raises:
        DataError: for NaN and infinities, by row and column; for unequal lengths.
    """

    def __init__(
        self,
        data: Data,
        size: int,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        name: str = "data",
    ) -> None:
        self.source = None if isinstance(data, (Tensor, Sequence)) else data
        self.seed, self.device, self.dtype = seed, device, dtype
        self.tensors = self._placed(tensors_of(data, name))
        self.examples = len(self.tensors[0])
        self.size = min(size, self.examples)

    @property
    def numbers(self) -> int:
        """In the tensors of a batch."""
        return self.size * sum(t[0].numel() for t in self.tensors)

    def __len__(self) -> int:
        return -(-self.examples // self.size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches of epoch number `epoch`, counted from 0."""
        generator = torch.Generator().manual_seed(stream(self.seed, "order", epoch))
        if self.source is not None:
            for batch in self.source.batches(self.size, generator=generator, epoch=epoch):
                yield self._placed(batch if isinstance(batch, tuple) else (batch,))
            return
        order = torch.randperm(self.examples, generator=generator).to(self.device)
        for rows in order.split(self.size):
            yield tuple([t.index_select(0, rows) for t in self.tensors])

    def in_order(self) -> Iterator[tuple[Tensor, ...]]:
        """The examples in one order that is always the same, `size` at a time."""
        if self.source is not None:
            yield from self.epoch(0)  # one draw of data that are binarised dynamically
            return
        for start in range(0, self.examples, self.size):
            yield tuple(t[start : start + self.size] for t in self.tensors)

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run compares, so that it does not go on with other data."""
        digest = hashlib.sha256()
        for t in self.tensors:
            digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        shapes = [list(t.shape) for t in self.tensors]
        return {"shapes": shapes, "sha256": digest.hexdigest()}

    def _placed(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(
            [t.to(self.device, self.dtype if t.is_floating_point() else None) for t in tensors]
        )


def tensors_of(data: Data, name: str) -> tuple[Tensor, ...]:
    """The tensors, of a data set its examples; refused where they do not belong together."""
    tensors: Any = (data,) if isinstance(data, Tensor) else data
    if not isinstance(tensors, (list, tuple)):
        if not isinstance(getattr(data, "x", None), Tensor) or not hasattr(data, "batches"):
            raise TypeError(
                f"{name}: expected a tensor, several tensors or a ppgen.data.Dataset, "
                f"not {type(data).__name__}"
            )
        tensors = (tensors.x,)
    if not tensors:
        raise DataError("no tensor was given", name)
    names = [name] if len(tensors) == 1 else [f"{name}[{i}]" for i in range(len(tensors))]
    for where, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, Tensor) or tensor.ndim == 0:
            raise TypeError(f"{where}: expected a tensor with a row for each example")
        if len(tensor) != len(tensors[0]):
            raise DataError(f"{len(tensor)} rows, but {names[0]} has {len(tensors[0])}", where)
        check_finite(tensor, where)
    return tuple(tensors)
