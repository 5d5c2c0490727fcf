"""Several inference methods on one story, each measured against a reference."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ppgen.checkpoint import write_atomically
from ppgen.inference.comparison.consequences import (
    Consequences,
    Quantity,
    consequences,
    of_quantities,
)
from ppgen.inference.comparison.joint import Joint, joint
from ppgen.inference.comparison.repairs import Judge, Repair, by_weights, refits
from ppgen.inference.comparison.trust import Trust, optimiser_trust, reference_trust
from ppgen.inference.declared import story_name
from ppgen.inference.fit import fit, fit_numbered
from ppgen.inference.label_switching import Numbered
from ppgen.inference.point import as_program
from ppgen.inference.verdict import (
    THRESHOLDS,
    Marginal,
    Verdict,
    marginals,
    no_verdict,
    reference_verdict,
    verdict,
)
from ppgen.inputs import slots
from ppgen.names import refuse_taken
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.progress import interruptible
from ppgen.report.plain import plain
from ppgen.types import Engine, Story


@dataclass(frozen=True)
class Comparison:
    """Posteriors of one story side by side, with the distance of each from the reference.

    Args:
        posteriors: by the label of the engine.
        reference: the label of the one that the others are measured against.
        marginals: by label, every scalar against the reference, worst first.
        verdicts: by label, what may be claimed.
        story: the story's name.
        trust: whether the reference can be relied on, and why.
        optimisers: by label, whether the optimiser settled; of engines that have one.
        joints: by label, what the margins do not show.
        consequences: by label, what follows for predictions and leave-one-out.
        quantities: by label, the user's own quantities against the reference.
        repairs: by label, what was tried on those that do not pass, cheapest first.
    """

    posteriors: dict[str, Posterior]
    reference: str
    marginals: dict[str, tuple[Marginal, ...]]
    verdicts: dict[str, Verdict]
    story: str
    trust: Trust
    optimisers: dict[str, Trust] = field(default_factory=dict)
    joints: dict[str, Joint] = field(default_factory=dict)
    consequences: dict[str, Consequences] = field(default_factory=dict)
    quantities: dict[str, tuple[Marginal, ...]] = field(default_factory=dict)
    repairs: dict[str, tuple[Repair, ...]] = field(default_factory=dict)

    def __getitem__(self, label: str) -> Posterior:
        return self.posteriors[label]

    @property
    def others(self) -> list[str]:
        """The labels that are measured."""
        return [label for label in self.posteriors if label != self.reference]

    def __str__(self) -> str:
        """The verdicts first, then what they rest on."""
        from ppgen.inference.compare_text import text

        return text(self)

    def to_json(self) -> dict[str, Any]:
        """All numbers and verdicts as plain data."""
        return plain(
            {
                "story": self.story,
                "reference": self.reference,
                "trust": self.trust,
                "thresholds": THRESHOLDS,
                "methods": {label: self._method(label) for label in self.posteriors},
            }
        )

    def _method(self, label: str) -> dict[str, Any]:
        posterior = self.posteriors[label]
        return {
            "verdict": self.verdicts[label],
            "converged": posterior.converged,
            "trusted": posterior.trusted,
            "messages": list(posterior.messages),
            "options": posterior.options,
            "cost": {**asdict(posterior.cost), "seconds": posterior.cost.seconds},
            "diagnosis": posterior.diagnosis(),
            "optimiser": self.optimisers.get(label),
            "marginals": self.marginals[label],
            "joint": self.joints.get(label),
            "consequences": self.consequences.get(label),
            "quantities": self.quantities.get(label),
            "repairs": [attempt.to_json() for attempt in self.repairs.get(label, ())],
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
        write_atomically(folder / "comparison.json", text.encode())
        report(self).save(folder / "report.html")
        return folder / "report.html"


def compare(
    model: Story,
    *args: Any,
    using: Mapping[str, Engine | Posterior],
    reference: str,
    quantities: Mapping[str, Quantity] | None = None,
    repair: bool = False,
    seed: int | None = 0,
    **kwargs: Any,
) -> Comparison:
    """Fit one story with several engines and measure each against the reference.

    Args:
        model: the story, any Pyro callable.
        args: its arguments: the data.
        using: label -> engine, or a posterior of this story that is there already.
        reference: the label of the engine to trust, usually a Markov chain's.
        quantities: name -> a function from sites ``(draws, *shape)`` to one value a draw, whose
            posterior is compared too.
        repair: where a method does not pass, run it in coordinates that are scaled and
            decorrelated, if the story's are not; fit richer approximations until one passes; and
            write hierarchies non-centred where nothing else helps, or where the reference has not
            converged. Where its chains differ by the numbers of components alone, all methods
            have their components in one order. Resampling by importance weights, which costs
            nothing, is tried always.
        seed: of each run.
        kwargs: the story's keyword arguments.

    The story is recorded once for all methods; the cost of each counts what it used of it. The
    reference is fitted first; after Ctrl-C those methods are compared that have been fitted.

    Raises:
        ValueError: where the story has parameters that an engine would train, so that the
            methods would not approximate the same posterior; or `reference` is not in `using`.
    """
    if not isinstance(using, Mapping):
        raise TypeError(
            f"using must be labels with engines, such as {{'HMC': HMC()}}, got {using!r}"
        )
    if reference not in using:
        raise ValueError(f"reference={reference!r} is not among the methods {list(using)}")
    refuse_taken(compare, model, args, seed)
    _refuse_trainable(model, args, kwargs)
    written = program = as_program(model, args, kwargs)
    posteriors: dict[str, Posterior] = {}

    def fitted(engine: Engine, *, reparametrise: Literal["auto"] | bool = False) -> Posterior:
        return fit(program.fork(), using=engine, seed=seed, reparametrise=reparametrise)

    numbered: Numbered | None = None
    with interruptible() as interrupt:
        for label in sorted(using, key=lambda label: label != reference):  # it comes first
            given = using[label]
            if isinstance(given, Posterior):
                posteriors[label] = (
                    given if numbered is None else numbered.renumbered(given, written)
                )
            elif label == reference:
                choice = "auto" if repair else False
                posteriors[label], numbered = fit_numbered(
                    program.fork(), (), {}, given, seed, choice
                )
                program = written if numbered is None else numbered.numbering(written)
            else:
                posteriors[label] = fitted(given)
            if label == reference:
                _refuse_point(label, posteriors[label])
            if interrupt:
                break
    posteriors = {label: posteriors[label] for label in using if label in posteriors}
    posteriors = _of_shared_sites(posteriors, program)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        found = comparison(
            posteriors, reference, story_name(model), program=program, quantities=quantities
        )
        if not (repair and found.trust.ok):
            return found
        judge = _judge(posteriors[reference], None, quantities or {})
        attempts = dict(found.repairs)
        for label in found.others:
            tried = attempts.get(label, ())
            engine, passes = using[label], found.verdicts[label].level == "pass"
            if passes or isinstance(engine, Posterior) or any(t.remedy for t in tried):
                continue
            rows = found.marginals[label]
            tried += tuple(refits(engine, posteriors[label], program, rows, judge, fitted))
            attempts[label] = tried
    return dataclasses.replace(
        found, repairs=attempts, verdicts=_with_remedies(found.verdicts, attempts)
    )


def _refuse_point(label: str, posterior: Posterior) -> None:
    if posterior.kind == "point":
        raise ValueError(
            f"reference={label!r} is a point ({posterior.engine}), which has no width to "
            "compare with: choose a method that gives draws, such as HMC()"
        )


def comparison(
    posteriors: Mapping[str, Posterior],
    reference: str,
    story: str = "story",
    *,
    program: Program | None = None,
    quantities: Mapping[str, Quantity] | None = None,
) -> Comparison:
    """Compare posteriors of one story that are there already.

    Args:
        posteriors: by label.
        reference: the label of the one to trust.
        story: its name.
        program: the story with its data, for scores, predictions and leave-one-out.
        quantities: name -> a function from sites to one value a draw.
    """
    truth = posteriors[reference]
    _refuse_point(reference, truth)
    rows = {label: marginals(p, truth) for label, p in posteriors.items()}
    trust = reference_trust(reference, posteriors, rows)
    if not trust.ok:  # a distance from what may be wrong neither passes nor fails
        rows = {n: tuple(dataclasses.replace(r, level="unknown") for r in rows[n]) for n in rows}
    others = [label for label in posteriors if label != reference]
    joints = {label: joint(posteriors[label], truth, program) for label in others}
    own = {label: of_quantities(posteriors[label], truth, quantities or {}) for label in others}
    verdicts = {reference: reference_verdict(trust)}
    repairs: dict[str, tuple[Repair, ...]] = {}
    for label in others:
        posterior = posteriors[label]
        if not trust.ok:
            verdicts[label] = no_verdict(truth)
            continue
        verdicts[label] = verdict(posterior, rows[label], joints[label], own[label])
        if verdicts[label].level != "pass":
            judge = _judge(truth, program, quantities or {})
            attempt = by_weights(posterior, rows[label], judge)
            repairs |= {} if attempt is None else {label: (attempt,)}
    settled = {label: optimiser_trust(p) for label, p in posteriors.items()}
    return Comparison(
        posteriors=dict(posteriors),
        reference=reference,
        marginals=rows,
        verdicts=_with_remedies({label: verdicts[label] for label in posteriors}, repairs),
        story=story,
        trust=trust,
        optimisers={label: found for label, found in settled.items() if found is not None},
        joints=joints,
        consequences={n: consequences(posteriors[n], truth, program) for n in others},
        quantities={label: found for label, found in own.items() if found},
        repairs=repairs,
    )


def _judge(truth: Posterior, program: Program | None, quantities: Mapping[str, Quantity]) -> Judge:
    """The margins and the verdict of any further posterior, by the same rules."""

    def judge(posterior: Posterior) -> tuple[tuple[Marginal, ...], Verdict]:
        rows = marginals(posterior, truth)
        own = of_quantities(posterior, truth, quantities)
        return rows, verdict(posterior, rows, joint(posterior, truth, program), own)

    return judge


def _with_remedies(
    verdicts: Mapping[str, Verdict], repairs: Mapping[str, tuple[Repair, ...]]
) -> dict[str, Verdict]:
    """The cheapest repair that passes, named in the verdict on what it repairs."""
    found = dict(verdicts)
    for label, attempts in repairs.items():
        passing = [a for a in attempts if a.remedy]
        if passing:
            cheapest = min(passing, key=lambda attempt: attempt.cost)
            found[label] = dataclasses.replace(found[label], remedy=cheapest.remedy)
    return found


def _of_shared_sites(posteriors: Mapping[str, Posterior], program: Program) -> dict[str, Posterior]:
    """Without the discrete sites that `Gibbs` draws and every other engine sums out.

    Deterministic sites that follow from these go too, where another engine lacks them.
    """
    everywhere = set.intersection(*(set(p.draws) for p in posteriors.values()))
    summed = program.anatomy.of_kind("enumerated")

    def shared(posterior: Posterior) -> Posterior:
        left = {n for n in posterior.deterministic if n not in everywhere} | summed.keys()
        kept = [name for name in posterior.draws if name not in left]
        return posterior if len(kept) == len(posterior.draws) else posterior.only(*kept)

    return {label: shared(posterior) for label, posterior in posteriors.items()}


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
