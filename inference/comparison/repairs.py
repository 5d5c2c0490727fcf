"""What mends an approximation that does not pass, and what it gains, cheapest first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ppgen.inference.cavi import CAVI
from ppgen.inference.dadvi import DADVI
from ppgen.inference.decorrelate import along_axes, decorrelated
from ppgen.inference.flow_guides import flow_guide
from ppgen.inference.guides import full_rank_guide
from ppgen.inference.hierarchies import hierarchies
from ppgen.inference.laplace import Laplace
from ppgen.inference.pathfinder_engine import Pathfinder
from ppgen.inference.psis import repair
from ppgen.inference.verdict import Marginal, Verdict
from ppgen.inference.vi import VI
from ppgen.inference.vi_guides import describe
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.report.plain import plain
from ppgen.types import Engine

BY_WEIGHTS = "resampled by its weights"
NON_CENTRED = "the hierarchy written non-centred"
DECORRELATED = "a run in scaled and decorrelated coordinates"

Judge = Callable[[Posterior], tuple[tuple[Marginal, ...], Verdict]]
"""The margins of a posterior against the reference, and what follows."""


@dataclass(frozen=True)
class Repair:
    """One attempt, against the same reference.

    Args:
        how: what was done.
        posterior: what came of it.
        marginals: its distance from the reference; none where it cannot be trusted.
        verdict: on it.
        cost: seconds of the method with its repair, in those of the method alone.
        before: the worst margin's distance before, where 1 fails.
        after: the same afterwards; NaN where it cannot be trusted.
    """

    how: str
    posterior: Posterior
    marginals: tuple[Marginal, ...]
    verdict: Verdict
    cost: float
    before: float
    after: float

    def __str__(self) -> str:
        gain = ""
        if self.marginals:
            gain = (
                f" (worst margin {self.before:.2f} -> {self.after:.2f} of what fails, "
                f"{self.cost:.1f} x the cost, {self.posterior.count:,} draws)"
            )
        return f"{self.how}: {self.verdict}{gain}"

    @property
    def remedy(self) -> str:
        """The sentence for the verdict on the method that it repairs."""
        if self.verdict.level != "pass":
            return ""
        return f"{self.how} repairs it at {self.cost:.1f} times the cost"

    def to_json(self) -> dict[str, Any]:
        named = ("how", "verdict", "cost", "before", "after", "marginals")
        return plain({n: getattr(self, n) for n in named} | {"draws": self.posterior.count})


def by_weights(posterior: Posterior, rows: tuple[Marginal, ...], judge: Judge) -> Repair | None:
    """Importance resampling, where there is anything to resample by; it costs nothing."""
    if posterior.kind != "independent" or posterior.log_weights is None:
        return None
    try:
        better = repair(posterior)
    except ValueError:  # resampled already, or no weight in any draw
        return None
    if posterior.converged and not better.converged:
        said = Verdict("fail", f"no repair: {better.messages[-1]}")
        return Repair(BY_WEIGHTS, better, (), said, 1.0, _worst(rows), float("nan"))
    return judged(BY_WEIGHTS, better, posterior, rows, judge, extra=0.0)


class Fit(Protocol):
    """The same story with another engine, or in other coordinates."""

    def __call__(self, engine: Engine, *, reparametrise: bool = False) -> Posterior: ...


def refits(
    engine: Engine,
    posterior: Posterior,
    program: Program,
    rows: tuple[Marginal, ...],
    judge: Judge,
    fit: Fit,
) -> Iterator[Repair]:
    """The same method in better coordinates, then richer ones, up to the first that passes.

    Args:
        engine: of the method to repair.
        posterior: what it gave.
        program: the story with its data.
        rows: its margins.
        judge: of posteriors.
        fit: the same story by another engine, or in other coordinates.
    """
    for how, run in _steps(engine, program, fit):
        try:
            better = run()
        except ValueError as error:
            said = Verdict("fail", f"no repair: {error}")
            yield Repair(how, posterior, (), said, float("nan"), _worst(rows), float("nan"))
            continue
        attempt = judged(how, better, posterior, rows, judge, extra=better.cost.seconds)
        yield attempt
        if attempt.verdict.level == "pass":
            return


def _steps(
    engine: Engine, program: Program, fit: Fit
) -> Iterator[tuple[str, Callable[[], Posterior]]]:
    """Names and runs. Coordinates first for what works along axes, hierarchies last."""
    tiers = bool(hierarchies(program))
    if not tiers and along_axes(engine) and decorrelated(program) is not None:
        yield DECORRELATED, partial(fit, engine, reparametrise=True)
    for how, richer in ladder(engine):
        yield how, partial(fit, richer)
    if tiers:
        yield NON_CENTRED, partial(fit, engine, reparametrise=True)


def judged(
    how: str,
    better: Posterior,
    posterior: Posterior,
    rows: tuple[Marginal, ...],
    judge: Judge,
    extra: float,
) -> Repair:
    """An attempt that took `extra` seconds beside those of the method."""
    after, verdict = judge(better)
    cost = 1.0 + extra / max(posterior.cost.seconds, 1e-3)
    return Repair(how, better, after, verdict, cost, _worst(rows), _worst(after))


def ladder(engine: Engine) -> tuple[tuple[str, Engine], ...]:
    """Engines that represent more than this one, the cheapest first."""
    flow = ("a flow guide", _vi(engine, flow_guide()))
    full_rank = ("a full-rank guide", _vi(engine, full_rank_guide()))
    response = ("linear response", DADVI())
    if isinstance(engine, VI):
        guide = describe(engine.guide)
        if guide == "mean-field":
            return (response, full_rank, flow)
        if guide.startswith("flow"):
            return ()
        return (flow,) if guide == "full-rank" else (full_rank, flow)
    if isinstance(engine, DADVI):
        return (full_rank, flow) if engine.linear_response else (response, full_rank, flow)
    if isinstance(engine, CAVI | Laplace | Pathfinder):
        return (full_rank, flow)
    return ()


def _vi(engine: Engine, guide: Any) -> VI:
    """VI with another guide and that guide's own learning rate."""
    base = engine if isinstance(engine, VI) else VI()
    return dataclasses.replace(base, guide=guide, learning_rate=None)


def _worst(rows: tuple[Marginal, ...]) -> float:
    return max((row.badness for row in rows), default=float("nan"))
