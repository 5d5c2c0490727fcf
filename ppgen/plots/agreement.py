"""Pictures of how far one posterior's claims hold under another: interval widths, leave-one-out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppgen.diagnostics.arrays import Array, as_array
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
    styles,
)

_COLUMNS = 3
_SHOWN = 4  # scalars of each method that are named
_LEVELS = np.linspace(0.02, 0.98, 49)


def interval_coverage(
    samples: Mapping[str, Any], reference: str, names: list[str], title: str = "Interval widths"
) -> Figure:
    """Share of the reference within each central interval of each method, scalar by scalar.

    Args:
        samples: label of the method -> draws, (n, D).
        reference: the label whose draws count as the truth.
        names: of the D scalars.
        title: heading.

    Raises:
        ValueError: where there is no method beside the reference.
    """
    others = {name: as_array(x) for name, x in samples.items() if name != reference}
    if not others:
        raise ValueError(f"there is nothing to compare with {reference!r}")
    truth = as_array(samples[reference])
    columns = min(_COLUMNS, len(others))
    rows = -(-len(others) // columns)
    figure, axes = canvas(
        3.0 * rows, title,
        f"Share of {reference}'s draws inside the central intervals of each method. On the "
        "diagonal: as wide as they say; below: too narrow, or in the wrong place; above: too wide.",
        rows=rows, columns=columns, sharey=True,
    )  # fmt: skip
    for k, (ax, (method, x)) in enumerate(zip(axes, others.items(), strict=False)):
        curves = np.stack([_inside(x[:, j], truth[:, j]) for j in range(truth.shape[1])])
        worst = np.argsort(-np.abs(curves - _LEVELS).max(1), kind="stable")[:_SHOWN]
        for curve in curves:
            ax.plot(_LEVELS, curve, color="#9aa4af", linewidth=0.5, alpha=0.6)
        keys = []
        for place, j in enumerate(worst):
            style: dict[str, Any] = {"color": COLOURS[place], "linestyle": LINES[place]}
            ax.plot(_LEVELS, curves[j], linewidth=1.6, **style)
            keys.append(Line2D([], [], **style))
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1)
        legend(ax, keys, [shorten(str(names[j]), 18) for j in worst], loc="upper left")
        side = "" if k % columns else "share of the reference inside"
        label(ax, "central interval", side, shorten(method, 60 // columns))
    for ax in axes[len(others) :]:
        ax.set_visible(False)
    return figure


def _inside(x: Array, truth: Array) -> Array:
    """Share of `truth` in the central intervals of `x`, one for each level."""
    low, high = np.quantile(x, [(1 - _LEVELS) / 2, (1 + _LEVELS) / 2])
    ranked = np.sort(truth)
    inside = np.searchsorted(ranked, high, "right") - np.searchsorted(ranked, low, "left")
    return inside / len(truth)


def loo_differences(pointwise: Mapping[str, Any], title: str = "Leave-one-out") -> Figure:
    """What each observation would lose or gain in log score, method by method.

    Args:
        pointwise: label of the method -> its log score less the reference's, nats, (N,).
        title: heading.
    """
    values = {name: finite(x, name) for name, x in pointwise.items()}
    figure, (ax,) = canvas(
        2.6, title,
        "Leave-one-out log density of each observation, less the reference's. Below zero: it is "
        "predicted worse than under the true posterior.",
    )  # fmt: skip
    ax.axhline(0, color=MUTED, linewidth=0.8)
    keys = []
    for (name, gaps), style in zip(values.items(), styles(values), strict=True):
        dots = {"color": style["color"], "marker": ".", "linestyle": "none"}
        ax.plot(np.arange(len(gaps)), gaps, markersize=6 if len(gaps) < 100 else 3, **dots)
        keys.append((Line2D([], [], **dots), f"{name}, sum {gaps.sum():+.2f}"))
    ax.fill_between([-1, max(map(len, values.values()))], -0.1, 0.1, color=FAINT, alpha=0.5)
    ax.set_xlim(-0.5, max(map(len, values.values())) - 0.5)
    label(ax, "observation", "nats")
    legend(figure, [key for key, _ in keys], [text for _, text in keys])
    return figure
