"""HMC: the default Markov chain Monte Carlo engine, many chains on the recorded program."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.inference import chees
from ppgen.inference.compiled_trajectory import CompiledTarget
from ppgen.inference.going_on import length, longest, missing
from ppgen.inference.hmc import Info, State, step
from ppgen.inference.hmc_warmup import JITTER, MetricName, Tuned, warm_up
from ppgen.inference.target import Target
from ppgen.posterior import Cost, Posterior
from ppgen.program import Program
from ppgen.progress import Interrupt, Progress, interruptible
from ppgen.types import Story

_MEMORY = 8e9  # bytes that draws and statistics may take
_FEWEST = 25  # draws of each chain where the warm-up has shown that there is no hope
_FUNNEL = ": all through the warm-up chains stayed apart and trajectories diverged (a funnel)"
_LOOK = 10  # iterations between numbers beside the progress bar


@dataclass(frozen=True)
class HMC:
    """Many-chain Hamiltonian Monte Carlo; nothing to tune by hand.

    Starts are drawn from normals that Pathfinder finds; metric, step size and trajectory length
    (ChEES) are adapted from all chains together, and frozen before the first draw.

    Args:
        chains: run in one batch; 64 cost little more than one.
        draws: kept of each chain. Where chains mix slowly, several transitions make one draw.
        warmup: iterations of adaptation at most, discarded; fewer where nothing changes any more.
        target_accept: for the harmonic mean of the acceptance over chains; raise it towards 1
            against divergences.
        max_leapfrog: the longest trajectory, in gradients.
        metric: ``"diag"``, ``"dense"``, or ``"auto"``: dense where parameters are strongly
            correlated (up to 200 dimensions).
        compile: hand whole trajectories to ``torch.compile``: some 10 s once, then steps that are
            several times as fast. It pays for long runs.
        max_draws: where R-hat or ESS do not hold after `draws`, sampling goes on until they do, if
            that takes at most so many; four times `draws` when None, never more if equal to it.

    References:
        | An adaptive MCMC scheme for setting trajectory lengths in Hamiltonian Monte Carlo
          (Hoffman, Radul & Sountsov, 2021) | https://proceedings.mlr.press/v130/hoffman21a.html
    """

    chains: int = 64
    draws: int = 200
    warmup: int = 400
    target_accept: float = 0.8
    max_leapfrog: int = 256
    metric: MetricName = "auto"
    compile: bool = False
    max_draws: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("chains", 1), ("draws", 1), ("warmup", 20), ("max_leapfrog", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"HMC({name}=...) must be a whole number of at least {least}, got {value!r}"
                )
        longest(self.draws, self.max_draws, "HMC")
        if not 0.0 < self.target_accept < 1.0:
            raise ValueError(
                f"HMC(target_accept=...) must lie between 0 and 1, got {self.target_accept!r}"
            )
        if self.metric not in ("auto", "diag", "dense"):
            raise ValueError(
                f"HMC(metric=...) must be 'auto', 'diag' or 'dense', got {self.metric!r}"
            )

    def run(self, model: Story | Program, *args: Any, **kwargs: Any) -> Posterior:
        """Sample the posterior of a story with its data, or of a ready `Program`.

        Ctrl-C while draws are taken keeps those that there are.

        Raises:
            ValueError: where the draws would not fit into memory, or the story has no latent
                site or no starting point.
            KeyboardInterrupt: when stopped before the first draw.
        """
        begin = time.perf_counter()
        program = model if isinstance(model, Program) else Program(model, *args, **kwargs)
        self._check_size(program)
        recorded = program.seconds_recording
        target = CompiledTarget(program) if self.compile else Target(program)
        total = self.warmup + self.draws
        with torch.no_grad(), interruptible() as interrupt, Progress("HMC", total) as progress:
            tuned = self._warm_up(target, interrupt, progress)
            recording = program.seconds_recording - recorded
            compiling = target.seconds_compiling if isinstance(target, CompiledTarget) else 0.0
            middle = time.perf_counter()
            chain = _Chain(tuned, target, self.max_leapfrog, interrupt, progress)
            few = max(_FEWEST, self.draws // 8)
            chain.go_on(min(self.draws, few) if tuned.hopeless else self.draws)
            room = int(_MEMORY / self._bytes(program))
            most = min(longest(self.draws, self.max_draws, "HMC"), room)
            while True:
                cost = Cost(
                    recording=recording,
                    compiling=compiling,
                    adapting=max(0.0, middle - begin - recording - compiling),
                    sampling=time.perf_counter() - middle,
                    gradients=target.gradients,
                )
                posterior = self._posterior(program, chain, cost)
                more = 0 if interrupt else missing(posterior, most)
                if not more:
                    return posterior
                chain.go_on(more)

    def _posterior(self, program: Program, chain: _Chain, cost: Cost) -> Posterior:
        z, stats = chain.read()
        return Posterior.from_program(
            program,
            z,
            engine="HMC",
            kind="chains",
            options=asdict(self),
            messages=self._messages(chain.tuned, z.shape[1]),
            log_density=stats["lp"],
            stats=stats,
            cost=cost,
        )

    def _warm_up(self, target: Target, interrupt: Interrupt, progress: Progress) -> Tuned:
        begun = [0]

        def advance(step_size: float, info: Info) -> bool:
            begun[0] += 1
            _show(progress, begun[0], step_size, info)
            return not interrupt

        tuned = warm_up(
            target.program.initial(self.chains),
            target,
            iterations=self.warmup,
            target_accept=self.target_accept,
            max_leapfrog=self.max_leapfrog,
            metric=self.metric,
            draws=self.draws,
            advance=advance,
        )
        if interrupt:
            raise KeyboardInterrupt("HMC was stopped before its first draw")
        return tuned

    def _messages(self, tuned: Tuned, kept: int) -> tuple[str, ...]:
        said = []
        if tuned.moved:
            said.append(
                f"{tuned.moved} of {self.chains} starts did not lead to where the mass is, and "
                "were moved there"
            )
        if tuned.thin > 1:
            said.append(f"{tuned.thin} transitions to a draw")
        said += length(kept, self.draws, _FUNNEL if tuned.hopeless else "")
        if round(0.75 * tuned.trajectory / tuned.step_size) > self.max_leapfrog:
            said.append(
                f"trajectories need more than max_leapfrog={self.max_leapfrog} steps: "
                "parameters of very different scales, or a funnel"
            )
        return tuple(said)

    def _check_size(self, program: Program) -> None:
        if program.dim == 0:
            raise ValueError("the story has no latent site to sample: every site is observed")
        size = self.draws * self._bytes(program)
        if size > _MEMORY:
            raise ValueError(
                f"{self.chains} chains x {self.draws} draws would take {size / 1e9:.1f} GB, more "
                f"than {_MEMORY / 1e9:.0f} GB: ask for fewer draws or chains, or leave large "
                "pyro.deterministic sites out"
            )

    def _bytes(self, program: Program) -> float:
        """What one draw of every chain takes, with its statistics."""
        kept = program.anatomy.of_kind("latent", "deterministic").values()
        numbers = program.dim + 8 + sum(prod(site.shape) for site in kept)
        return self.chains * numbers * torch.finfo(program.dtype).bits / 8


class _Chain:
    """Chains under way with frozen options, and all that they have drawn."""

    def __init__(
        self,
        tuned: Tuned,
        target: Target,
        max_leapfrog: int,
        interrupt: Interrupt,
        progress: Progress,
    ) -> None:
        self.tuned, self.target, self.max_leapfrog = tuned, target, max_leapfrog
        self.interrupt, self.progress = interrupt, progress
        self.state, self.transitions = tuned.state, 0
        self.records: list[tuple[Tensor, dict[str, Tensor]]] = []

    def go_on(self, draws: int) -> None:
        """Take `draws` more of each chain; fewer where somebody stops it."""
        tuned, epsilon = self.tuned, self.tuned.step_size
        record = _Record.allocate(draws, self.state)
        for t in range(draws):
            for _ in range(tuned.thin):
                k = self.transitions
                wanted = chees.leapfrogs(k, tuned.trajectory, epsilon, jitter=JITTER)
                leapfrogs = min(wanted, self.max_leapfrog)
                self.state, info = step(
                    self.state,
                    value_and_grad=self.target,
                    metric=tuned.metric,
                    step_size=epsilon,
                    leapfrogs=leapfrogs,
                )
                record.put(t, info, leapfrogs)
                if k % tuned.thin == 0:
                    _show(self.progress, t, epsilon, info)
                self.transitions += 1
            record.z[t], record.numbers["lp"][t] = self.state.z, self.state.log_density
            if self.interrupt:
                draws = t + 1
                break
        self.records.append(record.read(draws, tuned))

    def read(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Draws ``(chains, draws, D)`` and their statistics ``(chains, draws)``."""
        if len(self.records) > 1:
            parts, stats = zip(*self.records, strict=True)
            joined = {name: torch.cat([s[name] for s in stats], 1) for name in stats[0]}
            self.records = [(torch.cat(parts, 1), joined)]
        return self.records[0]


class _Record(NamedTuple):
    """Room for all draws, taken before the first."""

    z: Tensor  # (draws, chains, D)
    numbers: dict[str, Tensor]  # (draws, chains) each
    leapfrogs: list[int]  # of each draw, all its transitions together

    @classmethod
    def allocate(cls, draws: int, state: State) -> _Record:
        chains = len(state.z)
        names = ("lp", "acceptance_rate", "energy", "energy_error")
        numbers = {name: state.z.new_zeros(draws, chains) for name in names}
        numbers["diverging"] = torch.zeros(draws, chains, dtype=torch.bool, device=state.z.device)
        return cls(state.z.new_empty(draws, *state.z.shape), numbers, [0] * draws)

    def put(self, t: int, info: Info, leapfrogs: int) -> None:
        """Note a transition on the way to draw `t`."""
        self.numbers["acceptance_rate"][t] += info.acceptance
        self.numbers["energy"][t] = info.energy
        self.numbers["energy_error"][t] = info.energy_error
        self.numbers["diverging"][t] |= info.diverging
        self.leapfrogs[t] += leapfrogs

    def read(self, kept: int, tuned: Tuned) -> tuple[Tensor, dict[str, Tensor]]:
        stats = {name: x[:kept].mT.contiguous() for name, x in self.numbers.items()}
        stats["acceptance_rate"] /= tuned.thin
        lp = stats["lp"]
        steps = torch.tensor(self.leapfrogs[:kept], device=lp.device)
        stats["n_steps"] = steps.expand(lp.shape).contiguous()
        stats["step_size"] = torch.full_like(lp, tuned.step_size)
        stats["int_time"] = tuned.step_size * stats["n_steps"].to(lp.dtype)
        return self.z[:kept].transpose(0, 1).contiguous(), stats


def _show(progress: Progress, t: int, step_size: float, info: Info) -> None:
    if t % _LOOK:
        progress.advance()
    else:
        progress.advance(acceptance=float(info.acceptance.mean()), step_size=step_size)
