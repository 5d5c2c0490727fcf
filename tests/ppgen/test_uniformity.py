"""Bands and p-values of uniform samples, by simulation; laws with and without symmetry."""

import math

import numpy as np
import pytest

from ppgen.diagnostics import ecdf_band, symmetry, uniformity

FAILURE_RATE = 2e-5
Z = 4.3  # its two-sided normal quantile


@pytest.mark.parametrize("size", [10, 100])
def test_a_uniform_sample_leaves_the_band_at_the_stated_rate(size):
    rng, runs, level = np.random.default_rng(0), 4000, 0.05
    band = ecdf_band(size, level)
    shares = (rng.random((runs, size, 1)) <= band.z).mean(1)
    out = ((shares < band.lower - 1e-9) | (shares > band.upper + 1e-9)).any(1).mean()
    error = Z * math.sqrt(level * (1 - level) / runs)
    # at most the level; counts are whole, so that little is lost: a third of it at n = 10
    assert level / 3 - error < out < level + error


@pytest.mark.slow
def test_the_p_value_is_at_most_the_level_exactly_where_the_band_is_left():
    rng, band = np.random.default_rng(1), ecdf_band(60, 0.2)
    for _ in range(100):
        u = rng.random(60)
        shares = (u[:, None] <= band.z).mean(0)
        left = ((shares < band.lower - 1e-9) | (shares > band.upper + 1e-9)).any()
        assert left == (uniformity(u) <= 0.2)


@pytest.mark.slow
def test_p_values_of_uniform_samples_are_no_smaller_than_uniform():
    rng = np.random.default_rng(2)
    p = np.array([uniformity(rng.random(40)) for _ in range(400)])
    for level in (0.05, 0.2, 0.5):
        error = Z * math.sqrt(level * (1 - level) / 400)
        assert (p <= level).mean() < level + error
        assert (p <= level).mean() > level / 2 - error


@pytest.mark.parametrize(("a", "b"), [(1.6, 1.0), (1.0, 1.6), (2.0, 2.0), (0.5, 0.5)])
def test_samples_that_are_not_uniform_are_found(a, b):
    u = np.random.default_rng(3).beta(a, b, 400)
    assert uniformity(u) < FAILURE_RATE
    assert (symmetry(u) < 0.01) == (a != b)


def test_symmetry_is_rejected_at_the_stated_rate():
    rng = np.random.default_rng(4)
    p = np.array([symmetry(rng.beta(0.5, 0.5, 50), flips=200) for _ in range(500)])
    assert (p <= 0.1).mean() < 0.1 + Z * math.sqrt(0.09 / 500)
    assert (p <= 0.1).mean() > 0.05 - Z * math.sqrt(0.0475 / 500)


def test_one_number_and_extreme_samples_are_taken():
    assert uniformity([0.5]) == 1.0
    assert uniformity(np.full(100, 1.0)) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="not finite"):
        uniformity([0.1, np.nan])
    with pytest.raises(ValueError, match="level"):
        ecdf_band(10, 0.0)
    with pytest.raises(ValueError, match="size"):
        ecdf_band(0, 0.1)
