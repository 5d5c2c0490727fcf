"""Smooth densities for pictures: binned Gaussian kernels, reflected where the data end abruptly."""

from __future__ import annotations

import numpy as np

from ppgen.diagnostics.arrays import Array

_ABRUPT = 0.15  # of the peak: an unbounded tail ends lower than this


def kde(x: Array, low: float, high: float, points: int = 256) -> tuple[Array, Array]:
    """Density of a sample on a grid from `low` to `high`.

    An end where draws crowd is taken for a bound: a scale parameter shows no mass below 0.

    Shapes:
        ``x``: ``(n)``; results ``(points)`` each.
    """
    grid = np.linspace(low, high, points)
    spread = _spread(x)
    if spread == 0:
        return grid, np.zeros(points)
    bandwidth = max(0.9 * spread * len(x) ** -0.2, 1e-9 * (high - low))
    # bins of a fifth of the bandwidth over the data, not over the grid: a narrow posterior in a
    # wide picture keeps its shape
    width = bandwidth / 5
    start, stop = x.min(), x.max()
    kept = x
    if (stop - start) / width > 20_000:  # far outliers: bin the bulk alone
        start, stop = np.quantile(x, [0.001, 0.999])
        start, stop = max(x.min(), start - 10 * spread), min(x.max(), stop + 10 * spread)
        kept = x[(x >= start) & (x <= stop)]
    bins = int(np.clip(np.ceil((stop - start) / width), 10, 20_000))
    counts, edges = np.histogram(kept, bins=bins, range=(start, stop))
    step = edges[1] - edges[0]
    reach = min(int(4 * bandwidth / step) + 1, bins)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / bandwidth) ** 2)
    counts = np.pad(counts.astype(float), 2 * reach)
    smooth = np.convolve(counts, kernel / kernel.sum(), mode="same")
    # at a bound the smoothed density is still high: what leaked out is folded back
    abrupt = _ABRUPT * smooth.max() if len(x) >= 100 else np.inf  # few draws show no bound
    lower, upper = 2 * reach, len(counts) - 2 * reach
    if smooth[lower] > abrupt:
        smooth[lower : lower + reach] += smooth[lower - reach : lower][::-1]
        smooth[:lower] = 0
    if smooth[upper - 1] > abrupt:
        smooth[upper - reach : upper] += smooth[upper : upper + reach][::-1]
        smooth[upper:] = 0
    centres = edges[0] + step * (np.arange(len(counts)) - 2 * reach + 0.5)
    return grid, np.interp(grid, centres, smooth / (len(x) * step), left=0.0, right=0.0)


def kde2(x: Array, y: Array, box: tuple[float, float, float, float], points: int = 80) -> Array:
    """Density on a grid over ``(x low, x high, y low, y high)``, rows along y: (points, points)."""
    counts, _, _ = np.histogram2d(y, x, bins=points, range=[box[2:], box[:2]])
    padded = np.pad(counts, points // 2, mode="symmetric")  # what leaks out comes back
    # Scott's factor for two dimensions, along the sample's own axes: a narrow ridge stays narrow
    factor = len(x) ** (-1 / 6)
    sd_y, sd_x = factor * _spread(y), factor * _spread(x)
    correlation = np.corrcoef(x, y)[0, 1] if sd_x > 0 and sd_y > 0 else 0.0
    cell_y, cell_x = (box[3] - box[2]) / points, (box[1] - box[0]) / points
    ky = 2 * np.pi * np.fft.fftfreq(padded.shape[0])[:, None] / cell_y
    kx = 2 * np.pi * np.fft.rfftfreq(padded.shape[1])[None, :] / cell_x
    exponent = (sd_y**2 + cell_y**2) * ky**2 + (sd_x**2 + cell_x**2) * kx**2
    exponent = exponent + 2 * correlation * sd_x * sd_y * kx * ky
    smooth = np.fft.irfft2(np.fft.rfft2(padded) * np.exp(-0.5 * exponent), s=padded.shape)
    inside = slice(points // 2, points // 2 + points)
    return np.clip(smooth[inside, inside], 0.0, None)


def mass_levels(density: Array, masses: tuple[float, ...]) -> list[float]:
    """Heights whose superlevel sets hold the given shares of the mass, ascending."""
    ordered = np.sort(density.ravel())[::-1]
    share = np.cumsum(ordered) / ordered.sum()
    levels = sorted({float(ordered[np.searchsorted(share, mass)]) for mass in masses})
    return [level for level in levels if level < density.max()]


def window(*samples: Array, keep: float = 0.995) -> tuple[float, float]:
    """A range that shows the central `keep` of each sample, with a margin."""
    tail = (1 - keep) / 2
    ends = np.array([np.quantile(x, [tail, 1 - tail]) for x in samples])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    margin = 0.04 * (high - low) or max(abs(low) * 0.05, 0.5)
    return float(low - margin), float(high + margin)


def _spread(x: Array) -> float:
    """The smaller of the standard deviation and the quartile range of a normal."""
    sd = float(x.std())
    quartiles = np.quantile(x, [0.25, 0.75])
    robust = float(quartiles[1] - quartiles[0]) / 1.349
    return min(sd, robust) if robust > 0 else sd
