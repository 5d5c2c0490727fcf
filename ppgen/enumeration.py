r"""Summing finite discrete sites out of a log joint.

Variable elimination on plated factor graphs, in log space. A chain of discrete sites (a hidden
Markov model under ``pyro.markov``) costs time linear in its length. Only tensor operations on
the values, so that it can be recorded; Pyro's own contraction cannot.

References:
    | Tensor Variable Elimination for Plated Factor Graphs (Obermeyer et al., 2019)
    | https://arxiv.org/abs/1902.03210
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

Name = str | int  # a plate, or a discrete variable


@dataclass(frozen=True)
class Term:
    """A term of the log joint: pointwise log density in nats, and the observed sites in it."""

    observed: tuple[str, ...]
    log_density: Tensor
    site: str = ""  # whose it is; empty where discrete sites have been summed out


@dataclass(frozen=True)
class Factor:
    """A log density with named dimensions: plates (strings) and discrete variables (integers)."""

    observed: tuple[str, ...]
    log_density: Tensor
    names: tuple[Name, ...]
    plates: frozenset[str]
    introduces: int | None  # the variable that this site enumerates
    scale: float | Tensor
    site: str

    @property
    def variables(self) -> frozenset[int]:
        return frozenset(n for n in self.names if isinstance(n, int))


@dataclass(frozen=True)
class Elimination:
    """One variable as it was summed out: all that depended on it, given those summed out later."""

    variable: int
    factors: tuple[Factor, ...]


def sum_out(factors: list[Factor], trail: list[Elimination] | None = None) -> list[Term]:
    """Sum out every discrete variable; what stays is a list of terms over plates.

    Args:
        factors: the terms of the log joint.
        trail: takes down the eliminations, in their order, for :func:`draw_back`.

    Raises:
        ValueError: where the sum does not factorise over the plates, or where the terms of one
            sum are scaled differently.
    """
    home = {f.introduces: f.plates for f in factors if f.introduces is not None}
    terms: list[Term] = []
    live: list[Factor] = []
    for factor in factors:
        if factor.variables:
            live.append(_checked(factor, home))
        else:
            log_density = factor.log_density * factor.scale
            terms.append(Term(factor.observed, log_density, factor.site))
    while live:
        leaf = max((f.plates for f in live), key=len)
        here = [f for f in live if f.plates == leaf]
        live = [f for f in live if f.plates != leaf]
        local = {v for f in here for v in f.variables if home[v] == leaf}
        while local:
            variable = min(local, key=lambda v: _cost(v, here))
            local.remove(variable)
            touching = [f for f in here if variable in f.variables]
            here = [f for f in here if variable not in f.variables]
            here.append(_eliminate(variable, touching))
            if trail is not None:
                trail.append(Elimination(variable, tuple(touching)))
        for factor in here:
            if not factor.variables:
                terms.append(Term(factor.observed, factor.log_density * factor.scale))
            else:
                live.append(_leave_plates(factor, home))
    return terms


class Drawn(NamedTuple):
    """Values of one discrete variable, as places in its support."""

    places: Tensor  # (*plates)
    plates: tuple[Name, ...]  # the names of its dimensions


def draw_back(trail: list[Elimination]) -> dict[int, Drawn]:
    """One exact draw of all variables that were summed out, given everything else.

    Backwards through the eliminations, each variable given those that were summed out after it:
    for a chain this is forward filtering, backward sampling.

    References:
        | On Gibbs sampling for state space models (Carter & Kohn, 1994)
    """
    drawn: dict[int, Drawn] = {}
    for step in reversed(trail):
        names = tuple(dict.fromkeys(n for f in step.factors for n in f.names))
        total = _sum(step.factors, names)
        for known in [n for n in names if n != step.variable and isinstance(n, int)]:
            total, names = _given(total, names, known, drawn[known])
        axis = names.index(step.variable)
        noise = -torch.empty_like(total).exponential_().log()  # Gumbel: the largest is a draw
        index = (total + noise).argmax(axis)
        drawn[step.variable] = Drawn(index, names[:axis] + names[axis + 1 :])
    return drawn


def _given(
    total: Tensor, names: tuple[Name, ...], variable: Name, drawn: Drawn
) -> tuple[Tensor, tuple[Name, ...]]:
    """The log density at the drawn value of one of its variables."""
    axis = names.index(variable)
    rest = names[:axis] + names[axis + 1 :]
    index = _arranged(drawn.places, drawn.plates, rest).unsqueeze(axis)
    shape = (*total.shape[:axis], 1, *total.shape[axis + 1 :])
    return total.gather(axis, index.expand(shape)).squeeze(axis), rest


def _checked(factor: Factor, home: dict[int, frozenset[str]]) -> Factor:
    if isinstance(factor.scale, Tensor):
        raise _scaled(factor)
    undeclared = [n for n in factor.names if isinstance(n, str) and n not in factor.plates]
    if undeclared:
        raise ValueError(
            f"site '{factor.site}' has batch shape {tuple(factor.log_density.shape)}, of which "
            f"{undeclared[0]} belongs to no plate: wrap it in pyro.plate, or declare it with "
            ".to_event(...)"
        )
    for variable in factor.variables:
        if not home[variable] <= factor.plates:
            raise ValueError(
                f"site '{factor.site}' uses a discrete site of the plates "
                f"{sorted(home[variable] - factor.plates)} outside of them: move it inside, or "
                "declare that dimension as an event"
            )
    return factor


def _scaled(factor: Factor) -> ValueError:
    return ValueError(
        f"site '{factor.site}' depends on a discrete site and is scaled by {factor.scale}: a "
        "sum cannot be scaled term by term; take the scale (or the subsampling) away, or put all "
        "that the discrete site touches into it"
    )


def _cost(variable: int, factors: Iterable[Factor]) -> int:
    names = {n for f in factors if variable in f.variables for n in f.names}
    return len(names)


def _eliminate(variable: int, factors: list[Factor]) -> Factor:
    for factor in factors:
        if factor.scale != factors[0].scale:
            raise _scaled(factor if factor.scale != 1 else factors[0])
    names = tuple(dict.fromkeys(n for f in factors for n in f.names))
    axis = names.index(variable)
    return replace(
        factors[0],
        observed=tuple(dict.fromkeys(s for f in factors for s in f.observed)),
        log_density=torch.logsumexp(_sum(factors, names), axis),
        names=names[:axis] + names[axis + 1 :],
        introduces=None,
    )


def _sum(factors: Sequence[Factor], names: tuple[Name, ...]) -> Tensor:
    total = _arranged(factors[0].log_density, factors[0].names, names)
    for factor in factors[1:]:
        total = total + _arranged(factor.log_density, factor.names, names)
    return total


def _arranged(tensor: Tensor, own: tuple[Name, ...], names: tuple[Name, ...]) -> Tensor:
    """A tensor of the dimensions `own` as one of `names`, of size 1 where it has none."""
    tensor = tensor.permute([own.index(n) for n in names if n in own])
    for axis, name in enumerate(names):
        if name not in own:
            tensor = tensor.unsqueeze(axis)
    return tensor


def _leave_plates(factor: Factor, home: dict[int, frozenset[str]]) -> Factor:
    if factor.scale != 1:
        raise _scaled(factor)  # it goes on into another sum
    target: frozenset[str] = frozenset().union(*(home[v] for v in factor.variables))
    if target == factor.plates:
        raise ValueError(
            f"the discrete sites behind '{factor.site}' stand in different plates and meet in "
            f"{sorted(target)}: the sum over them does not factorise; declare one dimension as "
            "an event, or loop over it"
        )
    axes = [factor.names.index(p) for p in factor.plates - target if p in factor.names]
    names = tuple(n for k, n in enumerate(factor.names) if k not in axes)
    summed = factor.log_density.sum(axes) if axes else factor.log_density
    return replace(factor, log_density=summed, names=names, plates=target)
