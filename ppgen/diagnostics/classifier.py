r"""A classifier that tries to tell two samples apart: chance is all it has where they agree.

Fisher's linear discriminant on features that see more than moments: all coordinates, whitened,
their products, and random waves :math:`\cos(\omega^T z + b)` of two lengths. It is a ridge
regression, so that thousands of relabellings are fitted by one solve, and the null needs no theory.

References:
    | Revisiting classifier two-sample tests (Lopez-Paz & Oquab, 2017)
    | https://arxiv.org/abs/1610.06545
    | Random features for large-scale kernel machines (Rahimi & Recht, 2007)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ppgen.diagnostics.arrays import Array
from ppgen.diagnostics.kernels import matrix, whitening

_WAVES = 100  # of each length
_LENGTHS = (2.0, 1.0)  # frequencies times the root of the dimension
_PRODUCTS = 20  # dimensions up to which coordinates are multiplied with each other
_RIDGE = 0.02  # a feature's variance that is taken for noise, in units of its variance
_FOLDS = 5


class ClassifierTest(NamedTuple):
    """What a classifier makes of two samples, on points that it was not fitted to."""

    accuracy: float  # 1/2 where they cannot be told apart
    p: float  # probability of as good a separation when nothing is wrong


def c2st(x: Any, y: Any, permutations: int = 500, limit: int = 1000) -> ClassifierTest:
    """Classifier two-sample test: how well a discriminant tells `x` from `y`, by permutation.

    Five-fold cross-validation. The p-value is that of the mean margin, which is sharper than the
    accuracy that is reported beside it; exact for independent draws.

    Args:
        x: sample, (n, d).
        y: sample, (m, d); chains should be thinned to nearly independent draws.
        permutations: how many relabellings make the null; p is at least 1 / (permutations + 1).
        limit: larger samples are thinned evenly to this size.

    Raises:
        ValueError: when the widths disagree, or either sample has fewer than ten rows.
    """
    import torch

    x, y = matrix(x, "x", limit), matrix(y, "y", limit)
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2 * _FOLDS:
        raise ValueError(
            f"expected two samples of one width with {2 * _FOLDS} or more rows, got {x.shape}, "
            f"{y.shape}"
        )
    features = _features(np.concatenate([x, y]))
    count = len(features)
    labels = np.r_[np.full(len(x), len(y) / count), np.full(len(y), -len(x) / count)]
    orders = torch.rand(permutations, count, dtype=torch.float64).argsort(1).numpy()
    labels = np.concatenate([labels[:, None], labels[orders.T]], 1)
    fold = torch.randperm(count).numpy() % _FOLDS
    margin, right = np.zeros(permutations + 1), 0
    for k in range(_FOLDS):
        learn, test = fold != k, fold == k
        scores = _discriminant(features[learn], labels[learn], features[test])
        agree = scores * np.sign(labels[test])
        margin += agree.sum(0)
        right += int((agree[:, 0] > 0).sum())
    reached = (margin[1:] >= margin[0] - 1e-12).sum()
    return ClassifierTest(right / count, float(1 + reached) / (1 + permutations))


def _discriminant(features: Array, labels: Array, at: Array) -> Array:
    """Scores of each labelling at other rows: (rows, labellings)."""
    mean = labels.mean(0)
    penalty = _RIDGE * len(features) * np.eye(features.shape[1])
    weights = np.linalg.solve(features.T @ features + penalty, features.T @ (labels - mean))
    return at @ weights + mean


def _features(both: Array) -> Array:
    """Columns of mean 0 and variance 1, (n + m, features).

    Whitened by both samples together: coordinates of one of them would tell the two apart.
    """
    import torch

    z = (both - both.mean(0)) @ whitening(both)[0]
    dim = z.shape[1]
    pairs = np.triu_indices(dim) if dim <= _PRODUCTS else (np.arange(dim),) * 2
    columns = [z, z[:, pairs[0]] * z[:, pairs[1]]]
    for length in _LENGTHS:
        waves = torch.randn(dim, _WAVES, dtype=torch.float64).numpy() * length / math.sqrt(dim)
        phase = 2 * math.pi * torch.rand(_WAVES, dtype=torch.float64).numpy()
        columns.append(np.cos(z @ waves + phase))
    found = np.concatenate(columns, 1)
    found = found - found.mean(0)
    spread = found.std(0)
    return found[:, spread > 1e-9] / spread[spread > 1e-9]
