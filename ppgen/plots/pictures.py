"""Grids of small images: data, samples, reconstructions, filters."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ppgen.diagnostics.arrays import Array, as_array
from ppgen.plots.style import WIDTH, canvas


def images(
    x: Any,
    shape: tuple[int, ...],
    columns: int = 10,
    title: str = "Samples",
    subtitle: str = "",
    limits: tuple[float, float] | None = (0.0, 1.0),
) -> Figure:
    """A grid of images.

    Args:
        x: images, (n, *) with as many numbers each as `shape` has.
        shape: (height, width) or (height, width, 3).
        columns: images in a row.
        title: heading.
        subtitle: what to see.
        limits: the values shown as black and white; None for the least and greatest.
    """
    stack = _stack(x, shape)
    return _mosaic(stack, min(columns, len(stack)), title, subtitle, limits, "gray")


def reconstructions(
    x: Any,
    y: Any,
    shape: tuple[int, ...],
    columns: int = 10,
    title: str = "Reconstructions",
) -> Figure:
    """Data above what the model makes of them, pair by pair.

    Args:
        x: data, (n, *).
        y: reconstructions, (n, *).
        shape: (height, width) or (height, width, 3).
        columns: pairs in a row.
        title: heading.
    """
    above, below = _stack(x, shape), _stack(y, shape)
    if len(above) != len(below):
        raise ValueError(f"{len(above)} images and {len(below)} reconstructions")
    columns = min(columns, len(above))
    rows = []
    for start in range(0, len(above), columns):
        for half in (above, below):
            row = half[start : start + columns]
            blank = np.full((columns - len(row), *row.shape[1:]), np.nan)
            rows.append(np.concatenate([row, blank]))
    subtitle = "Odd rows: data. Even rows: reconstructions of the row above."
    return _mosaic(np.concatenate(rows), columns, title, subtitle, (0.0, 1.0), "gray", group=2)


def filters(
    weights: Any,
    shape: tuple[int, ...],
    columns: int = 16,
    title: str = "Filters",
) -> Figure:
    """What each hidden unit looks for: its weights as an image, blue below and red above zero.

    Args:
        weights: one filter a row, (units, pixels): the transpose of an RBM's (visible, hidden).
        shape: (height, width).
        columns: filters in a row.
        title: heading.
    """
    stack = _stack(weights, shape)
    known = np.abs(stack[np.isfinite(stack)])
    reach = float(np.quantile(known, 0.995)) if known.size else 1.0
    subtitle = (
        f"{len(stack)} units, one scale for all: blue {-reach:.2g}, white 0, red {reach:.2g}."
    )
    limits = (-(reach or 1.0), reach or 1.0)
    return _mosaic(stack, min(columns, len(stack)), title, subtitle, limits, "RdBu_r")


def _stack(x: Any, shape: tuple[int, ...]) -> Array:
    x = as_array(x)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3):
        raise ValueError(f"shape: expected (height, width) or (height, width, 3), got {shape}")
    size = int(np.prod(shape))
    if x.size == 0 or x.size % size:
        raise ValueError(
            f"images of shape {shape} have {size} numbers each, which does not divide "
            f"the {x.size} of an array of shape {x.shape}"
        )
    return x.reshape(-1, *shape)


def _mosaic(
    stack: Array,
    columns: int,
    title: str,
    subtitle: str,
    limits: tuple[float, float] | None,
    colours: str,
    group: int = 1,
) -> Figure:
    """One array with all images and lines between them: small files, exact pixels.

    Rows of one `group` stand close together.
    """
    count, height, width, *channels = stack.shape
    rows = -(-count // columns)
    line = max(1, round(max(height, width) / 14))
    tops = np.arange(rows) * (height + line) + np.arange(rows) // group * line * (group - 1)
    total = (tops[-1] + height, columns * (width + line) - line)
    sheet = np.full((*total, *channels), np.nan)
    for k in range(count):
        top, left = tops[k // columns], k % columns * (width + line)
        sheet[top : top + height, left : left + width] = stack[k]
    low, high = limits or (float(np.nanmin(stack)), float(np.nanmax(stack)))
    scaled = np.clip((sheet - low) / ((high - low) or 1.0), 0, 1)
    if not channels:
        from matplotlib import colormaps

        empty = np.isnan(sheet)
        scaled = colormaps[colours](np.where(empty, 0.0, scaled))[..., :3]
        scaled[empty] = 0.93 if colours == "gray" else 0.6
    else:
        scaled = np.where(np.isnan(sheet), 0.93, scaled)
    # at most 2.5 inches an image when there are few of them, and no taller than a page
    wide = min(WIDTH - 0.3, columns * 1.1 + 0.3, 9.0 * total[1] / total[0])
    figure, (ax,) = canvas(
        wide * total[0] / total[1] + 0.1, title, subtitle, width=max(wide + 0.3, 4.2)
    )
    ax.imshow(scaled, interpolation="nearest", aspect="equal")
    ax.set_axis_off()
    ax.set_anchor("W")
    return figure
