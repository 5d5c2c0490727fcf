"""Gibbs sampling of stories whose full conditionals are known, many chains side by side."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.inference.binary_gibbs import binary_chains
from ppgen.inference.declared import declared, unconstrained
from ppgen.inference.discrete_chains import said_of
from ppgen.inference.gibbs import UntransformedKernel
from ppgen.inference.hmc_within_gibbs import mixed_chains
from ppgen.inference.machine_gibbs import machine_chains
from ppgen.inputs import slots
from ppgen.moments import point
from ppgen.posterior import Cost, Posterior
from ppgen.program import Program
from ppgen.progress import Progress, interruptible
from ppgen.story import sandbox
from ppgen.types import (
    ConditionallyConjugate,
    Coordinate,
    Exchangeable,
    MachineStory,
    Story,
)

_TEMPERED = "Gibbs(temperatures=...): this story is no Boltzmann machine; leave it out"

S = TypeVar("S")
R = TypeVar("R")


class State(NamedTuple):
    """What the next sweep needs."""

    values: dict[str, Tensor]  # of each block, (chains, *shape)


class Info(NamedTuple):
    """What a sweep went through."""

    laws: dict[str, TorchDistribution]  # the full conditional that each block was drawn from


def init(story: ConditionallyConjugate, chains: int, data: tuple[Any, ...]) -> State:
    """Dispersed values of all blocks but the first, which a sweep draws given the others."""
    return State(story.start(chains, *data))


def step(state: State, coordinates: Mapping[str, Coordinate]) -> tuple[State, Info]:
    """One sweep: each block in turn, drawn from its law given all others."""
    values, laws = dict(state.values), {}
    for name, conditional in coordinates.items():
        laws[name] = conditional({other: point(value) for other, value in values.items()})
        values[name] = laws[name].sample()
    return State(values), Info(laws)


@dataclass(frozen=True)
class Gibbs:
    """Block Gibbs, for stories whose full conditionals are known. Nothing is tuned or rejected.

    - A :class:`ppgen.types.ConditionallyConjugate` declares them.
    - A Boltzmann machine (:class:`ppgen.types.MachineStory`) has its two sides: ``rbm.model``
      alone draws x and h, ``rbm.model, x`` draws h given x, and entries of x that are NaN are
      drawn given the others (inpainting). x then comes in full.
    - Where all latent sites are binary, a machine in ``pyro.sample`` for instance, each unit is
      drawn given all else: two evaluations of the story for a unit and sweep. Entries of binary
      data that are NaN are such units too, as in ``dbn.model, x``; the site then comes in full.
    - Where discrete sites of finitely many values mix with continuous ones, units are drawn in the
      same way, and the continuous sites move along one trajectory of HMC a sweep, whose step size,
      metric and length are adapted in the warm-up (:mod:`ppgen.inference.hmc_within_gibbs`). Sites
      that can be summed out are better summed out: `HMC` does.

    A unit that never changes has no R-hat and no ESS: those that are not data are counted in the
    messages.

    Args:
        chains: run in one batch.
        draws: kept of each chain.
        warmup: sweeps discarded before the first draw.
        thin: sweeps to a draw.
        keep: auxiliary blocks to keep beside the sites, such as the assignments of a mixture.
        temperatures: of a Boltzmann machine: steps of the inverse temperature from 0 to 1, at each
            of which a replica of every chain runs and swaps with its neighbours (parallel
            tempering). It crosses between modes where sides in turn do not.

    Raises:
        ValueError: from `run`, for a story without conditionals, data that do not fit it, an
            unknown block in `keep`, or `temperatures` where the story is no Boltzmann machine.

    References:
        | Sampling-Based Approaches to Calculating Marginal Densities (Gelfand & Smith, 1990)

    Example:
        >>> from ppgen.models import RBM
        >>> x = torch.tensor([[1.0, 1.0, float("nan")]])  # the last unit is missing
        >>> posterior = Gibbs(chains=4, draws=10).run(RBM(3, 2).model, x)
        >>> tuple(posterior["x"].shape), bool((posterior["x"][..., :2] == 1).all())
        ((4, 10, 1, 3), True)
    """

    chains: int = 16
    draws: int = 1000
    warmup: int = 200
    thin: int = 1
    keep: tuple[str, ...] = ()
    temperatures: int | None = None

    def __post_init__(self) -> None:
        require_whole(self, chains=self.chains, draws=self.draws, thin=self.thin)
        require_whole(self, least=0, warmup=self.warmup)
        if self.temperatures is not None:
            require_whole(self, temperatures=self.temperatures)

    def run(self, model: Story | Program, *args: Any, **kwargs: Any) -> Posterior:
        whole = isinstance(model, Program)
        given = (model.model, model.args, model.kwargs) if whole else (model, args, kwargs)
        found = self._of_discrete(*given)
        if found is not None:
            return found
        begin = time.perf_counter()
        story, program, data = declared("Gibbs", ConditionallyConjugate, model, args, kwargs)
        recorded = program.seconds_recording
        with sandbox(program.dtype), torch.no_grad():
            state, coordinates = init(story, self.chains, data), story.coordinates(*data)
            self._check_kept(coordinates, program)
            names = (*program.sites, *self.keep)
            adapted, kept, (_, info) = self._sample(
                (state, Info({})),
                lambda before: step(before[0], coordinates),
                lambda after: {name: after[0].values[name] for name in names},
            )
        found = {name: torch.stack([row[name] for row in kept], 1) for name in kept[0]}
        if isinstance(story, Exchangeable):
            found = story.canonical(found)
        z, _ = unconstrained(program, found, info.laws)
        sampled = time.perf_counter()
        lp = program.log_density(z)
        posterior = Posterior.from_program(
            program,
            z,
            engine="Gibbs",
            kind="chains",
            messages=self._stopped(len(kept)),
            options=asdict(self),
            log_density=lp,
            stats={"lp": lp},
            cost=Cost(
                recording=program.seconds_recording - recorded,
                adapting=adapted - begin,
                sampling=sampled - adapted,
            ),
        )
        # after the diagnosis: R-hat of a label means nothing
        extra = {name: found[name] for name in self.keep}
        return dataclasses.replace(
            posterior,
            draws={**posterior.draws, **extra},
            deterministic=(*posterior.deterministic, *extra),
        )

    def _of_discrete(
        self, model: Story, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Posterior | None:
        """Of a machine, or of a story with discrete latent sites; None for any other."""
        begin = time.perf_counter()
        story = getattr(model, "__self__", None)
        if isinstance(story, ConditionallyConjugate):
            if self.temperatures is not None:
                raise ValueError(_TEMPERED)
            return None
        with sandbox(_dtype(model, args, kwargs)), torch.no_grad():
            # other methods of a machine are stories of their own
            if isinstance(story, MachineStory) and model.__name__ == "model":
                chains = machine_chains(story, self.chains, args, kwargs, self.temperatures)
            elif self.temperatures is not None:
                raise ValueError(_TEMPERED)
            else:
                chains = binary_chains(model, self.chains, args, kwargs)
            if chains is None:
                chains = mixed_chains(model, self.chains, self.warmup, args, kwargs)
            if chains is None:
                return None
            if self.keep:
                raise ValueError("Gibbs(keep=...): this story has no blocks besides its sites")
            adapted, kept, _ = self._sample(chains.state, chains.sweep, chains.read)
        draws = {n: torch.stack([row.sites[n] for row in kept], 1) for n in kept[0].sites}
        return Posterior.from_chains(
            draws,
            engine="Gibbs",
            messages=(*self._stopped(len(kept)), *said_of(draws, chains)),
            options=asdict(self),
            deterministic=chains.deterministic,
            stats={
                "lp": torch.stack([row.lp for row in kept], 1),
                **{n: torch.stack([row.stats[n] for row in kept], 1) for n in kept[0].stats},
            },
            cost=Cost(adapting=adapted - begin, sampling=time.perf_counter() - adapted),
        )

    def _sample(
        self, state: S, sweep: Callable[[S], S], read: Callable[[S], R]
    ) -> tuple[float, list[R], S]:
        """When warm-up ended, what was read of the states kept, and the last state."""
        kept: list[R] = []
        adapted = time.perf_counter()
        total = self.warmup + self.draws * self.thin
        with interruptible() as interrupt, Progress("Gibbs", total) as progress:
            for t in range(1, total + 1):
                state = sweep(state)
                progress.advance()
                if t == self.warmup:
                    adapted = time.perf_counter()
                if t > self.warmup and (t - self.warmup) % self.thin == 0:
                    kept.append(read(state))
                if interrupt:
                    break
        if not kept:
            raise KeyboardInterrupt("Gibbs was stopped before its first draw")
        return adapted, kept, state

    def _stopped(self, kept: int) -> tuple[str, ...]:
        return () if kept == self.draws else (f"stopped after {kept} draws",)

    def _check_kept(self, coordinates: Mapping[str, Coordinate], program: Program) -> None:
        auxiliary = [name for name in coordinates if name not in program.sites]
        unknown = [name for name in self.keep if name not in auxiliary]
        if unknown:
            raise ValueError(
                f"Gibbs(keep=...): no auxiliary block {unknown[0]!r}; the story has "
                f"{auxiliary or 'none'}, and keeps its sites {list(program.sites)} anyway"
            )


def _dtype(model: Story, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype:
    """Of the story's parameters, else of its data."""
    found = [t for _, t in slots(model, args, kwargs) if t.is_floating_point()]
    found.sort(key=lambda tensor: not isinstance(tensor, torch.nn.Parameter))
    return found[0].dtype if found else torch.get_default_dtype()


class ConditionalGibbs(UntransformedKernel):
    """The same sweep as a kernel for ``pyro.infer.MCMC``.

    All chains move together, as one draw of shape ``(chains, *shape)`` of each block.

    Args:
        model: the bound ``model`` of a :class:`ppgen.types.ConditionallyConjugate` story.
        data: its arguments.
        chains: started from dispersed values.
        sweeps: for each draw.

    Example:
        >>> import torch
        >>> from pyro.infer import MCMC
        >>> from ppgen.models import NormalGamma
        >>> kernel = ConditionalGibbs(NormalGamma().model, torch.tensor([1.0, 2.0]), chains=10)
        >>> mcmc = MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["mu"].shape)
        (3, 10)
    """

    def __init__(self, model: Story, *data: Any, chains: int = 1, sweeps: int = 1) -> None:
        require_whole(self, chains=chains, sweeps=sweeps)
        story, program, given = declared("Gibbs", ConditionallyConjugate, model, data, {})
        self.sweeps, self.dtype = sweeps, program.dtype
        with sandbox(self.dtype), torch.no_grad():
            self.coordinates = story.coordinates(*given)
            state = init(story, chains, given)
            super().__init__(step(state, self.coordinates)[0].values)

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        state = State(dict(params))
        with sandbox(self.dtype), torch.no_grad():
            for _ in range(self.sweeps):
                state, _ = step(state, self.coordinates)
        return state.values
