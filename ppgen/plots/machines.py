"""Pictures of Boltzmann machines in training: how their chains mix, how their bounds move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ppgen.diagnostics.chains import autocorrelation as autocorrelation_of
from ppgen.likelihood import Likelihood
from ppgen.plots.style import MUTED, canvas, label, legend, styles


def autocorrelation(
    groups: Mapping[str, Any], lags: int = 200, title: str = "Autocorrelation of the chains"
) -> Figure:
    """How long chains remember: correlation of a scalar with itself, some sweeps later.

    Args:
        groups: label -> one scalar, ``(chains, sweeps)``.
        lags: at most so many, and at most half the sweeps.
        title: heading.
    """
    figure, (ax,) = canvas(
        3.0, title, "Chains that forget reach zero and stay there; what stays above is what they "
        "disagree about.",
    )  # fmt: skip
    ax.axhline(0, color=MUTED, linewidth=0.8)
    keys, texts = [], []
    for (name, draws), style in zip(groups.items(), styles(groups), strict=True):
        rho = autocorrelation_of(draws)
        rho = rho[: min(lags + 1, max(2, len(rho) // 2))]
        ax.plot(np.arange(len(rho)), rho, **style)
        below = np.flatnonzero(rho < np.exp(-1))
        when = f"below 1/e at lag {below[0]}" if len(below) else "not below 1/e here"
        keys.append(Line2D([], [], **style))
        texts.append(f"{name}: {when}")
    ax.set_xlim(left=0)
    ax.set_ylim(top=1.03)
    label(ax, "lag (sweeps)", "autocorrelation")
    legend(figure, keys, texts)
    return figure


def likelihood_curve(
    curves: Mapping[str, Mapping[int, Likelihood]], title: str = "Held-out log-likelihood"
) -> Figure:
    """Likelihood, or its bounds, over the epochs of training.

    Args:
        curves: label -> epoch -> what was measured after it.
        title: heading.
    """
    figure, (ax,) = canvas(
        3.1, title, "Larger is better. Band: between the bounds; a line without a band is a lower "
        "bound. Bars: two standard errors.",
    )  # fmt: skip
    keys, texts = [], []
    for (name, curve), style in zip(curves.items(), styles(curves), strict=True):
        if not curve:
            raise ValueError(f"{name}: nothing was measured")
        epochs = np.array(sorted(curve))
        found = [curve[epoch] for epoch in epochs]
        low = np.array([one.lower for one in found])
        errors = [2 * one.lower_error for one in found]
        ax.errorbar(epochs, low, errors, marker="o", markersize=3, capsize=2, **style)
        if all(one.upper is not None for one in found):
            ax.fill_between(
                epochs, low, _uppers(found), color=style["color"], alpha=0.25, linewidth=0
            )
        keys.append(Line2D([], [], **style))
        texts.append(f"{name}: {found[-1].lower:.2f} after epoch {epochs[-1]}")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    label(ax, "epoch", "nats per example")
    legend(figure, keys, texts)
    return figure


def _uppers(found: Sequence[Likelihood]) -> list[float]:
    return [one.lower if one.upper is None else one.upper for one in found]
