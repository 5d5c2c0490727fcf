"""Simulation-based calibration: is what an engine says true as often as it says?

Parameters are drawn from the prior, data from the parameters, and the engine fits the data. If its
posteriors are right, the rank of the true value among the posterior draws is uniform.

References:
    | Validating Bayesian Inference Algorithms with Simulation-Based Calibration
    | (Talts et al., 2018) | https://arxiv.org/abs/1804.06788
    | Simulation-based calibration checking for Bayesian computation: The choice of test quantities
    | shapes sensitivity (Modrák et al., 2023) | https://arxiv.org/abs/2211.02383
"""

from __future__ import annotations

import math
import reprlib
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ppgen.arguments import require_between, require_whole
from ppgen.inference.calibration import Calibration
from ppgen.inference.declared import story_name
from ppgen.inference.fit import fit
from ppgen.inference.point import as_program
from ppgen.names import refuse_taken
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.progress import Progress, interruptible, quiet
from ppgen.replication import Simulator
from ppgen.types import Engine, Exchangeable, Story

LIKELIHOOD = "log likelihood"  # the quantity that notices when the data are not used


def calibrate(
    model: Story | Program,
    engine: Engine,
    *args: Any,
    simulations: int = 200,
    draws: int = 100,
    level: float = 0.01,
    seed: int | None = 0,
    **kwargs: Any,
) -> Calibration:
    """Check an engine on data that the story itself has drawn, whose true parameters are known.

    Each scalar, and the log likelihood, gives one rank a simulation, among draws thinned until
    they are nearly independent. The story is recorded once, and replayed for all data sets.

    Args:
        model: the story; its priors have to be proper.
        engine: the engine with its options.
        args: the story's arguments. Observed data are replaced by simulated ones of the same
            shape, all others (predictors, standard errors) are used as they are.
        simulations: data sets.
        draws: posterior draws to rank among, at most.
        level: the chance that a correct engine is flagged, all quantities together.
        seed: of the whole; None continues from the caller's random state.
        kwargs: the story's keyword arguments.

    Raises:
        TypeError: where `engine` is none.
        ValueError: for flat priors, a ``pyro.factor``, or an engine that gives a single point.

    Example:
        >>> import torch
        >>> from ppgen.inference import Exact
        >>> from ppgen.models import NormalNormal
        >>> with quiet():
        ...     found = calibrate(NormalNormal().model, Exact(100), torch.zeros(5), simulations=50)
        >>> found.passed
        True
    """
    refuse_taken(calibrate, model, args, seed)
    return calibrated(
        (model, args, kwargs),
        engine,
        lambda program: (Simulator(program), "prior"),
        simulations,
        draws,
        level,
        seed,
    )


def calibrated(
    given: tuple[Story | Program, tuple[Any, ...], dict[str, Any]],
    engine: Engine,
    source: Callable[[Program], tuple[Source, str]],
    simulations: int,
    draws: int,
    level: float,
    seed: int | None,
) -> Calibration:
    """Simulate, fit and rank: how every calibration ends.

    Args:
        given: the story, its arguments and keyword arguments.
        engine: the engine with its options.
        source: from the program to where true values come from, and how to call that.
        simulations: data sets.
        draws: posterior draws to rank among, at most.
        level: the chance that a correct engine is flagged.
        seed: of the whole.
    """
    check(engine, simulations, draws, level)
    begin = time.perf_counter()
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        program = as_program(*given)
        simulator, around = source(program)
        found = simulate(program, simulator, engine, simulations, draws)
    return Calibration(
        story=story_name(program),
        engine=type(engine).__name__,
        level=level,
        seconds=time.perf_counter() - begin,
        around=around,
        **found,
    )


class Source(Protocol):
    """Where true parameters and data come from."""

    def draw(self) -> dict[str, Tensor]:
        """Every site of the story, true values and simulated data."""
        ...

    def with_data(self, drawn: dict[str, Tensor]) -> Program:
        """The story whose posterior, given these data, the true values are a draw from."""
        ...


def check(engine: Engine, simulations: int, draws: int, level: float) -> None:
    """Refuse options that no calibration can use.

    Raises:
        TypeError: where `engine` is none.
        ValueError: naming the option.
    """
    if not callable(getattr(engine, "run", None)) or isinstance(engine, type):
        raise TypeError(
            "the second argument is an engine with its options, as in calibrate(story, HMC(), x); "
            f"got {reprlib.repr(engine)}"
        )
    require_whole("calibrate", least=10, simulations=simulations)
    require_whole("calibrate", draws=draws)
    require_between("calibrate", level=level)


def simulate(
    program: Program, simulator: Source, engine: Engine, simulations: int, draws: int
) -> dict[str, Any]:
    """Ranks of all simulations, and what went wrong on the way."""
    rows: list[dict[str, float]] = []
    independent: list[int] = []
    failures: list[str] = []
    unconverged, kind = 0, "chains"
    with interruptible() as interrupt, Progress("calibrate", simulations) as progress:
        for _ in range(simulations):
            drawn = simulator.draw()
            try:
                with quiet():
                    replicate = simulator.with_data(drawn)
                    # every engine of ppgen takes a program in the place of a story
                    posterior = fit(replicate, using=engine, seed=None)  # type: ignore[arg-type]
            except (ValueError, ArithmeticError) as error:
                failures.append(str(error))
                continue
            finally:
                progress.advance()
            if posterior.kind == "point":
                raise ValueError(
                    f"{posterior.engine} gives a single point, among which nothing has a rank: "
                    "calibrate an engine that gives draws"
                )
            unconverged, kind = unconverged + (not posterior.converged), posterior.kind
            count = _independent(posterior, draws)
            rows.append(_ranks(program, replicate, posterior, drawn, count, draws))
            independent.append(count)
            if interrupt:
                break
    if not rows:
        raise ValueError(f"{type(engine).__name__} failed on all data sets: {failures[:1]}")
    return {
        "pit": {name: np.array([row[name] for row in rows]) for name in rows[0]},
        "independent": np.array(independent),
        "kind": kind,
        "unconverged": unconverged,
        "failures": tuple(failures),
    }


def _independent(posterior: Posterior, draws: int) -> int:
    """How many draws are worth as many independent ones."""
    if posterior.kind == "independent":
        return min(draws, posterior.count)
    found = posterior.diagnosis()
    ess = [found[name] for name in ("ess_bulk", "ess_tail") if math.isfinite(found[name])]
    return max(1, min(draws, posterior.count, *(int(e) for e in ess)))


def _ranks(
    program: Program,
    replicate: Program,
    posterior: Posterior,
    drawn: dict[str, Tensor],
    count: int,
    draws: int,
) -> dict[str, float]:
    """The rank of each true scalar among `count` draws, as a number in (0, 1)."""
    names = [*program.sites, *program.anatomy.of_kind("deterministic")]
    names = [n for n in names if n in drawn and n in posterior]
    values = {n: posterior.draws[n].flatten(0, 1) for n in names}
    truth = {n: drawn[n].to(values[n]) for n in names}
    story = getattr(program.model, "__self__", None)
    if isinstance(story, Exchangeable):  # components have no numbers: compare in one order
        values, truth = story.canonical(values), story.canonical(truth)
    # along a chain, then the next: neighbours are the most alike
    some = _evenly(len(values[names[0]]), count)
    found: dict[str, float] = {}
    for name in names:
        scalars = values[name][some].reshape(count, -1)
        flat = truth[name].reshape(-1)
        for k, index in enumerate(np.ndindex(*drawn[name].shape)):
            suffix = f"[{','.join(map(str, index))}]" if index else ""
            found[name + suffix] = _pit(scalars[:, k], flat[k])
    if posterior.unconstrained is not None:
        z = posterior.unconstrained.flatten(0, 1)
        # as many rows in every simulation, so that one recording serves all
        rows = z[_evenly(len(z), draws)]
        true = replicate.unconstrain({n: drawn[n] for n in program.sites})
        terms = replicate.log_likelihood(torch.cat([rows, true[None].to(rows)]))
        total = sum(term.reshape(len(term), -1).sum(1) for term in terms.values())
        found[LIKELIHOOD] = _pit(total[:-1][_evenly(draws, count)], total[-1])  # type: ignore[index]
    return found


def _evenly(size: int, count: int) -> Tensor:
    return torch.linspace(0, size - 1, count).round().long()


def _pit(draws: Tensor, truth: Tensor) -> float:
    """The rank with ties broken by chance, spread over its step: uniform, whatever the count."""
    below, equal = float((draws < truth).sum()), float((draws == truth).sum())
    return (below + float(torch.rand(())) * (equal + 1)) / (len(draws) + 1)
