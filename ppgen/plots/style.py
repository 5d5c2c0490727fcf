"""One look for all pictures, without touching matplotlib's global state.

Colours are those of Okabe and Ito, told apart by people with any colour vision; line styles say the
same thing a second time.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from ppgen.diagnostics.arrays import Array, as_array

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), "-")
INK, MUTED, FAINT = "#1b1f24", "#5b6570", "#d8dde3"

WIDTH = 7.4  # inches; 814 pixels
DPI = 110  # of all pictures: text is measured at the size at which it is drawn
_SIZE = 9.0  # points


class _Figure(Figure):
    """Shows itself in a notebook, although pyplot never heard of it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()


def canvas(
    height: float,
    title: str,
    subtitle: str = "",
    rows: int = 1,
    columns: int = 1,
    width: float = WIDTH,
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure with its heading and a grid of styled axes, row by row.

    Args:
        height: of the axes, inches; the heading comes on top.
        title: what the picture is.
        subtitle: what to see in it.
        rows: of axes.
        columns: of axes.
        width: of the figure, inches.
        options: to matplotlib's `subplots`.
    """
    figure = _Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    strip = _heading(figure, title, subtitle)
    engine: Any = figure.get_layout_engine()
    engine.set(
        rect=(0, 0, 1, height / (height + strip)), w_pad=0.06, h_pad=0.05, hspace=0.04, wspace=0.03
    )
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    axes = list(grid.ravel())
    for ax in axes:
        dress(ax)
    return figure, axes


def _heading(figure: Figure, title: str, subtitle: str) -> float:
    """Write the heading, make the figure higher by its height, and return that, in inches."""
    width, height = figure.get_size_inches()
    lines: list[tuple[Text, float]] = []
    for text, step, style in [
        (title, 0.22, {"fontsize": _SIZE + 2.5, "fontweight": "bold", "color": INK}),
        (subtitle, 0.17, {"fontsize": _SIZE, "color": MUTED}),
    ]:
        letters = len(text)
        while text:
            wrapped = textwrap.wrap(text, letters)
            written = [figure.text(0, 0, _plain(line), va="top", **style) for line in wrapped]
            if letters < 20 or max(_inches(line) for line in written) < width - 0.2:
                lines += [(line, step) for line in written]
                break
            for line in written:
                line.remove()
            letters = min(letters - 1, int(letters * 0.97))
    strip = 0.16 + sum(step for _, step in lines)
    figure.set_size_inches(width, height + strip)
    top = height + strip - 0.09
    for line, step in lines:
        line.set_position((0.1 / width, top / (height + strip)))
        top -= step
    return strip


def _inches(text: Text) -> float:
    figure = text.get_figure()
    dots = figure.get_dpi() if isinstance(figure, Figure) else 100.0
    return text.get_window_extent().width / dots


def dress(ax: Axes) -> None:
    """Few lines, small letters."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#9aa4af")
    ax.tick_params(labelsize=_SIZE - 1, colors=MUTED, length=3, width=0.7)
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.locator_params(nbins=5)
    ax.ticklabel_format(useOffset=False, scilimits=(-3, 5))
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_offset_text().set_fontsize(_SIZE - 1.5)
        axis.label.set(fontsize=_SIZE, color=INK)


def label(ax: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Names of the axes with their units, and of the panel."""
    ax.set_xlabel(_plain(x))
    ax.set_ylabel(_plain(y))
    if title:
        ax.set_title(_plain(title), fontsize=_SIZE + 0.5, color=INK, loc="left", pad=4)


def colour_bar(ax: Axes, colours: ScalarMappable, unit: str, **options: Any) -> Colorbar:
    """Beside `ax`: which colour is which number."""
    figure: Any = ax.get_figure()
    bar = figure.colorbar(colours, ax=ax, **({"pad": 0.02, "aspect": 18, "shrink": 0.9} | options))
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(3)
    dress(bar.ax)
    bar.ax.grid(False)
    label(bar.ax, y=unit)
    return bar


def legend(target: Axes | Figure, handles: list[Any], labels: list[str], **options: Any) -> Legend:
    """A frameless legend; on a figure it stands outside, below the axes."""
    settings: dict[str, Any] = {"fontsize": _SIZE - 0.5, "labelcolor": INK, "handlelength": 2.2}
    if isinstance(target, Figure):
        columns = max(1, min(len(labels), int(95 / (8 + max(map(len, labels), default=1)))))
        settings |= {"loc": "outside lower center", "ncols": columns, "frameon": False}
    else:
        settings |= {"frameon": True, "framealpha": 0.85, "edgecolor": "none"}
    return target.legend(handles, [_plain(text) for text in labels], **(settings | options))


def styles(labels: Mapping[str, Any], reference: str | None = None) -> Iterator[dict[str, Any]]:
    """Line options for each label in turn; the reference is a plain dark line."""
    count = 0
    for name in labels:
        if name == reference:
            yield {"color": INK, "linestyle": "-", "linewidth": 1.3}
        else:
            yield {
                "color": COLOURS[count % len(COLOURS)],
                "linestyle": LINES[count % len(LINES)],
                "linewidth": 1.7,
            }
            count += 1


def shorten(text: str, letters: int = 26) -> str:
    """Long names keep their ends: the index stands there."""
    if len(text) <= letters:
        return text
    return text[: letters - 11] + "…" + text[-10:]


def finite(x: Any, what: str) -> Array:
    """The finite numbers of `x`, flat.

    Raises:
        ValueError: when there is none.
    """
    x = as_array(x).ravel()
    kept = x[np.isfinite(x)]
    if not len(kept):
        raise ValueError(f"{what}: nothing to draw, none of its {len(x)} numbers is finite")
    return kept


def _plain(text: str) -> str:
    """Dollar signs are money, not mathematics."""
    return text.replace("$", r"\$")
