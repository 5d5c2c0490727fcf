"""A run of many chains from a story to its posterior: what the engines `HMC` and `NUTS` share.

All chains begin where `hmc_starts` finds mass, dispersed, and share their adaptation: metric and
step size come from all of them together. Where more draws are all that is missing in the end, the
chains go on by themselves; where they mix but diverge at times, or few of them hardly move, they
begin again with half the step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from ppgen.arguments import require_between, require_whole
from ppgen.diagnostics import EBFMI_LIMIT, ESS_LIMIT, RHAT_LIMIT
from ppgen.inference.hmc import Info
from ppgen.inference.hmc_warmup import MetricName, Tuned, warm_up
from ppgen.inference.target import Target
from ppgen.posterior import Cost, Posterior
from ppgen.program import Program
from ppgen.progress import Interrupt, Progress, interruptible
from ppgen.types import Story

_MEMORY = 8e9  # bytes that draws and statistics may take
_FEWEST = 25  # draws of each chain where the warm-up has shown that there is no hope
_FUNNEL = (
    ": all through the warm-up chains stayed apart and trajectories diverged (a funnel, or "
    "components of a mixture in different orders)"
)
_LOOK = 10  # iterations between numbers beside the progress bar
_LONGER = 4  # times the draws that were asked for, at most, where nothing else is said
_RARE = 1e-3  # divergences a draw
_AT_TIMES = 1e-2  # likewise; more than that a smaller step does not mend
_STUCK = 0.5  # divergences a draw of a chain that hardly moves
_FEW_STUCK = 0.1  # share of the chains; of more, others would have to be in doubt too
_MIXING = 1.1  # R-hat of chains that see the same posterior
_SURE = 1.2  # times the draws that would do if estimates were exact


class Chains(Protocol):
    """Chains under way with frozen options, and all that they have drawn."""

    def go_on(self, draws: int) -> None:
        """Take `draws` more of each chain; fewer where somebody stops it."""
        ...

    def read(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Draws ``(chains, draws, D)`` and their statistics ``(chains, draws)``, ``lp`` one."""
        ...

    def messages(self, stats: dict[str, Tensor]) -> list[str]:
        """What a user should know of them besides what every run says, by their statistics."""
        ...


@dataclass(frozen=True)
class ManyChains(ABC):
    """Options and run of an engine of many chains; `HMC` and `NUTS` say what the options mean."""

    chains: int = 64
    draws: int = 200
    warmup: int = 400
    target_accept: float = 0.8
    metric: MetricName = "auto"
    max_draws: int | None = None

    def __post_init__(self) -> None:
        require_whole(self, chains=self.chains, draws=self.draws)
        require_whole(self, least=20, warmup=self.warmup)
        require_whole(self, max_draws=self._longest)
        if self._longest < self.draws:
            raise self._wrong("max_draws", f"at least draws={self.draws}")
        require_between(self, target_accept=self.target_accept)
        if self.metric not in ("auto", "diag", "dense"):
            raise self._wrong("metric", "'auto', 'diag' or 'dense'")

    def _wrong(self, name: str, expected: str) -> ValueError:
        value = getattr(self, name)
        return ValueError(f"{self._name}({name}=...) must be {expected}, got {value!r}")

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _longest(self) -> int:
        """The draws that chains may go on to."""
        return _LONGER * self.draws if self.max_draws is None else self.max_draws

    @property
    @abstractmethod
    def _leapfrogs(self) -> int:
        """Of the longest trajectory of the warm-up."""

    def _target(self, program: Program) -> Target:
        return Target(program)

    @abstractmethod
    def _chains(
        self, tuned: Tuned, target: Target, interrupt: Interrupt, progress: Progress
    ) -> Chains:
        """Chains that begin where the warm-up has ended."""

    def run(self, model: Story | Program, *args: Any, **kwargs: Any) -> Posterior:
        """Sample the posterior of a story with its data, or of a ready `Program`.

        Ctrl-C while draws are taken keeps those that every chain has. While they are taken again
        it keeps the new ones where they have converged or are as many, else the old ones.

        Raises:
            ValueError: where the draws would not fit into memory, or the story has no latent
                site or no starting point.
            KeyboardInterrupt: when stopped before the first draw.
        """
        program = model if isinstance(model, Program) else Program(model, *args, **kwargs)
        begin = program.now()
        most = min(self._longest, self._room(program))
        recorded = program.seconds_recording
        target = self._target(program)
        total = self.warmup + self.draws
        with (
            torch.no_grad(),
            interruptible() as interrupt,
            Progress(self._name, total) as progress,
        ):
            tuned = self._warm_up(target, interrupt, progress)
            chains = self._chains(tuned, target, interrupt, progress)
            recording = program.seconds_recording - recorded
            compiling = target.seconds_compiling
            middle = program.now()
            few = max(_FEWEST, self.draws // 8)
            chains.go_on(min(self.draws, few) if tuned.hopeless else self.draws)
            divergent: Posterior | None = None
            while True:
                cost = Cost(
                    recording=recording,
                    compiling=compiling,
                    adapting=max(0.0, middle - begin - recording - compiling),
                    sampling=program.now() - middle,
                    gradients=target.gradients,
                )
                try:
                    posterior = self._posterior(program, tuned, chains, cost, divergent)
                except KeyboardInterrupt:  # no draw yet
                    if divergent is None:
                        raise
                    return of_two_series(divergent, None)
                if interrupt:
                    return posterior if divergent is None else of_two_series(divergent, posterior)
                if divergent is None and diverged_at_times(posterior):
                    divergent = posterior
                    tuned = tuned._replace(step_size=tuned.step_size / 2)
                    chains = self._chains(tuned, target, interrupt, progress)
                    chains.go_on(self.draws)
                elif more := missing(posterior, most):
                    chains.go_on(more)
                else:
                    return posterior

    def _posterior(
        self,
        program: Program,
        tuned: Tuned,
        chains: Chains,
        cost: Cost,
        divergent: Posterior | None,
    ) -> Posterior:
        z, stats = chains.read()
        return Posterior.from_program(
            program,
            z,
            engine=self._name,
            kind="chains",
            options=asdict(self),
            messages=(*self._messages(tuned, stats, divergent), *chains.messages(stats)),
            log_density=stats["lp"],
            stats=stats,
            cost=cost,
        )

    def _warm_up(self, target: Target, interrupt: Interrupt, progress: Progress) -> Tuned:
        begun = [0]

        def advance(step_size: float, info: Info) -> bool:
            begun[0] += 1
            show(progress, begun[0], step_size, info.acceptance)
            return not interrupt

        tuned = warm_up(
            target.program.initial(self.chains),
            target,
            iterations=self.warmup,
            target_accept=self.target_accept,
            max_leapfrog=self._leapfrogs,
            metric=self.metric,
            draws=self.draws,
            canonical=target.program.canonical,
            advance=advance,
        )
        if interrupt:
            raise KeyboardInterrupt(f"{self._name} was stopped before its first draw")
        return tuned

    def _messages(
        self, tuned: Tuned, stats: dict[str, Tensor], divergent: Posterior | None
    ) -> list[str]:
        said, kept = [], stats["lp"].shape[1]
        if tuned.moved:
            said.append(
                f"{tuned.moved} of {self.chains} starts did not lead to where the mass is, and "
                "were moved there"
            )
        if kept < self.draws:
            why = _FUNNEL if tuned.hopeless else ""
            said.append(f"stopped after {kept} of {self.draws} draws{why}")
        elif kept > self.draws:
            said.append(f"{kept} draws of each chain: {self.draws} had not converged")
        if divergent is not None:
            count = int(divergent.stats["diverging"].sum())
            said.append(
                f"{count} of {divergent.count} transitions diverged: all draws were taken again, "
                "with half the step"
            )
        if bool(stats["diverging"].any()) and not tuned.hopeless:
            said.append(
                f"some trajectories diverged: raise target_accept={self.target_accept} towards 1; "
                "if they still do, there is a funnel"
            )
        return said

    def _room(self, program: Program) -> int:
        """Draws of each chain, with their statistics, that fit into memory."""
        if program.dim == 0:
            raise ValueError("the story has no latent site to sample: every site is observed")
        kept = program.anatomy.of_kind("latent", "deterministic").values()
        numbers = program.dim + 8 + sum(prod(site.shape) for site in kept)
        one = self.chains * numbers * torch.finfo(program.dtype).bits / 8
        size = self.draws * one
        if size > _MEMORY:
            raise ValueError(
                f"{self.chains} chains x {self.draws} draws would take {size / 1e9:.1f} GB, more "
                f"than {_MEMORY / 1e9:.0f} GB: ask for fewer draws or chains, or leave large "
                "pyro.deterministic sites out"
            )
        return int(_MEMORY / one)


def show(progress: Progress, t: int, step_size: float, acceptance: Tensor) -> None:
    """Report iteration `t`, now and then with the acceptance of the chains ``(C,)``."""
    if t % _LOOK:
        progress.advance()
    else:
        progress.advance(acceptance=float(acceptance.mean()), step_size=step_size)


def missing(posterior: Posterior, most: int) -> int:
    """Draws to add to each chain, or none: it has converged, or would not within `most`.

    Where chains mix, R-hat - 1 falls as 1 / N and the ESS grows as N. Divergences that are not rare
    say that they do not.
    """
    if posterior.converged:
        return 0
    found = posterior.diagnosis()
    kept = posterior.count // posterior.chains
    ess = min(found["ess_bulk"], found["ess_tail"])
    need = max((found["rhat"] - 1.0) / (RHAT_LIMIT - 1.0), ESS_LIMIT / ess) if ess > 0 else math.inf
    if not 1.0 < need <= most / kept or found["divergences"] > _RARE * posterior.count:
        return 0
    return min(math.ceil(kept * (_SURE * need - 1.0)), most - kept)


def of_two_series(divergent: Posterior, again: Posterior | None) -> Posterior:
    """What is kept where somebody has stopped chains that began again because some diverged."""
    if again is not None and (again.converged or again.count >= divergent.count):
        return again
    said = "stopped before as many draws were taken again, with half the step"
    return replace(divergent, messages=(*divergent.messages, said))


def diverged_at_times(posterior: Posterior) -> bool:
    """Whether chains mix but for divergences that a smaller step may mend.

    They may be those of a few chains that hardly move: where the step is too long for a narrow
    part of the posterior, a chain that begins there stays.
    """
    diverging = posterior.stats["diverging"].double().mean(1)
    free = diverging <= _STUCK
    if not bool(diverging.any()) or float(free.double().mean()) < 1.0 - _FEW_STUCK:
        return False
    if float(diverging[free].mean()) > _AT_TIMES:
        return False
    draws, stats = (
        {name: x[free] for name, x in each.items()} for each in (posterior.draws, posterior.stats)
    )
    found = replace(posterior, draws=draws, stats=stats).diagnosis()
    return found["rhat"] <= _MIXING and found.get("ebfmi", 1.0) >= EBFMI_LIMIT
