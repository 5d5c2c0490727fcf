"""The comparison on a terminal: verdicts first, then what they rest on, compactly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ppgen.inference.comparison.consequences import Consequences
from ppgen.inference.comparison.cost import cost
from ppgen.inference.comparison.joint import Joint
from ppgen.inference.verdict import THRESHOLDS, Marginal
from ppgen.summary import columns

if TYPE_CHECKING:
    from ppgen.inference.compare import Comparison

_COUNTABLE = 1e12  # draws that somebody might take
_SHOWN = 6  # scalars of each engine in the printed table, worst first


def text(found: Comparison) -> str:
    """All parts, most important first."""
    parts = [f"{found.story}: reference {found.reference}", _verdicts(found)]
    parts.append(f"Reference: {found.trust}")
    settled = [f"  {n}: {found.optimisers[n]}" for n in found.others if n in found.optimisers]
    if settled:
        parts.append("\n".join(["Optimisers:", *settled]))
    for label in found.others:
        parts.append(_method(found, label))
    parts.append(_cost(found))
    parts.append(f"Thresholds: {THRESHOLDS}.")
    return "\n\n".join(parts)


def _verdicts(found: Comparison) -> str:
    lines = []
    for label in found.others:
        lines.append(f"{label}: {found.verdicts[label]}")
        lines += [f"  {attempt}" for attempt in found.repairs.get(label, ())]
    return "\n".join(lines)


def _method(found: Comparison, label: str) -> str:
    rows = found.marginals[label]
    note = f" (worst {_SHOWN} of {len(rows)})" if len(rows) > _SHOWN else ""
    parts = [f"{label} against {found.reference}, worst first{note}", _margins(rows[:_SHOWN])]
    lines = joint_lines(found.joints[label]) + consequence_lines(found.consequences[label])
    parts += [f"  {line}" for line in lines]
    unknown = (*found.joints[label].missing, *found.consequences[label].missing)
    parts += [f"  not known: {reason}" for reason in unknown]
    if label in found.quantities:
        parts += ["  your quantities:", _margins(found.quantities[label])]
    return "\n".join(parts)


def _margins(rows: tuple[Marginal, ...]) -> str:
    table = [["  scalar", "shift/sd", "z", "sd ratio", "+-", "W1/sd", "in 90 %", ""]]
    for r in rows:
        numbers = (r.shift, r.shift_z, r.ratio, r.ratio_error, r.w1, r.coverage)
        table.append([f"  {r.name}", *map(figure, numbers), r.level])
    return columns(table)


def joint_lines(joint: Joint) -> list[str]:
    """The joint distribution in words, as far as it is known."""
    lines = []
    if math.isfinite(joint.khat_limit):
        lines.append(
            f"weights: k-hat {joint.khat:.2f} (limit {joint.khat_limit:.2f}{_needs(joint)}), "
            f"IS-ESS/S {joint.efficiency:.2f}"
        )
    worst, scale = joint.worst, ", unconstrained" if joint.unconstrained else ""
    if worst is not None:
        lines.append(
            f"worst direction{scale}: {worst.ratio:.2f} of the sd along {worst} "
            f"(halves: {worst.null:.2f})"
        )
    pair = joint.correlation
    if pair is not None:
        lines.append(
            f"worst correlation: {' and '.join(pair.names)} {pair.ours:.2f}, reference "
            f"{pair.theirs:.2f} (halves differ by up to {pair.null:.2f})"
        )
    tests = []
    if joint.mmd is not None:
        tests.append(f"MMD against halves of the reference p {joint.mmd.p:.2g}")
    if joint.c2st is not None:
        tests.append(
            f"a classifier tells them apart in {joint.c2st.accuracy:.0%} of draws (C2ST, chance "
            f"50%), p {joint.c2st.p:.2g}"
        )
    if joint.ksd is not None:
        tests.append(f"KSD p {joint.ksd.p:.2g}")
    if tests:
        lines.append("; ".join(tests))
    if joint.sandwich is not None:
        lines.append(str(joint.sandwich))
    return lines


def consequence_lines(found: Consequences) -> list[str]:
    """Predictions and leave-one-out in words."""
    lines = [
        f"predictions of {p.site}: means within {p.shift:.2f} sd, sd ratio {p.ratio:.2f} at worst "
        f"(noise {p.noise:.2f}), CRPS {p.crps:+.2g}"
        for p in found.predictive
    ]
    return lines + [f"leave-one-out of {p.site}: {p}" for p in found.loo]


def _cost(found: Comparison) -> str:
    rows = {label: cost(p) for label, p in found.posteriors.items()}
    cells = [["method", *next(iter(rows.values()))]]
    cells += [[label, *(_cell(v) for v in row.values())] for label, row in rows.items()]
    return columns(cells)


def _cell(value: float | str | None) -> str:
    if isinstance(value, float):
        return figure(value, 0 if value >= 100 else 1)
    return "-" if value is None else value if isinstance(value, str) else f"{value:,}"


def _needs(joint: Joint) -> str:
    """How many draws a k-hat above its limit asks for; below it there are enough."""
    draws = joint.needed
    if joint.khat <= joint.khat_limit:
        return ""
    if draws > _COUNTABLE:
        return "; no number of draws is enough"
    count = f"{draws:,.0f}" if draws < 1e6 else f"1e{math.log10(draws):.0f}"
    return f"; estimates would need {count} draws or more"


def figure(value: float, digits: int = 2) -> str:
    """A number of a table, "-" where it is unknown."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"
