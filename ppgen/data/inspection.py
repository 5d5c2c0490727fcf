"""A look at data before they are used: ``ppgen data check FILE``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppgen.data.csv_files import parse_csv
from ppgen.data.errors import DataError, check_finite
from ppgen.data.loading import constant_columns, white_of
from ppgen.data.reading import read_file, tensor_of
from ppgen.data.sources import NAMES, Raw, read_named


@dataclass(frozen=True)
class Inspection:
    """What a file holds, what is wrong with it, and how to load it.

    Args:
        source: a name or a path.
        format: ``"npy"``, ``"npz"``, ``"csv"``, ``"idx"``; empty when the file cannot be read.
        shape: of all examples.
        dtype: as stored.
        minimum: of the finite values.
        maximum: of the finite values.
        missing: how many values are NaN.
        constant: columns that hold one value only (not counted for images).
        problems: why it cannot be loaded as it stands; the first names row and column.
        suggestion: what to do or to call next.
        found: whether there is such a file at all.
    """

    source: str
    format: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    minimum: float = float("nan")
    maximum: float = float("nan")
    missing: int = 0
    constant: tuple[int | str, ...] = ()
    problems: tuple[str, ...] = ()
    suggestion: str = ""
    found: bool = True

    @property
    def ok(self) -> bool:
        """Whether the data can be loaded as they stand."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an unknown range is null."""
        plain = asdict(self) | {"ok": self.ok}
        if self.minimum != self.minimum:
            plain["minimum"] = plain["maximum"] = None
        return plain

    def __str__(self) -> str:
        lines = [f"{self.source}: {'ok' if self.ok else 'cannot be used as it stands'}"]
        if self.format:
            shape = " x ".join(map(str, self.shape))
            lines.append(f"  {self.format}, {shape}, {self.dtype}")
            lines.append(f"  from {self.minimum:g} to {self.maximum:g}; {self.missing} missing")
        if self.constant:
            more = ", ..." if len(self.constant) > 5 else ""
            names = ", ".join(map(str, self.constant[:5]))
            lines.append(f"  constant: {names}{more} ({len(self.constant)} in all)")
        lines.extend(f"  problem: {problem}" for problem in self.problems)
        if self.suggestion:
            lines.append(f"  {self.suggestion}")
        return "\n".join(lines)


def check(
    source: str | Path, *, split: str = "train", folder: str | Path | None = None
) -> Inspection:
    """Look at a named data set or a file; never raises for bad data, but reports them.

    Args:
        source: as for `load`.
        split: as for `load`.
        folder: as for `load`.
    """
    try:
        if str(source) in NAMES:
            raw = read_named(str(source), split, folder)
        else:
            raw = read_file(source, split)
    except DataError as error:
        return _unread(source, error)
    return _inspect(raw, tensor_of(raw))


def _unread(source: str | Path, error: DataError) -> Inspection:
    suggestion = ""
    if not error.missing and Path(source).suffix.lower() in (".csv", ".tsv", ".txt"):
        try:
            parsed = parse_csv(Path(source))
        except DataError:
            parsed = None
        if parsed is not None and parsed.columns and parsed.texts:
            names = ", ".join(parsed.columns[c] for c in parsed.texts)
            suggestion = f"{names} holds text: read_table() makes codes of it, column by column"
    return Inspection(
        str(source), problems=(str(error),), suggestion=suggestion, found=not error.missing
    )


def _inspect(raw: Raw, values: Tensor) -> Inspection:
    finite = values[values.isfinite()] if values.is_floating_point() else values
    lines = None if raw.lines is None else raw.lines.tolist()
    problems = []
    try:
        check_finite(values, raw.name, columns=raw.columns, lines=lines)
    except DataError as error:
        problems.append(str(error))
    if len(values) < 2:
        problems.append(f"{raw.name}: one row only: nothing to train on")
    table = values.ndim == 2 and raw.white is None and len(values) > 1
    return Inspection(
        source=raw.name,
        format=raw.format,
        shape=raw.values.shape,
        dtype=str(raw.values.dtype),
        minimum=float(finite.min()) if finite.numel() else float("nan"),
        maximum=float(finite.max()) if finite.numel() else float("nan"),
        missing=int(values.isnan().sum()) if values.is_floating_point() else 0,
        constant=tuple(constant_columns(values, raw.columns)) if table else (),
        problems=tuple(problems),
        suggestion=_suggestion(raw, values) if not problems else "",
    )


def _suggestion(raw: Raw, values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    if bool(((values == 0) | (values == 1)).all()):
        return "binary: ready for binary models"
    binarised = 'binarisation="static", "dynamic" or "threshold" makes them binary'
    if raw.white is not None:
        return f"grey levels up to {raw.white:g}: {binarised}"
    if low >= 0 and high <= 1:
        return f"between 0 and 1: if these are grey levels, {binarised}"
    try:
        white = white_of(values, raw.name)
    except DataError:
        return f"if these are grey levels, say white={high:g} (or 255), and {binarised}"
    if white == 255:
        return f"if these are grey levels, {binarised} (divided by 255)"
    spread = values.to(torch.get_default_dtype()).std(0)
    positive = spread[spread > 0]
    if positive.numel() and float(positive.max() / positive.min()) > 100:
        return "real numbers on very different scales: standardise the columns"
    return "real numbers: for flows and Bayesian models, not for binary ones"
