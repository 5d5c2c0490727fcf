"""Where a story's density is not finite, or means nothing, in words."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from pyro.distributions.constraints import ordered_vector
from torch import Tensor
from torch.distributions import constraints

from ppgen.anatomy import Anatomy, innermost
from ppgen.inputs import tensors
from ppgen.story import not_finite, visited_sites
from ppgen.types import Story


def warn_of_domains(
    model: Story, anatomy: Anatomy, rows: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """A prior that reaches where a distribution is not defined is cut off there: say so.

    Args:
        model: the story.
        anatomy: its sites.
        rows: unconstrained points to look at, ``(N, D)``.
        args: the story's arguments.
        kwargs: likewise.
    """
    found: dict[str, str] = {}
    for z in rows:
        found = {**_outside_domain(model, anatomy, z, args, kwargs), **found}
    if found:
        sites = ", ".join(f"{parameter} at site {site}" for site, parameter in found.items())
        warnings.warn(
            f"a prior of the story reaches values that the distributions below it do not "
            f"allow: {sites}. Such values count as impossible or mean nothing; give the "
            "parameter a prior with the right support, or map it there (exp, softplus, "
            "sigmoid; OrderedTransform what has to rise)",
            stacklevel=5,
        )


def refuse_flat(anatomy: Anatomy, gradient: Tensor) -> None:
    """What has no slope anywhere has a flat, endless posterior.

    Args:
        anatomy: the story's sites.
        gradient: of the log density at different points, ``(N, D)``.

    Raises:
        ValueError: where a site has no influence on the density.
    """
    flat = (gradient == 0).all(0) & (len(gradient) > 1)
    for site in anatomy.of_kind("latent").values():
        if bool(flat[site.start : site.stop].any()):
            raise ValueError(
                f"the log density does not depend on site '{site.name}' ({site.distribution}): "
                "its posterior is flat and has no end; give it a proper prior, use it in the "
                "likelihood, or lift the poutine.mask around it"
            )


def culprits(
    model: Story, anatomy: Anatomy, z: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    """What is not finite at the unconstrained point `z`: sites, then arguments."""
    names: list[Any] = []
    with suppress(TypeError, ValueError):  # without a signature, positions will do
        names += list(inspect.signature(model).parameters)
    names += range(len(names), len(args))
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    data = [
        f"; argument {name!r} holds values that are not finite"
        for name, value in given.items()
        if not all(bool(torch.isfinite(t).all()) for t in tensors(value))
    ]
    sites = not_finite(model, anatomy, z, args, kwargs)
    named = [f"; the log density of {site} is {value} there" for site, value in sites.items()]
    return "".join([*named, *data])


def _outside_domain(
    model: Story, anatomy: Anatomy, z: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, str]:
    """Sites whose distribution gets a parameter outside its domain at `z`, and its value.

    Such as a negative scale. Pyro's validation would raise; a recording gives NaN, or a number
    that means nothing.
    """
    found = {}
    for msg in visited_sites(model, anatomy, z, args, kwargs):
        base: Any = innermost(msg["fn"])
        for name, domain in getattr(base, "arg_constraints", {}).items():
            value = base.__dict__.get(name)
            if not isinstance(value, Tensor) or not value.isfinite().all():
                continue
            wrong = _outside(domain, value)
            if bool(wrong.any()):
                place = f"'{msg['name']}' ({anatomy.sites[msg['name']].distribution})"
                first = value[wrong][0]
                shown = ", ".join(f"{number:.3g}" for number in first.flatten().tolist())
                found[place] = f"{name} {f'[{shown}]' if first.dim() else shown}"
    return found


def _outside(domain: Any, value: Tensor) -> Tensor:
    """Where a parameter is outside its domain by more than rounding, ``(*batch)``."""
    nowhere = value.new_zeros(value.shape, dtype=torch.bool)
    margin = 1e-6 * (1 + value.abs())
    if domain is ordered_vector:
        return (value.diff() < -margin[..., 1:]).any(-1)
    while isinstance(domain, constraints.independent):
        domain = domain.base_constraint
    if constraints.is_dependent(domain) or domain.is_discrete or domain.event_dim:
        return nowhere
    return ~(domain.check(value - margin) | domain.check(value + margin))
