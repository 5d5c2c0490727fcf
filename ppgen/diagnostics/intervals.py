"""Intervals that hold a given share of the draws, and the error of a share that was counted."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppgen.diagnostics.arrays import Array, as_chains


def eti(x: Any, prob: float = 0.9) -> Array:
    """Equal-tailed interval: ``(chains, draws, *shape) -> (2, *shape)``."""
    x = as_chains(x)
    return np.quantile(x, [(1 - prob) / 2, (1 + prob) / 2], axis=(0, 1))


def hdi(x: Any, prob: float = 0.9) -> Array:
    """Shortest interval with `prob` of the draws: ``(chains, draws, *shape) -> (2, *shape)``.

    For densities with one mode; NaN where a draw is not finite.
    """
    x = as_chains(x)
    flat = np.sort(x.reshape(-1, *x.shape[2:]), axis=0)
    size = len(flat)
    span = min(int(prob * size), size - 1)
    with np.errstate(invalid="ignore"):
        start = np.argmin(flat[span:] - flat[: size - span], axis=0)
    ends = [np.take_along_axis(flat, (start + k)[None], axis=0)[0] for k in (0, span)]
    known = np.isfinite(x).all((0, 1))
    return np.where(known, np.stack(ends), np.nan)


def share_error(hits: int, trials: int) -> float:
    r"""Standard error of the share ``hits / trials``.

    .. math:: \sqrt{\tilde p (1 - \tilde p) / n}, \quad \tilde p = \frac{k + 1}{n + 2}

    With Laplace's rule of succession for the share itself, by which none of 20 is not known without
    error.

    References:
        | Approximate is better than "exact" (Agresti & Coull, 1998)
    """
    share = (hits + 1) / (trials + 2)
    return float(share * (1 - share) / trials) ** 0.5
