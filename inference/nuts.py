"""NUTS: Pyro's own kernel, on the recorded program; the familiar reference.

We run the chains, not ``pyro.infer.MCMC``: it keeps neither energies nor tree sizes, hangs when a
worker dies, and loses everything on Ctrl-C.

References:
    | The No-U-Turn sampler (Hoffman & Gelman, 2014) | https://arxiv.org/abs/1111.4246
    | A conceptual introduction to Hamiltonian Monte Carlo (Betancourt, 2017)
      | https://arxiv.org/abs/1701.02434
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pyro.infer.mcmc import NUTS as PyroNUTS
from torch import Tensor

from ppgen.inference.target import Target
from ppgen.posterior import Cost, Posterior
from ppgen.program import Program
from ppgen.progress import Interrupt, Progress, interruptible
from ppgen.types import Story

_STATS = ("lp", "acceptance_rate", "step_size", "n_steps", "tree_depth", "diverging", "energy")
_LOOK = 10  # iterations between numbers beside the progress bar


@dataclass(frozen=True)
class NUTS:
    """The No-U-Turn sampler of Pyro, one chain after the other.

    Args:
        chains: run in sequence, each from its own dispersed start with its own adaptation.
        draws: kept of each chain.
        warmup: iterations of adaptation (step size and metric), discarded.
        target_accept: mean acceptance that the step size aims at.
        max_tree_depth: a trajectory has at most ``2**max_tree_depth`` steps.
        dense_metric: full instead of diagonal mass matrix.

    References:
        | The No-U-Turn sampler (Hoffman & Gelman, 2014) | https://arxiv.org/abs/1111.4246
    """

    chains: int = 4
    draws: int = 1000
    warmup: int = 1000
    target_accept: float = 0.8
    max_tree_depth: int = 10
    dense_metric: bool = False

    def __post_init__(self) -> None:
        for name, least in (("chains", 1), ("draws", 1), ("warmup", 1), ("max_tree_depth", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"NUTS({name}=...) must be a whole number of at least {least}, got {value!r}"
                )
        if not 0.0 < self.target_accept < 1.0:
            raise ValueError(
                f"NUTS(target_accept=...) must lie between 0 and 1, got {self.target_accept!r}"
            )

    def run(self, model: Story | Program, *args: Any, **kwargs: Any) -> Posterior:
        """Sample the posterior of a story with its data, or of a ready `Program`.

        Ctrl-C keeps the chains that are complete, or the draws of the first chain.

        Raises:
            ValueError: where the story has no latent site or no starting point.
            KeyboardInterrupt: when stopped before the first draw.
        """
        begin = time.perf_counter()
        program = model if isinstance(model, Program) else Program(model, *args, **kwargs)
        if program.dim == 0:
            raise ValueError("the story has no latent site to sample: every site is observed")
        recorded = program.seconds_recording
        potential = Potential(program)
        # (1, D) each: a single shape to record
        starts = [program.initial(1)[0] for _ in range(self.chains)]
        chains: list[Chain] = []
        total = self.chains * (self.warmup + self.draws)
        with interruptible() as interrupt, Progress("NUTS", total) as progress:
            for start in starts:
                chains.append(self._chain(potential, start, interrupt, progress))
                if interrupt:
                    break
        z, stats, said = self._gather(chains)
        recording = program.seconds_recording - recorded
        sampling = sum(chain.sampling for chain in chains)
        cost = Cost(
            recording=recording,
            adapting=max(0.0, time.perf_counter() - begin - recording - sampling),
            sampling=sampling,
            gradients=potential.target.gradients,
        )
        return Posterior.from_program(
            program,
            z,
            engine="NUTS",
            kind="chains",
            options=asdict(self),
            messages=said,
            log_density=stats["lp"],
            stats=stats,
            cost=cost,
        )

    def _chain(
        self, potential: Potential, start: Tensor, interrupt: Interrupt, progress: Progress
    ) -> Chain:
        kernel = _Kernel(
            potential_fn=potential,
            target_accept_prob=self.target_accept,
            max_tree_depth=self.max_tree_depth,
            full_mass=self.dense_metric,
        )
        kernel.initial_params = {"z": start}
        kernel.setup(self.warmup)
        chain = Chain.allocate(self.draws, start)
        params, begin = {"z": start}, time.perf_counter()
        for t in range(-self.warmup, self.draws):
            if t == 0:
                begin = time.perf_counter()
            before = potential.target.gradients
            params = kernel.sample(params)
            if t >= 0:
                chain.put(t, kernel, potential.target.gradients - before)
            if t % _LOOK:
                progress.advance()
            else:
                progress.advance(
                    acceptance=kernel._mean_accept_prob, step_size=float(kernel.step_size)
                )
            if interrupt:
                break
        chain.sampling = time.perf_counter() - begin if chain.kept else 0.0
        return chain

    def _gather(self, chains: list[Chain]) -> tuple[Tensor, dict[str, Tensor], tuple[str, ...]]:
        """Complete chains together; of a stopped run with none, what its chain has."""
        complete = [chain for chain in chains if chain.kept == self.draws]
        kept = complete or [chain for chain in chains if chain.kept]
        if not kept:
            raise KeyboardInterrupt("NUTS was stopped before its first draw")
        said = []
        if len(complete) < self.chains:
            said.append(
                f"stopped: {len(kept)} of {self.chains} chains with {kept[0].kept} of "
                f"{self.draws} draws"
            )
        stats = {
            name: torch.stack([chain.stats[name][: chain.kept] for chain in kept])
            for name in _STATS
        }
        deepest = stats["n_steps"] >= 2**self.max_tree_depth - 1
        stats["reached_max_treedepth"] = deepest
        if bool(deepest.any()):
            said.append(
                f"{int(deepest.sum())} draws reached max_tree_depth={self.max_tree_depth}: slow, "
                "not wrong; parameters of very different scales, or strongly correlated"
            )
        return torch.stack([chain.z[: chain.kept] for chain in kept]), stats, tuple(said)


class Potential:
    """``{"z": (D,)}`` -> minus the log density, as Pyro's kernels want it."""

    def __init__(self, program: Program) -> None:
        self.target = Target(program)

    def __call__(self, params: dict[str, Tensor]) -> Tensor:
        return _MinusLogDensity.apply(params["z"], self.target)  # type: ignore[return-value]


class _MinusLogDensity(torch.autograd.Function):
    """Hands the program's own gradient to autograd."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, target: Target) -> Tensor:
        value, gradient = target(z.detach().unsqueeze(0))
        ctx.save_for_backward(gradient[0])
        return -value[0]

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return -outputs[0] * gradient, None


class _Kernel(PyroNUTS):
    """Pyro's kernel, which also remembers the energy that each trajectory starts with."""

    energy = math.nan  # nats

    def _sample_r(self, name: str) -> tuple[dict[Any, Tensor], dict[Any, Tensor]]:
        r, unscaled = super()._sample_r(name)
        _, potential, _ = self._fetch_from_cache()
        self.energy = float(self._kinetic_energy(unscaled)) + float(potential or 0.0)
        return r, unscaled


class Chain:
    """Draws of one chain and their statistics, with room taken before the first."""

    def __init__(self, z: Tensor, stats: dict[str, Tensor]) -> None:
        self.z = z  # (draws, D)
        self.stats = stats  # (draws,) each
        self.kept = 0
        self.sampling = 0.0  # seconds
        self._mean_acceptance = 0.0

    @classmethod
    def allocate(cls, draws: int, start: Tensor) -> Chain:
        kinds = {"n_steps": torch.int64, "tree_depth": torch.int64, "diverging": torch.bool}
        stats = {
            name: torch.zeros(draws, dtype=kinds.get(name, start.dtype), device=start.device)
            for name in _STATS
        }
        return cls(start.new_empty(draws, *start.shape), stats)

    def put(self, t: int, kernel: _Kernel, gradients: int) -> None:
        """Read draw `t` out of the kernel, whose last transition took `gradients`."""
        position, potential, _ = kernel._fetch_from_cache()
        if position is None or potential is None:
            raise RuntimeError("Pyro's kernel holds no state after a transition")
        self.z[t] = position["z"]
        # The kernel keeps a running mean over the draws; its steps are the single values.
        mean = float(kernel._mean_accept_prob)
        rate = (t + 1) * mean - t * self._mean_acceptance
        self._mean_acceptance = mean
        values = {
            "lp": -float(potential),
            "acceptance_rate": min(max(rate, 0.0), 1.0),
            "step_size": float(kernel.step_size),
            "n_steps": gradients,
            "tree_depth": math.ceil(math.log2(gradients + 1)),
            "diverging": bool(kernel._divergences) and kernel._divergences[-1] == t,
            "energy": kernel.energy,
        }
        for name, value in values.items():
            self.stats[name][t] = value
        self.kept = t + 1
