"""Distances between the margins of two samples, and of their projections."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ppgen.diagnostics.arrays import Array, as_sample


class KolmogorovSmirnov(NamedTuple):
    """Largest gap between two distribution functions, and its asymptotic p-value; ``(*shape)``."""

    statistic: Array
    p: Array  # for independent draws


def wasserstein1(x: Any, y: Any) -> Array:
    r"""Exact Wasserstein-1 distance of each margin: :math:`\int_0^1 |F^{-1}(u) - G^{-1}(u)| du`.

    In the unit of the variable: divide by the reference's standard deviation to compare. Between
    two samples of one normal, of sizes n and m, expect about 1.28 sqrt(1/n + 1/m) sd from noise.

    Shapes:
        ``x``: ``(n, *shape)``; ``y``: ``(m, *shape)``, the sizes may differ; result ``(*shape)``.
    """
    x, y = _pair(x, y)
    n, m = len(x), len(y)
    x, y = np.sort(x, axis=0), np.sort(y, axis=0)
    if n == m:
        return np.abs(x - y).mean(0)[()]
    # both quantile functions are steps: integrate over the union of their jumps, on a common
    # denominator in integers, so that no piece is lost to rounding
    jumps = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    widths = np.diff(jumps, prepend=0)
    gaps = np.abs(x[(jumps - 1) // m] - y[(jumps - 1) // n])
    return np.tensordot(widths, gaps, axes=(0, 0))[()] / (n * m)


def ks(x: Any, y: Any) -> KolmogorovSmirnov:
    """Two-sample Kolmogorov-Smirnov test of each margin.

    Shapes:
        ``x``: ``(n, *shape)``; ``y``: ``(m, *shape)``; results ``(*shape)``.
    """
    from scipy.special import kolmogorov

    x, y = _pair(x, y)
    n, m = len(x), len(y)
    both = np.concatenate([x.reshape(n, -1), y.reshape(m, -1)])
    order = np.argsort(both, axis=0, kind="stable")
    steps = np.where(order < n, 1 / n, -1 / m)
    gaps = np.abs(np.cumsum(steps, axis=0))
    ranked = np.take_along_axis(both, order, axis=0)
    gaps[:-1][ranked[1:] == ranked[:-1]] = 0  # inside a run of ties there is no gap yet
    statistic = gaps.max(0).reshape(x.shape[1:])[()]
    return KolmogorovSmirnov(statistic, kolmogorov(np.sqrt(n * m / (n + m)) * statistic))


def sliced_wasserstein(x: Any, y: Any, directions: int = 200) -> float:
    """Mean Wasserstein-1 distance of the projections on uniform random directions.

    Shapes:
        ``x``: ``(n, d)``; ``y``: ``(m, d)``.
    """
    import torch

    x, y = _pair(x, y)
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    u = torch.randn(x.shape[1], directions, dtype=torch.float64).numpy()
    u /= np.linalg.norm(u, axis=0)
    return float(np.mean(wasserstein1(x @ u, y @ u)))


def _pair(x: Any, y: Any) -> tuple[Array, Array]:
    x, y = as_sample(x, "x"), as_sample(y, "y")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"two samples of one quantity are needed: x has rows of shape {x.shape[1:]}, "
            f"y of {y.shape[1:]}"
        )
    return x, y
