"""How the cells of a table read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

Cell = str | float | int | bool | None


def numeric(cell: Any) -> TypeGuard[float]:
    """Whether a cell is a number, and stands at the right."""
    return cell is not None and not isinstance(cell, str | bool)


def show(cell: Cell) -> str:
    """A cell on its own: four digits, NaN as "unknown".

    Example:
        >>> show(1234567), show(0.123456), show(float("nan")), show(True), show(None)
        ('1,234,567', '0.1235', 'unknown', 'yes', '')
    """
    return show_column([cell])[0]


def show_column(cells: Sequence[Cell]) -> list[str]:
    """The cells of a column; its fractions share their decimals.

    Example:
        >>> show_column([1.0042, 0.98, 12, float("inf")])
        ['1.004', '0.980', '12', '∞']
        >>> show_column([3.2, 0.9])
        ['3.2', '0.9']
        >>> show_column([12345.6, 0.00012])
        ['12,346', '0.00012']
    """
    # numpy's and torch's scalars too
    plain = [float(cell) if numeric(cell) and not isinstance(cell, int) else cell for cell in cells]
    fractions = [abs(x) for x in plain if isinstance(x, float) and math.isfinite(x) and x != 0]
    largest = max((x for x in fractions if x < 1e7), default=1.0)
    if len(cells) == 1 and largest < 1:
        decimals = 3 - math.floor(math.log10(largest))
    else:
        decimals = max(0, 3 - max(0, math.floor(math.log10(largest))))
    while decimals and all(f"{x:.{decimals}f}"[-1] == "0" for x in fractions if x < 1e7):
        decimals -= 1
    return [_show(cell, decimals) for cell in plain]


def _show(cell: Cell, decimals: int) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, str):
        return cell
    if math.isnan(cell):
        return "unknown"
    if math.isinf(cell):
        return "∞" if cell > 0 else "-∞"
    lost = cell != 0 and abs(cell) < 0.5 * 10.0**-decimals
    return f"{cell:.2g}" if lost or abs(cell) >= 1e7 else f"{cell:,.{decimals}f}"
