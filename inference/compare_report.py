"""The comparison as a page, in the order in which the questions come."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen import plots
from ppgen.inference.compare_text import consequence_lines, joint_lines
from ppgen.inference.comparison.cost import cost
from ppgen.inference.verdict import THRESHOLDS, Marginal, worst
from ppgen.report import Picture, Report, Section, Table, Verdict
from ppgen.run_folder import surroundings

if TYPE_CHECKING:
    from ppgen.inference.compare import Comparison

_SHOWN = 25  # rows of each table of marginals
_MARKS = {"pass": "ok", "warn": "warn", "fail": "bad", "unknown": "warn"}


def report(found: Comparison) -> Report:
    """The page of a comparison."""
    versions = surroundings()["versions"]
    return Report(
        title=f"{found.story}: {', '.join(found.others)} against {found.reference}",
        subtitle="How far each method is from the reference posterior, worst first.",
        verdict=_overall(found),
        sections=sections(found),
        facts={name: str(value) for name, value in versions.items()},
    )


def sections(found: Comparison) -> list[Section]:
    """The parts of the page, to be put into a larger one as well."""
    parts = [_verdicts(found), _trust(found)]
    parts += [_marginals(found, label) for label in found.others]
    parts += [_pictures(found), _joint(found), _consequences(found)]
    if found.repairs:
        parts.append(_repairs(found))
    return [*parts, _cost(found)]


def _overall(found: Comparison) -> Verdict:
    level = worst(v.level for v in found.verdicts.values())
    text = " ".join(f"{label}: {found.verdicts[label]}." for label in found.others)
    return Verdict("warn" if level == "unknown" else level, text)


def _verdicts(found: Comparison) -> Section:
    rows: list[list[Any]] = [
        [label, v.level, "; ".join(filter(None, (v.sentence, v.remedy)))]
        for label, v in found.verdicts.items()
    ]
    marks = {(i, 1): _MARKS[str(row[1])] for i, row in enumerate(rows)}
    table = Table(["method", "verdict", "why"], rows, marks=marks)  # type: ignore[arg-type]
    return Section("Verdicts", text=[f"Thresholds: {THRESHOLDS}."], tables=[table])


def _trust(found: Comparison) -> Section:
    """Parts 1 and 2: nothing else counts where these fail."""
    text = [f"The reference, {found.reference}: {found.trust}."]
    text += [f"{label}: {trust}." for label, trust in found.optimisers.items()]
    text += [
        f"{label} says: {message}."
        for label, p in found.posteriors.items()
        for message in p.messages
    ]
    histories = {
        label: p.history["elbo"].cpu().numpy()
        for label, p in found.posteriors.items()
        if "elbo" in p.history
    }
    pictures = []
    if histories:
        caption = "A curve that still rises at its end has not converged; larger is better."
        pictures.append(Picture(plots.elbo_curve(histories), caption, "ELBO against steps"))
    for label, posterior in found.posteriors.items():
        if posterior.kind == "chains" and posterior.chains > 1:
            name = _least_mixed(posterior.scalars())
            picture = plots.rank_histogram(posterior.scalars()[name], name=name)
            said = f"{label}: even ranks mean that the chains agree on {name}, their worst scalar."
            pictures.append(Picture(picture, said))
    heading = "Is the reference to be trusted, and did the optimisers settle?"
    return Section(heading, text=text, pictures=pictures)


def _marginals(found: Comparison, label: str) -> Section:
    rows = found.marginals[label]
    caption = (
        "In the reference's standard deviations; z and +- are Monte Carlo errors; the last "
        "number is the share of the reference within the central 90 % interval."
    )
    left = len(rows) - _SHOWN
    caption += f" {left} better ones are left out." if left > 0 else ""
    tables = [_margin_table(rows[:_SHOWN], caption)]
    if label in found.quantities:
        tables.append(_margin_table(found.quantities[label], "Your own quantities."))
    return Section(f"{label} against {found.reference}", tables=tables)


def _margin_table(rows: tuple[Marginal, ...], caption: str) -> Table:
    cells = [
        [r.name, r.shift, r.shift_z, r.ratio, r.ratio_error, r.w1, r.q5, r.q95, r.coverage, r.level]
        for r in rows
    ]
    heads = ["scalar", "mean shift / sd", "z", "sd ratio", "+-", "W1 / sd", "5 % quantile",
             "95 % quantile", "in 90 %", "verdict"]  # fmt: skip
    marks = {(i, 9): _MARKS[r.level] for i, r in enumerate(rows)}
    return Table(heads, cells, caption, marks)  # type: ignore[arg-type]


def _pictures(found: Comparison) -> Section:
    names = [row.name for row in next(iter(found.marginals.values()))]
    samples = {
        label: np.stack([p.scalars()[n].ravel() for n in names], -1)
        for label, p in found.posteriors.items()
        if p.kind != "point"
    }
    said = f"Curves that leave {found.reference}'s are wrong there, the worst scalar first."
    pictures = [Picture(plots.marginals(samples, names, found.reference), said)]
    if len(samples) > 1:
        widths = plots.interval_coverage(samples, found.reference, names)
        said = "A curve under the diagonal belongs to an interval that claims too much."
        pictures.append(Picture(widths, said, "Coverage of central intervals"))
    if len(samples) > 1 and len(names) > 1:
        pair = _worst_pair(found, names)
        said = (
            "The two scalars whose joint spread is farthest from the reference's."
            if pair is None
            else "The two scalars that weigh most in the worst direction of any method."
        )
        picture = plots.pair(samples, names, reference=found.reference, scalars=pair)
        pictures.append(Picture(picture, said))
    return Section("The worst margins, widths and pair", pictures=pictures)


def _worst_pair(found: Comparison, names: list[str]) -> tuple[str, str] | None:
    """The heaviest two scalars of the worst direction of any method."""
    worst = [j.worst for j in found.joints.values() if j.worst is not None]
    if not worst:
        return None
    direction = max(worst, key=lambda d: abs(math.log(max(d.ratio, 1e-300))))
    named = [name for name, _ in direction.weights if name in names][:2]
    return (named[0], named[1]) if len(named) == 2 else None


def _joint(found: Comparison) -> Section:
    text = []
    for label, joint in found.joints.items():
        text += [f"{label}: {line}." for line in joint_lines(joint)]
        text += [f"{label}: not known: {reason}." for reason in joint.missing]
    return Section("Jointly", text=text)


def _consequences(found: Comparison) -> Section:
    text, gaps = [], {}
    for label, consequence in found.consequences.items():
        text += [f"{label}: {line}." for line in consequence_lines(consequence)]
        text += [f"{label}: not known: {reason}." for reason in consequence.missing]
        for loo in consequence.loo:
            if loo.known:
                gaps.setdefault(loo.site, {})[label] = loo.pointwise
    pictures = [
        Picture(plots.loo_differences(of_site, f"Leave-one-out of {site}"))
        for site, of_site in gaps.items()
    ]
    return Section("Does it matter?", text=text, pictures=pictures)


def _repairs(found: Comparison) -> Section:
    rows: list[list[Any]] = [
        [label, a.how, a.verdict.level, a.before, a.after, a.cost, a.verdict.sentence]
        for label, attempts in found.repairs.items()
        for a in attempts
    ]
    heads = ["method", "repair", "verdict", "worst before", "after", "cost", "why"]
    marks = {(i, 2): _MARKS[str(row[2])] for i, row in enumerate(rows)}
    caption = (
        "The worst margin's distance before and after, where 1 fails; the cost of the method with "
        "its repair, in that of the method alone."
    )
    return Section("Repair", tables=[Table(heads, rows, caption, marks)])  # type: ignore[arg-type]


def _cost(found: Comparison) -> Section:
    numbers = {label: cost(p) for label, p in found.posteriors.items()}
    heads = ["method", *next(iter(numbers.values()))]
    rows = [[label, *row.values()] for label, row in numbers.items()]
    caption = (
        "Whole calls: recording, adaptation or optimisation, and sampling. ESS of approximations "
        "is that of their importance weights."
    )
    return Section("Cost", tables=[Table(heads, rows, caption)])


def _least_mixed(scalars: dict[str, np.ndarray]) -> str:
    from ppgen import diagnostics

    rhat = diagnostics.rhat(np.stack(list(scalars.values()), -1))
    worst = int(np.argmax(np.nan_to_num(rhat, nan=-math.inf)))
    return list(scalars)[worst]
