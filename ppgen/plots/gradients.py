"""How gradient estimators scatter, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from ppgen.diagnostics.arrays import as_array
from ppgen.plots.style import canvas, label, legend, styles


def gradient_variance(
    dimensions: Sequence[int],
    variances: Mapping[str, Any],
    exponents: Mapping[str, float] | None = None,
    title: str = "Variance of gradient estimators",
) -> Figure:
    """Variance of one draw of the gradient against the dimension, both on logarithmic scales.

    Args:
        dimensions: d.
        variances: estimator -> its variance at each d, mean over the components.
        exponents: estimator -> a, where the variance grows as d to the a; in the legend.
        title: heading.

    Raises:
        ValueError: when a row has another length than `dimensions`, or a number is not positive.
    """
    x = as_array(dimensions).ravel()
    figure, (ax,) = canvas(
        3.4, title, "One draw, mean over the components. A slope of 1 is one power of d."
    )
    keys, texts = [], []
    for (name, values), style in zip(variances.items(), styles(variances), strict=True):
        y = as_array(values).ravel()
        if len(y) != len(x):
            raise ValueError(f"{name}: {len(y)} variances for {len(x)} dimensions")
        if not bool(np.all(y > 0)):
            raise ValueError(f"{name}: a logarithmic scale needs positive variances, got {y.min()}")
        ax.plot(x, y, **style, marker="o", markersize=3.5)
        keys.append(Line2D([], [], **style, marker="o", markersize=3.5))
        power = "" if exponents is None else f": d^{exponents[name]:.2f}"
        texts.append(name + power)
    for axis, scale in ((ax.xaxis, ax.set_xscale), (ax.yaxis, ax.set_yscale)):
        scale("log")
        axis.set_major_locator(LogLocator(10, numticks=8))
        axis.set_minor_formatter(NullFormatter())
    label(ax, "dimension d", "variance of the gradient")
    legend(figure, keys, texts)
    return figure
