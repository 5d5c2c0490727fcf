"""Maps of the globe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from ppgen.data.earth import coastlines, degrees, unit_vectors
from ppgen.diagnostics.arrays import Array, as_array
from ppgen.plots.style import COLOURS, INK, MUTED, canvas, colour_bar, label

_MAP = LinearSegmentedColormap.from_list("globe", ("white", COLOURS[5], COLOURS[0], "#02263d"))

_MERIDIANS = np.array([-180.0, -90, 0, 90, 180])
_PARALLELS = np.array([-90.0, -45, 0, 45, 90])


def globe(
    log_density: Callable[[Tensor], Tensor],
    points: Any = None,
    title: str = "Log density on the globe",
    subtitle: str = "",
    *,
    coast: bool = True,
    span: float = 8.0,
    resolution: int = 180,
) -> Figure:
    """A log density on the sphere in Mollweide's projection, which keeps areas true.

    Args:
        log_density: of unit vectors ``(N, 3)``, with respect to surface area: ``(N)``, nats.
        points: unit vectors to mark, ``(M, 3)``.
        title: heading.
        subtitle: what to see in it.
        coast: draw the coastlines.
        span: nats below the highest value at which the colour ends.
        resolution: cells from pole to pole.

    Raises:
        ValueError: where `points` are not triples, or the density is nowhere finite.
    """
    figure, (ax,) = canvas(3.6, title, subtitle)
    longitude = np.linspace(-180, 180, 2 * resolution + 1)
    latitude = np.linspace(-90, 90, resolution + 1)
    east, north = np.meshgrid(_middles(longitude), _middles(latitude))
    vectors = torch.as_tensor(unit_vectors(east, north).reshape(-1, 3))
    with torch.no_grad():
        values = as_array(log_density(vectors.to(torch.get_default_dtype())))
    values = values.reshape(east.shape)
    shown = np.ma.masked_invalid(values)
    if shown.count() == 0:
        raise ValueError("a map needs a log density that is finite somewhere")
    top = float(shown.max())
    edges = mollweide(*np.meshgrid(longitude, latitude))
    mesh = ax.pcolormesh(*edges, shown, cmap=_MAP, vmin=top - span, vmax=top, rasterized=True)
    if coast:
        for ring in coastlines():
            ax.plot(*mollweide(ring[:, 0], ring[:, 1]), color=MUTED, linewidth=0.5)
    if points is not None:
        x = as_array(points)
        if x.ndim != 2 or x.shape[1] != 3:
            raise ValueError(f"points on the globe are unit vectors, (M, 3); got {x.shape}")
        ax.plot(*mollweide(*degrees(x)), ".", color=COLOURS[1], markersize=2.5, alpha=0.6)
    rim = np.linspace(-90, 90, 181)
    for side in (-180.0, 180.0):
        ax.plot(*mollweide(np.full_like(rim, side), rim), color=INK, linewidth=0.8)
    ax.set_aspect("equal")
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_xticks(mollweide(_MERIDIANS, np.zeros(5))[0], [f"{m:.0f}°" for m in _MERIDIANS])
    ax.set_yticks(mollweide(np.zeros(5), _PARALLELS)[1], [f"{p:.0f}°" for p in _PARALLELS])
    label(ax, "longitude at the equator, degrees east", "latitude, degrees north")
    colour_bar(ax, mesh, "log density, nats per unit of surface", shrink=0.8, aspect=22)
    return figure


def mollweide(longitude: Array, latitude: Array) -> tuple[Array, Array]:
    r"""Degrees to the plane: an ellipse of half axes :math:`2 \sqrt 2` and :math:`\sqrt 2`.

    With :math:`2 \theta + \sin 2 \theta = \pi \sin \phi`.
    """
    phi = np.radians(latitude)
    # near a pole the root is triple: there the series, elsewhere Newton's method
    theta = np.sign(phi) * (np.pi / 2 - np.cbrt(0.75 * np.pi * (1 - np.abs(np.sin(phi)))))
    for _ in range(12):
        slope = np.maximum(2 + 2 * np.cos(2 * theta), 1e-12)
        theta = theta - (2 * theta + np.sin(2 * theta) - np.pi * np.sin(phi)) / slope
    return 2 * np.sqrt(2) / np.pi * np.radians(longitude) * np.cos(theta), np.sqrt(2) * np.sin(
        theta
    )


def _middles(edges: Array) -> Array:
    return (edges[:-1] + edges[1:]) / 2
