"""Pictures of training and of its result: curves, free energies, likelihoods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ppgen.diagnostics.arrays import Array, as_array
from ppgen.likelihood import Likelihood
from ppgen.plots.density import window
from ppgen.plots.style import (
    COLOURS,
    FAINT,
    INK,
    MUTED,
    canvas,
    finite,
    label,
    legend,
    shorten,
    styles,
)

_FEW = 10  # steps, as of a fit to fixed draws, whose mean would hide where it ended


def elbo_curve(histories: Mapping[str, Any], title: str = "Evidence lower bound") -> Figure:
    """ELBO by step of one or more fits, smoothed over the noisy values where there are many.

    Args:
        histories: label -> ELBO at each step, (steps), nats, larger is better.
        title: heading.
    """
    figure, (ax,) = canvas(
        3.1, title, "Larger is better; flat at the end: the optimiser has arrived. "
        "The first steps may lie below the picture.",
    )  # fmt: skip
    lows, highs, keys, texts = [], [], [], []
    for (name, values), style in zip(histories.items(), styles(histories), strict=True):
        y = as_array(values).ravel()
        known = finite(y, name)
        steps = np.arange(1, len(y) + 1)
        thin = max(1, len(y) // 2000)
        if len(y) < _FEW:
            ax.plot(steps, y, marker="o", markersize=4, **style)
        else:
            ax.plot(steps[::thin], y[::thin], color=style["color"], linewidth=0.6, alpha=0.25)
            ax.plot(steps[::thin], _smooth(y)[::thin], **style)
        late = known[len(known) // 5 :]
        lows.append(np.quantile(late, 0.01))
        highs.append(np.quantile(late, 0.999))
        keys.append(Line2D([], [], **style))
        texts.append(f"{name}: {np.mean(known[-max(1, len(known) // 10) :]):.2f} at the end")
    low, high = min(lows), max(highs)
    margin = 0.06 * (high - low) or max(abs(high) * 0.01, 0.5)
    ax.set_ylim(low - margin, high + margin)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    label(ax, "optimisation step", "ELBO (nats)")
    legend(figure, keys, texts)
    return figure


def loss_curve(
    metrics: Mapping[str, Sequence[float]],
    epochs: Sequence[float] | None = None,
    unit: str = "nats per example",
    best: Literal["max", "min"] | None = None,
    title: str = "Training",
) -> Figure:
    """Metrics by epoch.

    Args:
        metrics: name -> one value per epoch; NaN where it was not measured.
        epochs: the epochs of the values; 1, 2, ... when None.
        unit: of the values.
        best: mark each curve's best value.
        title: heading.
    """
    hint = {"max": "Larger is better; ", "min": "Smaller is better; ", None: ""}[best]
    hint += "dot: the best value." if best else ""
    figure, (ax,) = canvas(3.1, title, hint)
    keys, texts = [], []
    whole = epochs is None or all(float(epoch).is_integer() for epoch in epochs)
    for (name, values), style in zip(metrics.items(), styles(metrics), strict=True):
        y = as_array(values).ravel()
        x = np.arange(1, len(y) + 1) if epochs is None else as_array(epochs).ravel()
        if len(x) != len(y):
            raise ValueError(f"{name}: {len(y)} values for {len(x)} epochs")
        good = np.isfinite(y)
        finite(y, name)
        few = {"marker": "o", "markersize": 3.5} if good.sum() <= 12 else {}
        ax.plot(x[good], y[good], **style, **few)
        text = name
        if best is not None:
            k = int((np.nanargmax if best == "max" else np.nanargmin)(np.where(good, y, np.nan)))
            ax.plot(x[k], y[k], "o", color=style["color"], markersize=6, markeredgecolor="white")
            text = f"{name}: best {y[k]:.4g} at epoch {x[k]:g}"
        keys.append(Line2D([], [], **style, **few))
        texts.append(text)
    label(ax, "epoch", unit)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=whole))
    legend(figure, keys, texts)
    return figure


def free_energies(
    groups: Mapping[str, Any],
    title: str = "Free energies",
    subtitle: str = "Held-out above training: overfitting. Samples apart from both: the chains or "
    "the model are off.",
) -> Figure:
    """Histograms of the free energies of training data, held-out data, samples.

    Args:
        groups: label -> free energies, (n), nats; lower is more probable.
        title: heading.
        subtitle: how to read it.
    """
    values = {name: finite(x, name) for name, x in groups.items()}
    figure, (ax,) = canvas(3.0, title, subtitle)
    low, high = window(*values.values(), keep=0.99)
    edges = np.linspace(low, high, 49)
    keys, texts = [], []
    for (name, x), style in zip(values.items(), styles(values), strict=True):
        share = np.histogram(x, edges)[0] / len(x) / (edges[1] - edges[0])
        ax.stairs(share, edges, fill=True, color=style["color"], alpha=0.18)
        ax.stairs(share, edges, **style)
        ax.axvline(x.mean(), color=style["color"], linewidth=0.9, linestyle=style["linestyle"])
        keys.append(Line2D([], [], **style))
        texts.append(f"{name}, mean {x.mean():.2f}")
    ax.set_xlim(low, high)
    ax.set_ylim(bottom=0)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    label(ax, "free energy (nats)", "density")
    legend(figure, keys, texts)
    return figure


def leaderboard(rows: Mapping[str, Likelihood], title: str = "Held-out log-likelihood") -> Figure:
    """Log-likelihoods of stories, best first, each with its kind.

    A dot is an exact value, a bar lies between bounds, an arrow starts at a lower bound and has no
    end. Thin lines are two standard errors.

    Args:
        rows: name of the story -> its likelihood.
        title: heading.
    """
    if not rows:
        raise ValueError("no rows: expected a mapping from story to its Likelihood")
    ordered = sorted(rows.items(), key=lambda row: row[1].lower)
    figure, (ax,) = canvas(
        0.42 * len(rows) + 0.75, title,
        "Larger is better. The truth lies inside a bar, and anywhere right of an arrow's tail, up "
        "to Monte Carlo errors (thin lines: two standard errors).",
    )  # fmt: skip
    ends = [(r.lower - 2 * r.lower_error, _top(r) + 2 * (r.upper_error or 0)) for _, r in ordered]
    low, high = _scale(ends)
    span = max(high - low, 0.02 * abs(high), 1e-6)
    low, high = low - 0.08 * span, high + 0.14 * span
    for k, ((_, row), end) in enumerate(zip(ordered, ends, strict=True)):
        place = _KINDS[row.kind]
        style: dict[str, Any] = {"color": place.colour, "markeredgecolor": place.colour}
        if end[1] < low:
            ax.plot(low + 0.015 * span, k, "<", **style, markersize=7)  # off the scale
        elif row.kind == "exact":
            ax.plot(row.lower, k, "o", **style, markersize=7)
        else:
            ax.plot(end, (k, k), **style, linewidth=1)
            ax.plot(row.lower, k, "|", **style, markersize=13, markeredgewidth=2)
        if row.kind == "bounds" and end[1] >= low:
            ax.plot((row.lower, _top(row)), (k, k), **style, linewidth=7, solid_capstyle="butt")
            ax.plot(_top(row), k, "|", **style, markersize=13, markeredgewidth=2)
        elif row.kind == "lower" and end[1] >= low:
            arrow = {"arrowstyle": "-|>", "color": place.colour, "linewidth": 2, "shrinkA": 0}
            ax.annotate("", (row.lower + 0.1 * span, k), (row.lower, k), arrowprops=arrow)
        ax.text(
            1.02, k, _value(row), transform=ax.get_yaxis_transform(), fontsize=9, color=INK,
            va="center",
        )  # fmt: skip
    ax.set_yticks(range(len(ordered)), [shorten(name, 34) for name, _ in ordered])
    ax.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    ax.set_xlim(low, high)
    ax.set_ylim(-0.6, len(ordered) - 0.4)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color=FAINT, linewidth=0.6)
    counts = {row.examples for row in rows.values()}
    on = f", {counts.pop():,} examples" if len(counts) == 1 else ""
    label(ax, f"nats per example{on}", "story")
    used = [p for kind, p in _KINDS.items() if any(row.kind == kind for row in rows.values())]
    keys: list[Any] = [
        Line2D([], [], color=p.colour, marker=p.marker, linewidth=p.width, markersize=7)
        for p in used
    ]
    texts = [p.text for p in used]
    if any(end[1] < low for end in ends):
        keys.append(Line2D([], [], color=MUTED, marker="<", linewidth=0, markersize=7))
        texts.append("off the scale")
    legend(figure, keys, texts, ncols=len(keys))
    return figure


class _Kind(NamedTuple):
    colour: str
    marker: str
    width: float
    text: str


_KINDS = {
    "exact": _Kind(COLOURS[0], "o", 0, "exact"),
    "bounds": _Kind(COLOURS[1], "|", 5, "between bounds"),
    "lower": _Kind(COLOURS[2], ">", 2, "lower bound only"),
}


def _scale(ends: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The range to show: rows far below the others are left off, lest they flatten the rest."""
    starts = np.sort([low for low, _ in ends])
    high = max(end for _, end in ends)
    gaps = np.diff(starts)
    if len(gaps) >= 2:
        k = int(gaps.argmax())
        if gaps[k] > 0.6 * (high - starts[0]) and len(starts) - k - 1 >= 2:
            return float(starts[k + 1]), high
    return float(starts[0]), high


def _value(row: Likelihood) -> str:
    text = {
        "exact": f"{row.lower:.2f}",
        "bounds": f"{row.lower:.2f} to {_top(row):.2f}",
        "lower": f"≥ {row.lower:.2f}",
    }[row.kind]
    return text.replace("-", "\N{MINUS SIGN}")


def _top(row: Likelihood) -> float:
    return row.lower if row.upper is None else row.upper


def _smooth(y: Array) -> Array:
    """Running mean over a fiftieth of the steps, of the finite values."""
    half = max(1, len(y) // 100)
    good = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(good, y, 0.0))])
    count = np.concatenate([[0], np.cumsum(good)])
    start = np.clip(np.arange(len(y)) - half, 0, None)
    stop = np.clip(np.arange(len(y)) + half + 1, None, len(y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total[stop] - total[start]) / (count[stop] - count[start])
