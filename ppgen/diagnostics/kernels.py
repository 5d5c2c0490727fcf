r"""Kernel tests of a whole distribution: against a reference sample, or against a score alone.

References:
    | A kernel two-sample test (Gretton et al., 2012)
    | Measuring sample quality with kernels (Gorham and Mackey, 2017), inverse multiquadric
    | A kernel test of goodness of fit (Chwialkowski et al., 2016), wild bootstrap
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ppgen.diagnostics.arrays import Array, as_chains, as_sample, thin
from ppgen.diagnostics.halves import pieces, splits


class KernelTest(NamedTuple):
    """A squared discrepancy and the probability of a larger one when nothing is wrong."""

    squared: float  # unbiased MMD^2 may be negative
    p: float  # for independent draws


def mmd(x: Any, y: Any, permutations: int = 500, limit: int = 1000) -> KernelTest:
    """Maximum mean discrepancy of x from the reference y, unbiased, with a permutation test.

    Gaussian kernel on coordinates whitened by the reference; its bandwidth is the median distance
    within the reference.

    Args:
        x: sample, (n, d).
        y: reference sample, (m, d).
        permutations: how many relabellings make the null; p is at least 1 / (permutations + 1).
        limit: larger samples are thinned evenly to this size: the cost is quadratic.

    Raises:
        ValueError: when the shapes disagree, or when either sample has fewer than two rows.
    """
    import torch

    x, y = matrix(x, "x", limit), matrix(y, "y", limit)
    n, m = len(x), len(y)
    if x.shape[1] != y.shape[1] or min(n, m) < 2:
        raise ValueError(
            f"expected two samples of one width with two or more rows, got {x.shape}, {y.shape}"
        )
    kernel = _gaussian_kernel(x, y)
    orders = torch.rand(permutations, n + m, dtype=torch.float64).argsort(1).numpy()
    first = np.zeros((n + m, permutations + 1))
    first[:n, 0] = 1
    np.put_along_axis(first[:, 1:], orders.T[:n], 1.0, axis=0)
    statistic = _discrepancies(kernel, first, 1 - first)
    # a relabelling that gives the same split differs by rounding only: it counts as equal
    reached = (statistic[1:] >= statistic[0] - 1e-12).sum()
    return KernelTest(float(statistic[0]), float(1 + reached) / (1 + permutations))


def mmd_against_halves(x: Any, reference: Any, size: int = 500, number: int = 200) -> KernelTest:
    """MMD of a sample from halves of the reference, beside that of the halves from one another.

    The null keeps whole stretches of the reference's chains together, so that their
    autocorrelation and any disagreement among them count. `x` itself should be thinned to nearly
    independent draws.

    Args:
        x: sample, (n, d).
        reference: draws, (chains, draws, d).
        size: draws of `x` and of each half, at most, thinned evenly.
        number: random halvings; p is at least 1 / (number + 1).

    Raises:
        ValueError: when the widths disagree, or there are fewer than four draws of either.
    """
    cut = pieces(as_chains(reference))
    each = max(1, min(cut.shape[1], 2 * size // len(cut)))
    y = np.concatenate([thin(piece, each) for piece in cut])
    x = matrix(x, "x", min(size, len(y) // 2))
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 4:
        raise ValueError(
            f"expected two samples of one width with four or more rows, got {x.shape}, {y.shape}"
        )
    kernel, n = _gaussian_kernel(x, y), len(x)
    among = kernel[n:, n:]
    first = splits(len(cut), number).repeat(each, axis=1).T.astype(float)  # (m, number)
    null = _discrepancies(among, first, 1 - first)
    ones = first.sum(0)
    within = (first * (among @ first)).sum(0) / (ones * (ones - 1))
    across = kernel[:n, n:].sum(0) @ first / (n * ones)
    # averaged over the halves: their noise cancels
    statistic = float((kernel[:n, :n].sum() / (n * (n - 1)) + within - 2 * across).mean())
    return KernelTest(statistic, float(1 + (null >= statistic).sum()) / (1 + number))


def ksd(
    x: Any, score: Any, bootstraps: int = 500, limit: int = 1000, flip: float = 0.5
) -> KernelTest:
    r"""Kernel Stein discrepancy of a sample from the density with this score, squared.

    .. math:: \mathrm{KSD}^2 = n^{-2} \sum_{ij} s_i^T s_j k + s_i^T \nabla_j k + s_j^T \nabla_i k
        + \mathrm{tr} \nabla_i \nabla_j k, \quad k = (1 + \|x_i - x_j\|^2)^{-1/2}

    on coordinates whitened by the sample. It needs no reference draws and no normalising constant;
    it is blind to the weights of separate modes.

    Args:
        x: sample, (n, d), unconstrained.
        score: gradient of the log density at each row, (n, d).
        bootstraps: how many sign flips make the null.
        limit: larger samples are thinned evenly to this size.
        flip: probability that neighbours have opposite signs; 1/2 for independent draws, less for a
            chain.
    """
    import torch

    x, score = matrix(x, "x", limit), matrix(score, "score", limit)
    if x.shape != score.shape:
        raise ValueError(f"expected one score for each row of x, got {x.shape} and {score.shape}")
    n, d = x.shape
    to_white, back = whitening(x)
    x, score = (x - x.mean(0)) @ to_white, score @ back.T
    squares = _squared_distances(x)
    base = 1 / (1 + squares)
    own = (score * x).sum(1)
    # s_i . (x_i - x_j) - s_j . (x_i - x_j)
    towards = own[:, None] + own - score @ x.T - x @ score.T
    stein = np.sqrt(base) * (score @ score.T + base * (towards + d) - 3 * squares * base**2)
    flips = torch.rand(n, bootstraps, dtype=torch.float64).numpy() < flip
    flips[0] = torch.rand(bootstraps).numpy() < 0.5
    signs = np.where(np.cumsum(flips, axis=0) % 2, -1.0, 1.0)
    statistic = stein.sum() / n**2
    null = (signs * (stein @ signs)).sum(0) / n**2
    return KernelTest(float(statistic), float(1 + (null >= statistic).sum()) / (1 + bootstraps))


def _gaussian_kernel(x: Array, y: Array) -> Array:
    """Kernel among the rows of x, then y, whitened and scaled by y; zero from a row to itself."""
    both = np.concatenate([x, y]) @ whitening(y)[0]
    squares = _squared_distances(both)
    within = squares[len(x) :, len(x) :]
    bandwidth2 = np.median(within[np.triu_indices(len(y), 1)]) or 1.0
    kernel = np.exp(-squares / (2 * bandwidth2))
    np.fill_diagonal(kernel, 0)  # unbiased: no point is compared with itself
    return kernel


def _discrepancies(kernel: Array, first: Array, second: Array) -> Array:
    """Unbiased MMD^2 between complementary sets of rows, for each column of their indicators."""
    n, m = first.sum(0), second.sum(0)
    towards_first = kernel @ first
    within_first = (first * towards_first).sum(0)
    across = (second * towards_first).sum(0)
    within_second = kernel.sum() - within_first - 2 * across  # the two make up all rows
    return within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2 * across / (n * m)


def matrix(x: Any, name: str, limit: int) -> Array:
    """A sample as rows of numbers, (n, d), thinned evenly to `limit` of them."""
    x = as_sample(x, name)
    return thin(x.reshape(len(x), -1), limit)


def whitening(x: Array) -> tuple[Array, Array]:
    """Matrix to coordinates of unit covariance, ``x @ matrix``, and its inverse; each (d, d).

    Directions without spread are left out.
    """
    scale = x.std(0)
    scale = np.where(scale > 0, scale, 1.0)  # first to unit variances: 1e-3 beside 1e3
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(x / scale, rowvar=False)))
    kept = values > values[-1] * len(values) * np.finfo(float).eps
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    return vectors / roots / scale[:, None], (vectors * roots).T * scale


def _squared_distances(x: Array) -> Array:
    squares = (x**2).sum(1)
    return np.clip(squares[:, None] + squares - 2 * x @ x.T, 0, None)
