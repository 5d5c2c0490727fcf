"""Pictures of one scalar by chain: ranks and traces."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppgen.diagnostics.arrays import Array, as_array
from ppgen.plots.density import kde
from ppgen.plots.style import (
    COLOURS,
    FAINT,
    LINES,
    MUTED,
    canvas,
    finite,
    label,
    legend,
    shorten,
)


def rank_histogram(draws: Any, name: str = "", bins: int = 20) -> Figure:
    """Ranks of each chain's draws among all: chains that mix have even ones.

    Args:
        draws: of one scalar, (chains, draws).
        name: of the scalar.
        bins: at most so many classes.
    """
    x = _scalar(draws)
    chains, count = x.shape
    bins = max(2, min(bins, count // 5))
    ranks = x.ravel().argsort(kind="stable").argsort().reshape(x.shape)
    share = np.stack([np.histogram(r, bins, (-0.5, x.size - 0.5))[0] for r in ranks]) / count * bins
    figure, (ax,) = canvas(
        3.0, f"Ranks of {name or 'the draws'} by chain",
        "Even: the chains agree. Band: 99 % of independent draws; correlated ones stray more."
        + (f" Coloured: the 6 most uneven of {chains} chains." if chains > 6 else ""),
    )  # fmt: skip
    error = 2.576 * ((bins - 1) / count) ** 0.5
    ax.axhspan(max(0, 1 - error), 1 + error, color=FAINT, linewidth=0, alpha=0.8)
    ax.axhline(1, color=MUTED, linewidth=0.8)
    edges = np.linspace(0, 100, bins + 1)
    worst = np.abs(share - 1).max(1).argsort()[::-1]
    bright = worst[:6] if chains > 6 else np.arange(chains)
    for c in range(chains):
        if c not in bright:
            ax.stairs(share[c], edges, baseline=None, color="#9aa4af", linewidth=0.5, alpha=0.5)
    keys = []
    for k, c in enumerate(np.sort(bright)):
        style: dict[str, Any] = {"color": COLOURS[k], "linestyle": LINES[k], "linewidth": 1.4}
        ax.stairs(share[c], edges, baseline=None, **style)
        keys.append(Line2D([], [], **style))
    ax.set_xlim(0, 100)
    ax.set_ylim(bottom=0)
    label(ax, "rank among all draws (percent)", "share, relative to even")
    legend(figure, keys, [f"chain {c}" for c in np.sort(bright)], ncols=len(keys))
    return figure


def trace(draws: Any, name: str = "") -> Figure:
    """Draws of each chain in turn, and their densities.

    Args:
        draws: of one scalar, (chains, draws).
        name: of the scalar.
    """
    x = _scalar(draws)
    chains, count = x.shape
    many = chains > 8
    figure, (left, right) = canvas(
        2.9, f"Trace of {name or 'the draws'}",
        f"{chains} chains of {count} draws. Chains that mix look alike and drift nowhere."
        + (" Coloured: the 3 farthest off." if many else ""),
        columns=2, width_ratios=[3, 1], sharey=True,
    )  # fmt: skip
    known = finite(x, name or "draws")
    low, high = float(known.min()), float(known.max())
    margin = 0.04 * (high - low) or 0.5
    low, high = low - margin, high + margin
    thin = max(1, count // 2000)
    order, bright = np.arange(chains), chains
    if many:
        finite_rows = np.where(np.isfinite(x), x, np.inf)  # a broken chain strays most
        with np.errstate(invalid="ignore"):
            far = np.abs(finite_rows.mean(1) - np.median(known))
        order, bright = np.argsort(far, kind="stable"), 3
    for k, c in enumerate(order):
        place = k - (chains - bright)  # the coloured ones come last, on top
        style: dict[str, Any] = {"color": "#c5ccd4", "linewidth": 0.4}
        if place >= 0:
            style = {"color": COLOURS[place % len(COLOURS)], "linewidth": 0.8, "alpha": 0.85}
        left.plot(np.arange(count)[::thin], x[c, ::thin], **style)
        good = x[c][np.isfinite(x[c])]
        if len(good):
            grid, density = kde(good, low, high)
            style["linewidth"] += 0.5
            right.plot(density, grid, **style)
    left.set_xlim(0, max(count - 1, 1))
    left.set_ylim(low, high)
    right.set_xlim(left=0)
    right.set_xticks([])
    label(left, "draw", shorten(name, 32) or "value")
    label(right, "density")
    return figure


def _scalar(draws: Any) -> Array:
    x = as_array(draws)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"expected the draws of one scalar, (chains, draws), got {x.shape}")
    return x
