"""NUTS: the familiar reference among samplers, all chains at once on the recorded program.

Every batched gradient advances each chain by one leapfrog. Chains do not wait for each other: one
that has finished its trajectory begins the next, so that only the tail of the slowest is lost.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.inference.going_on import length, longest, missing
from ppgen.inference.hmc_warmup import MetricName
from ppgen.inference.nuts_metric import Whitened
from ppgen.inference.nuts_tree import POSITION, Array, Indices, Trees
from ppgen.inference.nuts_warmup import Tuner
from ppgen.inference.target import Target
from ppgen.posterior import Cost, Posterior
from ppgen.program import Program
from ppgen.progress import Interrupt, Progress, interruptible
from ppgen.types import Story

_KINDS = {"n_steps": np.int64, "tree_depth": np.int64, "diverging": np.bool_}  # else float
_STATS = ("lp", "acceptance_rate", "step_size", "n_steps", "tree_depth", "diverging", "energy")
_DEEPEST = 30  # a tree of a thousand million gradients
_LOOK = 100  # leapfrogs between looks at the progress
_BLOCK = 2**16  # random numbers that are drawn at once


@dataclass(frozen=True)
class NUTS:
    """The No-U-Turn sampler, as in Stan: multinomial, with checks across subtrees.

    Args:
        chains: run side by side, each from its own dispersed start with its own adaptation.
            Where data are few, 16 cost no more time than four and are worth four times the draws.
        draws: kept of each chain.
        warmup: iterations of adaptation (step size and metric), discarded.
        target_accept: mean acceptance that the step size aims at.
        max_tree_depth: a trajectory has at most ``2**max_tree_depth - 1`` steps.
        metric: ``"diag"``, ``"dense"``, or ``"auto"``: dense where parameters are strongly
            correlated (up to 200 dimensions).
        max_draws: where R-hat or ESS do not hold after `draws`, sampling goes on until they do, if
            that takes at most so many; four times `draws` when None, never more if equal to it.

    References:
        | The No-U-Turn sampler (Hoffman & Gelman, 2014) | https://arxiv.org/abs/1111.4246
        | A conceptual introduction to Hamiltonian Monte Carlo (Betancourt, 2017)
          | https://arxiv.org/abs/1701.02434
    """

    chains: int = 16
    draws: int = 1000
    warmup: int = 1000
    target_accept: float = 0.8
    max_tree_depth: int = 10
    metric: MetricName = "auto"
    max_draws: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("chains", 1), ("draws", 1), ("warmup", 1), ("max_tree_depth", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"NUTS({name}=...) must be a whole number of at least {least}, got {value!r}"
                )
        longest(self.draws, self.max_draws, "NUTS")
        if self.max_tree_depth > _DEEPEST:
            raise ValueError(
                f"NUTS(max_tree_depth=...) must be at most {_DEEPEST}, got {self.max_tree_depth}"
            )
        if self.metric not in ("auto", "diag", "dense"):
            raise ValueError(
                f"NUTS(metric=...) must be 'auto', 'diag' or 'dense', got {self.metric!r}"
            )
        if not 0.0 < self.target_accept < 1.0:
            raise ValueError(
                f"NUTS(target_accept=...) must lie between 0 and 1, got {self.target_accept!r}"
            )

    def run(self, model: Story | Program, *args: Any, **kwargs: Any) -> Posterior:
        """Sample the posterior of a story with its data, or of a ready `Program`.

        Ctrl-C keeps the draws that every chain has. The seconds of sampling begin when the last
        chain has warmed up.

        Raises:
            ValueError: where the story has no latent site or no starting point.
            KeyboardInterrupt: when stopped before every chain has a draw.
        """
        begin = time.perf_counter()
        program = model if isinstance(model, Program) else Program(model, *args, **kwargs)
        if program.dim == 0:
            raise ValueError("the story has no latent site to sample: every site is observed")
        recorded = program.seconds_recording
        target = Target(program)
        total = self.chains * (self.warmup + self.draws)
        with torch.no_grad(), interruptible() as interrupt, Progress("NUTS", total) as progress:
            run = _Run(self, program.initial(self.chains), target)
            middle = run.go_on(self.draws, interrupt, progress)
            recording = program.seconds_recording - recorded
            most = longest(self.draws, self.max_draws, "NUTS")
            while True:
                z, stats = run.read()
                stats["reached_max_treedepth"] = stats["n_steps"] >= 2**self.max_tree_depth - 1
                cost = Cost(
                    recording=recording,
                    adapting=max(0.0, middle - begin - recording),
                    sampling=time.perf_counter() - middle,
                    gradients=target.gradients,
                )
                posterior = Posterior.from_program(
                    program,
                    z,
                    engine="NUTS",
                    kind="chains",
                    options=asdict(self),
                    messages=self._messages(stats),
                    log_density=stats["lp"],
                    stats=stats,
                    cost=cost,
                )
                more = 0 if interrupt else missing(posterior, most)
                if not more:
                    return posterior
                run.go_on(more, interrupt, progress)

    def _messages(self, stats: dict[str, Tensor]) -> tuple[str, ...]:
        said = length(stats["lp"].shape[1], self.draws)
        deepest = int(stats["reached_max_treedepth"].sum())
        if deepest:
            said.append(
                f"{deepest} draws reached max_tree_depth={self.max_tree_depth}: slow, not wrong; "
                "parameters of very different scales, or strongly correlated"
            )
        if bool(stats["diverging"].any()):
            said.append(
                f"some trajectories diverged: raise target_accept={self.target_accept} towards 1; "
                "if they still do, there is a funnel"
            )
        return tuple(said)


class _Run:
    """Chains on their way, each at an iteration of its own."""

    def __init__(self, options: NUTS, start: Tensor, target: Target) -> None:
        chains, dim = start.shape
        position = start.cpu().numpy()
        self.device, self.options = start.device, options
        self.whitened = Whitened(target, position)
        origin = np.zeros_like(position)
        self.trees = Trees(origin, *self.whitened(origin), max_depth=options.max_tree_depth)
        self.tuners = [
            Tuner(options.warmup, dim, target_accept=options.target_accept, metric=options.metric)
            for _ in range(chains)
        ]
        self.step_size = np.array([tuner.step_size for tuner in self.tuners])
        self.noise = _Noise(chains, dim, start.dtype)
        self.warm = np.zeros(chains, np.bool_)
        self.kept = np.zeros(chains, np.int64)
        self.wanted = 0  # draws of each chain
        self.z = np.empty((chains, 0, dim), position.dtype)
        self.stats = {name: np.zeros((chains, 0), _KINDS.get(name, np.float64)) for name in _STATS}
        self._begin(np.arange(chains))

    def go_on(self, draws: int, interrupt: Interrupt, progress: Progress) -> float:
        """Run until every chain has so many more draws, or somebody stops it.

        No trajectory is broken off: where another one was the last to end, it is still under way.

        Returns: when the last chain had warmed up, on the clock of `time.perf_counter`.
        """
        middle, shown, leapfrogs = None, 0, 0
        self.wanted += draws
        self.z = _longer(self.z, draws)
        self.stats = {name: _longer(values, draws) for name, values in self.stats.items()}
        while not interrupt and int(self.kept.min()) < self.wanted:
            over = self.trees.grow(self.whitened, self.step_size, self.noise.uniforms())
            ended = np.flatnonzero(over)
            if ended.size:
                self._finish(ended)
                self._begin(ended)
            if middle is None and self.warm.all():
                middle = time.perf_counter()
            leapfrogs += 1
            if leapfrogs % _LOOK == 0:
                shown += self._show(progress, shown)
        self._show(progress, shown)
        return middle or time.perf_counter()

    def _finish(self, ended: Indices) -> None:
        """Adapt to the trajectories that ended, or keep their draws."""
        record = ended[self.warm[ended] & (self.kept[ended] < self.wanted)]
        for chain in ended[~self.warm[ended]]:
            self._adapt(int(chain))
        if not record.size:
            return
        trees, at = self.trees, (record, self.kept[record])
        steps = trees.leaves[record]
        self.z[at] = self.whitened.positions(trees.draw[record, POSITION], record)
        values = {
            "lp": trees.log_density[record],
            "acceptance_rate": trees.acceptance[record] / steps,
            "step_size": self.step_size[record],
            "n_steps": steps,
            "tree_depth": np.frexp(steps)[1],  # doublings, the last perhaps left half done
            "diverging": trees.diverging[record],
            "energy": trees.energy[record],
        }
        for name, value in values.items():
            self.stats[name][at] = value
        self.kept[record] += 1

    def _adapt(self, chain: int) -> None:
        trees, tuner = self.trees, self.tuners[chain]
        acceptance = float(trees.acceptance[chain] / trees.leaves[chain])
        spread = tuner.hear(acceptance, trees.draw[chain, POSITION])
        if spread is not None:
            self.whitened.renew(chain, trees.draw[chain], spread)
        self.step_size[chain] = tuner.step_size
        self.warm[chain] = tuner.done

    def _begin(self, chains: Indices) -> None:
        tuners = [self.tuners[chain] for chain in chains]
        depth = np.array([tuner.depth for tuner in tuners])
        trial = np.array([tuner.trying for tuner in tuners])
        self.trees.begin(chains, self.noise.momenta(len(chains)), depth, trial)

    def _show(self, progress: Progress, shown: int) -> int:
        """Report iterations that are new; returns how many."""
        new = sum(tuner.iteration for tuner in self.tuners) + int(self.kept.sum()) - shown
        if new:
            rate = self.trees.acceptance / np.maximum(self.trees.leaves, 1)
            progress.advance(
                new, acceptance=float(rate.mean()), step_size=float(np.median(self.step_size))
            )
        return new

    def read(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Draws ``(chains, draws, D)`` that every chain has, and their statistics."""
        kept = int(self.kept.min())
        if not kept:
            raise KeyboardInterrupt("NUTS was stopped before every chain had its first draw")
        z = torch.from_numpy(self.z[:, :kept].copy())
        stats = {n: torch.from_numpy(x[:, :kept].copy()) for n, x in self.stats.items()}
        return z.to(self.device), {n: x.to(self.device) for n, x in stats.items()}


def _longer(values: np.ndarray, draws: int) -> np.ndarray:
    """With room for so many more draws, ``(chains, draws, ...)``."""
    room = np.zeros((values.shape[0], draws, *values.shape[2:]), values.dtype)
    return np.concatenate([values, room], 1)


class _Noise:
    """Random numbers of torch's global generator, drawn in blocks: one at a time is slow."""

    def __init__(self, chains: int, dim: int, dtype: torch.dtype) -> None:
        self._rows = max(1, _BLOCK // (3 * chains)), max(chains, _BLOCK // dim)
        self._chains, self._dim, self._dtype = chains, dim, dtype
        self._uniforms = self._momenta = np.empty(0)
        self._next, self._first = 0, 0

    def uniforms(self) -> Array:
        """``(3, C)`` in [0, 1)."""
        if self._next >= len(self._uniforms):
            shape = (self._rows[0], 3, self._chains)
            self._uniforms, self._next = torch.rand(shape, dtype=torch.float64).numpy(), 0
        self._next += 1
        return self._uniforms[self._next - 1]

    def momenta(self, count: int) -> Array:
        """``(count, D)``, standard normal; at most one a chain."""
        if self._first + count > len(self._momenta):
            shape = (self._rows[1], self._dim)
            self._momenta, self._first = torch.randn(shape, dtype=self._dtype).numpy(), 0
        self._first += count
        return self._momenta[self._first - count : self._first]
