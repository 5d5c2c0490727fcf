"""A story with discrete sites as a log density of flat points, for samplers that draw units.

Each discrete unit has a coordinate of its own: the place of its value among those that it can have.
So the story is recorded once, as any other is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam.reparam import Reparam
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.anatomy import Subsample, innermost, is_discrete
from ppgen.inference.binary_gibbs import (
    free_energy,
    is_binary,
    is_machine,
    machine_parameters,
    plate_dimensions,
)
from ppgen.inference.target import Target
from ppgen.program import Program
from ppgen.story import sandbox
from ppgen.types import Story

_TRIES = 50  # of finding places to start from
_HALVES = 20  # of the rows of a plate that are changed to see whether one heeds another


class NothingDiscrete(ValueError):
    """No latent site of the story is discrete."""


class Unit(NamedTuple):
    """What is drawn at once: one discrete value, or one in each row of its plates."""

    site: str
    columns: Tensor  # of the flat vector, () or one for each row, (*batch)
    choices: int


class Joint:
    """The log density of all sites of a story, discrete ones too, at flat points ``(C, D)``.

    Raises:
        NothingDiscrete: for a story without discrete latent sites.
    """

    def __init__(self, model: Story, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        laws = discrete_sites(model, args, kwargs)
        if not laws:
            raise NothingDiscrete("no latent site of the story is discrete: use HMC()")
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
                part = full.sum(list(rest), keepdim=True) if rest else full
                total = total + part.reshape(len(point), *site.batch_shape)
        return total

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

    def slope_like(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        slope = self.joint.target.slope_like(self.joint.placed(self.point, z))
        return lambda z: slope(self.joint.placed(self.point, z))[:, self.joint.continuous]


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
