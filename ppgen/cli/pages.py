"""Pages that the commands write: a posterior, a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppgen import plots
from ppgen.inference.calibration import Calibration
from ppgen.likelihood import Likelihood
from ppgen.posterior import Posterior
from ppgen.report import Picture, Report, Section, Table, Verdict


def posterior_page(posterior: Posterior, story: str) -> Report:
    """The page of one fit: what it found and whether to trust it."""
    summary = posterior.summary()
    heads = ["scalar", "mean", "sd", "5 %", "median", "95 %", "MCSE", "bulk ESS", "tail ESS",
             "R-hat"]  # fmt: skip
    rows = [
        [r.name, r.mean, r.sd, r.q5, r.median, r.q95, r.mcse, r.ess_bulk, r.ess_tail, r.rhat]
        for r in summary.rows
    ]
    scalars = posterior.scalars()
    pictures = []
    if posterior.kind != "point":
        joint = np.stack([s.ravel() for s in scalars.values()], -1)
        pictures.append(
            Picture(plots.marginals({posterior.engine: joint}, list(scalars)), "The marginals.")
        )
    if posterior.kind == "chains":
        worst = max(summary.rows, key=lambda row: row.rhat if row.rhat == row.rhat else -1.0).name
        text = f"{worst}, the scalar that mixes worst: chains should be alike from left to right."
        pictures.append(Picture(plots.trace(scalars[worst], name=worst), text))
    if "elbo" in posterior.history:
        curve = plots.elbo_curve({posterior.engine: posterior.history["elbo"].cpu().numpy()})
        pictures.append(Picture(curve, "The ELBO in nats; larger is better."))
    facts = {name: str(value) for name, value in posterior.options.items()}
    return Report(
        title=f"{story}: {posterior.engine}",
        subtitle=summary.heading,
        verdict=Verdict("pass" if posterior.trusted else "fail", summary.heading),
        sections=[
            Section("Summary", tables=[Table(heads, rows)]),
            Section("Pictures", pictures=pictures),
        ],
        facts=facts,
    )


def calibration_page(found: Calibration) -> Report:
    """The page of a calibration: the picture, then every quantity, worst first."""
    heads = ["quantity", "p of evenness", "mean rank", "p of symmetry", "reading"]
    order = sorted(found.p, key=lambda name: found.p[name])
    rows = [
        [n, found.p[n], float(found.pit[n].mean()), found.bias[n], found.reading(n) or "even"]
        for n in order
    ]
    marks = {(i, 4): "bad" if n in found.flagged else "ok" for i, n in enumerate(order)}
    caption = (
        "Ranks of the true values are even where posteriors are right; symmetric about 1/2 where "
        "they are at least in the right place."
    )
    return Report(
        title=f"{found.story}: calibration of {found.engine}",
        subtitle=found.rests_on(),
        verdict=Verdict("pass" if found.passed else "fail", found.verdict()),
        sections=[
            Section("Ranks", pictures=[Picture(found.plot(), "Distribution functions of ranks.")]),
            Section("Quantities", tables=[Table(heads, rows, caption, marks)]),  # type: ignore[arg-type]
        ],
    )


class Curves(NamedTuple):
    """What the loss and the validation of each epoch are called on a run's page, and are."""

    loss: str = "loss"
    validation: str = "validation"
    text: str = "The loss of each epoch."


def run_page(
    title: str,
    history: Mapping[str, list[Any]],
    likelihood: Likelihood | None,
    pictures: list[Picture],
    facts: Mapping[str, Any],
    verdict: Verdict | None = None,
    more: Sequence[Section] = (),
    curves: Curves | None = None,
) -> Report:
    """The page of a training run."""
    curves = curves or Curves()
    text = [] if likelihood is None else [f"Held-out log-likelihood: {likelihood}."]
    lines = {
        name: [float("nan") if v is None else float(v) for v in history[key]]
        for key, name in (("loss", curves.loss), ("validation", curves.validation))
        if any(v is not None for v in history.get(key, ()))
    }
    if lines:
        curve = plots.loss_curve(lines, history.get("epoch"), unit="nats per example")
        pictures = [Picture(curve, curves.text), *pictures]
    return Report(
        title=title,
        verdict=verdict,
        sections=[Section("Result", text=text, pictures=pictures), *more],
        facts={k: str(v) for k, v in facts.items()},
    )


LIKELIHOOD_HEADS = [
    "model", "value or lower bound", "upper bound", "+- MC", "+- images", "to the best",
    "+- paired", "kind", "how", "seconds",
]  # fmt: skip


def likelihood_row(name: str, found: Likelihood, seconds: float, best: Likelihood) -> list[Any]:
    """A line of a leaderboard, in the columns of `LIKELIHOOD_HEADS`."""
    gap = (None, None) if found is best else found.minus(best)[:2]
    errors = found.lower_error, found.examples_error
    return [name, found.lower, found.upper, *errors, *gap, found.kind, found.method, seconds]
