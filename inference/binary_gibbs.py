r"""Gibbs sampling of stories whose latent sites are all binary, one unit after the other.

A unit is 1 given all else with log-odds ``log p(unit = 1, rest) - log p(unit = 0, rest)``:
two evaluations of the story, one of which is at hand. A Boltzmann machine in ``pyro.sample`` takes
part with its free energy, hidden side summed out, since its log Z cancels. Rows of a plate are
independent given what is outside of it, so that a unit is drawn in all of them at once. Entries of
observed binary sites that are NaN are missing, and units like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.anatomy import Subsample, innermost, rows_taken
from ppgen.distributions import Boltzmann, RestrictedBoltzmann
from ppgen.inference.discrete_chains import Chains, Reading
from ppgen.story import without_validation
from ppgen.types import Story

Values = Mapping[str, Tensor]


class Site(NamedTuple):
    """A latent site of binary units, ``(*batch, *event)``."""

    name: str
    plates: Mapping[str, int]  # the dimension of each plate that it is in
    batch: torch.Size  # the plates' alone
    event: torch.Size
    units: list[int]  # of an event, that are latent in any row
    seen: Tensor | None  # which are data, (*batch, *event); None where none are


def binary_chains(
    model: Story, chains: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Chains | None:
    """Chains that start at coin flips; None where a latent site is not binary.

    Raises:
        ValueError: for a story without latent sites, one whose plates are not independent, one in
            which the parameters of a machine without a log Z depend on another latent site, or
            missing values that are not binary.
    """
    try:
        first = _run({}, model, args, kwargs)
    except _NotBinary:
        return None
    data = _with_missing(first)
    values = {**first.values, **{name: value.nan_to_num(0.0) for name, value in data.items()}}
    if not values:
        raise ValueError("the story has no latent site, so there is nothing to infer")
    seen = {name: ~value.isnan() for name, value in data.items()}
    latent = [msg for msg in first.visited if msg["name"] in values]
    target = Target(model, args, kwargs, _free_machines(first, values, model, args, kwargs))
    sites = [_site(msg, seen.get(msg["name"])) for msg in latent]
    for site in sites:
        if site.plates:
            target.require_plates(site, values)
    start = {
        name: torch.randint(2, (chains, *value.shape)).to(value) for name, value in values.items()
    }
    start |= {name: torch.where(seen[name], value, start[name]) for name, value in data.items()}
    return Chains(
        start,
        partial(step, target=target, sites=sites),
        partial(_read, target=target),
        observes=len(first.visited) > len(latent)
        or any(bool(mask.any()) for mask in seen.values()),
        given=seen,
    )


def step(state: dict[str, Tensor], *, target: Target, sites: list[Site]) -> dict[str, Tensor]:
    """One sweep over all units of all sites: values ``(chains, *batch, *event)``."""
    for site in sites:
        density = torch.func.vmap(partial(target.inside, site=site))
        current = density(state)
        for unit in site.units:
            value = state[site.name]
            mask = (torch.arange(site.event.numel()) == unit).reshape(site.event).to(value.device)
            flipped = torch.where(mask, 1 - value, value)
            other = density({**state, site.name: flipped})
            moves = torch.rand_like(other) < torch.sigmoid(other - current)
            if site.seen is not None:
                moves = moves & ~site.seen.reshape(*site.batch, -1)[..., unit]
            current = torch.where(moves, other, current)
            rows = moves.reshape(*moves.shape, *(1 for _ in site.event))
            state = {**state, site.name: torch.where(rows, flipped, value)}
    return state


@dataclass(frozen=True)
class Target:
    """A story as a log density of its latent sites, without what cancels."""

    model: Story
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    free: frozenset[str]  # machines whose log Z is the same whatever the latent sites are

    def total(self, values: Values) -> Tensor:
        """``log p(data, values)`` up to a constant, ``()``, nats."""
        return torch.stack([term.sum() for _, term in self._terms(values)]).sum()

    def inside(self, values: Values, site: Site) -> Tensor:
        """What belongs to each row of the plates of `site`: ``(*batch)``, nats."""
        return self._parts(values, site)[0]

    def require_plates(self, site: Site, values: Values) -> None:
        """Refuse a story that mixes the rows of a plate: they could not be drawn side by side."""
        value = values[site.name]
        first = torch.zeros(site.batch, dtype=torch.bool)
        first.view(-1)[0] = True
        for rows in (first, ~first):
            mask = rows.reshape(*rows.shape, *(1 for _ in site.event)).to(value.device)
            off, on = (
                self._parts({**values, site.name: value.masked_fill(mask, state)}, site)
                for state in (0.0, 1.0)
            )
            same = torch.isclose(off[0], on[0]) | rows.to(value.device)
            if not (same.all() and torch.isclose(off[1], on[1])):
                raise ValueError(
                    f"site '{site.name}' is in the plate {' and '.join(site.plates)}, but its rows "
                    "are not independent of each other: a site depends on several of them. Write "
                    "it without the plate, with `.expand` and `.to_event`"
                )

    def _parts(self, values: Values, site: Site) -> tuple[Tensor, Tensor]:
        inside, outside = [], []
        for plates, term in self._terms(values):
            if set(site.plates) <= set(plates):
                kept = [plates[name] for name in site.plates]
                rest = [d for d in range(-term.dim(), 0) if d not in kept]
                summed = term.sum(rest, keepdim=True) if rest else term
                inside.append(summed.reshape(site.batch))
            else:
                outside.append(term.sum())
        own = torch.stack(inside).sum(0)  # the site itself is among them
        return own, torch.stack(outside).sum() if outside else own.new_zeros(())

    def _terms(self, values: Values) -> list[tuple[dict[str, int], Tensor]]:
        """The log density of each site, with the dimensions of its plates in full."""
        found = []
        for msg in _run(values, self.model, self.args, self.kwargs).visited:
            law, value = innermost(msg["fn"]), msg["value"]
            if msg["name"] in self.free:
                term = -free_energy(law, value)
            else:
                term = msg["fn"].log_prob(value, *msg["args"], **msg["kwargs"])
            plates = plate_dimensions(msg)
            shape = [1] * max([term.dim(), *(-d for d in plates.values())])
            for frame in msg["cond_indep_stack"]:
                if frame.vectorized:
                    shape[frame.dim] = frame.size
            term = term.expand(torch.broadcast_shapes(term.shape, shape))
            found.append((plates, scale_and_mask(term, msg["scale"], msg["mask"])))
        return found


class _NotBinary(Exception):
    """A latent site has other values than 0 and 1."""


class _Run(Messenger):
    """Gives latent sites their values, or coin flips to those without, and collects all sites."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = dict(values)
        self.visited: list[Any] = []

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, Subsample):
            if (taken := rows_taken(fn)) is not None:
                raise ValueError(
                    f"plate '{msg['name']}' is subsampled ({taken} of {fn.size}): "
                    "Gibbs needs all data"
                )
            msg["value"], msg["done"] = torch.arange(fn.size), True
            return
        msg["fn"] = without_validation(fn)
        name = msg["name"]
        if msg["is_observed"] and name not in self.values:
            return
        if not is_binary(fn):
            raise _NotBinary(name)
        if name not in self.values:
            self.values[name] = torch.randint(2, fn.shape()).to(_dtype(fn))
        msg["value"], msg["done"] = self.values[name], True

    def _pyro_post_sample(self, msg: Any) -> None:
        deterministic = msg["infer"] and msg["infer"].get("_deterministic")
        if not isinstance(msg["fn"], Subsample) and not deterministic:
            self.visited.append(msg)


def _run(values: Values, model: Story, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Run:
    with _Run(values) as handler:
        model(*args, **kwargs)
    return handler


def _with_missing(run: _Run) -> dict[str, Tensor]:
    """Data of observed sites with NaN among them, but for rows that are masked out."""
    found = {}
    for msg in run.visited:
        missing = torch.as_tensor(msg["value"]).isnan()
        if not msg["is_observed"] or not missing.any():
            continue
        rows = missing.reshape(*missing.shape[: missing.dim() - msg["fn"].event_dim], -1).any(-1)
        if msg["mask"] is not None and not (rows & msg["mask"]).any():
            continue
        if not is_binary(msg["fn"]):
            raise ValueError(
                f"site '{msg['name']}' has NaN among its data, and is not binary: only missing "
                "units of 0 and 1 are drawn; drop these rows, or mask them with pyro.poutine.mask"
            )
        found[msg["name"]] = msg["value"]
    return found


def _read(state: dict[str, Tensor], *, target: Target) -> Reading:
    return Reading(state, torch.func.vmap(target.total)(state))


def is_binary(fn: Any) -> bool:
    """Whether a distribution's units are 0 or 1, those of a Boltzmann machine too."""
    law = innermost(fn)
    try:
        support = fn.support
    except NotImplementedError:
        return False
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    whole = law.units.binary if isinstance(law, RestrictedBoltzmann) else True
    return support is constraints.boolean and whole


def plate_dimensions(msg: Any) -> dict[str, int]:
    """The vectorised plates around a site, each with its dimension."""
    return {frame.name: frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized}


def _dtype(fn: Any) -> torch.dtype:
    """Of the parameters of a binary law, which its units have too."""
    law = innermost(fn)
    return getattr(law, next(iter(law.arg_constraints))).dtype


def _site(msg: Any, seen: Tensor | None) -> Site:
    plates, batch = plate_dimensions(msg), msg["fn"].batch_shape
    own = [d for d in range(-len(batch), 0) if batch[d] > 1 and d not in plates.values()]
    if own:
        raise ValueError(
            f"site '{msg['name']}' has batch shape {tuple(batch)}, of which no plate declares "
            f"dimension {own[0]}: put it into a plate, or make it part of the event with "
            "`.to_event`"
        )
    event = msg["fn"].event_shape
    units = list(range(event.numel()))
    if seen is not None:
        whole = seen.reshape(-1, event.numel()).all(0)
        units = [unit for unit in units if not whole[unit]]
    return Site(msg["name"], plates, batch, event, units, seen)


def _free_machines(
    first: _Run, values: Values, model: Story, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> frozenset[str]:
    """Machines whose parameters do not depend on latent sites.

    The others need their log Z, which is summed where that is cheap, and else raises.
    """
    opposite = {name: 1 - value for name, value in values.items()}
    fixed = {name: machine_parameters(msg) for name, msg in _machines(first).items()}
    for values in (opposite, {}):  # {}: coins flipped anew
        for name, msg in _machines(_run(values, model, args, kwargs)).items():
            if not all(map(torch.equal, fixed.get(name, ()), machine_parameters(msg))):
                fixed.pop(name)
    return frozenset(fixed)


def _machines(run: _Run) -> dict[str, Any]:
    return {m["name"]: m for m in run.visited if is_machine(m)}


def is_machine(msg: Any) -> bool:
    """Whether the site is a Boltzmann machine, whose log Z may be unknown."""
    return isinstance(innermost(msg["fn"]), (Boltzmann, RestrictedBoltzmann))


def free_energy(law: Boltzmann | RestrictedBoltzmann, value: Tensor) -> Tensor:
    """``-log p`` up to log Z, hidden side summed out: ``(*batch)``, nats."""
    return (law.energy if isinstance(law, Boltzmann) else law.free_energy)(value)


def machine_parameters(msg: Any) -> list[Tensor]:
    """Of a site that is a machine."""
    law = innermost(msg["fn"])
    return [getattr(law, name) for name in law.arg_constraints]
