"""The comparison as a page: verdicts, marginals, the worst pair, ELBO curves, ranks, cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen import plots
from ppgen.inference.verdict import THRESHOLDS, Level
from ppgen.report import Picture, Report, Section, Table, Verdict

if TYPE_CHECKING:
    from ppgen.inference.compare import Comparison

_SHOWN = 25  # rows of each table of marginals
_MARKS = {"pass": "ok", "warn": "warn", "fail": "bad", "unknown": "warn"}
_ORDER: tuple[Level, ...] = ("pass", "warn", "unknown", "fail")


def report(found: Comparison) -> Report:
    """The page of a comparison."""
    others = [label for label in found.posteriors if label != found.reference]
    return Report(
        title=f"{found.story}: {', '.join(others)} against {found.reference}",
        subtitle="How far each method is from the reference posterior, worst first.",
        verdict=_overall(found),
        sections=sections(found),
    )


def sections(found: Comparison) -> list[Section]:
    """The parts of the page, to be put into a larger one as well."""
    others = [label for label in found.posteriors if label != found.reference]
    parts = [_verdicts(found), _cost(found)]
    parts += [_marginals(found, label) for label in others]
    parts.append(_pictures(found))
    histories = {
        label: p.history["elbo"].cpu().numpy()
        for label, p in found.posteriors.items()
        if "elbo" in p.history
    }
    if histories:
        text = "A curve that still rises at its end has not converged; larger is better."
        curve = Picture(plots.elbo_curve(histories), text, "ELBO against steps")
        parts.append(Section("Did the optimisation settle?", pictures=[curve]))
    return parts


def _overall(found: Comparison) -> Verdict:
    levels: list[Level] = [v.level for v in found.verdicts.values()]
    level = max(levels, key=_ORDER.index)
    text = " ".join(
        f"{label}: {v.sentence}." for label, v in found.verdicts.items() if label != found.reference
    )
    return Verdict("warn" if level == "unknown" else level, text)


def _verdicts(found: Comparison) -> Section:
    rows: list[list[Any]] = []
    for label, v in found.verdicts.items():
        rows.append([label, v.level, v.sentence])
        if label in found.repairs:
            mended = found.repairs[label].verdict
            rows.append([f"{label}, resampled by its weights", mended.level, mended.sentence])
    marks = {(i, 1): _MARKS[str(row[1])] for i, row in enumerate(rows)}
    table = Table(["method", "verdict", "why"], rows, marks=marks)  # type: ignore[arg-type]
    return Section("Verdicts", text=[f"Thresholds: {THRESHOLDS}."], tables=[table])


def _cost(found: Comparison) -> Section:
    numbers = {label: found.diagnosis_and_cost(label) for label in found.posteriors}
    heads = ["method", *next(iter(numbers.values()))]
    rows = [[label, *row.values()] for label, row in numbers.items()]
    caption = "Whole calls: recording, adaptation or optimisation, and sampling."
    table = Table(heads, rows, caption)
    notes = [
        f"{label}: {message}." for label, p in found.posteriors.items() for message in p.messages
    ]
    return Section("Diagnosis and cost", text=notes, tables=[table])


def _marginals(found: Comparison, label: str) -> Section:
    shown = found.marginals[label][:_SHOWN]
    rows = [[r.name, r.shift, r.shift_z, r.ratio, r.ratio_error, r.w1, r.level] for r in shown]
    marks = {(i, 6): _MARKS[r.level] for i, r in enumerate(shown)}
    heads = ["scalar", "mean shift / sd", "z", "sd ratio", "+-", "W1 / sd", "verdict"]
    left = len(found.marginals[label]) - len(shown)
    caption = "In the reference's standard deviations; z and +- are Monte Carlo errors."
    caption += f" {left} better ones are left out." if left else ""
    table = Table(heads, rows, caption, marks)  # type: ignore[arg-type]
    return Section(f"{label} against {found.reference}", tables=[table])


def _pictures(found: Comparison) -> Section:
    names = [row.name for row in next(iter(found.marginals.values()))]
    samples = {
        label: np.stack([p.scalars()[n].ravel() for n in names], -1)
        for label, p in found.posteriors.items()
        if p.kind != "point"
    }
    pictures = [
        Picture(
            plots.marginals(samples, names, found.reference),
            f"Curves that leave {found.reference}'s are wrong there, the worst scalar first.",
        )
    ]
    if len(samples) > 1 and len(names) > 1:
        text = "The two scalars whose joint spread is farthest from the reference's."
        pictures.append(Picture(plots.pair(samples, names, reference=found.reference), text))
    for label, posterior in found.posteriors.items():
        if posterior.kind == "chains" and posterior.chains > 1:
            name = _least_mixed(posterior.scalars())
            picture = plots.rank_histogram(posterior.scalars()[name], name=name)
            text = f"{label}: even ranks mean that the chains agree on {name}, their worst scalar."
            pictures.append(Picture(picture, text))
    return Section("Pictures", pictures=pictures)


def _least_mixed(scalars: dict[str, np.ndarray]) -> str:
    from ppgen import diagnostics

    rhat = diagnostics.rhat(np.stack(list(scalars.values()), -1))
    worst = int(np.argmax(np.nan_to_num(rhat, nan=-math.inf)))
    return list(scalars)[worst]
