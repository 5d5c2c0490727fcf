r"""Components that have no numbers of their own, as those of a mixture: found in any story.

.. math:: p(\theta_1, \ldots, \theta_K) = p(\theta_{\sigma(1)}, \ldots, \theta_{\sigma(K)})

for each order :math:`\sigma`: the posterior then has K! equal parts, which differ by numbers alone.
It is tried at random points with two orders that generate all others: the first two components
exchanged, and all moved on by one. The density on the unconstrained scale has to stay the same
too, so that an order has no Jacobian there (:math:`\prod_k w_k` is that of a simplex).

References:
    | Markov Chain Monte Carlo Methods and the Label Switching Problem in Bayesian Mixture Modeling
      (Jasra, Holmes & Stephens, 2005) | https://doi.org/10.1214/088342305000000016
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppgen.story import Evaluation, evaluate

if TYPE_CHECKING:
    from ppgen.program import Program

_POINTS = 4  # where orders are tried
_TRIES = 200  # sets of axes of one length, the largest first
_MOST = 50  # components; more of the same are rows of data
_ORDERS = 120  # K! up to which all orders are summed over: five components


@dataclass(frozen=True)
class Components:
    """Axes of latent sites along which all may be put into another order together.

    Args:
        count: K, the components.
        axes: sites and axes of length K, counted from the right: -1 is the last.
    """

    count: int
    axes: tuple[tuple[str, int], ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """Names, each once."""
        return tuple(dict.fromkeys(name for name, _ in self.axes))

    def scalar(self, values: Mapping[str, Tensor], site: str, index: tuple[int, ...]) -> Tensor:
        """One scalar of every component, ``(*batch, K)``, of a site with one axis of them."""
        axis = dict(self.axes)[site]
        return values[site].movedim(axis, -1)[(..., *index, slice(None))]

    def permuted(self, values: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        """The same values with component ``order[..., k]`` in place k.

        Args:
            values: of sites, ``(*batch, *shape)``.
            order: ``(*batch, K)``, or ``(K,)`` for all.
        """
        found = dict(values)
        for name, axis in self.axes:
            value = found[name]
            between = value.dim() - order.dim()  # dimensions of the site besides the axis
            shape = [*order.shape[:-1], *[1] * between, order.shape[-1]]
            index = order.reshape(shape).transpose(-1, axis)
            found[name] = value.gather(axis, index.expand(value.shape))
        return found


def interchangeable(program: Program, z: Tensor) -> tuple[Components, ...]:
    """Components whose order the density does not depend on, one entry for each number of them.

    Args:
        program: a story with its data; sites that are independent of each other given all else,
            as the leaves of a funnel, are found too.
        z: points, ``(N, D)``; orders are tried at the first few, which should have nothing special.
    """
    with program.sandbox(), torch.no_grad():
        return tuple(_found(program, z[:_POINTS]))


def _found(program: Program, z: Tensor) -> Iterator[Components]:
    latent = program.anatomy.of_kind("latent")
    here = [_evaluated(program, point) for point in z]
    values = {n: torch.stack([e.values[n] for e in here]) for n in latent}
    density = torch.stack([e.log_density() for e in here]).repeat(2)
    lengths = {size for site in latent.values() for size in site.shape if 1 < size <= _MOST}
    for count in sorted(lengths):
        axes = [
            (name, axis - len(site.shape))
            for name, site in latent.items()
            for axis, size in enumerate(site.shape)
            if size == count
        ]
        sets = (chosen for n in range(len(axes), 0, -1) for chosen in combinations(axes, n))
        for chosen, _ in zip(sets, range(_TRIES), strict=False):
            tried = Components(count, chosen)
            if _same(program, tried, values, density):
                yield tried
                break


def _evaluated(program: Program, point: Tensor) -> Evaluation:
    """Directly: a recording would take longer than these few points."""
    return evaluate(program.model, program.anatomy, point, program.args, program.kwargs)


def _same(
    program: Program, tried: Components, values: Mapping[str, Tensor], density: Tensor
) -> bool:
    places = torch.arange(tried.count, device=density.device)
    orders = torch.cat([places[:2].flip(0), places[2:]]), places.roll(1)
    moved = [tried.permuted(values, order) for order in orders]
    near = 1e-8 if density.dtype == torch.float64 else 1e-4
    try:
        z = program.unconstrain({n: torch.cat([m[n] for m in moved]) for n in program.sites})
        return all(
            torch.allclose(_evaluated(program, point).log_density(), expected, near, near)
            for point, expected in zip(z, density, strict=True)
        )
    except (ValueError, RuntimeError, ArithmeticError):
        return False  # outside a support, as an ordered vector in another order is


class AnyOrder:
    r"""A guide whose components are numbered at random: the mean of its density over all orders.

    .. math:: \log \frac1{K!} \sum_\sigma q(\sigma z)

    Draws in canonical order have K! times this density there, and K! times the posterior's: log p
    less this is the weight of a draw whatever its order.

    Args:
        program: the story, whose draws have a canonical order.
        log_prob: of the guide as fitted, ``(N, D) -> (N,)``, nats.
    """

    def __init__(self, program: Program, log_prob: Callable[[Tensor], Tensor]) -> None:
        self.program, self.log_prob = program, log_prob

    def __call__(self, z: Tensor) -> Tensor:
        """``(N, D) -> (N,)``, nats; K! evaluations of the guide for each point.

        Raises:
            ValueError: where components have too many orders, or it is not known what they are.
        """
        components = self._components(z)
        values = self.program.constrain(z)
        terms = []
        for order in permutations(range(components.count)):
            places = torch.tensor(order, device=z.device)
            moved = self.program.unconstrain(components.permuted(values, places))
            terms.append(self.log_prob(moved))
        return torch.stack(terms).logsumexp(0) - math.log(len(terms))

    def _components(self, z: Tensor) -> Components:
        found = [c for c in interchangeable(self.program, z) if self._numbered(c, z[:_POINTS])]
        if not found:
            raise ValueError("it is not known which sites make up a component of this story")
        if math.factorial(found[0].count) > _ORDERS:
            raise ValueError(f"{found[0].count} components have too many orders to sum over")
        return found[0]

    def _numbered(self, components: Components, z: Tensor) -> bool:
        """Whether the story's canonical order undoes another one."""
        z = self.program.canonical(z)
        places = torch.arange(components.count, device=z.device).roll(1)
        moved = components.permuted(self.program.constrain(z), places)
        again = self.program.canonical(self.program.unconstrain(moved))
        return torch.allclose(again, z, 1e-4, 1e-4)
