"""A story that sees some rows of its data at a time: which plate they belong to, and its scale.

The likelihood of B of N rows counts N / B times, as under Pyro's ``subsample_size``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ppgen.anatomy import Anatomy, Subsample, dissect, rows_taken
from ppgen.program import Program
from ppgen.story import sandbox
from ppgen.types import Story


@dataclass(frozen=True)
class DataPlate:
    """The plate whose rows are taken."""

    name: str
    size: int  # N, rows of the data
    taken: int  # B, rows of a batch
    own: bool  # whether the story takes its rows itself, by subsample_size


class Rows:
    """A story with its data, of which it sees one batch; `take` puts another in its place.

    Args:
        model: the story.
        args: its arguments, with all rows.
        kwargs: its keyword arguments.
        batch_size: rows of a batch; that of the story's own plate, if it has one, where None.

    Raises:
        ValueError: where no plate belongs to the rows of the data, a latent site has a value for
            each row, or the rows hang together otherwise than through the latent sites.
    """

    def __init__(
        self, model: Story, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch_size: int | None
    ) -> None:
        given = (args, dict(kwargs))
        self.plate, whole = _find(model, given, batch_size)
        self._order = torch.empty(0, dtype=torch.long)
        self._rows = torch.arange(self.plate.taken)
        story = _Batch(model, self.plate, self._rows)
        cut = given if self.plate.own else tree_map(self._first, given)
        self.program = Program(story, *cut[0], **cut[1])
        kept = (self.program.args, self.program.kwargs)
        pairs = zip(tree_leaves(given), tree_leaves(kept), strict=True)
        self._pairs = [] if self.plate.own else [(a, b) for a, b in pairs if self._in_rows(a)]
        _refuse_local(self.plate, self.program.anatomy, whole)
        self._refuse_tied_rows()

    @property
    def partial(self) -> set[str]:
        """Deterministic sites whose values would be those of a batch."""
        found = self.program.anatomy.of_kind("deterministic")
        return {n for n, s in found.items() if self.plate.name in dict(s.plates)}

    def take(self, rows: Tensor) -> None:
        """Show the story these rows, ``(B,)`` indices."""
        self._rows.copy_(rows)  # in place: the recording sees it
        for source, seen in self._pairs:
            seen.copy_(source.index_select(0, rows.to(source.device)))

    def next(self) -> None:
        """The next rows of an epoch in random order; what is too few for a batch waits."""
        if len(self._order) < self.plate.taken:
            self._order = torch.randperm(self.plate.size)
        rows, self._order = self._order.split(
            [self.plate.taken, len(self._order) - self.plate.taken]
        )
        self.take(rows)

    def draw(self) -> None:
        """Rows at random, with replacement, apart from the epoch."""
        self.take(torch.randint(self.plate.size, (self.plate.taken,)))

    def cover(self) -> list[tuple[Tensor, float]]:
        """Batches and weights with which their log densities add up to that of all rows.

        The rows that are left over are filled up with copies of their first, which are taken
        away again by a batch of that row alone; the weights add up to one, as the prior needs.
        """
        size, taken = self.plate.size, self.plate.taken
        *full, rest = torch.arange(size).split(taken)
        pieces = [(rows, taken / size) for rows in full]
        missing = taken - len(rest)
        first = rest[:1].expand(taken)
        pieces.append((torch.cat([rest, first[:missing]]), taken / size))
        return pieces + ([(first, -missing / size)] if missing else [])

    def _in_rows(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == self.plate.size

    def _first(self, leaf: Any) -> Any:
        return leaf[: self.plate.taken].clone() if self._in_rows(leaf) else leaf

    def _refuse_tied_rows(self) -> None:
        """Rows that are exchanged between two batches must not change the sum of the two."""
        taken = self.plate.taken
        left, right = torch.arange(taken), torch.arange(self.plate.size - taken, self.plate.size)
        half = taken // 2
        mixed = torch.cat([left[:half], right[half:]]), torch.cat([right[:half], left[half:]])
        sums = []
        point = self.program.anatomy.prototype.to(self.program.dtype)
        for pair in ((left, right), mixed):
            total = 0.0
            for rows in pair:
                self.take(rows)
                with self.program.sandbox(), torch.no_grad():
                    total += float(self.program._single(point).log_density())
            sums.append(total)
        near = 1e-8 if self.program.dtype == torch.float64 else 1e-3
        if abs(sums[0] - sums[1]) > near * (1 + abs(sums[0])):
            raise ValueError(
                f"the rows of plate '{self.plate.name}' hang together (the story takes a mean "
                "over them, or walks along them): a batch of them is no estimate of all. Compute "
                "what needs all rows before the story, or fit without batch_size"
            )


class _Batch:
    """The story with the rows of its batch."""

    def __init__(self, model: Story, plate: DataPlate, rows: Tensor) -> None:
        self.model, self.plate, self.rows = model, plate, rows
        self.__qualname__ = getattr(model, "__qualname__", type(model).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Seen(self.plate, self.rows):
            return self.model(*args, **kwargs)


class _Seen(Messenger):
    """Gives the plate its rows where the story takes them, and the scale N / B where not."""

    def __init__(self, plate: DataPlate, rows: Tensor) -> None:
        super().__init__()
        self.plate, self.rows = plate, rows

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], Subsample):
            if self.plate.own and msg["name"] == self.plate.name:
                msg["value"], msg["done"] = self.rows, True
        elif not self.plate.own and any(f.name == self.plate.name for f in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * (self.plate.size / self.plate.taken)


class _Subsampled(Messenger):
    """Finds the plates that the story subsamples, and gives them their first rows."""

    def __init__(self) -> None:
        super().__init__()
        self.plates: list[DataPlate] = []

    def _pyro_sample(self, msg: Any) -> None:
        plate = msg["fn"]
        if not isinstance(plate, Subsample) or msg["value"] is not None:
            return
        if (taken := rows_taken(plate)) is not None:
            self.plates.append(DataPlate(msg["name"], plate.size, taken, own=True))
            msg["value"], msg["done"] = torch.arange(taken), True


def _find(
    model: Story, given: tuple[Any, Any], batch_size: int | None
) -> tuple[DataPlate, Anatomy]:
    """The plate, and the sites of the story with all its data."""
    found = _Subsampled()

    def story(*args: Any, **kwargs: Any) -> Any:
        with found:
            return model(*args, **kwargs)

    whole = _dissected(story, given)
    if found.plates:
        plate = found.plates[0]
        if len(found.plates) > 1:
            names = ", ".join(f"'{p.name}'" for p in found.plates)
            raise ValueError(f"plates {names} are all subsampled: VI takes rows of one only")
        if batch_size not in (None, plate.taken):
            raise ValueError(
                f"batch_size={batch_size}, but plate '{plate.name}' takes {plate.taken} rows "
                "itself: leave one of them out"
            )
        return plate, whole
    assert batch_size is not None
    lengths = {len(t) for t in tree_leaves(given) if isinstance(t, Tensor) and t.dim()}
    sizes = {
        name: size
        for site in whole.of_kind("observed", "factor").values()
        for name, size in site.plates
        if size in lengths
    }
    if not sizes:
        raise ValueError(
            f"batch_size={batch_size}: no pyro.plate around an observed site is as long as the "
            f"rows of an argument ({sorted(lengths)}); give the story its data as arguments with "
            "one row for each unit, and write the plate as `with pyro.plate('data', len(x)):`"
        )
    name = max(sizes, key=lambda n: sizes[n])
    return DataPlate(name, sizes[name], min(batch_size, sizes[name]), own=False), whole


def _dissected(story: Story, given: tuple[Any, Any]) -> Anatomy:
    """The sites, without a copy of the data in another dtype where that can be avoided."""
    floats = [t for t in tree_leaves(given) if isinstance(t, Tensor) and t.is_floating_point()]
    dtype = floats[0].dtype if floats else torch.float64
    try:
        with sandbox(dtype):
            return dissect(story, *given)
    except RuntimeError:
        return Program(story, *given[0], **given[1]).anatomy


def _refuse_local(plate: DataPlate, batch: Anatomy, whole: Anatomy) -> None:
    latent = batch.of_kind("latent")
    for name, site in latent.items():
        # a site outside of plates may have a value for each row all the same
        if plate.name in dict(site.plates) or site.shape != whole.sites[name].shape:
            raise ValueError(
                f"site '{name}' has a value for each row of plate '{plate.name}', or its shape "
                "depends on the rows, so that a batch does not have all of it: sum it out, or use "
                "a guide that computes it from the row (ppgen.inference.train)"
            )
    around = [n for n, s in batch.sites.items() if plate.name in dict(s.plates)]
    if not around:
        raise ValueError(
            f"plate '{plate.name}' is a loop over its rows, which is recorded anew for each batch: "
            "write it as `with pyro.plate(...):`"
        )
