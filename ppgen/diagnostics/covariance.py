"""Where one covariance is too narrow or too wide beside another."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ppgen.diagnostics.arrays import Array, as_array


class Extremes(NamedTuple):
    """Least and greatest ratio of variances over all linear combinations of the coordinates.

    A direction w is the combination w.x whose ratio it is, scaled to variance 1 in the reference.
    """

    smallest: float  # variance ratio, not of standard deviations
    largest: float
    narrowest: Array  # (d), the combination with the smallest ratio
    widest: Array  # (d), the combination with the largest ratio


def whitened_extremes(cov_q: Any, cov_ref: Any) -> Extremes:
    """Extreme eigenvalues of inv(L) cov_q inv(L).T, with L L.T = cov_ref, and their combinations.

    Shapes:
        ``cov_q``, ``cov_ref``: ``(d, d)``.

    Raises:
        ValueError: when the reference is not positive definite.
    """
    q, reference = np.atleast_2d(as_array(cov_q)), np.atleast_2d(as_array(cov_ref))
    if q.shape != reference.shape or q.shape[0] != q.shape[1]:
        raise ValueError(f"expected two (d, d) covariances, got {q.shape} and {reference.shape}")
    if not (np.isfinite(q).all() and np.isfinite(reference).all()):
        raise ValueError("a covariance has entries that are not finite")
    scale = np.sqrt(np.diag(reference))  # first to unit variances: scales of 1e-3 beside 1e3
    try:
        factor = np.linalg.cholesky(reference / np.outer(scale, scale))
    except np.linalg.LinAlgError:
        raise ValueError(
            "cov_ref is not positive definite: more draws than coordinates are needed, and no "
            "coordinate may be constant or a combination of others"
        ) from None
    to_white = np.linalg.solve(factor, np.diag(1 / scale))
    values, vectors = np.linalg.eigh(to_white @ q @ to_white.T)
    combinations = to_white.T @ vectors
    return Extremes(float(values[0]), float(values[-1]), combinations[:, 0], combinations[:, -1])
