"""HMC: the default Markov chain Monte Carlo engine, many chains on the recorded program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.inference import chees
from ppgen.inference.compiled_trajectory import CompiledTarget
from ppgen.inference.hmc import Info, State, step
from ppgen.inference.hmc_warmup import JITTER, Tuned
from ppgen.inference.many_chains import ManyChains, show
from ppgen.inference.target import Target
from ppgen.program import Program
from ppgen.progress import Interrupt, Progress


@dataclass(frozen=True)
class HMC(ManyChains):
    """Many-chain Hamiltonian Monte Carlo; nothing to tune by hand.

    Starts are drawn from normals that Pathfinder finds; metric, step size and trajectory length
    (ChEES) are adapted from all chains together, and frozen before the first draw.

    Args:
        chains: run in one batch; 64 cost little more than one.
        draws: kept of each chain. Where chains mix slowly, several transitions make one draw.
        warmup: iterations of adaptation at most, discarded; fewer where nothing changes any more.
        target_accept: for the harmonic mean of the acceptance over chains; raise it towards 1
            against divergences. Where chains mix and diverge at times, or few of them hardly
            move, the draws are taken again, once, with half the step.
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

    max_leapfrog: int = 256
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, max_leapfrog=self.max_leapfrog)

    @property
    def _leapfrogs(self) -> int:
        return self.max_leapfrog

    def _target(self, program: Program) -> Target:
        return CompiledTarget(program) if self.compile else Target(program)

    def _chains(
        self, tuned: Tuned, target: Target, interrupt: Interrupt, progress: Progress
    ) -> _Chains:
        return _Chains(tuned, target, self.max_leapfrog, interrupt, progress)


class _Chains:
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
                    show(self.progress, t, epsilon, info.acceptance)
                self.transitions += 1
            record.z[t], record.numbers["lp"][t] = self.state.z, self.state.log_density
            if self.interrupt:
                draws = t + 1
                break
        self.records.append(record.read(draws, tuned))

    def read(self) -> tuple[Tensor, dict[str, Tensor]]:
        if len(self.records) > 1:
            parts, stats = zip(*self.records, strict=True)
            joined = {name: torch.cat([s[name] for s in stats], 1) for name in stats[0]}
            self.records = [(torch.cat(parts, 1), joined)]
        return self.records[0]

    def messages(self, stats: dict[str, Tensor]) -> list[str]:
        tuned, said = self.tuned, []
        if tuned.thin > 1:
            said.append(f"{tuned.thin} transitions to a draw")
        if round(0.75 * tuned.trajectory / tuned.step_size) > self.max_leapfrog:
            said.append(
                f"trajectories need more than max_leapfrog={self.max_leapfrog} steps: "
                "parameters of very different scales, or a funnel"
            )
        return said


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
