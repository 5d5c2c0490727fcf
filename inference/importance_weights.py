"""Log weights of several draws from a guide, one for each independent part of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppgen.inference.pair import Record, Site, Sites, lean

DRAWS = "importance draws"  # the plate around both programs

Adjust = Callable[[Sites], dict[str, Tensor]]


class Weights(NamedTuple):
    """What K draws from the guide say of each independent part of the data, nats."""

    log_p: Tensor  # of everything in the model, (K, *parts)
    log_q: Tensor  # of everything in the guide, (K, *parts)
    scale: float  # the plates' and handlers' factor of all terms alike, outside the logarithm
    drawn: Sites  # the guide's, under the plate of draws
    scored: Sites  # the model's

    @property
    def log_w(self) -> Tensor:
        return self.log_p - self.log_q

    def bound(self) -> Tensor:
        r"""``scale * sum_parts log 1/K sum_k w_k``, a lower bound on the evidence, ``()``."""
        log_mean = self.log_w.logsumexp(0) - math.log(len(self.log_w))
        return self.scale * log_mean.sum()

    def elbo(self) -> Tensor:
        """``scale * sum_parts 1/K sum_k log w_k``, a lower bound on the one before, ``()``."""
        return self.scale * self.log_w.mean(0).sum()


class Pair(NamedTuple):
    """A Pyro pair with its arguments and the depth of its plates."""

    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict[str, Any]
    draws: int  # K
    depth: int  # of its plates: the plate of draws lies one further to the left

    def run_guide(self, given: dict[str, Tensor] | None = None) -> Record:
        """The guide's sites, at the values that are given."""
        return self._run(self.guide, given)

    def run_model(self, given: dict[str, Tensor]) -> Record:
        return self._run(self.model, given)

    def _run(self, story: Callable, given: dict[str, Tensor] | None) -> Record:
        record = Record(given)
        (story,) = lean(story)
        plate = pyro.plate(DRAWS, self.draws, dim=-self.depth - 1)
        with pyro.validation_enabled(False), record, plate:
            story(*self.args, **self.kwargs)
        return record


def depth_of(model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> int:
    """How many dimensions the plates of a pair take; the generator is left as it was."""
    with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        drawn = Record()
        with drawn:
            guide(*args, **kwargs)
        scored = Record(drawn.values)
        with scored:
            model(*args, **kwargs)
    sites = [*drawn.sites.values(), *scored.sites.values()]
    return max((-f.dim for site in sites for f in site.plates if f.vectorized), default=0)


def weigh(pair: Pair, drawn: Record, given: dict[str, Tensor] | None = None) -> Weights:
    """Score the draws of the guide under both programs.

    Args:
        pair: the two programs.
        drawn: a run of the guide.
        given: the values that the model shall see; those of `drawn` when not given.

    Raises:
        ValueError: when the guide lacks a latent site of the model; when a scale differs from
            site to site, as inside a subsampled plate beside a global site: inside the logarithm
            no bound is left of that.
    """
    scored = pair.run_model(drawn.values if given is None else given).sites
    lacking = [n for n, s in scored.items() if not s.observed and n not in drawn.sites]
    if lacking:
        raise ValueError(
            f"the model's latent site {lacking[0]!r} is not in the guide, which has "
            f"{sorted(drawn.sites)}: sample it there under the same name"
        )
    sites = {**{f"{name} of the guide": s for name, s in drawn.sites.items()}, **scored}
    parts = _common_plates(sites)
    scale = _one_scale(sites)
    log_p = _log_prob(scored, parts)
    log_q = _log_prob(drawn.sites, parts)
    # the same shape, also where a program has no site
    log_p, log_q = torch.broadcast_tensors(log_p, log_q)
    return Weights(log_p, log_q, scale, drawn.sites, scored)


def log_density(sites: Sites, like: Tensor) -> Tensor:
    """Of all `sites` together, in the shape of the weights' `like`."""
    kept = {d - like.ndim for d in range(like.ndim) if like.shape[d] > 1}
    return _log_prob(sites, kept | {-like.ndim}).expand_as(like)


def check_reparameterised(drawn: Sites, loss: str) -> None:
    """Refuse a guide whose draws carry no gradient.

    Raises:
        ValueError: with the site's name and a loss that suits it.
    """
    for name, site in drawn.items():
        if site.options.get("enumerate"):
            raise ValueError(f"{loss}: the site {name!r} is enumerated; use ELBO, which sums it")
        partly = isinstance(site.base, dist.Rejector)
        if not site.observed and (partly or not site.fn.has_rsample):
            raise ValueError(
                f"{loss}: the guide's site {name!r} ({type(site.base).__name__}) has no "
                "reparameterised draws, so that the gradient in its parameters would be missing: "
                "use ReweightedWakeSleep, or ELBO"
            )


def complaint(weights: Weights) -> str:
    """Which site made a bound that is not finite."""
    for sites in (weights.scored, weights.drawn):
        for name, site in sites.items():
            if not site.fn.log_prob(site.value).isfinite().all():
                return (
                    f"the importance weighted bound is not finite, first at site {name!r}: look "
                    "for values outside its support and for parameters that have diverged; nan or "
                    "inf in the data, too large a learning rate"
                )
    return "the importance weighted bound is not finite (nan or inf), though every site is"


def _common_plates(sites: Sites) -> set[int]:
    """The dimensions of plates that are around every site; the leftmost is that of the draws."""
    frames = [{(f.name, f.dim) for f in s.plates if f.vectorized} for s in sites.values()]
    return {dim for _, dim in set.intersection(*frames)} if frames else set()


def _one_scale(sites: Sites) -> float:
    numbers = {name: float(site.scale) for name, site in sites.items()}
    if not numbers:
        return 1.0
    first, expected = next(iter(numbers.items()))
    for name, number in numbers.items():
        if not math.isclose(number, expected, rel_tol=1e-9):
            raise ValueError(
                f"the site {name!r} is scaled by {number:g} and {first!r} by {expected:g}: "
                "inside the logarithm of an importance weighted bound a scale leaves no bound. "
                "Put every site into the subsampled plate, give the plate all its data, and keep "
                "poutine.scale for ELBO (its beta= anneals the divergence)"
            )
    return expected


def _log_prob(sites: Sites, parts: set[int]) -> Tensor:
    terms = [_by_part(site, parts) for site in sites.values()]
    return sum(terms[1:], terms[0]) if terms else torch.zeros(())


def _by_part(site: Site, parts: set[int]) -> Tensor:
    term: Any = scale_and_mask(site.fn.log_prob(site.value), 1.0, site.mask)
    inner = [d for d in range(-term.ndim, 0) if d not in parts]
    return term.sum(inner, keepdim=True) if inner else term
