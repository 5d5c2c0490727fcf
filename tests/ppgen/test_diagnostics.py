"""Diagnostics of chains and of importance weights, against ArviZ, closed forms and bad chains."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from ppgen import diagnostics as d

FAILURE_RATE = 2e-5
Z = float(stats.norm.isf(FAILURE_RATE / 2))  # two-sided, 4.26


def ar1(chains, draws, coefficient, shape=(), seed=0):
    """Stationary AR(1) with unit variance, (chains, draws, *shape)."""
    noise = np.random.default_rng(seed).normal(size=(draws, chains, *shape))
    x = np.empty_like(noise)
    x[0] = noise[0]
    for t in range(1, draws):
        x[t] = coefficient * x[t - 1] + (1 - coefficient**2) ** 0.5 * noise[t]
    return x.swapaxes(0, 1)


@pytest.fixture(scope="module")
def arviz():
    from arviz_stats.base import array_stats

    return array_stats


SHAPES = [(4, 4), (2, 6), (4, 7, 2), (3, 9), (2, 101, 3), (64, 20, 5), (8, 500, 2, 2)]


@pytest.mark.parametrize("coefficient", [0.0, 0.9, -0.6])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chains_agree_with_arviz(arviz, shape, coefficient):
    x = ar1(*shape[:2], coefficient, shape[2:], seed=len(shape) + shape[1])
    axes = {"chain_axis": 0, "draw_axis": 1}
    pairs = [
        (d.rhat(x), arviz.rhat(x, **axes)),
        (d.ess_bulk(x), arviz.ess(x, **axes)),
        (d.ess_tail(x), arviz.ess(x, method="tail", prob=(0.05, 0.95), **axes)),
        (d.ess_mean(x), arviz.ess(x, method="mean", **axes)),
        (d.mcse_mean(x), arviz.mcse(x, **axes)),
        (d.mcse_quantile(x, 0.25), arviz.mcse(x, method="quantile", prob=0.25, **axes)),
        (d.hdi(x, 0.8), np.moveaxis(arviz.hdi(x, prob=0.8, axis=(0, 1)), -1, 0)),
        (d.eti(x, 0.8), np.moveaxis(arviz.eti(x, prob=0.8, axis=(0, 1)), -1, 0)),
    ]
    if len(shape) == 2:
        pairs.append((d.ebfmi(x), arviz.bfmi(x, **axes)))
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_ties_rank_as_in_arviz(arviz):
    x = np.random.default_rng(0).poisson(2.0, size=(4, 100, 3))
    axes = {"chain_axis": 0, "draw_axis": 1}
    np.testing.assert_allclose(d.rhat(x), arviz.rhat(x.astype(float), **axes), rtol=1e-10)
    np.testing.assert_allclose(d.ess_bulk(x), arviz.ess(x.astype(float), **axes), rtol=1e-10)


def test_many_scalars_are_worked_on_in_parts():
    x = ar1(4, 50, 0.3, (11,))
    whole = d.ess_bulk(x)
    from ppgen.diagnostics import arrays

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_CHUNK", 4 * 50 * 3)
        np.testing.assert_array_equal(d.ess_bulk(x), whole)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.8, -0.5])
def test_ess_of_ar1_is_the_closed_form(coefficient):
    chains, draws = 16, 4000
    x = ar1(chains, draws, coefficient, seed=1)
    exact = chains * draws * (1 - coefficient) / (1 + coefficient)
    # relative sd of the autocorrelation time is sqrt(2 (2 M + 1) / n) with a window of M lags
    # (Sokal); Geyer's window ends where the autocorrelation drowns in noise, below M = 30
    tolerance = Z * (2 * 61 / (chains * draws)) ** 0.5
    assert d.ess_mean(x) == pytest.approx(exact, rel=tolerance)
    assert d.ess_bulk(x) == pytest.approx(exact, rel=tolerance)  # normal scores of a normal


@pytest.mark.parametrize("coefficient", [0.0, 0.7, -0.5])  # below, the ESS meets its cap S log10 S
@pytest.mark.parametrize(
    ("error", "estimate", "truth"),
    [
        (d.mcse_mean, lambda x: x.mean((0, 1)), 0.0),
        (d.mcse_sd, lambda x: x.std((0, 1)), 1.0),
        (
            lambda x: d.mcse_quantile(x, 0.9),
            lambda x: np.quantile(x, 0.9, axis=(0, 1)),
            stats.norm.ppf(0.9),
        ),
    ],
    ids=["mean", "sd", "quantile"],
)
def test_monte_carlo_errors_are_calibrated(error, estimate, truth, coefficient):
    replicates = 600
    x = ar1(4, 500, coefficient, (replicates,), seed=2)
    z = (estimate(x) - truth) / error(x)
    # the mean square of 600 standard normals has sd sqrt(2/600) = .058: a band of +-.25; the error
    # estimates are themselves known to some 10 %, which adds a few percent: +-.3
    assert abs(np.mean(z**2) - 1) < 0.3


@pytest.mark.parametrize("truth", [0.05, 0.2, 0.5])
def test_a_share_that_was_counted_has_an_error_of_its_size_also_where_nothing_was_met(truth):
    trials = 20
    chances = stats.binom.pmf(range(trials + 1), trials, truth)
    errors = np.array([d.share_error(hits, trials) for hits in range(trials + 1)])
    z = (np.arange(trials + 1) / trials - truth) / errors
    # sqrt(p (1 - p) / n) of the share itself is 0 where none is met, one time in three at 0.05
    assert 0.5 < chances @ z**2 < 1.3
    assert chances[abs(z) > 3].sum() < 0.02


def test_autocorrelation_of_ar1_is_the_closed_form_and_disagreement_never_fades():
    x = ar1(200, 400, 0.8)
    found = d.autocorrelation(x)
    # Bartlett: the variance of each lag is at most (1 + r^2) / (1 - r^2) / N; removing each
    # chain's own mean costs a bias of (1 + r) / (1 - r) / 400 = .0225 of the variance
    error = Z * (1.64 / 0.36 / x.size) ** 0.5 + 0.0225
    np.testing.assert_allclose(found[:30], 0.8 ** np.arange(30), atol=error)
    apart = d.autocorrelation(x + np.repeat([[0.0], [10.0]], 100, 0))
    assert apart[300] > 0.9
    assert np.isnan(d.autocorrelation(np.ones((2, 9)))).all()
    with pytest.raises(ValueError, match="one scalar"):
        d.autocorrelation(np.zeros((2, 9, 3)))


def test_independent_draws_pass_and_a_shifted_chain_does_not():
    x = ar1(8, 400, 0.0, (3,), seed=3)
    assert d.convergence(x).ok.all()
    x[0, :, 1] += 1.0
    assert d.convergence(x).ok.tolist() == [True, False, True]


def test_a_chain_of_other_spread_is_found_by_folding():
    x = ar1(4, 500, 0.0, seed=4)
    x[0] *= 3
    assert d.rhat(x) > 1.05


def bad_chains():
    good = ar1(64, 200, 0.0, seed=5)
    for name, place, value in [
        ("constant", np.s_[:], 1.0),
        ("one stuck chain of 64", np.s_[7], good[7, 0]),
        ("stuck half way", np.s_[7, 90:], good[7, 90]),
        ("all stuck apart", np.s_[:], good[:, :1]),
        ("infinite", np.s_[3, 5], np.inf),
        ("nan", np.s_[3, 5], np.nan),
    ]:
        x = good.copy()
        x[place] = value
        yield pytest.param(x, id=name)
    yield pytest.param(good[:, :3], id="three draws")
    yield pytest.param(good[:, :0], id="no draws")


@pytest.mark.parametrize("x", list(bad_chains()))
def test_bad_chains_are_never_ok(x):
    result = d.convergence(x)
    assert not result.ok
    assert not result.rhat <= 1.01


def test_rare_events_are_no_standstill():
    x = np.random.default_rng(6).random((64, 200)) < 0.01  # chance that no chain rests: e^-8
    assert (x.any(1) == 0).any()
    assert d.rhat(x) < 1.01
    assert d.ess_tail(x) > 400
    assert d.ess_tail(~x) == pytest.approx(d.ess_tail(x))


def test_tensors_are_taken_and_a_missing_axis_is_named():
    x = torch.randn(4, 50, 2, dtype=torch.float32, requires_grad=True)
    assert d.rhat(x).shape == (2,)
    with pytest.raises(ValueError, match=r"\(chains, draws, \.\.\.\), got \(50,\)"):
        d.rhat(np.zeros(50))


def test_energy_fraction_of_an_ar1_is_the_closed_form():
    x = ar1(4, 20_000, 0.8, seed=7)
    # E (x_t - x_s)^2 = 2 (1 - .8) = .4; sd of the ratio about sqrt(2 * 9 / 20000) = .03 relative
    np.testing.assert_allclose(d.ebfmi(x), 0.4, rtol=Z * 0.03)
    assert np.isnan(d.ebfmi(np.ones((2, 10)))).all()
    assert np.isnan(d.ebfmi(np.where(np.arange(10) == 3, np.inf, x[:2, :10]))).all()


@pytest.mark.parametrize("draws", [1, 5])
def test_nested_rhat_agrees_with_its_definition(arviz, draws):
    x = ar1(12, draws, 0.5, (3,), seed=8)
    value = d.nested_rhat(x, 4)
    grouped = x.reshape(4, 3, draws, 3)
    within = grouped.mean(2).var(1, ddof=1).mean(0)
    if draws > 1:
        within = within + grouped.var(2, ddof=1).mean((0, 1))
        theirs = arviz.rhat_nested(
            x, np.repeat(np.arange(4), 3), method="identity", chain_axis=0, draw_axis=1
        )
        np.testing.assert_allclose(value, theirs, rtol=1e-10)
    expected = np.sqrt(1 + grouped.mean((1, 2)).var(0, ddof=1) / within)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    shuffled = np.random.default_rng(0).permutation(12)
    labels = np.repeat(["a", "b", "c", "d"], 3)
    np.testing.assert_allclose(d.nested_rhat(x[shuffled], labels[shuffled]), value, rtol=1e-10)


@pytest.mark.parametrize(("superchains", "each"), [(8, 16), (2, 4), (32, 2)])
def test_nested_rhat_limit_is_exceeded_once_in_a_hundred(superchains, each):
    replicates = 20_000
    x = np.random.default_rng(9).normal(size=(superchains * each, 1, replicates))
    over = (d.nested_rhat(x, superchains) > d.nested_rhat_limit(superchains, each)).sum()
    low, high = stats.binom.interval(1 - FAILURE_RATE, replicates, 0.01)
    assert low <= over <= high


def test_nested_rhat_sees_starts_that_are_not_forgotten_and_refuses_unequal_groups():
    x = np.random.default_rng(10).normal(size=(128, 1)) + np.repeat(np.arange(8.0), 16)[:, None]
    assert d.nested_rhat(x, 8) > 1.5
    assert np.isnan(d.nested_rhat(x[:8], 8))  # one chain each, one draw: nothing within
    assert np.isnan(d.nested_rhat(np.full((8, 5), np.inf), 4))
    with pytest.raises(ValueError, match=r"equal size, got sizes \[3, 3, 2\]"):
        d.nested_rhat(x[:8], 3)
    with pytest.raises(ValueError, match=r"each of 8 chains, got shape \(3,\)"):
        d.nested_rhat(x[:8], [0, 1, 2])
    for superchains, each in ((1, 4), (4, 1)):
        with pytest.raises(ValueError, match="two superchains of two chains"):
            d.nested_rhat_limit(superchains, each)


@pytest.mark.parametrize("relative_ess", [1.0, 0.3])
@pytest.mark.parametrize("size", [30, 225, 226, 5000])
def test_pareto_smoothing_agrees_with_arviz(arviz, size, relative_ess):
    log_weights = np.random.default_rng(size).normal(size=size) * 2 + 1000
    smoothed, k = d.psis(log_weights, relative_ess)
    theirs, their_k = arviz.psislw(-log_weights, r_eff=relative_ess)
    assert k == pytest.approx(float(their_k), rel=1e-10)
    np.testing.assert_allclose(smoothed, theirs, rtol=1e-10)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_khat_finds_a_known_tail_index(k):
    size = 100_000
    u = np.random.default_rng(11).random(size)
    result = d.pareto_k(-k * np.log(u))  # w = u^-k is generalised Pareto with shape k
    tail = 3 * size**0.5
    # sd of the shape's estimate (1 + k) / sqrt(tail); the prior moves it by 10 |k - 1/2| / tail
    assert abs(result.k - k) < Z * (1 + k) / tail**0.5 + 10 * abs(k - 0.5) / tail
    assert result.ok == (k < 0.7)
    assert result.threshold == 0.7
    assert result.needed == pytest.approx(10 ** (1 / (1 - result.k)))


@pytest.mark.parametrize("shape", [1.5, 4.0, 11.5, 40.0])
def test_a_normal_that_fits_a_skew_posterior_has_no_heavy_tail_and_its_weights_are_right(shape):
    """The best normal for the log of a gamma variable: log w is about He_3, with a maximum inside.

    Pareto tails that began at the pile of weights there had k = 3 each time, and the moments by
    smoothed weights were off by 1.8 times their errors.
    """
    location, sd = np.log(shape) - 1 / (2 * shape), shape**-0.5  # of E_q[log p] + log sd
    gamma, draws, replicates = stats.gamma(shape), 4000, 200
    z = location + sd * np.random.default_rng(13).normal(size=(replicates, draws))
    log_w = shape * z - np.exp(z) + 0.5 * ((z - location) / sd) ** 2
    found = [d.psis(each) for each in log_w]
    # k is 1/2 and some noise of 47 or more in the tail
    assert np.median([k for _, k in found]) < 0.7
    w = np.exp([weights for weights, _ in found])
    z = ((w * np.exp(z)).sum(1) - gamma.mean()) / gamma.std() * (w**2).sum(1) ** -0.5
    # the mean square of 200 has sd .1; that of weights that vary is a little above one
    assert 0.6 < np.mean(z**2) < 1.6


def test_importance_ess_is_that_of_the_raw_weights():
    w = np.random.default_rng(12).random(1000)
    result = d.pareto_k(np.log(w).reshape(10, 100) - 5)
    assert result.ess == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert result.threshold == pytest.approx(1 - 1 / 3)
    assert result.k < 0  # bounded weights
    perfect = d.pareto_k(np.full(100, 3.0))
    assert (perfect.ok, perfect.ess) == (True, pytest.approx(100))


@pytest.mark.parametrize(
    "log_weights",
    [
        np.full(100, np.nan),
        np.where(np.arange(100) == 3, np.inf, 0.0),
        np.full(100, -np.inf),
        np.where(np.arange(100) == 3, 0.0, -np.inf),
        np.linspace(-1e6, 0, 1000),
        np.zeros(3),
        np.zeros(0),
    ],
    ids=["nan", "inf", "all zero", "one takes all", "steep", "three", "none"],
)
def test_bad_weights_are_never_ok(log_weights):
    assert not d.pareto_k(log_weights).ok


@pytest.mark.parametrize("wrong", [np.zeros(24), np.r_[np.zeros(50), np.nan], [np.inf] * 50])
def test_weights_that_cannot_be_smoothed_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 25 values, none NaN or"):
        d.psis(wrong)


def test_the_hot_path_imports_no_arviz_and_no_matplotlib_and_pictures_no_pyplot():
    code = (
        "import sys, numpy, ppgen.diagnostics as d; d.convergence(numpy.random.randn(4, 50, 2));"
        "print([m for m in ('arviz_stats', 'arviz_base', 'matplotlib', 'xarray', 'scipy.stats')"
        " if m in sys.modules]);"
        "import ppgen.plots as p; f = p.trace([[1., 2, 3, 2]]); b = f._repr_png_();"
        "assert b[:4] == b'\\x89PNG'; print('matplotlib.pyplot' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[]", "False"]
