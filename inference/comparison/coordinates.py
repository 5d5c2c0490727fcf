"""One posterior and its reference as draws of the same coordinates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ppgen import diagnostics
from ppgen.diagnostics.arrays import Array, as_array, varies
from ppgen.posterior import Posterior
from ppgen.program import Program


class Coordinates(NamedTuple):
    """Draws of both, ``(chains, draws, D)`` each, and what the coordinates are."""

    names: tuple[str, ...]
    ours: Array
    theirs: Array
    unconstrained: bool  # whether they are the program's, where densities are known


def coordinates(
    posterior: Posterior, reference: Posterior, program: Program | None = None
) -> Coordinates:
    """The unconstrained coordinates where both were drawn in the same ones.

    They have the names of the scalars, or ``weights[0]`` for the first of the fewer coordinates
    that a simplex has; without a program ``z[0]``. Otherwise (two parameterisations of one
    posterior) every scalar of the sites that are latent for either, on its own scale, as far as it
    varies.
    """
    if same_scale(posterior, reference):
        ours, theirs = as_array(posterior.unconstrained), as_array(reference.unconstrained)
        names = [n for n in reference.scalars() if _site(n) not in reference.deterministic]
        if len(names) != ours.shape[-1] and program and of_program(reference, program):
            names = program.coordinates
        elif len(names) != ours.shape[-1]:  # a simplex has more scalars than coordinates
            names = [f"z[{i}]" for i in range(ours.shape[-1])]
        return Coordinates(tuple(names), ours, theirs, True)
    mine, others = posterior.scalars(), reference.scalars()
    fixed = set(posterior.deterministic) & set(reference.deterministic)
    names = [n for n in others if _site(n) not in fixed and n in mine and varies(others[n])]
    ours, theirs = (np.stack([s[n] for n in names], -1) for s in (mine, others))
    return Coordinates(tuple(names), ours, theirs, False)


def same_scale(posterior: Posterior, reference: Posterior) -> bool:
    """Whether the flat vectors of both mean the same."""
    one, two = posterior.unconstrained, reference.unconstrained
    if one is None or two is None or one.shape[-1] != two.shape[-1]:
        return False
    return _latent(posterior) == _latent(reference)


def of_program(posterior: Posterior, program: Program) -> bool:
    """Whether its flat vectors are those of the program, where densities can be evaluated."""
    z = posterior.unconstrained
    same = z is not None and z.shape[-1] == program.dim
    return same and _latent(posterior) == list(program.sites)


def worth(posterior: Posterior, x: Array) -> int:
    """How many independent draws these are worth, in the worst coordinate."""
    count = x.shape[0] * x.shape[1]
    if posterior.kind != "chains":
        return count
    ess = diagnostics.ess_bulk(x)
    known = ess[np.isfinite(ess)]
    return int(min(count, known.min())) if known.size else count


def _latent(posterior: Posterior) -> list[str]:
    return [name for name in posterior.draws if name not in posterior.deterministic]


def _site(scalar: str) -> str:
    return scalar.partition("[")[0]
