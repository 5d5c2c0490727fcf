r"""Whether numbers are uniform on (0, 1): the test behind simulation-based calibration.

The empirical distribution function at points :math:`z_1 < \ldots < z_K` is a Markov chain of
binomial counts, so that the chance of its staying inside a band is a finite sum, and the band that
holds everywhere at once is exact for every sample size.

References:
    | Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation
    | and multiple sample comparison (Säilynoja, Bürkner & Vehtari, 2022)
    | https://arxiv.org/abs/2103.10522
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ppgen.diagnostics.arrays import Array, as_sample

_POINTS = 50  # where the distribution function is looked at


class Band(NamedTuple):
    """Where the distribution function of uniform numbers stays, all points at once."""

    z: Array  # the points, (K,)
    lower: Array  # smallest share of the sample at or below each point, (K,)
    upper: Array  # largest share, (K,)


def ecdf_band(size: int, level: float) -> Band:
    """The band that `size` uniform numbers leave with a probability of at most `level`.

    Raises:
        ValueError: for an empty sample, or a level outside (0, 1).
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    low, high = _limits(size, _pointwise(size, level))
    return Band(_grid(size), low / size, high / size)


def uniformity(u: Any) -> float:
    """Exact p-value of the hypothesis that `u`, ``(n,)``, are independent and uniform on (0, 1).

    It is at most `level` exactly where the distribution function of `u` leaves
    ``ecdf_band(n, level)``.
    """
    from scipy.stats import binom

    u = as_sample(u, "u").ravel()
    n, z = len(u), _grid(len(u))
    counts = np.searchsorted(np.sort(u), z, side="right")
    tails = np.minimum(binom.cdf(counts, n, z), binom.sf(counts - 1, n, z))
    return max(0.0, 1.0 - _coverage(n, float(2 * tails.min())))


def symmetry(u: Any, flips: int = 2000, seed: int = 0) -> float:
    """p-value of the hypothesis that the law of `u`, ``(n,)``, is symmetric about 1/2.

    The largest gap between the distribution functions of `u` and ``1 - u``, against those of
    samples in which each number is turned to its mirror image or not, by a coin.

    References:
        | Yes, but Did It Work?: Evaluating Variational Inference (Yao et al., 2018)
        | https://arxiv.org/abs/1802.02538
    """
    u = as_sample(u, "u").ravel() - 0.5
    order = np.argsort(-np.abs(u), kind="stable")
    signs = np.where(u[order] > 0, 1.0, -1.0)
    coins = np.random.default_rng(seed).choice([-1.0, 1.0], (flips, len(u)))

    # P(u <= 1/2 - t) - P(u >= 1/2 + t) as t falls from 1/2: a walk of the signs
    def gap(walks: Array) -> Array:
        return np.abs(np.cumsum(walks, -1)).max(-1)

    return float((1 + (gap(coins) >= gap(signs)).sum()) / (1 + flips))


def _grid(size: int) -> Array:
    points = min(size, _POINTS)
    return np.arange(1, points + 1) / (points + 1)


def _limits(size: int, gamma: float) -> tuple[Array, Array]:
    """Counts whose two-sided binomial p-value exceeds `gamma`, at each point."""
    from scipy.stats import binom

    z = _grid(size)[:, None]
    counts = np.arange(size + 1)
    # 1e-12: the count that set gamma stands on the edge, and is out
    inside = np.minimum(binom.cdf(counts, size, z), binom.sf(counts - 1, size, z)) > gamma * (
        0.5 + 1e-12
    )
    low = inside.argmax(1).astype(float)
    high = size - inside[:, ::-1].argmax(1).astype(float)
    # a gamma above the p-value of every count leaves nothing
    empty = ~inside.any(1)
    return np.where(empty, 1.0, low), np.where(empty, 0.0, high)


def _coverage(size: int, gamma: float) -> float:
    """The chance that all counts of uniform numbers stay inside the limits."""
    from scipy.stats import binom

    low, high = _limits(size, gamma)
    if bool((low > high).any()):
        return 0.0
    before, weight, at = np.zeros(1), np.ones(1), 0.0
    for z, a, b in zip(_grid(size), low, high, strict=True):
        counts = np.arange(a, b + 1)
        left = size - before[:, None]
        step = binom.pmf(counts - before[:, None], left, (z - at) / (1 - at))
        before, weight, at = counts, weight @ step, z
    return float(weight.sum())


@lru_cache(maxsize=64)
def _pointwise(size: int, level: float) -> float:
    """The largest pointwise level at which the band as a whole is left by at most `level`."""
    low, high = np.log(level / (10 * _POINTS)), np.log(level)
    for _ in range(20):
        middle = 0.5 * (low + high)
        if 1 - _coverage(size, float(np.exp(middle))) <= level:
            low = middle
        else:
            high = middle
    return float(np.exp(low))
