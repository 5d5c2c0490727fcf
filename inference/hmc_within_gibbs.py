r"""HMC within Gibbs: discrete sites unit by unit, continuous ones along a trajectory, in turn.

.. math::
    k_j \sim p(k_j \mid k_{-j}, z, \mathrm{data}), \qquad
    z \leftarrow \text{one HMC transition of } p(z \mid k, \mathrm{data})

Both leave the posterior invariant, and so does a sweep of all. Each value of a unit costs one
evaluation of the story; rows of a plate that are independent given what is outside of it are drawn
at once. Discrete sites that :class:`ppgen.Program` can sum out need none of this: `HMC` then
mixes better.

The story is recorded once, as a function of one flat vector in which each discrete unit has a
coordinate of its own: the place of its value among those that it can have.

References:
    | MCMC using Hamiltonian dynamics (Neal, 2011): combining it with other updates
      | https://arxiv.org/abs/1206.1901
    | Composable effects for flexible and accelerated probabilistic programming in NumPyro
      (Phan, Pradhan & Jankowiak, 2019): the same with NUTS | https://arxiv.org/abs/1912.11554
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam.reparam import Reparam
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.anatomy import Subsample, innermost, is_discrete
from ppgen.inference import chees, hmc
from ppgen.inference.binary_gibbs import (
    free_energy,
    is_binary,
    is_machine,
    machine_parameters,
    plate_dimensions,
)
from ppgen.inference.discrete_chains import Chains, Reading
from ppgen.inference.gibbs import UntransformedKernel, require_counts
from ppgen.inference.hmc_warmup import JITTER, quarter_period, reasonable_step_size, renew
from ppgen.inference.target import Target
from ppgen.program import Program
from ppgen.story import sandbox
from ppgen.types import Story

_STAGES = (0.1, 0.25, 0.5, 0.8)  # shares of the warm-up after which the metric is renewed
_ACCEPT = 0.8  # harmonic mean over chains
_LONGEST = 64  # leapfrogs of a trajectory
_TRIES = 50  # of finding places to start from
_HALVES = 20  # of the rows of a plate that are changed to see whether one heeds another


class Unit(NamedTuple):
    """What is drawn at once: one discrete value, or one in each row of its plates."""

    site: str
    columns: Tensor  # of the flat vector, () or one for each row, (*batch)
    choices: int


class Info(NamedTuple):
    """How a sweep went."""

    log_density: Tensor  # of all sites, continuous ones on the unconstrained scale, (C,), nats
    acceptance: Tensor  # of the trajectory, (C,)
    diverging: Tensor  # (C,), bool


class Joint:
    """The log density of all sites of a story, discrete ones too, at flat points ``(C, D)``.

    Raises:
        ValueError: for a story without discrete latent sites.
    """

    def __init__(self, model: Story, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        laws = discrete_sites(model, args, kwargs)
        if not laws:
            raise ValueError("no latent site of the story is discrete: use HMC()")
        config: dict[str, Reparam] = {name: _Hold(free) for name, (_, free) in laws.items()}
        held = pyro.poutine.reparam(model, config=config)
        self.program = Program(held, *args, **kwargs)
        self.target = Target(self.program)
        with self.program.sandbox(), torch.no_grad():
            run = pyro.poutine.trace(held).get_trace
            trace: Any = run(*self.program.args, **self.program.kwargs)
            values = {name: choices(name, law) for name, (law, _) in laws.items()}
        self.values = {name: x.to(self.program.device) for name, x in values.items()}
        kinds = self.program.anatomy.of_kind("latent", "observed", "factor")
        self.plates = {name: plate_dimensions(trace.nodes[name]) for name in kinds}
        device = self.program.device
        places = {name: self.program.anatomy.sites[_place(name)] for name in laws}
        self.columns = {
            name: torch.arange(site.start, site.stop, device=device).reshape(site.shape)
            for name, site in places.items()
        }
        taken = torch.cat([c.flatten() for c in self.columns.values()])
        free = torch.ones(self.program.dim, dtype=torch.bool, device=device)
        free[taken] = False
        self.continuous = free.nonzero()[:, 0]  # columns of the continuous sites

    def start(self, chains: int) -> Tensor:
        """Dispersed points of finite density, ``(chains, D)``.

        Raises:
            ValueError: where none was found.
        """
        like = {"dtype": self.program.dtype, "device": self.program.device}
        point = torch.zeros(chains, self.program.dim, **like)
        bad, scale = torch.ones(chains, dtype=torch.bool, device=point.device), 2.0
        for _ in range(_TRIES):
            fresh = torch.empty_like(point).uniform_(-scale, scale)
            for name, columns in self.columns.items():
                shape = (chains, columns.numel())
                fresh[:, columns.flatten()] = torch.randint(len(self.values[name]), shape).to(fresh)
            point = torch.where(bad[:, None], fresh, point)
            value, gradient = self.target(point)
            bad = ~(value.isfinite() & gradient.isfinite().all(-1))
            if not bool(bad.any()):
                return point
            scale *= 0.9
        raise ValueError(
            f"no starting point of finite log density was found for {int(bad.sum())} of {chains} "
            "chains: which values a site can have must not depend on discrete sites"
        )

    def units(self, point: Tensor) -> list[Unit]:
        """In the order of the story; rows of plates together where they are independent."""
        found = []
        for name, columns in self.columns.items():
            batch: tuple[int, ...] = ()
            if self.plates[_place(name)] and self._rows_are_independent(name, point):
                batch = self.program.anatomy.sites[_place(name)].batch_shape
            pieces = columns.reshape(*batch, -1).unbind(-1)
            found += [Unit(name, piece, len(self.values[name])) for piece in pieces]
        return found

    def rows(self, point: Tensor, name: str) -> Tensor:
        """What belongs to each row of the plates of a site: ``(C, *batch)``, nats."""
        sites, total = self.program.anatomy.sites, point.new_zeros(())
        own, site = self.plates[_place(name)], sites[_place(name)]
        for other, term in self.program.site_densities(point).items():
            dims = self.plates[other]
            if set(own) <= set(dims):
                full = term.expand(len(point), *sites[other].batch_shape)
                rest = set(range(1 - full.dim(), 0)) - {dims[plate] for plate in own}
                total = total + (full.sum(list(rest), keepdim=True) if rest else full)
        return total.reshape(len(point), *site.batch_shape)

    def _rows_are_independent(self, name: str, point: Tensor) -> bool:
        """Whether what belongs to a row heeds that row's value alone, and all of it does.

        Random halves of the rows are changed: rows of which one heeds another are found apart,
        and seen, with probability 1/2 each time.
        """
        batch = self.program.anatomy.sites[_place(name)].batch_shape
        columns = self.columns[name].reshape(batch.numel(), -1)

        def change(some: Tensor) -> tuple[Tensor, Tensor]:
            changed, moved = point.clone(), columns[some].flatten()
            changed[:, moved] = (point[:, moved] + 1) % len(self.values[name])
            whole = self.program.log_density(changed) - self.program.log_density(point)
            return self.rows(changed, name).flatten(1), whole

        none = torch.zeros(len(columns), dtype=torch.bool, device=point.device)
        (before, _), (after, whole) = change(none), change(~none)
        apart = torch.isclose((after - before).sum(1), whole).all()
        for _ in range(_HALVES if len(columns) > 1 else 0):
            some = torch.rand(len(columns), device=point.device) < 0.5
            apart &= torch.isclose(change(some)[0], torch.where(some, after, before)).all()
        return bool(apart)

    def given(self, point: Tensor) -> _Given:
        """The target of the continuous sites, with the discrete ones where they are in `point`."""
        return _Given(self, point)

    def placed(self, point: Tensor, z: Tensor) -> Tensor:
        """`point` with the continuous sites at `z`."""
        return point.index_copy(1, self.continuous, z)

    def draws(self, points: Tensor) -> dict[str, Tensor]:
        """Values of all sites, ``(..., *shape)``."""
        found = self.program.constrain(points, deterministic=True)
        kept = {n: x for n, x in found.items() if n not in map(_place, self.columns)}
        for name, columns in self.columns.items():
            kept[name] = self.values[name][points[..., columns].long()]
        return kept


class _Given:
    def __init__(self, joint: Joint, point: Tensor) -> None:
        self.joint, self.point = joint, point

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.joint.target(self.joint.placed(self.point, z))
        return value, gradient[:, self.joint.continuous]

    def slope(self, z: Tensor) -> Tensor:
        return self.joint.target.slope(self.joint.placed(self.point, z))[:, self.joint.continuous]


def draw(unit: Unit, point: Tensor, joint: Joint) -> Tensor:
    """Each chain's unit anew, from its law given all else: ``(C, D)`` to ``(C, D)``."""
    columns, rows = unit.columns.flatten(), unit.columns.dim() > 0
    many = point.repeat(unit.choices, 1).reshape(unit.choices, *point.shape)
    for k in range(unit.choices):
        many[k][:, columns] = float(k)
    flat = many.flatten(0, 1)
    found = joint.rows(flat, unit.site) if rows else joint.program.log_density(flat)[:, None]
    logits = found.reshape(unit.choices, len(point), -1).movedim(0, -1)
    drawn = torch.distributions.Categorical(logits=logits.nan_to_num(nan=-math.inf)).sample()
    return point.index_copy(1, columns, drawn.to(point))


class Sweeps:
    """Sweeps that adapt the trajectories for a while, and are frozen afterwards."""

    def __init__(self, joint: Joint, chains: int, warmup: int) -> None:
        self.joint = joint
        self.warmup, self.done = warmup, 0
        self.start = self.joint.start(chains)
        self.units = self.joint.units(self.start)
        self.metric = hmc.Metric(self.start.new_ones(len(self.joint.continuous)))
        self.trajectory = quarter_period(1.0, JITTER)
        self.steps: chees.StepSize | None = None
        self.window: list[Tensor] = []

    def sweep(self, point: Tensor) -> tuple[Tensor, Info]:
        """All units, then the continuous sites: ``(C, D)`` to ``(C, D)``."""
        for unit in self.units:
            point = draw(unit, point, self.joint)
        if not len(self.joint.continuous):
            still = point.new_ones(len(point))
            return point, Info(self.joint.program.log_density(point), still, still < 0)
        point, info = self._move(point)
        self.done += 1
        return point, info

    def _move(self, point: Tensor) -> tuple[Tensor, Info]:
        value_and_grad = self.joint.given(point)
        state = hmc.init(point[:, self.joint.continuous], value_and_grad)
        if self.steps is None:
            guess = reasonable_step_size(state, value_and_grad, self.metric)
            self.steps = chees.start_step_size(guess)
        adapting = self.done < self.warmup
        epsilon = math.exp(self.steps.log if adapting else self.steps.log_average)
        wanted = chees.leapfrogs(self.done, self.trajectory, epsilon, jitter=JITTER)
        state, info = hmc.step(
            state,
            value_and_grad=value_and_grad,
            metric=self.metric,
            step_size=epsilon,
            leapfrogs=min(wanted, _LONGEST),
        )
        if adapting:
            self._adapt(state.z, info)
        found = Info(state.log_density, info.acceptance, info.diverging)
        return self.joint.placed(point, state.z), found

    def _adapt(self, z: Tensor, info: hmc.Info) -> None:
        assert self.steps is not None
        accepted = chees.harmonic_acceptance(info)
        self.steps = chees.update_step_size(self.steps, accepted, _ACCEPT)
        self.window.append(z)
        if self.done + 1 in [math.ceil(share * self.warmup) for share in _STAGES]:
            self.metric, spread = renew(self.metric, torch.stack(self.window), "auto")
            self.trajectory = quarter_period(spread, JITTER)
            self.steps = chees.start_step_size(math.exp(self.steps.log_average))
            self.window = []


class HMCWithinGibbs(UntransformedKernel):
    """The same sweep as a kernel for ``pyro.infer.MCMC``, adapted while that warms up.

    All chains move together, as one draw of shape ``(chains, *shape)`` of each site.

    Args:
        model: any Pyro callable with discrete latent sites, each of finitely many values.
        data: its arguments.
        chains: started from dispersed values.
        sweeps: for each draw.

    Example:
        >>> import torch
        >>> from pyro.infer import MCMC
        >>> def story(y):
        ...     on = pyro.sample("on", dist.Bernoulli(0.5))
        ...     mu = pyro.sample("mu", dist.Normal(3.0 * on, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> kernel = HMCWithinGibbs(story, torch.tensor(2.0), chains=10)
        >>> mcmc = MCMC(kernel, num_samples=3, warmup_steps=20, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["on"].shape)
        (3, 10)
    """

    def __init__(self, model: Story, *data: Any, chains: int = 1, sweeps: int = 1) -> None:
        require_counts(chains=chains, sweeps=sweeps)
        self.sweeps = sweeps
        self.moves = Sweeps(Joint(model, data, {}), chains, 0)
        self.point = self.moves.start
        super().__init__(self.moves.joint.draws(self.point))

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        self.moves.warmup = warmup_steps * self.sweeps

    def sample(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for _ in range(self.sweeps):
            self.point, _ = self.moves.sweep(self.point)
        return self.moves.joint.draws(self.point)


class _Survey(Messenger):
    """Runs a story with any values of its discrete latent sites, and keeps their messages."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or isinstance(fn, Subsample) or not is_discrete(fn):
            return
        values = choices(msg["name"], fn)
        msg["value"], msg["done"] = values[torch.randint(len(values), fn.shape())], True
        self.found[msg["name"]] = msg


def discrete_sites(
    model: Story, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, tuple[Any, bool]]:
    """Laws of discrete latent sites, and whether each is a machine whose log Z never changes."""
    runs = []
    with sandbox(torch.get_default_dtype()), torch.no_grad():
        for _ in range(2):
            with _Survey() as survey:
                model(*args, **kwargs)
            runs.append(survey.found)
    return {name: (msg["fn"], _same_machine(msg, runs[1][name])) for name, msg in runs[0].items()}


def _same_machine(one: Any, two: Any) -> bool:
    if not is_machine(one):
        return False
    return all(map(torch.equal, machine_parameters(one), machine_parameters(two)))


def mixed_chains(
    model: Story, chains: int, warmup: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Chains | None:
    """Chains over all latent sites, adapting for `warmup` sweeps; None where none is discrete.

    Raises:
        ValueError: where a discrete site has infinitely many values, or no start was found.
    """
    if not discrete_sites(model, args, kwargs):
        return None
    moves = Sweeps(Joint(model, args, kwargs), chains, warmup)
    anatomy, columns = moves.joint.program.anatomy, moves.joint.columns
    return Chains(
        (moves.start, None),
        lambda state: moves.sweep(state[0]),
        lambda state: _read(moves.joint, *state),
        observes=bool(set(anatomy.of_kind("observed", "factor")) - set(columns)),
        deterministic=tuple(n for n in anatomy.of_kind("deterministic") if n not in columns),
    )


def _read(joint: Joint, point: Tensor, info: Info) -> Reading:
    stats = {"acceptance_rate": info.acceptance, "diverging": info.diverging}
    return Reading(joint.draws(point), info.log_density, stats)


def choices(name: str, fn: Any) -> Tensor:
    """The values of a discrete site's unit, ``(K,)``.

    Raises:
        ValueError: where its units cannot be changed one by one.
    """
    if is_binary(fn):
        return torch.tensor([0.0, 1.0], dtype=torch.get_default_dtype())
    law = innermost(fn)
    if law.event_shape or not law.has_enumerate_support:
        raise ValueError(
            f"site '{name}' is {type(law).__name__}: Gibbs draws units of finitely many values, "
            "such as Bernoulli, Categorical and Binomial ones; a OneHotCategorical can be written "
            "as a Categorical"
        )
    return law.enumerate_support(expand=False).flatten()


class _Hold(Reparam):
    """A discrete site that is where its coordinate says, and counts with its law.

    Of a machine whose log Z does not vary, the free energy is enough.
    """

    def __init__(self, free: bool) -> None:
        self.free = free

    def apply(self, msg: Any) -> Any:
        fn = msg["fn"]
        values = choices(msg["name"], fn)
        flat = dist.Normal(torch.zeros(fn.shape()), 1.0).to_event(fn.event_dim).mask(False)
        place = pyro.sample(_place(msg["name"]), flat)
        index = place.round().clamp(0, len(values) - 1).long()
        value = values.to(index.device)[index]
        if self.free:
            pyro.factor(f"{msg['name']}_free_energy", -free_energy(innermost(fn), value))
            fn = dist.Delta(value, event_dim=fn.event_dim).mask(False)
        return {"fn": fn, "value": value, "is_observed": True}


def _place(name: str) -> str:
    return f"{name}_place"
