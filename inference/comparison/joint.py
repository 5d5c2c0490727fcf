"""An approximation as a joint distribution: weights, covariance, tests, evidence both ways.

References:
    | Measuring sample quality with kernels (Gorham & Mackey, 2017)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ppgen import diagnostics
from ppgen.diagnostics.arrays import Array, as_array, thin
from ppgen.diagnostics.classifier import ClassifierTest
from ppgen.diagnostics.kernels import KernelTest
from ppgen.diagnostics.pareto import draws_needed
from ppgen.inference.comparison.coordinates import Coordinates, coordinates, of_program, worth
from ppgen.inference.comparison.evidence import Sandwich, sandwich
from ppgen.inference.point import ROWS
from ppgen.inference.target import InPieces, Target
from ppgen.posterior import Posterior
from ppgen.program import Program

_SHOWN = 3  # scalars that name a direction
_SIZE = 500  # draws on each side of the tests: what they do not see there, few would
_NULLS = 250  # p is at least 1 / 251, which is below the level of the verdict
_WIDEST = 400  # coordinates up to which covariances are compared as a whole


class Direction(NamedTuple):
    """A linear combination of coordinates, in the reference's standard deviations."""

    ratio: float  # sd along it / the reference's
    null: float  # the most extreme ratio between halves of either sample, on this side
    weights: tuple[tuple[str, float], ...]  # of the scalars, unit length, largest first

    @property
    def beyond_noise(self) -> bool:
        return self.ratio < self.null if self.null < 1 else self.ratio > self.null

    def __str__(self) -> str:
        """The scalars with the largest weights, as `0.71 slope - 0.70 intercept`."""
        shown = [(n, w) for n, w in self.weights[:_SHOWN] if abs(w) > 0.1]
        text = " ".join(f"{'-' if w < 0 else '+'} {abs(w):.2f} {n}" for n, w in shown)
        return text.removeprefix("+ ") + (" ..." if len(shown) < self.named else "")

    @property
    def named(self) -> int:
        return sum(abs(w) > 0.1 for _, w in self.weights)


class Correlation(NamedTuple):
    """The two scalars whose correlation is farthest from the reference's."""

    names: tuple[str, str]
    ours: float
    theirs: float
    null: float  # the largest difference of any correlation between halves of either sample

    @property
    def error(self) -> float:
        return abs(self.ours - self.theirs)


@dataclass(frozen=True)
class Joint:
    """What the margins do not show; None where it cannot be known, and `missing` says why."""

    khat: float  # NaN without importance weights
    khat_limit: float
    needed: float  # draws that importance sampling would need with this k-hat
    efficiency: float  # IS-ESS / S
    narrowest: Direction | None = None
    widest: Direction | None = None
    correlation: Correlation | None = None
    mmd: KernelTest | None = None  # against halves of the reference
    c2st: ClassifierTest | None = None  # whether a classifier can tell the two apart
    ksd: KernelTest | None = None  # against the score of the story: no reference is needed
    sandwich: Sandwich | None = None
    missing: tuple[str, ...] = ()
    unconstrained: bool = False  # the scale of directions and correlations

    @property
    def worst(self) -> Direction | None:
        """The direction whose sd is off by the larger factor."""
        both = [d for d in (self.narrowest, self.widest) if d is not None]
        return max(both, key=lambda d: abs(math.log(max(d.ratio, 1e-300))), default=None)


def joint(posterior: Posterior, reference: Posterior, program: Program | None) -> Joint:
    """Compare the joint distributions.

    Args:
        posterior: to be judged; a point has no joint distribution, and all of it is unknown.
        reference: draws to be trusted.
        program: the story with its data, for log densities and scores; without it those of the
            reference's own draws serve, and there is no KSD.
    """
    found = posterior.diagnosis()
    pareto = (found.get("khat", math.nan), found.get("khat_limit", math.nan))
    weights = (*pareto, draws_needed(pareto[0]), found.get("relative_is_ess", math.nan))
    if posterior.kind == "point":
        return Joint(*weights, missing=("a point has no spread",))
    both = coordinates(posterior, reference, program)
    finite = [bool(np.isfinite(x).all()) for x in (both.ours, both.theirs)]
    if not both.names or not all(finite):
        said = "no coordinates in common" if all(finite) else "draws that are not finite"
        return Joint(*weights, missing=(said,))
    missing: list[str] = []
    narrow, wide, correlation = _covariances(both, missing)
    return Joint(
        *weights,
        narrow,
        wide,
        correlation,
        *_tests(posterior, reference, both),
        _ksd(posterior, both, program, missing),
        sandwich(posterior, reference, both, program, missing),
        tuple(missing),
        both.unconstrained,
    )


def _covariances(
    both: Coordinates, missing: list[str]
) -> tuple[Direction | None, Direction | None, Correlation | None]:
    """The extreme directions and the worst correlation, beside what halves show."""
    dim = len(both.names)
    ours, theirs = (np.atleast_2d(np.cov(_flat(x), rowvar=False)) for x in (both.ours, both.theirs))
    if dim > _WIDEST or min(len(_flat(x)) for x in (both.ours, both.theirs)) < 4 * dim:
        missing.append(f"{dim} coordinates are too many for a covariance of these draws")
        return None, None, None
    try:
        extremes = diagnostics.whitened_extremes(ours, theirs)
        halves = [diagnostics.spread_of_halves(x) for x in (both.ours, both.theirs)]
    except ValueError:
        missing.append("a covariance is singular: some scalars determine others")
        return None, None, None
    sd = np.sqrt(np.diag(theirs))
    sides = (
        (extremes.smallest, min(h.smallest for h in halves), extremes.narrowest),
        (extremes.largest, max(h.largest for h in halves), extremes.widest),
    )
    narrow, wide = (
        Direction(math.sqrt(max(value, 0.0)), math.sqrt(null), _named(both.names, w * sd))
        for value, null, w in sides
    )
    if dim == 1:
        return narrow, wide, None
    mine, others = diagnostics.correlations(ours), diagnostics.correlations(theirs)
    i, j = np.unravel_index(np.argmax(np.triu(np.abs(mine - others), 1)), mine.shape)
    if i == j:
        return narrow, wide, None
    names = (both.names[i], both.names[j])
    null = max(h.correlation for h in halves)
    return narrow, wide, Correlation(names, float(mine[i, j]), float(others[i, j]), null)


def _named(names: tuple[str, ...], weights: Array) -> tuple[tuple[str, float], ...]:
    """The weights of unit length, largest first; the largest is positive."""
    order = np.argsort(-np.abs(weights), kind="stable")
    unit = weights / np.linalg.norm(weights) * (1.0 if weights[order[0]] > 0 else -1.0)
    return tuple((names[k], float(unit[k])) for k in order)


def _tests(
    posterior: Posterior, reference: Posterior, both: Coordinates
) -> tuple[KernelTest, ClassifierTest | None]:
    """Both thinned to what they are worth: neighbours in a chain are no independent draws.

    MMD is the better one at small shifts of many coordinates, the classifier at shapes (500 draws
    each, p <= .01, ten coordinates of a skew gamma distribution: 1.0 against 0).
    """
    ours, theirs = worth(posterior, both.ours), worth(reference, both.theirs)
    x = thin(_flat(both.ours), max(min(_SIZE, ours, theirs // 2), 4))
    mmd = diagnostics.mmd_against_halves(x, both.theirs, size=len(x), number=_NULLS)
    x, y = (
        thin(_flat(draws), min(_SIZE, count))
        for draws, count in ((both.ours, ours), (both.theirs, theirs))
    )
    if min(len(x), len(y)) < 20 or both.ours.shape[-1] > _WIDEST:
        return mmd, None
    return mmd, diagnostics.c2st(x, y, permutations=_NULLS)


def _ksd(
    posterior: Posterior, both: Coordinates, program: Program | None, missing: list[str]
) -> KernelTest | None:
    if program is None or not of_program(posterior, program):
        missing.append("the KSD needs the story and draws of its own parameters")
        return None
    x = as_array(posterior.unconstrained)
    z = thin(_flat(x), min(_SIZE, worth(posterior, both.ours)))
    _, score = InPieces(Target(program), ROWS)(torch.as_tensor(z).to(program.device, program.dtype))
    if not bool(torch.isfinite(score).all()):
        missing.append("the score is not finite at some draws: no KSD")
        return None
    return diagnostics.ksd(z, score)


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
