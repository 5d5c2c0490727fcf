r"""What one half of a sample shows against the other half: the null of every comparison.

Between a posterior and a reference that agree, a discrepancy is as large as between halves of the
reference. Halves are random sets of whole chains, or of long pieces of them where there are few,
so that autocorrelation counts in full, which a permutation of single draws would hide.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ppgen.diagnostics.arrays import Array, as_chains
from ppgen.diagnostics.covariance import whitened_extremes

_PIECES = 16  # at least: 6,435 ways to halve them
_SPLITS = 100


class Spread(NamedTuple):
    """The most extreme differences of second moments between halves of one sample."""

    smallest: float  # ratio of variances over all linear combinations
    largest: float
    correlation: float  # largest difference of a correlation


def pieces(x: Any, least: int = _PIECES) -> Array:
    """Draws cut into at least `least` stretches of one length: (pieces, length, d).

    Shapes:
        ``x``: ``(chains, draws, d)``; what is left over at the end of each chain is dropped.
    """
    x = as_chains(x)
    chains, draws = x.shape[:2]
    cuts = min(draws, -(-least // chains))
    length = draws // cuts
    return x[:, : cuts * length].reshape(chains * cuts, length, -1)


def splits(count: int, number: int = _SPLITS) -> np.ndarray:
    """Which of `count` pieces fall into the first half, by chance: bool, (number, count)."""
    import torch

    order = torch.rand(number, count, dtype=torch.float64).argsort(1).numpy()
    return order < count // 2


def correlations(covariance: Array) -> Array:
    """Correlation matrix of a covariance; a coordinate without spread has correlation 0."""
    sd = np.sqrt(np.diag(covariance))
    sd = np.where(sd > 0, sd, np.inf)
    return covariance / np.outer(sd, sd)


def spread_of_halves(x: Any, number: int = _SPLITS) -> Spread:
    """How far apart the covariances of two halves of one sample are, at the worst split.

    Shapes:
        ``x``: ``(chains, draws, d)``.

    Raises:
        ValueError: where a half has no positive definite covariance.
    """
    cut = pieces(x)
    centred = cut - cut.mean((0, 1))
    sums, squares = centred.sum(1), np.einsum("kni,knj->kij", centred, centred)
    size = cut.shape[1]

    def covariance(chosen: np.ndarray) -> Array:
        total, mean = size * chosen.sum(), sums[chosen].sum(0)
        return (squares[chosen].sum(0) - np.outer(mean, mean) / total) / (total - 1)

    found = []
    for first in splits(len(cut), number):
        one, two = covariance(first), covariance(~first)
        extremes = whitened_extremes(one, two)
        gap = np.abs(correlations(one) - correlations(two)).max()
        found.append((extremes.smallest, extremes.largest, gap))
    low, high, gap = np.transpose(found)
    return Spread(float(low.min()), float(high.max()), float(gap.max()))
