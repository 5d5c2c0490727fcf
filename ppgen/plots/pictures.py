"""Grids of small images: data, samples, reconstructions, filters."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ppgen.diagnostics.arrays import Array, as_array
from ppgen.plots.style import WIDTH, canvas, colour_bar, label


def images(
    x: Any,
    shape: tuple[int, ...],
    columns: int | None = None,
    title: str = "Samples",
    subtitle: str = "",
    limits: tuple[float, float] | None = (0.0, 1.0),
    unit: str = "grey level",
) -> Figure:
    """A grid of images.

    Args:
        x: images, ``(n, *)`` with as many numbers each as `shape` has.
        shape: (height, width) or (height, width, 3).
        columns: images in a row; None: about ten, so that the last row is full if it can be.
        title: heading.
        subtitle: what to see.
        limits: the values shown as black and white; None for the least and greatest.
        unit: what the values are; not shown for images in colour.
    """
    stack = _stack(x, shape)
    scale = _Scale("gray", limits or _range(stack), unit)
    return _mosaic(stack, _columns(columns, len(stack)), title, subtitle, scale)


def reconstructions(
    x: Any,
    y: Any,
    shape: tuple[int, ...],
    columns: int | None = None,
    title: str = "Reconstructions",
) -> Figure:
    """Data above what the model makes of them, pair by pair.

    Args:
        x: data, ``(n, *)``.
        y: reconstructions, ``(n, *)``.
        shape: (height, width) or (height, width, 3).
        columns: pairs in a row; None: as for `images`.
        title: heading.
    """
    above, below = _stack(x, shape), _stack(y, shape)
    if len(above) != len(below):
        raise ValueError(f"{len(above)} images and {len(below)} reconstructions")
    columns = _columns(columns, len(above))
    rows = []
    for start in range(0, len(above), columns):
        for half in (above, below):
            row = half[start : start + columns]
            blank = np.full((columns - len(row), *row.shape[1:]), np.nan)
            rows.append(np.concatenate([row, blank]))
    subtitle = "Odd rows: data. Even rows: reconstructions of the row above."
    scale = _Scale("gray", (0.0, 1.0), "grey level")
    return _mosaic(np.concatenate(rows), columns, title, subtitle, scale, group=2)


def filters(
    weights: Any,
    shape: tuple[int, ...],
    columns: int = 16,
    title: str = "Filters",
    unit: str = "weight (nats)",
) -> Figure:
    """What each hidden unit looks for: its weights as an image, blue below and red above zero.

    Args:
        weights: one filter a row, (units, pixels): the transpose of an RBM's (visible, hidden).
        shape: (height, width).
        columns: filters in a row.
        title: heading.
        unit: of the weights; those of a Boltzmann machine are energies.
    """
    stack = _stack(weights, shape)
    known = np.abs(stack[np.isfinite(stack)])
    reach = float(np.quantile(known, 0.995)) if known.size else 1.0
    subtitle = f"{len(stack)} units, one scale for all."
    scale = _Scale("RdBu_r", (-(reach or 1.0), reach or 1.0), unit)
    return _mosaic(stack, min(columns, len(stack)), title, subtitle, scale)


class _Scale(NamedTuple):
    """How numbers become colours."""

    colours: str  # name of a colour map
    limits: tuple[float, float]  # of the values, first and last colour
    unit: str


def _range(stack: Array) -> tuple[float, float]:
    return float(np.nanmin(stack)), float(np.nanmax(stack))


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


def _columns(wanted: int | None, count: int) -> int:
    full = [columns for columns in (10, 9, 11, 8, 12) if count % columns == 0]
    return min(wanted or next(iter(full), 10), count)


def _mosaic(
    stack: Array,
    columns: int,
    title: str,
    subtitle: str,
    scale: _Scale,
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
    low, high = scale.limits
    scaled = np.clip((sheet - low) / ((high - low) or 1.0), 0, 1)
    if not channels:
        empty = np.isnan(sheet)
        scaled = colormaps[scale.colours](np.where(empty, 0.0, scaled))[..., :3]
        scaled[empty] = 0.93 if scale.colours == "gray" else 0.6
    else:
        scaled = np.where(np.isnan(sheet), 0.93, scaled)
    # at most 1.1 inches an image when there are few of them, and no taller than a page
    wide = min(WIDTH - 1.4, columns * 1.1 + 0.3, 9.0 * total[1] / total[0])
    figure, (ax,) = canvas(
        wide * total[0] / total[1] + 0.5, title, subtitle, width=max(wide + 1.4, 4.2)
    )
    ax.imshow(scaled, interpolation="nearest", aspect="equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    label(ax, f"{width} px an image", f"{height} px")
    if not channels:
        colours = ScalarMappable(Normalize(*scale.limits), colormaps[scale.colours])
        colour_bar(ax, colours, scale.unit)
    return figure
