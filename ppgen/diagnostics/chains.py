r"""R-hat, effective sample sizes and Monte Carlo errors of Markov chains.

All take draws ``(chains, draws, *shape)`` and give ``(*shape)``. What cannot be diagnosed (fewer
than four draws, a number that is not finite, no variance) is NaN: it passes no threshold.

References:
    | Rank-normalization, folding, and localization: an improved R-hat (Vehtari et al., 2021)
    | https://arxiv.org/abs/1903.08008
    | Practical Markov chain Monte Carlo (Geyer, 1992): initial monotone sequence
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ppgen.diagnostics.arrays import Array, as_chains, per_scalar
from ppgen.diagnostics.ranks import Ranked

RHAT_LIMIT = 1.01  # Vehtari et al. 2021
ESS_LIMIT = 400.0  # in total, all chains together (ibid.)
EBFMI_LIMIT = 0.3  # Betancourt 2016
_STANDSTILL = 20  # draws; shorter standstills happen to a healthy sampler that rejects


class Convergence(NamedTuple):
    """The three numbers that convergence asks for, and the answer; each ``(*shape)``."""

    rhat: Array
    ess_bulk: Array
    ess_tail: Array
    ok: np.ndarray  # bool; what is unknown is not ok


def convergence(
    x: Any, rhat_limit: float = RHAT_LIMIT, ess_limit: float = ESS_LIMIT
) -> Convergence:
    """R-hat, bulk and tail ESS of each scalar, and whether all three pass.

    Args:
        x: draws, ``(chains, draws, *shape)``.
        rhat_limit: largest R-hat that passes.
        ess_limit: smallest total ESS that passes, whatever the number of chains.
    """
    r, bulk, tail = per_scalar(x, _all_three, 3)
    ok = (r <= rhat_limit) & (bulk >= ess_limit) & (tail >= ess_limit)
    return Convergence(r, bulk, tail, ok)


def rhat(x: Any) -> Array:
    """Rank-normalised split R-hat, the larger of bulk and folded.

    Infinite when half a chain stands still at a value that no other chain takes: among many chains
    the variances alone would not notice it; and where all stand still and disagree, as chains of
    discrete sites do. One chain is compared with itself, half against half.
    """
    return per_scalar(x, _rank_rhat)[0]


def ess_bulk(x: Any) -> Array:
    """Effective sample size of the rank-normalised split chains: of location."""
    return per_scalar(x, _ess_bulk)[0]


def ess_tail(x: Any, prob: float = 0.9) -> Array:
    """Smaller effective sample size of the two quantiles that bound the central `prob`.

    ArviZ's `array_stats` calls the same thing ``prob=(0.05, 0.95)``; its 0.9 means 0.1 and 0.9.
    """
    return per_scalar(x, _tail(prob))[0]


def ess_mean(x: Any) -> Array:
    """Effective sample size of the plain mean (no ranks)."""
    return per_scalar(x, lambda v: _ess(_split(v)))[0]


def mcse_mean(x: Any) -> Array:
    """Monte Carlo standard error of the mean."""
    return per_scalar(x, lambda v: v.std((1, 2), ddof=1) / np.sqrt(_ess(_split(v))))[0]


def mcse_sd(x: Any) -> Array:
    """Monte Carlo standard error of the standard deviation.

    By the delta method, with the effective sample size of the squares: an antithetic chain (HMC)
    knows the mean far better than the spread.
    """

    def diagnostic(v: Array) -> Array:
        squares = (v - v.mean((1, 2), keepdims=True)) ** 2
        variance = squares.mean((1, 2))
        with np.errstate(divide="ignore", invalid="ignore"):
            ess = _ess(_split(squares))  # NaN for two values at equal distance from the mean
        return np.sqrt(squares.var((1, 2)) / ess / variance / 4)

    return per_scalar(x, diagnostic)[0]


def mcse_quantile(x: Any, prob: float) -> Array:
    """Monte Carlo standard error of the quantile `prob`, from its beta distributed rank."""
    from scipy.special import betaincinv

    def diagnostic(v: Array) -> Array:
        ess = _ess_quantile(v, prob)
        ranked = np.sort(v.reshape(len(v), -1), axis=1)
        size = ranked.shape[1]
        ends = [betaincinv(ess * prob + 1, ess * (1 - prob) + 1, p) for p in (0.1586553, 0.8413447)]
        low = np.clip(np.floor(ends[0] * size - 1), 0, size - 1).astype(int)
        high = np.clip(np.ceil(ends[1] * size - 1), 0, size - 1).astype(int)
        rows = np.arange(len(v))
        return (ranked[rows, high] - ranked[rows, low]) / 2

    return per_scalar(x, diagnostic)[0]


def autocorrelation(x: Any) -> Array:
    """Of one scalar at each lag, over all chains: ``(chains, draws) -> (draws,)``, 1 at lag 0.

    Chains that disagree keep it above zero at every lag. NaN where nothing can be said.
    """
    x = as_chains(x)
    if x.ndim != 2:
        raise ValueError(f"expected one scalar, (chains, draws), got shape {x.shape}")
    if x.shape[1] < 4 or not np.isfinite(x).all() or x.max() == x.min():
        return np.full(x.shape[1], np.nan)
    return _autocorrelation(x[None])[0]


def ebfmi(energy: Any) -> Array:
    """Bayesian fraction of missing information of each chain: (chains, draws) -> (chains).

    Below `EBFMI_LIMIT` the momentum resampling moves too little along the energy: the tails are not
    explored.
    """
    energy = as_chains(energy)
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.square(np.diff(energy, axis=1)).mean(1) / energy.var(1, ddof=1)
    known = np.isfinite(energy).all(1) & (energy.max(1) > energy.min(1)) & (energy.shape[1] >= 4)
    return np.where(known, fraction, np.nan)


def _split(v: Array) -> Array:
    """Halves of the chains, the middle draw of an odd length dropped: (V, C, N) -> (V, 2C, N/2)."""
    half = v.shape[2] // 2
    return np.concatenate([v[:, :, :half], v[:, :, -half:]], axis=1)


def _rank_rhat(v: Array) -> Array:
    halves = Ranked.of(_split(v))
    return _largest_rhat(v, halves, halves.normal_scores())


def _largest_rhat(v: Array, halves: Ranked, scores: Array) -> Array:
    # np.fmax: folding two values that lie evenly about their median leaves a constant
    largest = np.fmax(_rhat(scores), _rhat(halves.folded().normal_scores()))
    return np.where(_stands_still(v), np.inf, largest)


def _rhat(v: Array) -> Array:
    """Of normal scores, whose scale is one: what is less than 1e-20 is rounding."""
    draws = v.shape[2]
    between = v.mean(2).var(1, ddof=1)
    within = v.var(2, ddof=1).mean(1)
    between, within = (np.where(part < 1e-20, 0.0, part) for part in (between, within))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(between / within + (draws - 1) / draws)


def _stands_still(v: Array) -> np.ndarray:
    """Variables with half a chain constant at a value that no other chain takes."""
    chains, half = v.shape[1], v.shape[2] // 2
    stuck = np.zeros(len(v), dtype=bool)
    if half < _STANDSTILL:
        return stuck
    for piece in (v[:, :, :half], v[:, :, -half:]):
        for i, c in np.argwhere(np.ptp(piece, axis=2) == 0):
            others = v[i, np.arange(chains) != c]
            moving = others[np.ptp(others, axis=1) > 0]
            # discrete draws may rest at a value that is common elsewhere: that is no standstill
            company = moving if len(moving) else others
            stuck[i] |= not (company == piece[i, c, 0]).any()
    return stuck


def _ess_bulk(v: Array) -> Array:
    return _ess(Ranked.of(_split(v)).normal_scores())


def _all_three(v: Array) -> Array:
    """R-hat, bulk and tail ESS, of draws that are sorted once: (V, C, N) -> (3, V)."""
    halves = Ranked.of(_split(v))
    scores = halves.normal_scores()
    return np.stack([_largest_rhat(v, halves, scores), _ess(scores), _tail(0.9)(v)])


def _tail(prob: float) -> Callable[[Array], Array]:
    def diagnostic(v: Array) -> Array:
        ends = np.quantile(v, ((1 - prob) / 2, (1 + prob) / 2), axis=(1, 2))
        return np.minimum(*(_ess_below(v, end) for end in ends))

    return diagnostic


def _ess_quantile(v: Array, prob: float) -> Array:
    return _ess_below(v, np.quantile(v, prob, axis=(1, 2)))


def _ess_below(v: Array, quantile: Array) -> Array:
    quantile = quantile[:, None, None]
    below = v <= quantile
    # discrete draws: where all lie at or below the quantile, those strictly below tell
    below = np.where(below.all((1, 2), keepdims=True), v < quantile, below)
    return _ess(_split(below.astype(np.float64)))


def _ess(v: Array) -> Array:
    """Geyer's estimator over all chains: (V, C, N) -> (V)."""
    _, chains, draws = v.shape
    rho = _autocorrelation(v)

    last_pair = max(draws - 3, 1) // 2  # the noisiest lags are left out
    pairs = rho[:, : 2 * last_pair + 2].reshape(len(v), last_pair + 1, 2).sum(2)
    stop = np.where((pairs <= 0).any(1), (pairs <= 0).argmax(1), last_pair)
    monotone = np.minimum.accumulate(pairs, axis=1)
    before = np.where(np.arange(last_pair + 1) < stop[:, None], monotone, 0).sum(1)
    rows = np.arange(len(v))
    even = rho[rows, 2 * stop]
    even = np.where((even > 0) | (pairs[rows, stop] >= 0), even, 0)
    size = chains * draws
    time = np.maximum(-1 + 2 * before + even, 1 / np.log10(size))
    return np.where(np.isnan(rho).any(1), np.nan, size / time)


def _autocorrelation(v: Array) -> Array:
    """By lag, over all chains, their disagreement counted as correlation: (V, C, N) -> (V, N)."""
    _, chains, draws = v.shape
    covariance = _autocovariance(v)
    within = covariance[:, 0] * draws / (draws - 1)
    total = covariance[:, 0].copy()
    if chains > 1:
        total += v.mean(2).var(1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = 1 - (within[:, None] - covariance) / total[:, None]
    rho[:, 0] = 1
    return rho


def _autocovariance(v: Array) -> Array:
    """Mean over the chains of their autocovariances at each lag: (V, C, N) -> (V, N)."""
    draws = v.shape[2]
    size = 2 ** int(np.ceil(np.log2(2 * draws)))  # zero padding: no wrap around
    spectrum = np.fft.rfft(v - v.mean(2, keepdims=True), n=size, axis=2)
    power = (spectrum.real**2 + spectrum.imag**2).mean(1)
    return np.fft.irfft(power, n=size, axis=1)[:, :draws] / draws
