"""Simulation-based calibration as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppgen.diagnostics.uniformity import ecdf_band, uniformity
from ppgen.plots.style import COLOURS, FAINT, LINES, MUTED, canvas, finite, label, legend, shorten

_SHOWN = 6


def ecdf_difference(pit: Mapping[str, Any], level: float = 0.01, title: str = "") -> Figure:
    """Distribution functions of ranks minus that of uniform ones, with a simultaneous band.

    Args:
        pit: of each quantity, the ranks of true values as numbers in (0, 1), one a simulation.
        level: the chance that any of the curves of a correct engine leaves the band.
        title: what was calibrated.

    Raises:
        ValueError: where there is nothing to draw, or the quantities differ in length.
    """
    values = {name: finite(u, name) for name, u in pit.items()}
    sizes = {len(u) for u in values.values()}
    if len(sizes) != 1:
        raise ValueError(f"expected quantities of one number of simulations, got {sorted(sizes)}")
    (size,) = sizes
    p = {name: uniformity(u) for name, u in values.items()}
    worst = sorted(values, key=lambda name: p[name])[:_SHOWN]
    figure, (ax,) = canvas(
        3.2, title or "Calibration",
        "Curves inside the band: the posterior's ranks are even. A slope up in the middle: too "
        "wide; at both ends: too narrow; all above: it lies too high; all below: too low."
        + (f" Coloured: the {_SHOWN} worst of {len(values)}." if len(values) > _SHOWN else ""),
    )  # fmt: skip
    band = ecdf_band(size, level / len(values))
    z = np.concatenate([[0.0], band.z, [1.0]])
    low = np.concatenate([[0.0], band.lower - band.z, [0.0]])
    high = np.concatenate([[0.0], band.upper - band.z, [0.0]])
    ax.fill_between(z, low, high, color=FAINT, linewidth=0, alpha=0.8)
    ax.axhline(0, color=MUTED, linewidth=0.8)
    fine, keys = np.linspace(0, 1, 401), []
    for name, u in values.items():
        curve = np.searchsorted(np.sort(u), fine, side="right") / size - fine
        style: dict[str, Any] = {"color": "#9aa4af", "linewidth": 0.5, "alpha": 0.6}
        if name in worst:
            k = worst.index(name)
            style = {"color": COLOURS[k], "linestyle": LINES[k], "linewidth": 1.4}
            keys.append((k, Line2D([], [], **style), shorten(f"{name}, p {p[name]:.2g}", 34)))
        ax.plot(fine, curve, **style)
    ax.set_xlim(0, 1)
    label(ax, "rank of the true value, share of the draws", "share of simulations minus even share")
    keys.sort(key=lambda key: key[0])
    legend(figure, [key[1] for key in keys], [key[2] for key in keys])
    return figure
