"""A table of numbers as a picture: what is small is pale, what is large stands out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ppgen.diagnostics.arrays import as_array
from ppgen.plots.style import COLOURS, INK, MUTED, canvas, label, shorten

_MAP = LinearSegmentedColormap.from_list("errors", ("white", COLOURS[4], COLOURS[1]))
_SMALL = 7.0  # points, of the numbers


def grids(
    panels: dict[str, Any],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    subtitle: str = "",
    *,
    kinds: tuple[str, str] = ("engine", "posterior"),
    starred: Any = None,
    good: float = 0.05,
    bad: float = 1.0,
) -> Figure:
    """One panel of coloured cells for each kind of error.

    Args:
        panels: heading -> errors, (rows, columns), at least 0; NaN where there is none.
        rows: their names.
        columns: their names.
        title: heading.
        subtitle: what to see in it.
        kinds: what rows and columns are.
        starred: cells whose numbers get an asterisk, (rows, columns); none unless given.
        good: errors up to here are white.
        bad: errors from here on have the strongest colour; between, the scale is logarithmic.
    """
    stars = np.zeros((len(rows), len(columns)), bool) if starred is None else np.asarray(starred)
    height = 0.26 * len(rows) + 0.3
    figure, axes = canvas(
        len(panels) * height + 1.2, title, subtitle, rows=len(panels), sharex=True
    )
    for ax, (heading, values) in zip(axes, panels.items(), strict=True):
        errors = as_array(values)
        if errors.shape != (len(rows), len(columns)):
            raise ValueError(
                f"{heading}: {len(rows)} rows and {len(columns)} columns need errors of that "
                f"shape, got {errors.shape}"
            )
        with np.errstate(divide="ignore"):
            strength = np.log(errors / good) / np.log(bad / good)
        shown = np.ma.masked_invalid(np.where(errors == 0, 0.0, strength))
        ax.pcolormesh(shown, cmap=_MAP, vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
        for (i, j), error in np.ndenumerate(errors):
            known = np.isfinite(error)
            ax.text(
                j + 0.5, i + 0.5,
                (_short(float(error)) if known else "–") + ("*" if stars[i, j] else ""),
                ha="center", va="center", fontsize=_SMALL, color=INK if known else MUTED,
            )  # fmt: skip
        ax.set_yticks(np.arange(len(rows)) + 0.5, [shorten(name, 22) for name in rows])
        ax.set_xticks(
            np.arange(len(columns)) + 0.5, [shorten(c, 26) for c in columns], rotation=40,
            ha="right", rotation_mode="anchor",
        )  # fmt: skip
        ax.tick_params(length=0, labelsize=_SMALL + 0.5, labelcolor=INK)
        ax.invert_yaxis()
        ax.grid(visible=False)
        ax.spines[["left", "bottom"]].set_visible(False)
        label(ax, x=kinds[1] if ax is axes[-1] else "", y=kinds[0], title=heading)
    return figure


def _short(error: float) -> str:
    """Two digits that fit a cell: ``.03``, ``1.2``, ``35``, ``2e+05``."""
    if error < 0.995:
        return f"{error:.2f}".removeprefix("0") if error >= 0.005 else "0"
    return f"{error:.1f}" if error < 9.95 else f"{error:.2g}" if error >= 1000 else f"{error:.0f}"
