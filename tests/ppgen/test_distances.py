"""Distances and kernel tests of samples: closed forms, calibration under the null, power."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ppgen import diagnostics as d
from ppgen.diagnostics.kernels import _discrepancies

FAILURE_RATE = 2e-5
Z = float(stats.norm.isf(FAILURE_RATE / 2))  # two-sided, 4.26


def normals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_wasserstein_of_shifted_and_scaled_samples_is_the_closed_form():
    x = normals(500, 3)
    np.testing.assert_allclose(
        d.wasserstein1(x, x + np.array([1.0, -2.0, 0.0])), [1, 2, 0], atol=1e-12
    )
    np.testing.assert_allclose(d.wasserstein1(x, 3 * x), 2 * np.abs(x).mean(0))
    # every draw three times over is the same distribution
    np.testing.assert_allclose(d.wasserstein1(np.tile(x, (3, 1)) + 1, x), 1, rtol=1e-12)


@pytest.mark.parametrize(("shift", "scale"), [(0.3, 1.0), (0.0, 1.7), (0.5, 0.6)])
def test_wasserstein_of_normal_quantiles_is_that_of_the_normals(shift, scale):
    grid = (np.arange(20_000) + 0.5) / 20_000
    x, y = stats.norm.ppf(grid), shift + scale * stats.norm.ppf(grid[::2])
    exact, _ = integrate.quad(lambda z: abs(shift + (scale - 1) * z) * stats.norm.pdf(z), -9, 9)
    # the grids cut the tails off beyond u = 1/40000: less than their mass times 5 sd; 1e-3
    assert d.wasserstein1(x, y) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("sizes", [(2, 2), (7, 5), (100, 100), (999, 1000), (1, 50)])
def test_margins_agree_with_scipy(sizes):
    x, y = normals(sizes[0], 2, seed=1), normals(sizes[1], 2, seed=2) * 2
    ties = [np.round(v) for v in (x, y)]
    for a, b in [(x, y), ties]:
        for j in range(2):
            w1, test = d.wasserstein1(a, b)[j], d.ks(a, b)
            assert w1 == pytest.approx(stats.wasserstein_distance(a[:, j], b[:, j]), abs=1e-12)
            theirs = stats.ks_2samp(a[:, j], b[:, j], method="asymp")
            assert test.statistic[j] == pytest.approx(theirs.statistic, abs=1e-12)
    p = d.ks(normals(2000, seed=3), normals(1500, seed=4) + 0.05).p
    theirs = stats.ks_2samp(normals(2000, seed=3), normals(1500, seed=4) + 0.05, method="asymp")
    assert p == pytest.approx(theirs.pvalue, rel=0.05)  # scipy adds a finite-size correction


def test_wasserstein_noise_floor_is_as_documented():
    x, y = normals(1000, 400, seed=5), normals(500, 400, seed=6)
    floor = d.wasserstein1(x, y).mean() / (1 / 1000 + 1 / 500) ** 0.5
    # over 400 margins, each with sd of some half of its mean: relative error Z * .5 / 20 = .11
    assert floor == pytest.approx(1.28, rel=0.11)


def test_sliced_distance_of_a_shift_is_the_mean_projection():
    x = normals(400, 5)
    shift = np.array([3.0, 0, 0, 4.0, 0])
    # E |u.shift| = 5 E |u_1| on the sphere in 5 dimensions, 5 * 3/8; Var |u_1| = 1/5 - 9/64
    error = 5 * (1 / 5 - 9 / 64) ** 0.5 / 2000**0.5
    assert d.sliced_wasserstein(x, x + shift, 2000) == pytest.approx(15 / 8, abs=Z * error)


def uniform(p):
    """Chi-square goodness of fit of p-values to uniform, in ten equal classes."""
    counts = np.histogram(p, np.linspace(0, 1, 11))[0]
    return stats.chisquare(counts).pvalue


def test_discrepancies_are_means_over_pairs():
    kernel = normals(7, 7)
    kernel = kernel + kernel.T
    np.fill_diagonal(kernel, 0)
    first = np.array([[1, 0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 1, 1, 1]], dtype=float).T
    for found, of in zip(_discrepancies(kernel, first, 1 - first), first.T > 0, strict=True):
        within = [
            k[~np.eye(len(k), dtype=bool)].mean() for k in (kernel[of][:, of], kernel[~of][:, ~of])
        ]
        assert found == pytest.approx(sum(within) - 2 * kernel[of][:, ~of].mean())


def test_mmd_p_values_are_uniform_when_nothing_is_wrong():
    tests = [d.mmd(normals(25, 2, seed=i), normals(30, 2, seed=10_000 + i), 99) for i in range(600)]
    p = np.array([t.p for t in tests])  # multiples of 1/100; shifted off the edges of the classes
    assert uniform(p - 0.005) > FAILURE_RATE
    squared = np.array([t.squared for t in tests])
    assert abs(squared.mean()) < Z * squared.std() / 600**0.5  # unbiased


@pytest.mark.parametrize("change", ["shift", "width", "correlation", "shape"])
def test_mmd_finds_what_is_wrong(change):
    x, y = normals(500, 2, seed=7), normals(3000, 2, seed=8)
    if change == "shift":
        x = x + 0.4
    elif change == "width":
        x = x * 0.6
    elif change == "correlation":
        x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
    else:
        x = np.sign(x) * 0.3 + x * 0.95
        x = x / x.std(0)
        x[:, 0] = np.where(x[:, 0] > 0, x[:, 0], x[:, 0] * 0.3)
    scales = np.array([1e-4, 1e5])  # units do not matter
    result = d.mmd(x * scales, y * scales)
    assert result.p == pytest.approx(1 / 501)
    # the same sample in another basis: whitening by the reference leaves distances as they are
    turned = d.mmd(x @ [[1, 2], [0, 1]], y @ [[1, 2], [0, 1]])
    assert turned.squared == pytest.approx(result.squared, rel=1e-6)


def test_ksd_is_the_double_sum_of_its_kernel():
    n, dims = 4, 3
    x = torch.tensor(normals(n, dims, seed=9))
    white = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    score = -white * 1.3 + 0.2

    def kernel(pair):
        return (1 + ((pair[0] - pair[1]) ** 2).sum()) ** -0.5

    total = 0.0
    for i in range(n):
        for j in range(n):
            pair, s, t = white[[i, j]].requires_grad_(), score[i], score[j]
            da, db = torch.autograd.grad(kernel(pair), pair)[0]
            mixed = torch.autograd.functional.hessian(kernel, pair)[0, :, 1]
            total += (s @ t * kernel(pair) + s @ db + t @ da + torch.trace(mixed)).item()
    # whitening a sample that is white is a rotation at most: the kernel does not see it
    assert d.ksd(white, score).squared == pytest.approx(total / n**2, rel=1e-10)
    # and in other coordinates x = A w the score is inv(A).T s
    a = torch.tensor([[2.0, 0.3, 0], [0, 1e-3, 0], [5.0, 0, 30.0]])
    moved = d.ksd(white @ a.T, score @ torch.linalg.inv(a))
    assert moved.squared == pytest.approx(total / n**2, rel=1e-8)


def test_ksd_holds_its_level_and_finds_what_is_wrong():
    p = []
    for i in range(400):
        x = normals(60, 2, seed=i)
        p.append(d.ksd(x, -x, bootstraps=99).p)
    # the wild bootstrap holds its level asymptotically; at most the exact binomial bound at 10 %
    # for a nominal 5 %
    assert (np.array(p) <= 0.05).sum() <= stats.binom.isf(FAILURE_RATE, 400, 0.1)
    assert 0.3 < np.mean(p) < 0.7
    x = normals(500, 2, seed=1)
    assert d.ksd(0.7 * x, -0.7 * x).p < 0.01  # too narrow for a standard normal
    assert d.ksd(x + 0.3, -(x + 0.3)).p < 0.01


def test_whitened_extremes_name_the_direction():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 4)) * np.array([1e-4, 1.0, 1.0, 1e4])[:, None]
    reference = a @ a.T
    q = a @ np.diag([0.04, 1.0, 1.0, 9.0]) @ a.T
    result = d.whitened_extremes(q, reference)
    assert result.smallest == pytest.approx(0.04)
    assert result.largest == pytest.approx(9.0)
    for w, ratio in [(result.narrowest, 0.04), (result.widest, 9.0)]:
        assert w @ reference @ w == pytest.approx(1)
        assert w @ q @ w == pytest.approx(ratio)
    assert d.whitened_extremes([[2.0]], [[4.0]]).smallest == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.wasserstein1(np.zeros((3, 2)), np.zeros((3, 1))), r"rows of shape \(2,\)"),
        (lambda: d.wasserstein1([0.0, np.nan], [0.0]), "x: 1 of 2 rows are not .* row 1"),
        (lambda: d.mmd(np.zeros((1, 2)), np.zeros((5, 2))), "two or more rows"),
        (lambda: d.ksd(np.zeros((5, 2)), np.zeros((5, 3))), "one score for each row"),
        (lambda: d.ks([], [1.0]), r"n >= 1, got \(0,\)"),
        (lambda: d.whitened_extremes(np.eye(2), np.ones((2, 2))), "not positive definite"),
        (lambda: d.whitened_extremes(np.eye(2), np.eye(3)), r"two \(d, d\) covariances"),
        (lambda: d.whitened_extremes(np.eye(2) * np.nan, np.eye(2)), "not finite"),
        (lambda: d.c2st(np.zeros((50, 2)), np.zeros((50, 3))), "samples of one width"),
        (lambda: d.c2st(np.zeros((50, 2)), np.zeros((3, 2))), "or more rows"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def skew(n, dims, seed):
    """Independent gammas with mean 0 and variance 1: means and covariance are the normal's."""
    return (np.random.default_rng(seed).gamma(4, size=(n, dims)) - 4) / 2


@pytest.mark.slow
def test_classifier_p_values_are_uniform_when_nothing_is_wrong():
    """More columns than rows, where a discriminant fits its own points perfectly."""
    tests = [d.c2st(normals(25, 2, seed=i), normals(30, 2, seed=9_000 + i), 99) for i in range(300)]
    assert uniform(np.array([t.p for t in tests]) - 0.005) > FAILURE_RATE
    # labels are guessed on points that were not seen: a chance of 1/2; 55 points each
    accuracy = np.array([t.accuracy for t in tests])
    assert abs(accuracy.mean() - 0.5) < Z * accuracy.std() / 300**0.5 + 0.01  # 25 against 30


@pytest.mark.parametrize("change", ["shift", "width", "correlation", "skew"])
def test_a_classifier_finds_what_is_wrong(change):
    x, y = normals(500, 8, seed=7), normals(600, 8, seed=8)
    if change == "shift":
        x = x + 0.25
    elif change == "width":
        x = x * 0.8
    elif change == "correlation":
        x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
    else:
        x = skew(500, 8, 7)
    scales = 10.0 ** np.arange(-4, 4)  # units do not matter
    found = d.c2st(x * scales, y * scales, 199)
    assert found.p == pytest.approx(1 / 200)
    assert found.accuracy > 0.55


def test_a_classifier_sees_a_shape_that_mmd_does_not():
    pairs = [(skew(500, 8, i), normals(500, 8, seed=100 + i)) for i in range(5)]
    assert np.median([d.c2st(x, y, 99).p for x, y in pairs]) == pytest.approx(1 / 100)
    assert np.median([d.mmd(x, y, 99).p for x, y in pairs]) > 0.05


def test_a_classifier_knows_the_exact_rate_of_two_normals():
    """Means 2 apart: the best rule is right with probability Phi(1) = .841."""
    x, y = normals(1000, 3, seed=1), normals(1000, 3, seed=2)
    x[:, 0] += 2
    error = (0.841 * 0.159 / 2000) ** 0.5
    # a discriminant on 309 columns and 1,600 rows loses a few per cent to noise, never gains
    assert 0.80 < d.c2st(x, y, 9).accuracy < 0.8413 + Z * error
