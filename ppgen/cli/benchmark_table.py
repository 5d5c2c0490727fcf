"""Results of a benchmark, as Markdown and as a picture: a row an engine, a column a posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Row = dict[str, Any]


def _number(key: str, form: str) -> Callable[[_Row], str]:
    return lambda row: "–" if row.get(key) is None else form.format(row[key])


_TABLES: dict[str, Callable[[_Row], str]] = {
    "Error of the means: the largest, in reference sd": _number("shift", "{:.3f}"),
    "sd / reference sd: the smallest and the largest": lambda row: (
        f"{_number('low_ratio', '{:.2f}')(row)} – {_number('high_ratio', '{:.2f}')(row)}"
    ),
    "W1 of the margins: the largest, in reference sd": _number("w1", "{:.3f}"),
    "R-hat: the largest": _number("rhat", "{:.3f}"),
    "MCSE of the means: the largest, in reference sd": _number("mcse", "{:.3f}"),
    "k-hat of the importance weights": _number("k_hat", "{:.2f}"),
    "min-ESS per second of the whole call (chains: bulk and tail; others: importance sampling)": (
        _number("ess_per_second", "{:.3g}")
    ),
    "Gradients": _number("gradients", "{:,}"),
    "Seconds of the whole call": _number("seconds", "{:.1f}"),
}

_LEGEND = (
    "Bold: outside the bars (R-hat <= 1.01, MCSE <= .02 sd, means within .05 sd, sd ratio .95 to "
    "1.05, where they apply). *: the run itself says that it has not converged. –: does not apply."
)


def markdown(results: Sequence[_Row]) -> str:
    """A table for each measure, and what failed."""
    labels, posteriors = _axes(results)
    cells = {(row["label"], row["posterior"]): row for row in results}
    lines = ["# Engines against the reference draws of posteriordb", "", _LEGEND, ""]
    for heading, text in _TABLES.items():
        lines += [f"## {heading}", "", f"| | {' | '.join(map(_short, posteriors))} |"]
        lines.append("|---" * (len(posteriors) + 1) + "|")
        for label in labels:
            row = [_cell(cells.get((label, name)), text) for name in posteriors]
            lines.append(f"| {label} | {' | '.join(row)} |")
        lines.append("")
    said = [
        f"- {row['label']} on {row['posterior']}: {what}"
        for row in results
        for what in [row.get("error") or "; ".join(row["messages"])]
        if what
    ]
    if said:
        lines += ["## What the runs say", "", *said, ""]
    return "\n".join(lines)


def picture(results: Sequence[_Row]) -> Figure:
    """Errors of means, sds and margins as coloured cells."""
    from ppgen.plots import grids

    labels, posteriors = _axes(results)
    cells = {(row["label"], row["posterior"]): row for row in results}
    panels = {
        "largest error of a mean / reference sd": "shift",
        "largest factor by which an sd is off, minus 1": "factor",
        "largest W1 of a margin / reference sd": "w1",
    }
    errors = {
        heading: [
            [_error(cells.get((label, name), {}), key) for name in posteriors] for label in labels
        ]
        for heading, key in panels.items()
    }
    doubtful = [
        [not cells.get((label, name), {}).get("converged", True) for name in posteriors]
        for label in labels
    ]
    return grids(
        errors,
        labels,
        [_short(name) for name in posteriors],
        "Engines against the reference draws of posteriordb",
        "White: within the noise of the reference and the bars. An asterisk: the run itself says "
        "that it has not converged. A dash: no result.",
        starred=doubtful,
    )


def _error(row: _Row, key: str) -> float:
    if key != "factor":
        value = row.get(key)
        return math.nan if value is None else value
    low, high = row.get("low_ratio"), row.get("high_ratio")
    if low is None or high is None:
        return math.nan
    return max(high, 1 / low if low > 0 else math.inf) - 1


def _axes(results: Sequence[_Row]) -> tuple[list[str], list[str]]:
    """Engines and posteriors, in the order in which they came."""
    return (
        list(dict.fromkeys(row["label"] for row in results)),
        list(dict.fromkeys(row["posterior"] for row in results)),
    )


def _cell(row: _Row | None, text: Callable[[_Row], str]) -> str:
    if row is None:
        return ""
    if "error" in row:
        return "failed"
    written = text(row) + ("" if row["converged"] else "*")
    return written if row["passed"] else f"**{written}**"


def _short(name: str) -> str:
    """The model, which says more than the data."""
    return name.partition("-")[2]
