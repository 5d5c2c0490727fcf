"""Which way round the divergence goes, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppgen.diagnostics.arrays import Array, as_array
from ppgen.plots.density import mass_levels
from ppgen.plots.style import FAINT, INK, canvas, label, legend, styles

_MASSES = (0.5, 0.9)


def reverse_and_forward(
    x: Any,
    y: Any,
    log_density: Any,
    normals: Mapping[str, tuple[Any, Any]],
    names: tuple[str, str] = ("[0]", "[1]"),
    title: str = "Reverse and forward KL",
) -> Figure:
    """A target in two dimensions, and the normals that approximate it.

    Args:
        x: of the grid, (nx), evenly spaced.
        y: of the grid, (ny), evenly spaced.
        log_density: of the target there, up to a constant, (ny, nx), nats.
        normals: label -> mean (2) and covariance (2, 2).
        names: of the two dimensions.
        title: heading.

    Raises:
        ValueError: where the grid and the density, or a mean and its covariance, do not fit.
    """
    x, y, height = as_array(x).ravel(), as_array(y).ravel(), as_array(log_density)
    if height.shape != (len(y), len(x)):
        raise ValueError(
            f"log_density: expected shape (ny, nx) = {(len(y), len(x))}, got {height.shape}"
        )
    if not np.isfinite(height).any():
        raise ValueError("log_density: nothing to draw, none of its values is finite")
    figure, (ax,) = canvas(
        4.3, title, "Reverse KL keeps inside the target, forward KL covers it. Regions of 50 "
        "and 90 %.", width=6.2,
    )  # fmt: skip
    density = np.exp(np.nan_to_num(height - np.nanmax(height), nan=-np.inf))
    levels = mass_levels(density, _MASSES)
    ax.contourf(x, y, density, [*levels, 1.01 * density.max()], colors=[FAINT, "#b6bec8"])
    ax.contour(x, y, density, levels, colors=INK, linewidths=0.8)
    keys = [Line2D([], [], color=INK, linewidth=0.8)]
    for (name, (mean, covariance)), style in zip(normals.items(), styles(normals), strict=True):
        for mass in _MASSES:
            ax.plot(*_ellipse(name, as_array(mean), as_array(covariance), mass), **style)
        keys.append(Line2D([], [], **style))
    ax.set_xlim(x.min(), x.max())
    ax.set_ylim(y.min(), y.max())
    ax.grid(visible=False)
    label(ax, *names)
    legend(figure, keys, ["target", *normals])
    return figure


def _ellipse(name: str, mean: Array, covariance: Array, mass: float) -> Array:
    """The curve around the given share of a normal in two dimensions, (2, 181)."""
    if mean.shape != (2,) or covariance.shape != (2, 2):
        raise ValueError(
            f"{name}: expected a mean (2,) and a covariance (2, 2), got {mean.shape} and "
            f"{covariance.shape}"
        )
    angle = np.linspace(0, 2 * np.pi, 181)
    radius = np.sqrt(-2 * np.log1p(-mass))  # the squared length is exponential with mean 2
    circle = radius * np.stack([np.cos(angle), np.sin(angle)])
    return mean[:, None] + np.linalg.cholesky(covariance) @ circle
