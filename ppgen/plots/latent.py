"""Walks through a latent space, decoded: rows of images, and what a search gained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppgen.diagnostics.arrays import Array, as_array
from ppgen.plots.pictures import images
from ppgen.plots.style import COLOURS, MUTED, canvas, label, legend


def interpolations(
    x: Any, shape: tuple[int, ...], title: str = "Interpolations", path: str = ""
) -> Figure:
    """Decoded ways between codes, one a row.

    Args:
        x: images, ``(rows, steps, *)``.
        shape: (height, width) or (height, width, 3).
        title: heading.
        path: which way, for the subtitle.
    """
    x = _rows(x, "steps")
    hint = "First and last column: reconstructions of two examples. Between: "
    way = f"the {path} path" if path else "the way between their codes"
    return _strip(x, shape, title, f"{hint}{way}.")


def traversals(
    x: Any,
    shape: tuple[int, ...],
    values: Sequence[float],
    dimensions: Sequence[int],
    title: str = "Latent traversals",
) -> Figure:
    """Decoded codes with one dimension changed, a row for each.

    Args:
        x: images, ``(dimensions, values, *)``.
        shape: (height, width) or (height, width, 3).
        values: that the dimension is set to.
        dimensions: their numbers.
        title: heading.
    """
    x = _rows(x, "values")
    if x.shape[:2] != (len(dimensions), len(values)):
        raise ValueError(
            f"{len(dimensions)} dimensions and {len(values)} values need images of that shape, "
            f"got {x.shape[:2]}"
        )
    listed = ", ".join(map(str, dimensions))
    hint = f"Rows: dimensions {listed}. Columns: from {min(values):g} to {max(values):g}."
    return _strip(x, shape, title, hint)


def attribute(
    x: Any, shape: tuple[int, ...], strengths: Sequence[float], name: str = "attribute"
) -> Figure:
    """Decoded codes with more and more of an attribute, one example a row.

    Args:
        x: images, ``(examples, strengths, *)``.
        shape: (height, width) or (height, width, 3).
        strengths: of the shift; 1 takes one class's mean to the other's.
        name: of the attribute.
    """
    x = _rows(x, "strengths")
    if x.shape[1] != len(strengths):
        raise ValueError(f"{len(strengths)} strengths for {x.shape[1]} images a row")
    listed = ", ".join(f"{s:g}" for s in strengths)
    return _strip(x, shape, f"Codes moved along {name}", f"Columns: strength {listed}.")


def neighbours(
    queries: Any, found: Any, shape: tuple[int, ...], title: str = "Nearest neighbours"
) -> Figure:
    """Examples, and those whose codes are nearest, nearest first.

    Args:
        queries: images, ``(n, *)``.
        found: images, ``(n, count, *)``.
        shape: (height, width) or (height, width, 3).
        title: heading.
    """
    first, others = as_array(queries), _rows(found, "count")
    if len(first) != len(others):
        raise ValueError(f"{len(first)} queries and neighbours of {len(others)}")
    x = np.concatenate([first.reshape(len(first), 1, -1), others], 1)
    return _strip(x, shape, title, "First column: the example. Then the nearest codes in order.")


def manifold(x: Any, shape: tuple[int, ...], title: str = "Latent manifold") -> Figure:
    """The whole latent plane, decoded at cells of equal prior mass.

    Args:
        x: images, ``(side * side, *)``, in the order of :func:`ppgen.latent.manifold`.
        shape: (height, width) or (height, width, 3).
        title: heading.
    """
    stack = as_array(x)
    side = round(len(stack) ** 0.5)
    if side * side != len(stack):
        raise ValueError(f"a square of images was expected, got {len(stack)}")
    hint = "The first number of the code grows to the right, the second upwards."
    return images(stack, shape, columns=side, title=title, subtitle=hint)


def property_ascent(
    values: Any,
    log_prior: Any,
    floor: float | None = None,
    name: str = "property",
    title: str = "Search in latent space",
) -> Figure:
    """What a search gained, and how far from the prior it had to go.

    Args:
        values: of the property, (steps, n).
        log_prior: of the codes, (steps, n), nats.
        floor: of the log prior, the edge of the region.
        name: of the property.
        title: heading.
    """
    gained, prior = as_array(values), as_array(log_prior)
    if gained.ndim != 2 or gained.shape != prior.shape:
        raise ValueError(
            f"expected values and log_prior of one shape (steps, n), got {gained.shape} and "
            f"{prior.shape}"
        )
    figure, (left, right) = canvas(
        2.9, title, "One line a starting code; thick: their median.", columns=2
    )
    for ax, y, what in ((left, gained, name), (right, prior, "log prior (nats)")):
        ax.plot(y, color=COLOURS[0], linewidth=0.7, alpha=0.4)
        ax.plot(np.median(y, 1), color=COLOURS[0], linewidth=2)
        label(ax, "step", what)
    if floor is not None:
        right.axhline(floor, color=MUTED, linestyle="--", linewidth=1)
        legend(right, [Line2D([], [], color=MUTED, linestyle="--")], ["edge of the region"])
    return figure


def _rows(x: Any, second: str) -> Array:
    x = as_array(x)
    if x.ndim < 3:
        raise ValueError(f"images: expected shape (rows, {second}, *), got {x.shape}")
    return x.reshape(*x.shape[:2], -1)


def _strip(x: Array, shape: tuple[int, ...], title: str, subtitle: str) -> Figure:
    flat = x.reshape(-1, x.shape[-1])
    return images(flat, shape, columns=x.shape[1], title=title, subtitle=subtitle)
