r"""Can these importance weights be trusted? Pareto smoothing and its shape k-hat.

The largest weights are fitted by a generalised Pareto distribution with shape k: about 1/k moments
of the weights exist. Where they do not look like one, fewer of them are fitted: the weights of a
normal that fits a skew posterior well pile up at a local maximum, log w being a cubic, and with
that pile at its lower end the tail has a k-hat of 3 whatever lies beyond.

References:
    | Pareto smoothed importance sampling (Vehtari et al., 2024) | https://arxiv.org/abs/1507.02646
    | A new and efficient estimation method for the generalized Pareto distribution
    | (Zhang and Stephens, 2009)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ppgen.diagnostics.arrays import Array, as_array

_ROUNDING = 1e-8  # of weights whose largest is 1: log densities of an exact guide differ by less
_MISFIT = 1.2  # of Kolmogorov's distance x sqrt(size): true Pareto tails exceed it in 1 of 200
_FEWEST = 25  # weights in a tail


class ParetoK(NamedTuple):
    """Shape of the tail of importance weights, and what it asks for.

    k-hat does not depend on how much the weights vary: read it beside `ess`.
    """

    k: float  # NaN when it cannot be known, infinite when a few weights take all
    threshold: float  # min(1 - 1 / log10 S, 0.7)
    needed: float  # draws that estimates would need with this k
    ess: float  # (sum w)^2 / sum w^2, of the raw weights
    ok: bool  # k < threshold


def khat_limit(size: int) -> float:
    """k-hat up to which `size` weights will do: ``min(1 - 1 / log10 S, 0.7)``; NaN of one."""
    return float(min(1 - 1 / np.log10(size), 0.7)) if size > 1 else np.nan


def draws_needed(k: float) -> float:
    """That estimates would need with weights of shape k, ``10^(1 / (1 - k))``."""
    return float(10 ** min(1 / (1 - max(k, 0)), 300)) if k < 1 else np.inf


def pareto_k(log_weights: Any) -> ParetoK:
    """Diagnose importance weights.

    Args:
        log_weights: log p - log q at draws from q, nats, any shape; a constant does not matter.
    """
    weights = as_array(log_weights).ravel()
    size = weights.size
    threshold = khat_limit(size)
    if size < 25 or np.isnan(weights).any() or not np.isfinite(weights.max()):
        return ParetoK(np.nan, threshold, np.inf, np.nan, False)
    k = psis(weights)[1]
    scaled = np.exp(weights - weights.max())
    ess = scaled.sum() ** 2 / (scaled**2).sum()
    return ParetoK(k, threshold, draws_needed(k), float(ess), bool(k < threshold))


def psis(log_weights: Any, relative_ess: float = 1.0) -> tuple[Array, float]:
    """Pareto smoothed, normalised log weights, and k-hat.

    The tail is that of Vehtari et al. where it looks like a Pareto tail, else the longest that
    does; where none does, nothing is smoothed.

    Args:
        log_weights: log p - log q at draws from q, nats, of any shape, without NaN.
        relative_ess: independent draws that one of a chain is worth; the tail is longer below 1.

    Shapes:
        the smoothed weights have the shape of `log_weights`; their exponentials sum to 1.

    Raises:
        ValueError: on NaN, on a weight of plus infinity, or on fewer than 25 weights.
    """
    raw = as_array(log_weights)
    if raw.size < 25 or not np.isfinite(raw.max()):
        raise ValueError(
            f"log_weights: expected at least 25 values, none NaN or +inf, got {raw.size} "
            f"of which {int((~np.isfinite(raw)).sum())} not finite"
        )
    weights, size = raw.ravel() - raw.max(), raw.size
    tail = int(3 * (size / relative_ess) ** 0.5) if size * relative_ess > 225 else size // 5
    order = np.argsort(weights)
    limit = _MISFIT / min(relative_ess, 1.0) ** 0.5
    fit = _Tail.of(weights, order, tail)
    while fit.misfit > limit and 3 * tail // 4 >= _FEWEST:
        tail = 3 * tail // 4
        fit = _Tail.of(weights, order, tail)
    few = tail < _FEWEST and not np.isnan(fit.misfit)  # no fewer can be taken, nor told apart
    if fit.misfit <= limit or few:
        # no smoothed weight exceeds the largest raw one, which is exp(0)
        weights[order[-tail:]] = np.minimum(np.log(fit.quantiles(tail)), 0.0)
    total = np.log(np.exp(weights).sum())  # the largest is 0 or near it: no overflow
    return (weights - total).reshape(raw.shape), fit.k


class _Tail(NamedTuple):
    """A generalised Pareto distribution above the cutoff of the largest weights."""

    k: float
    scale: float
    cutoff: float
    misfit: float  # Kolmogorov's distance x sqrt(size); NaN where nothing can be fitted

    @classmethod
    def of(cls, weights: Array, order: np.ndarray, size: int) -> _Tail:
        cutoff = float(np.exp(weights[order[-size - 1]]))
        excess = np.exp(weights[order[-size:]]) - cutoff
        k, scale = _generalised_pareto(excess)
        if not (np.isfinite(k) and scale > 0):
            return cls(k, scale, cutoff, np.nan)
        x = excess / scale
        below = 1 - (np.exp(-x) if k == 0 else np.maximum(1 + k * x, 0.0) ** (-1 / k))
        steps = np.arange(size) / size
        distance = max((steps + 1 / size - below).max(), (below - steps).max())
        return cls(k, scale, cutoff, float(distance) * size**0.5)

    def quantiles(self, size: int) -> Array:
        """So many of them, evenly spaced, above the cutoff."""
        p = (np.arange(size) + 0.5) / size
        # the quantile function, with its limit for k = 0
        x = -np.log1p(-p) if self.k == 0 else np.expm1(-self.k * np.log1p(-p)) / self.k
        return self.cutoff + self.scale * x


def _generalised_pareto(excess: Array) -> tuple[float, float]:
    """Shape and scale by Zhang and Stephens' average over a profile likelihood; `excess` sorted.

    The shape is drawn towards 1/2 as if by ten observations.
    """
    count = len(excess)
    quartile = excess[int(count / 4 + 0.5) - 1]
    if excess[-1] - excess[0] < _ROUNDING:
        return 0.0, 0.0  # a tail without spread: bounded weights, every moment exists
    if quartile <= 0:
        # underflow beside the largest: a few weights take all; or ties at the cutoff
        return np.inf, np.nan
    grid = 30 + int(count**0.5)
    b = 1 / excess[-1] + (1 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3 * quartile)
    shapes = np.log1p(-b[:, None] * excess).mean(1)
    profile = count * (np.log(-b / shapes) - shapes - 1)
    posterior = np.exp(profile - profile.max())
    posterior /= posterior.sum()
    posterior[posterior < 10 * np.finfo(float).eps] = 0
    b_mean = float((b * posterior).sum() / posterior.sum())
    shape = float(np.log1p(-b_mean * excess).mean())
    return (count * shape + 5) / (count + 10), -shape / b_mean
