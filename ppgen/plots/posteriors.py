"""Pictures of posteriors beside one another: margins and pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppgen.diagnostics.arrays import Array, as_array
from ppgen.diagnostics.distances import wasserstein1
from ppgen.plots.density import kde, kde2, mass_levels, window
from ppgen.plots.style import (
    FAINT,
    canvas,
    label,
    legend,
    shorten,
    styles,
)


def marginals(
    samples: Mapping[str, Any],
    names: Sequence[str] | None = None,
    reference: str | None = None,
    panels: int = 12,
    title: str = "Marginal posteriors",
) -> Figure:
    """Densities of each scalar under each method, overlaid; the worst agreement first.

    Args:
        samples: label of the method -> draws, (n, D) or (chains, draws, D).
        names: of the D scalars.
        reference: the label that the others are measured against: Wasserstein-1 distance over the
            reference's standard deviation. Without one the order is kept.
        panels: at most so many scalars are shown.
        title: heading.
    """
    flat, names = _flat(samples, names, reference)
    order, badness = np.arange(len(names)), None
    if reference is not None and len(flat) > 1:
        badness = _badness(flat, reference)
        order = np.argsort(-badness, kind="stable")
    shown = order[:panels]
    columns = {1: 1, 2: 2, 4: 2}.get(len(shown), 3)
    rows = -(-len(shown) // columns)
    hint = "" if badness is None else f"Distance of the worst method from {reference}, in its sd. "
    if len(names) > len(shown):
        order_text = "first" if badness is None else "worst"
        hint += f"The {order_text} {len(shown)} of {len(names)} scalars are shown."
    elif badness is not None and len(names) > 1:
        hint += "Worst first."
    height = 3.0 if len(shown) == 1 else 1.75 * rows + 0.4
    figure, axes = canvas(height, title, hint.strip(), rows, columns)
    for k, (ax, j) in enumerate(zip(axes, shown, strict=False)):
        low, high = window(*(x[:, j] for x in flat.values()), keep=0.98)
        peaks = {}
        for (name, x), style in zip(flat.items(), styles(flat, reference), strict=True):
            grid, density = kde(x[:, j], low, high, 400)
            peaks[name] = density.max()
            if name == reference:
                ax.fill_between(grid, density, color=FAINT, linewidth=0)
            if np.ptp(x[:, j]) == 0:
                ax.axvline(x[0, j], **style)  # a point has no density
            else:
                ax.plot(grid, density, **style)
        top = max(peaks.values())
        if reference is not None and peaks[reference] > 0:
            top = min(top, 3 * peaks[reference])  # a spike must not flatten the reference
        ax.set_ylim(0, 1.08 * top if top > 0 else 1.0)
        ax.set_xlim(low, high)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.grid(False)
        far = "" if badness is None else f"   {badness[j]:.2f} sd"
        name = shorten(names[j], {1: 40, 2: 32, 3: 19}[columns])
        lowest = k + columns >= len(shown)
        label(ax, "value" if lowest else "", "" if k % columns else "density", name + far)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    if len(flat) > 1:
        legend(figure, *_keys(flat, reference))
    return figure


def pair(
    samples: Mapping[str, Any],
    names: Sequence[str] | None = None,
    reference: str | None = None,
    scalars: tuple[str, str] | None = None,
    title: str = "Joint posterior",
) -> Figure:
    """Two scalars together: draws of the reference, and the regions of each method.

    Args:
        samples: label -> draws, (n, D) or (chains, draws, D).
        names: of the D scalars.
        reference: the label whose draws are dots; the first one when None.
        scalars: the two names; when None, the pair whose covariance is most different.
        title: heading.

    Raises:
        ValueError: when there are fewer than two scalars, or `scalars` is not among the names.
    """
    reference = next(iter(samples)) if reference is None else reference
    flat, names = _flat(samples, names, reference)
    if len(names) < 2:
        raise ValueError("a pair needs two scalars, and these draws have one; use marginals")
    if scalars is None:
        i, j = _worst_pair(flat, reference)
    else:
        for name in scalars:
            if name not in names:
                raise ValueError(f"no scalar {name!r}; there are {', '.join(names)}")
        i, j = (names.index(name) for name in scalars)
    chosen = "" if scalars is not None or len(names) == 2 else "The pair that differs most. "
    figure, (ax,) = canvas(
        4.3, title, chosen + f"Dots: {reference}. Lines: regions with 50 % and 90 % of the draws.",
        width=6.2,
    )  # fmt: skip
    box = (*window(*(x[:, i] for x in flat.values())), *window(*(x[:, j] for x in flat.values())))
    dots = flat[reference][:: max(1, len(flat[reference]) // 1500)]
    ax.plot(dots[:, i], dots[:, j], ".", color="#9aa4af", markersize=2.5, alpha=0.6)
    for x, style in zip(flat.values(), styles(flat, reference), strict=True):
        density = kde2(x[:, i], x[:, j], box)
        levels = mass_levels(density, (0.5, 0.9))
        if levels:
            ax.contour(
                density, levels, extent=box, colors=style["color"],
                linestyles=[style["linestyle"]], linewidths=[1.1, 1.8][: len(levels)],
            )  # fmt: skip
    ax.set_xlim(*box[:2])
    ax.set_ylim(*box[2:])
    ax.grid(False)
    label(ax, shorten(names[i], 60), shorten(names[j], 40))
    legend(figure, *_keys(flat, reference))
    return figure


def _flat(
    samples: Mapping[str, Any], names: Sequence[str] | None, reference: str | None
) -> tuple[dict[str, Array], list[str]]:
    """Draws as (n, D) and the names of the D scalars, checked."""
    if not samples:
        raise ValueError("no samples: expected a mapping from label to draws")
    if reference is not None and reference not in samples:
        raise ValueError(f"reference {reference!r} is not among {', '.join(samples)}")
    flat = {}
    for name, x in samples.items():
        x = as_array(x)
        x = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x[:, None]
        x = x[np.isfinite(x).all(1)]
        if not len(x):
            raise ValueError(f"{name}: nothing to draw, no row of its draws is finite")
        flat[name] = x
    widths = {name: x.shape[1] for name, x in flat.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"the samples differ in their number of scalars: {widths}")
    width = next(iter(widths.values()))
    names = [f"[{j}]" for j in range(width)] if names is None else list(names)
    if len(names) != width:
        raise ValueError(f"{len(names)} names for {width} scalars")
    return flat, names


def _badness(flat: dict[str, Array], reference: str) -> Array:
    """Worst Wasserstein-1 distance of any method, over the reference's sd: (D)."""
    target = flat[reference]
    scale = target.std(0)
    far = [wasserstein1(x, target) for name, x in flat.items() if name != reference]
    return np.max(far, axis=0) / np.where(scale > 0, scale, 1.0)


def _worst_pair(flat: dict[str, Array], reference: str) -> tuple[int, int]:
    """Where a method's covariance, in the reference's units, is farthest from the reference's."""
    target = flat[reference]
    scale = np.where(target.std(0) > 0, target.std(0), 1.0)
    there = np.cov(target / scale, rowvar=False)
    others = [x for name, x in flat.items() if name != reference] or [target * 0]
    far = np.max([np.abs(np.cov(x / scale, rowvar=False) - there) for x in others], axis=0)
    i, j = np.unravel_index(np.argmax(np.triu(far, 1)), far.shape)
    return (int(i), int(j)) if i != j else (0, 1)


def _keys(flat: Mapping[str, Any], reference: str | None) -> tuple[list[Line2D], list[str]]:
    keys = [Line2D([], [], **style) for style in styles(flat, reference)]
    return keys, [f"{name} (reference)" if name == reference else name for name in flat]
