"""The table of a posterior's scalars, and text in columns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One scalar of a posterior: moments, quantiles and how well they are known."""

    name: str
    mean: float
    sd: float
    q5: float
    median: float
    q95: float
    mcse: float  # Monte Carlo standard error of the mean
    ess_bulk: float
    ess_tail: float
    rhat: float


@dataclass(frozen=True)
class Summary:
    """The table that ``print(posterior.summary())`` shows; `rows` holds the numbers."""

    heading: str
    rows: tuple[Row, ...]

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no scalar {name!r}; there are {[row.name for row in self.rows]}")

    def __str__(self) -> str:
        names = [f.name for f in dataclasses.fields(Row)]
        cells = [names] + [
            [row.name, *(_number(getattr(row, n), n) for n in names[1:])] for row in self.rows
        ]
        return f"{self.heading}\n{columns(cells)}"


def columns(cells: Sequence[Sequence[str]]) -> str:
    """Text in columns under a heading: numbers flush right, words flush left."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    right = [i > 0 and all(_numeric(row[i]) for row in cells[1:]) for i in range(len(widths))]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if flush else cell.ljust(w)
            for cell, w, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )


def _numeric(cell: str) -> bool:
    return not cell.strip("-+.,:% ").strip("0123456789.,e+-%x") or cell in ("nan", "inf", "-inf")


def _number(value: float, column: str) -> str:
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    if column.startswith("ess"):
        return f"{value:.0f}"
    return f"{value:.3f}" if column == "rhat" else f"{value:.3g}"


def json_ready(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for numbers that JSON does not know: NaN and infinity.

    Example:
        >>> json_ready({"mean": 0.5, "rhat": math.inf, "draws": 10})
        {'mean': 0.5, 'rhat': None, 'draws': 10}
    """
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }
