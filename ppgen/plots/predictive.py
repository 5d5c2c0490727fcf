"""Pictures of data beside data replicated from a model."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ppgen.diagnostics.arrays import Array, as_array
from ppgen.plots.density import kde, window
from ppgen.plots.style import COLOURS, FAINT, INK, canvas, finite, label, legend


def posterior_predictive(y: Any, y_rep: Any, name: str = "y", replicates: int = 60) -> Figure:
    """Observed data beside data replicated from the posterior predictive.

    Args:
        y: observed, any shape of N numbers.
        y_rep: replicated data sets, (replicates, N) or (chains, draws, N).
        name: of the observed site, with its unit.
        replicates: at most so many are drawn.
    """
    y = finite(y, name)
    rep = as_array(y_rep)
    rep = rep.reshape(-1, rep.shape[-1])
    rep = rep[:: max(1, len(rep) // replicates)][:replicates]
    figure, (ax,) = canvas(
        3.0, f"Posterior predictive check of {name}",
        f"Observed data against {len(rep)} replicated sets: the model should cover what it saw.",
    )  # fmt: skip
    values = np.unique(y)
    if np.array_equal(y, np.round(y)) and len(values) <= 40:
        _counts(ax, y, rep)
        keys = [Patch(color=FAINT), Line2D([], [], color=COLOURS[0], marker="o", linewidth=1.5)]
        legend(figure, keys, ["observed", "replicated, median and 90 %"])
    else:
        low, high = window(y, finite(rep, f"replicated {name}"), keep=0.98)
        for row in rep:
            grid, density = kde(row[np.isfinite(row)], low, high)
            ax.plot(grid, density, color=COLOURS[0], linewidth=0.6, alpha=0.35)
        grid, density = kde(y, low, high)
        ax.plot(grid, density, color=INK, linewidth=2)
        ax.set_xlim(low, high)
        ax.set_ylim(bottom=0)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        keys = [Line2D([], [], color=c, linewidth=w) for c, w in [(INK, 2), (COLOURS[0], 0.8)]]
        legend(figure, keys, ["observed", "replicated"])
    label(ax, name, "share of the data" if len(ax.get_yticks()) else "density")
    return figure


def _counts(ax: Any, y: Array, rep: Array) -> None:
    """Frequencies of whole numbers: bars observed, intervals replicated."""
    known = rep[np.isfinite(rep)]
    low = int(min(y.min(), np.quantile(known, 0.005)))
    high = int(max(y.max(), np.quantile(known, 0.995)))
    values = np.arange(low, high + 1)
    edges = np.arange(low, high + 2) - 0.5
    ax.bar(values, np.histogram(y, edges)[0] / len(y), color=FAINT, width=0.85)
    shares = np.stack([np.histogram(row, edges)[0] / len(row) for row in rep])
    middle = np.median(shares, 0)
    error = np.abs(np.quantile(shares, [0.05, 0.95], axis=0) - middle)
    ax.errorbar(values, middle, error, fmt="o", color=COLOURS[0], markersize=3.5, linewidth=1.2)
