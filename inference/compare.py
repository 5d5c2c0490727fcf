"""Several inference methods on one story, each measured against a reference."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ppgen.inference.declared import story_name
from ppgen.inference.fit import fit
from ppgen.inference.psis import repair
from ppgen.inference.verdict import THRESHOLDS, Marginal, Verdict, marginals, verdict
from ppgen.inputs import slots
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.progress import interruptible
from ppgen.summary import columns, json_ready
from ppgen.types import Engine, Story

_SHOWN = 6  # scalars of each engine in the printed table, worst first


@dataclass(frozen=True)
class Repair:
    """An approximation resampled by its importance weights, against the same reference."""

    posterior: Posterior
    marginals: tuple[Marginal, ...]  # none where the weights are not to be trusted
    verdict: Verdict

    def __str__(self) -> str:
        left = f" ({self.posterior.count:,} draws left)" if self.marginals else ""
        return f"{self.verdict}{left}"

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": asdict(self.verdict),
            "draws": self.posterior.count,
            "marginals": [json_ready(asdict(row)) for row in self.marginals],
        }


@dataclass(frozen=True)
class Comparison:
    """Posteriors of one story side by side, with the distance of each from the reference.

    Args:
        posteriors: by the label of the engine.
        reference: the label of the one that the others are measured against.
        marginals: by label, every scalar against the reference, worst first.
        verdicts: by label, what may be claimed.
        story: the story's name.
        repairs: by label, what resampling by importance weights makes of those approximations
            that do not pass.
    """

    posteriors: dict[str, Posterior]
    reference: str
    marginals: dict[str, tuple[Marginal, ...]]
    verdicts: dict[str, Verdict]
    story: str
    repairs: dict[str, Repair] = field(default_factory=dict)

    def __getitem__(self, label: str) -> Posterior:
        return self.posteriors[label]

    def __str__(self) -> str:
        """Costs and diagnoses, the worst scalars of each method, verdicts, thresholds."""
        table = {label: self.diagnosis_and_cost(label) for label in self.posteriors}
        cells = [["method", *next(iter(table.values()))]]
        cells += [[label, *(_cell(*item) for item in row.items())] for label, row in table.items()]
        parts = [f"{self.story}: reference {self.reference}", columns(cells)]
        for label, rows in self.marginals.items():
            if label != self.reference:
                table = [["  scalar", "shift/sd", "z", "sd ratio", "+-", "W1/sd", ""]]
                table += [
                    [
                        f"  {r.name}",
                        *map(_figure, (r.shift, r.shift_z, r.ratio, r.ratio_error, r.w1)),
                        r.level,
                    ]
                    for r in rows[:_SHOWN]
                ]
                left = len(rows) - _SHOWN
                note = f" (worst {_SHOWN} of {len(rows)})" if left > 0 else ""
                parts.append(
                    f"{label} against {self.reference}, worst first{note}\n" + columns(table)
                )
        verdicts = []
        for label in self.posteriors:
            verdicts.append(f"{label}: {self.verdicts[label]}")
            if label in self.repairs:
                verdicts.append(f"  resampled by its weights: {self.repairs[label]}")
        return "\n\n".join([*parts, "\n".join(verdicts), f"Thresholds: {THRESHOLDS}."])

    def diagnosis_and_cost(self, label: str) -> dict[str, float | int | str | None]:
        """What one method cost and how it looks by itself; None where it does not apply."""
        posterior = self.posteriors[label]
        found = posterior.diagnosis()
        ess = [found[name] for name in ("ess_bulk", "ess_tail") if name in found]
        return {
            "seconds": posterior.cost.seconds,
            "gradients": posterior.cost.gradients,
            "draws": posterior.count,
            "R-hat": found.get("rhat"),
            "ESS": round(min(ess)) if ess and all(map(math.isfinite, ess)) else None,
            "divergences": int(found["divergences"]) if "divergences" in found else None,
            "E-BFMI": found.get("ebfmi"),
            "ELBO": found.get("elbo"),
            "k-hat": found.get("khat"),
            "IS-ESS/S": found.get("relative_is_ess"),
            "converged": "yes" if posterior.converged else "NO",
        }

    def to_json(self) -> dict[str, Any]:
        """All numbers and verdicts as plain data."""
        return {
            "story": self.story,
            "reference": self.reference,
            "thresholds": THRESHOLDS,
            "methods": {
                label: {
                    "verdict": asdict(self.verdicts[label]),
                    "converged": posterior.converged,
                    "messages": list(posterior.messages),
                    "options": posterior.options,
                    "cost": {**asdict(posterior.cost), "seconds": posterior.cost.seconds},
                    "diagnosis": json_ready(posterior.diagnosis()),
                    "marginals": [json_ready(asdict(row)) for row in self.marginals[label]],
                    "repaired": self.repairs[label].to_json() if label in self.repairs else None,
                }
                for label, posterior in self.posteriors.items()
            },
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``report.html``, ``comparison.json`` and the draws into `folder`.

        Returns:
            The path of the report.
        """
        from ppgen.inference.compare_report import report

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for number, (label, posterior) in enumerate(self.posteriors.items()):
            posterior.save(folder / "draws" / f"{number}-{_file_name(label)}")
        text = json.dumps(self.to_json(), indent=1, default=str, allow_nan=False)
        temporary = folder / ".comparison.json.tmp"
        temporary.write_text(text)
        os.replace(temporary, folder / "comparison.json")
        report(self).save(folder / "report.html")
        return folder / "report.html"


def compare(
    model: Story,
    *args: Any,
    using: Mapping[str, Engine],
    reference: str,
    seed: int | None = 0,
    **kwargs: Any,
) -> Comparison:
    """Fit one story with several engines and measure each against the reference.

    Args:
        model: the story, any Pyro callable.
        args: its arguments: the data.
        using: label -> engine.
        reference: the label of the engine to trust, usually a Markov chain's.
        seed: of each run.
        kwargs: the story's keyword arguments.

    After Ctrl-C those methods are compared that have been fitted, if the reference is among them.

    Raises:
        ValueError: where the story has parameters that an engine would train, so that the
            methods would not approximate the same posterior; or `reference` is not in `using`.
    """
    if reference not in using:
        raise ValueError(f"reference={reference!r} is not among the methods {list(using)}")
    _refuse_trainable(model, args, kwargs)
    posteriors = {}
    with interruptible() as interrupt:
        for label, engine in using.items():
            posteriors[label] = fit(model, *args, using=engine, seed=seed, **kwargs)
            if interrupt:
                break
    if reference not in posteriors:
        raise KeyboardInterrupt("the comparison was stopped before its reference was fitted")
    return comparison(posteriors, reference, story_name(model))


def comparison(
    posteriors: Mapping[str, Posterior], reference: str, story: str = "story"
) -> Comparison:
    """Compare posteriors of one story that are there already."""
    truth = posteriors[reference]
    rows = {label: marginals(p, truth) for label, p in posteriors.items()}
    verdicts = {
        label: verdict(p, truth, rows[label], is_reference=label == reference)
        for label, p in posteriors.items()
    }
    repairs = {}
    for label, posterior in posteriors.items():
        judged = label != reference and truth.converged and verdicts[label].level != "pass"
        if judged and (found := _repaired(posterior, truth)) is not None:
            repairs[label] = found
    return Comparison(dict(posteriors), reference, rows, verdicts, story, repairs)


def _repaired(posterior: Posterior, truth: Posterior) -> Repair | None:
    """The gain of importance resampling, where there is anything to resample by."""
    if posterior.kind != "independent" or posterior.log_weights is None:
        return None
    try:
        better = repair(posterior)
    except ValueError:  # resampled already, or no weight in any draw
        return None
    if posterior.converged and not better.converged:
        return Repair(better, (), Verdict("fail", f"no repair: {better.messages[-1]}"))
    rows = marginals(better, truth)
    return Repair(better, rows, verdict(better, truth, rows, is_reference=False))


def _refuse_trainable(model: Story, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if isinstance(model, Program):
        return
    trainable = [
        t
        for _, t in slots(model, args, kwargs)
        if isinstance(t, torch.nn.Parameter) and t.requires_grad
    ]
    if trainable:
        raise ValueError(
            f"the story has {sum(t.numel() for t in {id(t): t for t in trainable}.values()):,} "
            "trainable parameters, so that each method could fit another model: freeze them with "
            "requires_grad_(False) first, or give them priors"
        )


def _file_name(label: str) -> str:
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in label)
    return safe.lstrip(".") or "method"


def _cell(name: str, value: float | str | None) -> str:
    if isinstance(value, float):
        return _figure(value, {"seconds": 1, "R-hat": 3}.get(name, 2))
    return "-" if value is None else value if isinstance(value, str) else f"{value:,}"


def _figure(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"
