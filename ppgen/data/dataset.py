"""Examples, and what must be said of them beside every result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppgen.data.binarisation import Binarisation, bernoulli, stream


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Examples with their name, split and binarisation.

    Args:
        x: the examples, ``(N, D)`` or ``(N, ...)``. Under dynamic binarisation the draw of epoch 0.
        labels: ``(N,)``, int64; or ``(N, P)`` numbers that belong to each example.
        name: of the data: ``"digits"``, or the file.
        split: ``"train"``, ``"test"``, or ``"all"`` for a file that has no splits.
        binarisation: ``"static"``, one Bernoulli draw of the grey levels for good; ``"dynamic"``,
            drawn anew each epoch; ``"threshold"``, grey level > 0.5; ``"none"``. Likelihoods under
            different binarisations are not comparable.
        image_shape: height and width, when the examples are images.
        columns: the names of a table's columns.
        seed: of the binarisation, and of the order of minibatches unless another is given.
        grey: under dynamic binarisation the grey levels in [0, 1], shaped as `x`.
        white: the grey level of white in the file, by which its levels were divided.
        notes: what else must be said, as "checksum unknown".
        words: where labels are texts, these texts, sorted; a label is a place among them.
    """

    x: Tensor
    labels: Tensor | None = None
    name: str = "data"
    split: str = "all"
    binarisation: Binarisation = "none"
    image_shape: tuple[int, int] | None = None
    columns: tuple[str, ...] | None = None
    seed: int = 0
    grey: Tensor | None = None
    white: float = 1.0
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.binarisation == "dynamic") != (self.grey is not None):
            raise ValueError("grey levels belong to dynamic binarisation, and to it alone")
        for what, tensor in (("labels", self.labels), ("grey", self.grey)):
            if tensor is not None and len(tensor) != len(self.x):
                raise ValueError(f"{len(self.x)} examples, but {len(tensor)} in {what}")

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"<Dataset {self.describe()}; x {tuple(self.x.shape)}>"

    def describe(self) -> str:
        """What must stand beside every result.

        Example:
            >>> Dataset(torch.ones(3, 2), name="coins", split="test").describe()
            'coins, test, 3 examples, no binarisation'
        """
        binarisation = {
            "static": f"static binarisation (seed {self.seed})",
            "dynamic": f"dynamic binarisation (seed {self.seed})",
            "threshold": "threshold binarisation (> 0.5)",
            "none": "no binarisation",
        }[self.binarisation]
        count = f"{len(self)} example{'s' if len(self) != 1 else ''}"
        return ", ".join((self.name, self.split, count, binarisation, *self.notes))

    def at_epoch(self, epoch: int) -> Tensor:
        """The examples as epoch `epoch` shows them: `x`, or the dynamic draw of that epoch."""
        if self.grey is None or epoch == 0:
            return self.x
        return draw(self.grey, self.seed, self.split, epoch)

    def in_levels(self) -> Dataset:
        """The examples as the whole grey levels that the file holds, 0 to `white`.

        Raises:
            ValueError: for binarised examples.

        Example:
            >>> Dataset(torch.tensor([[0.0, 0.25]]), white=16.0).in_levels().x
            tensor([[0., 4.]])
        """
        if self.binarisation != "none":
            raise ValueError(f"{self.describe()}: grey levels have none")
        levels = self.x * self.white
        whole = levels.round()  # what division by 255 has taken from a whole number
        near = torch.isclose(levels, whole, rtol=1e-5, atol=0)
        return replace(self, x=torch.where(near, whole, levels), white=1.0)

    def order(self, epoch: int, *, seed: int | None = None) -> Tensor:
        """The order of the examples in an epoch, ``(N,)``: a function of (seed, epoch) alone."""
        key = stream("order", self.seed if seed is None else seed, epoch)
        return torch.randperm(len(self), generator=key)

    def batches(
        self,
        size: int,
        *,
        epoch: int = 0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        start: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> Iterator[Tensor]:
        """Minibatches ``(size, ...)`` of an epoch, in an order fixed by (seed, epoch).

        Nothing is carried from one epoch or batch to the next, so that a run resumes in the middle
        of an epoch with ``batches(size, epoch=epoch, start=batches_done)``.

        Args:
            size: examples in a batch; the last batch of an epoch may be smaller.
            epoch: counted from 0; dynamic binarisation is drawn anew for each.
            seed: of the order; None for the data set's own.
            generator: gives its initial seed as `seed`; its state is neither read nor moved.
            start: how many batches of this epoch to leave out.
            shuffle: False keeps the order of `x`.
            drop_last: leave out a smaller last batch.
        """
        if not 1 <= size <= len(self):
            raise ValueError(
                f"batch size {size}: expected 1 to {len(self)}, the number of examples"
            )
        if epoch < 0 or start < 0:
            raise ValueError(f"epoch {epoch}, start {start}: expected 0 or more")
        if generator is not None:
            if seed is not None:
                raise ValueError("give seed or generator, not both")
            seed = generator.initial_seed()
        return self._batches(size, epoch, seed, start, shuffle, drop_last)

    def _batches(
        self, size: int, epoch: int, seed: int | None, start: int, shuffle: bool, drop_last: bool
    ) -> Iterator[Tensor]:
        x = self.at_epoch(epoch)
        order = self.order(epoch, seed=seed).to(x.device) if shuffle else None
        end = len(self) - len(self) % size if drop_last else len(self)
        for first in range(start * size, end, size):
            rows = slice(first, min(first + size, end))
            yield x[rows] if order is None else x[order[rows]]

    def hold_out(self, examples: int, *, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Divide at random: the rest, and `examples` of them for validation."""
        if not 1 <= examples < len(self):
            raise ValueError(f"hold out {examples}: expected 1 to {len(self) - 1}")
        order = torch.randperm(len(self), generator=stream("hold out", seed))
        held, kept = order[:examples].sort().values, order[examples:].sort().values
        label = f"of {self.split} (seed {seed})"
        return (
            self._rows(kept, f"{len(kept)} {label}"),
            self._rows(held, f"{examples} held out {label}"),
        )

    def _rows(self, rows: Tensor, split: str) -> Dataset:
        grey = None if self.grey is None else self.grey[rows.to(self.grey.device)]
        x = self.x[rows.to(self.x.device)] if grey is None else draw(grey, self.seed, split, 0)
        labels = None if self.labels is None else self.labels[rows.to(self.labels.device)]
        return replace(self, x=x, grey=grey, labels=labels, split=split)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Dataset:
        """A copy on another device, or with floats of another dtype; the draws stay the same."""
        return replace(
            self,
            x=self.x.to(device=device, dtype=dtype),
            grey=None if self.grey is None else self.grey.to(device=device, dtype=dtype),
            labels=None if self.labels is None else self.labels.to(device=device),
        )


def draw(grey: Tensor, seed: int, split: str, epoch: int = 0) -> Tensor:
    """The binarisation of an epoch: a function of (seed, split, epoch); static takes epoch 0."""
    return bernoulli(grey, stream("binarise", seed, split, epoch))
