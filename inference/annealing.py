"""What a training objective may do to the divergence: weigh it, and leave some of it free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.arguments import require_nonnegative
from ppgen.diagnostics.latent import unit_divergences
from ppgen.inference.pair import Site, Sites


class WarmUp(NamedTuple):
    """A beta that rises linearly from `start` to one: ``ELBO(beta=WarmUp(2000))``.

    References:
        | Generating Sentences from a Continuous Space (Bowman et al., 2016)
        | Ladder Variational Autoencoders (Sonderby et al., 2016)
    """

    steps: int  # updates of the parameters until beta is one
    start: float = 0.0

    def __call__(self, step: int) -> float:
        share = min(1.0, step / self.steps) if self.steps > 0 else 1.0
        return self.start + (1 - self.start) * share


def check_divergence_options(beta: float | Callable[[int], float], free_bits: float) -> None:
    """Refuse what is no weight.

    Raises:
        ValueError: by the option's name.
    """
    first = beta(0) if callable(beta) else beta
    require_nonnegative("ELBO", beta=first, free_bits=free_bits)


def regularised(
    terms: Mapping[str, Tensor], guide: Sites, model: Sites, beta: Tensor, free_bits: float
) -> Tensor:
    r"""The negative ELBO with its divergence weighed and floored, for training alone.

    .. math:: -E[\log p(x \mid z)] + \beta \sum_j \max(N \lambda, \mathrm{KL}_j)

    KL_j is that of unit j summed over the N examples, where torch has it; elsewhere a site's units
    are one group, whose floor is that of its units together.

    Args:
        terms: of the negative ELBO, by site.
        guide: the guide's sites.
        model: the model's, at the guide's draws.
        beta: weight of the divergence, ``()``.
        free_bits: lambda, nats of a unit and example.
    """
    total = beta.new_zeros(())
    for name, term in terms.items():
        site = model.get(name)
        if site is not None and site.observed:
            total = total + term
        elif site is None or not free_bits:
            total = total + beta * term
        else:
            total = total + beta * _floored(term, guide[name], site, free_bits)
    return total


def _floored(term: Tensor, q: Site, p: Site, free_bits: float) -> Tensor:
    mass = _mass(p)
    each = unit_divergences(q.fn, p.fn)
    if each is None:
        return torch.maximum(term, free_bits * p.fn.event_shape.numel() * mass)
    weight = p.scale if p.mask is None else p.scale * p.mask[(...,) + (None,) * p.fn.event_dim]
    totals = (weight * each).flatten(0, -1 - p.fn.event_dim).sum(0) if each.ndim else each
    return torch.maximum(totals, (free_bits * mass).expand_as(totals)).sum()


def _mass(site: Site) -> Tensor:
    """How many examples a site stands for, plates' factors and masks taken into account."""
    like = site.value
    count = torch.ones(site.fn.batch_shape, dtype=like.dtype, device=like.device)
    return (count * site.scale * (1.0 if site.mask is None else site.mask)).sum()
