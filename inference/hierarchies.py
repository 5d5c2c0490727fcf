r"""Sites whose location or scale other latent sites decide: found, and written non-centred.

.. math:: \tilde x \sim F(c m, s^c), \quad x = m + s^{1 - c} (\tilde x - c m)

has the law :math:`x \sim F(m, s)` of its location-scale family for every c: 1 is the centred
form, 0 the non-centred, in which :math:`\tilde x` is independent of m and s.

References:
    | Automatic reparameterisation of probabilistic programs (Gorinova, Moore & Hoffman, 2020)
      | https://arxiv.org/abs/1906.03028
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam.reparam import Reparam
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from ppgen.program import Program
from ppgen.story import sandbox
from ppgen.types import Story

_LISTED = 5
_AGREE = 1e-6  # relative; what densities of one family may differ by


@dataclass(frozen=True)
class Hierarchy:
    """A latent site whose location or scale other latent sites decide."""

    name: str
    distribution: str
    location: tuple[str, ...]  # sites that its location depends on
    scale: tuple[str, ...]
    partly: bool  # whether it can be centred element by element, or only as a whole
    support: constraints.Constraint

    def __str__(self) -> str:
        parts = {"location": self.location, "scale": self.scale}
        depends = [f"{part} on {' and '.join(of)}" for part, of in parts.items() if of]
        return f"{self.name} ({self.distribution}; {', '.join(depends)})"


def listed(sites: Sequence[str]) -> str:
    """Sites in print, each with what it depends on: those of a loop over time are many."""
    if len(sites) <= _LISTED:
        return ", ".join(sites)
    left = len(sites) - _LISTED + 1
    return f"{', '.join(sites[: _LISTED - 2])}, {left} more, and {sites[-1]}"


def non_centred(model: Story, centredness: Mapping[str, float | Tensor]) -> Story:
    """The story with the named sites written non-centred, or partly so.

    Args:
        model: any Pyro callable.
        centredness: c of each site: 0 for non-centred, 1 for as it is; or for each element.
    """
    config: dict[str, Reparam] = {n: _Decentre(c) for n, c in centredness.items()}
    return pyro.poutine.reparam(model, config=config)


class _Decentre(Reparam):
    """Sample ``x_decentred``, and make x of it."""

    def __init__(self, centredness: float | Tensor) -> None:
        self.centredness = centredness

    def apply(self, msg: Any) -> Any:
        name, fn = msg["name"], msg["fn"]
        family = _LocationScale.of(fn)
        if family is None or msg["value"] is not None:
            raise ValueError(
                f"site '{name}' ({type(fn).__name__}) cannot be written non-centred: it is no "
                "latent site of a location-scale family"
            )
        c = self.centredness
        inner = family.standard(c)
        value = family.place(pyro.sample(f"{name}_decentred", inner), c)
        return {
            "fn": dist.Delta(value, event_dim=fn.event_dim).mask(False),
            "value": value,
            "is_observed": True,
        }


@dataclass(frozen=True)
class _LocationScale:
    """A distribution as ``transforms(loc + scale e)``, with e from a standard law."""

    fn: Any  # as given
    base: Any  # of the family, without Independent and transforms
    transforms: tuple[Any, ...]

    @classmethod
    def of(cls, fn: Any) -> _LocationScale | None:
        """None where it is not of such a family."""
        base = _independent(fn)
        if _is_family(base):
            return cls(fn, base, ())
        if isinstance(base, torch.distributions.TransformedDistribution):
            event_shape, transforms = base.event_shape, tuple(base.transforms)
            base = _independent(base.base_dist)
            mixing = base.event_shape != event_shape
            one_to_one = all(t.bijective for t in transforms)  # not so in HalfCauchy
            if _is_family(base) and one_to_one and not mixing:
                return cls(fn, base, transforms)
        return None

    @property
    def joint(self) -> bool:
        """Whether elements depend on each other, so that there is no centring one by one."""
        return isinstance(self.base, torch.distributions.MultivariateNormal)

    @property
    def scale(self) -> Tensor:
        return self.base.scale_tril if self.joint else self.base.scale

    def standard(self, c: float | Tensor) -> Any:
        """The law of the decentred variable."""
        if self.joint:
            return dist.Normal(torch.zeros_like(self.base.loc), 1.0).to_event(self.fn.event_dim)
        loc, scale = torch.broadcast_tensors(self.base.loc, self.base.scale)
        given = {n: getattr(self.base, n) for n in self.base.arg_constraints}
        law = type(self.base)(**{**given, "loc": c * loc, "scale": scale**c})
        return law.to_event(self.fn.event_dim)

    def place(self, e: Tensor, c: float | Tensor) -> Tensor:
        """The variable itself."""
        loc, scale = self.base.loc, self.scale
        if self.joint:
            value = loc + (scale @ e.unsqueeze(-1)).squeeze(-1)
        else:
            value = loc + scale ** (1.0 - c) * (e - c * loc)
        for transform in self.transforms:
            value = transform(value)
        return value

    def holds(self) -> bool:
        """Whether the densities agree: a class may call its parameters loc and scale for less."""
        with torch.no_grad():
            e = self.standard(0.0).sample()
            x = self.base.loc + self.scale * e
            there = self.base.log_prob(x) + self.scale.log()
            here = _independent(self.standard(0.0)).log_prob(e)
        return torch.allclose(there, here, rtol=_AGREE, atol=_AGREE)


def _is_family(fn: Any) -> bool:
    if isinstance(fn, torch.distributions.MultivariateNormal):
        return True
    return {"loc", "scale"} <= set(fn.arg_constraints) and fn.support is constraints.real


def _independent(fn: Any) -> Any:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


class _Look(Messenger):
    """Note the distribution of each latent site, given the values of those before it."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values, self.laws = values, {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            self.laws[msg["name"]] = msg["fn"]
            msg["value"], msg["done"] = self.values[msg["name"]], True


def hierarchies(program: Program) -> tuple[Hierarchy, ...]:
    """Sites of a location-scale family whose parameters depend on other latent sites.

    Found by differentiating the parameters once, at a random point: names play no part.
    """
    point = program.constrain(program.anatomy.prototype.to(program.dtype)[None])
    with sandbox(program.dtype), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        values = {n: v[0].detach().clone().requires_grad_() for n, v in point.items()}
        with _Look(values) as look:
            program.model(*program.args, **program.kwargs)
        found = [_hierarchy(name, law, values) for name, law in look.laws.items()]
    return tuple(h for h in found if h is not None)


def _hierarchy(name: str, law: Any, values: Mapping[str, Tensor]) -> Hierarchy | None:
    family = _LocationScale.of(law)
    if family is None or not (family.joint or family.holds()):
        return None
    location, scale = (_depends(t, values) for t in (family.base.loc, family.scale))
    if not location and not scale:
        return None
    inner = type(family.base).__name__
    words = type(_independent(law)).__name__ if family.transforms else inner
    return Hierarchy(name, words, location, scale, not family.joint, law.support)


def _depends(parameter: Tensor, values: Mapping[str, Tensor]) -> tuple[str, ...]:
    if not parameter.requires_grad:
        return ()
    slopes = torch.autograd.grad(
        parameter.sum(), list(values.values()), allow_unused=True, retain_graph=True
    )
    return tuple(n for n, slope in zip(values, slopes, strict=True) if slope is not None)
