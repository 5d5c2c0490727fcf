"""What halves of one sample show, and MMD beside it: level under autocorrelation, and power."""

import numpy as np
import pytest
from scipy import stats

from ppgen import diagnostics as d
from ppgen.diagnostics.halves import pieces, splits

FAILURE_RATE = 2e-5
CORRELATED = np.linalg.cholesky([[1.0, 0.9], [0.9, 1.0]])


def chains(seed, shape=(8, 200), rho=0.0):
    """Stationary autoregressive chains of unit variance, ``(*shape, 2)``."""
    x = np.random.default_rng(seed).normal(size=(*shape, 2))
    for t in range(1, shape[1]):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * x[:, t]
    return x


def test_pieces_are_stretches_of_chains():
    x = np.arange(24.0).reshape(2, 12, 1)
    cut = pieces(x, least=4)
    assert cut.shape == (4, 6, 1)
    assert np.array_equal(cut[1].ravel(), np.arange(6.0, 12.0))  # the second half of chain 0
    assert pieces(np.zeros((20, 5, 3))).shape == (20, 5, 3)  # chains enough as they are
    assert pieces(np.zeros((1, 3, 2))).shape == (3, 1, 2)  # no more pieces than draws


def test_splits_halve_by_chance():
    found = splits(9, 2000)
    assert (found.sum(1) == 4).all()
    # each piece falls into the first half with probability 4 / 9
    low, high = stats.binom.interval(1 - FAILURE_RATE / 9, 2000, 4 / 9)
    assert ((found.sum(0) >= low) & (found.sum(0) <= high)).all()


def test_the_spread_of_halves_is_that_of_covariances_of_so_many_draws():
    x = chains(0, (16, 250)) @ CORRELATED.T
    found = d.spread_of_halves(x, number=200)
    # variance ratios of halves of n = 2,000 normals: log ratio has sd sqrt(2 (1/n + 1/n)) = .045
    # along a fixed direction; over 2 directions and 200 splits the most extreme lies at 2 to 5 sd
    assert np.exp(-5 * 0.045) < found.smallest < np.exp(-2 * 0.045)
    assert np.exp(2 * 0.045) < found.largest < np.exp(5 * 0.045)
    # a correlation of .9: sd (1 - .81) / sqrt(n) sqrt(2) = .006
    assert 2 * 0.006 < found.correlation < 5 * 0.006
    # autocorrelation of .9 leaves a nineteenth of the draws: all of it is sqrt(19) wider
    slow = d.spread_of_halves(chains(0, (16, 250), rho=0.95))
    assert slow.largest > np.exp(6 * 0.045)


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_mmd_against_halves_holds_its_level_under_autocorrelation(rho):
    """With permutations of single draws, 0.9 would reject nearly always."""
    p = []
    for seed in range(60):
        x, y = chains(seed, (8, 200), rho), chains(1000 + seed, (16, 200), rho)
        p.append(d.mmd_against_halves(x.reshape(-1, 2)[::5], y, size=150, number=60).p)
    # asymptotic and averaged over halves: at most twice the nominal 10 %
    assert sum(v <= 0.1 for v in p) <= stats.binom.isf(FAILURE_RATE, 60, 0.2)
    assert np.mean(p) > 0.3
    if rho:
        pairs = [[chains(s + k, (8, 200), rho).reshape(-1, 2) for k in (0, 99)] for s in range(10)]
        permuted = [d.mmd(x, y, permutations=60, limit=300).p for x, y in pairs]
        assert np.median(permuted) < 0.1


@pytest.mark.parametrize("change", ["shift", "width", "correlation", "bend"])
def test_mmd_against_halves_finds_what_is_wrong(change):
    x, y = chains(1, (1, 1000))[0] @ CORRELATED.T, chains(2, (8, 1000), 0.5) @ CORRELATED.T
    if change == "shift":
        x = x + 0.4
    elif change == "width":
        x = x * 0.7
    elif change == "correlation":
        x = chains(1, (1, 1000))[0]
    else:
        x[:, 1] = x[:, 1] + 0.4 * (x[:, 0] ** 2 - 1)
    assert d.mmd_against_halves(x, y).p <= 0.01


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="two samples of one width"):
        d.mmd_against_halves(np.zeros((10, 2)), np.zeros((4, 10, 3)))
    with pytest.raises(ValueError, match="chains, draws"):
        d.mmd_against_halves(np.zeros((10, 2)), np.zeros(10))
