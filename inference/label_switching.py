r"""Chains that differ by the numbers of a story's components alone, as those of a mixture do.

Where components may change places (:mod:`ppgen.components`), chains that have found the same
posterior number them differently, and R-hat calls that chains apart. Draws with their components in
the order of one scalar stand for the whole posterior: no more is lost than the numbers.

References:
    | Markov Chain Monte Carlo Methods and the Label Switching Problem in Bayesian Mixture Modeling
      (Jasra, Holmes & Stephens, 2005) | https://doi.org/10.1214/088342305000000016
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from ppgen import diagnostics
from ppgen.components import Components, interchangeable
from ppgen.diagnostics.arrays import varies
from ppgen.inference.reparametrisation import Reparametrisation
from ppgen.posterior import Cost, Posterior
from ppgen.program import Program
from ppgen.types import Exchangeable, Story

_POINTS = 4  # draws at which orders are tried
_KEYS = 16  # scalars of a component by which its number is tried
_SHARE = 0.25  # of R - 1: what is left of it where the numbers were most of the trouble
_GAP = 1.5  # sd between components in order; two of one normal are 1.4 apart
_AGREE = 1.05  # R-hat of chains that agree, as far as few draws can tell


@dataclass(frozen=True)
class Numbered:
    """A story whose draws come with their components in the order of one scalar.

    Args:
        story: as written.
        components: which may change places.
        site: whose values give the order, smallest first.
        index: of the scalar within a component.
        rhat: the largest R-hat of the draws that it was found by, once they are in that order.
    """

    story: Story
    components: Components
    site: str
    index: tuple[int, ...]
    rhat: float

    def model(self, *args: Any, **kwargs: Any) -> Any:
        return self.story(*args, **kwargs)

    def canonical(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Components in the order of the scalar."""
        order = self.components.scalar(values, self.site, self.index).argsort(-1)
        found = {n: values[n] for n in self.components.sites}
        return {**values, **self.components.permuted(found, order)}

    def numbering(self, program: Program) -> Program:
        """The story with the data of `program`; draws of it, by any engine, have this order."""
        return Program(self.model, *program.args, **program.kwargs)

    def renumbered(self, posterior: Posterior, program: Program) -> Posterior:
        """A posterior of `program`, the story as written, with its draws put into this order."""
        if posterior.unconstrained is None:
            return posterior
        same = _Renumbered(self.model, "", self.numbering(program), Cost())
        found = same.restored(posterior)
        return replace(found, messages=tuple(m for m in found.messages if m))

    @property
    def key(self) -> str:
        """The scalar in print, with a dot in place of the component: ``mu[.,0]``."""
        if not self.index:
            return self.site
        axis = dict(self.components.axes)[self.site]
        places = [str(i) for i in self.index]
        places.insert(axis + 1 + len(places), ".")
        return f"{self.site}[{','.join(places)}]"

    def __str__(self) -> str:
        """What was seen and what follows."""
        names = self.components.sites
        of = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        left = "agree" if self.rhat <= _AGREE else "still differ"
        return (
            f"label switching: the {self.components.count} components of {of} may change places, "
            f"and chains number them differently; in the order of {self.key} they {left} (R-hat "
            f"{self.rhat:.3g})"
        )


class _Renumbered(Reparametrisation):
    def back(self, posterior: Posterior) -> Tensor:
        return self.flat(posterior)


ADVICE = (
    "fit(..., reparametrise=True) would number them so; or give them an order in the story (an "
    "ordered prior), or judge by what no number changes, such as predictions"
)


def label_switching(program: Program, posterior: Posterior) -> Numbered | None:
    """The order of components in which chains agree that seemed apart.

    Args:
        program: the story with its data.
        posterior: chains of it.

    Returns:
        None where they have not been apart, where no components may change places, or where
        their order makes little difference.
    """
    if posterior.kind != "chains" or posterior.unconstrained is None:
        return None
    if isinstance(getattr(program.model, "__self__", None), Exchangeable):
        return None
    rhat = posterior.diagnosis()["rhat"]
    if not rhat > diagnostics.RHAT_LIMIT:
        return None
    z = posterior.unconstrained.flatten(0, 1)
    draws = {n: posterior.draws[n] for n in program.sites}
    best: Numbered | None = None
    for found in interchangeable(program, z[:: max(1, len(z) // _POINTS)]):
        keys = islice(_keys(found, draws), _KEYS)
        gaps = {key: _apart(found.scalar(draws, *key)) for key in keys}
        if not gaps or max(gaps.values()) < _GAP:
            continue
        site, index = max(gaps, key=lambda key: gaps[key])
        numbered = Numbered(program.model, found, site, index, math.nan)
        ordered = numbered.canonical({n: draws[n] for n in found.sites})
        numbered = replace(numbered, rhat=_worst_rhat({**draws, **ordered}))
        if best is None or numbered.rhat < best.rhat:
            best = numbered
    return best if best is not None and best.rhat - 1 < _SHARE * (rhat - 1) else None


def _keys(
    components: Components, draws: Mapping[str, Tensor]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Scalars of a component: site, and index within it."""
    for site in components.sites:
        axes = [axis for name, axis in components.axes if name == site]
        if len(axes) == 1:  # not a matrix between components, such as one of transitions
            shape = list(draws[site].shape[2:])
            del shape[axes[0]]
            yield from ((site, index) for index in np.ndindex(*shape))


def _apart(scalar: Tensor) -> float:
    """The smallest gap between components in order, in standard deviations of one."""
    ordered = scalar.double().flatten(0, -2).sort(-1).values
    gaps, width = ordered.mean(0).diff(), ordered.var(0).mean().sqrt()
    return float((gaps / width).min())


def _worst_rhat(draws: Mapping[str, Tensor]) -> float:
    flat = [v.detach().cpu().double().reshape(*v.shape[:2], -1).numpy() for v in draws.values()]
    every = np.concatenate(flat, -1)
    moving = varies(every, (0, 1))  # not so the zeros of a triangular matrix
    return float(np.max(diagnostics.rhat(every[..., moving])))
