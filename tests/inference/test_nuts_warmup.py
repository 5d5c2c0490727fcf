"""Warm-up: windows, covariances, step sizes, and the coordinates that the metric whitens."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference.nuts import NUTS
from ppgen.inference.nuts_metric import Whitened
from ppgen.inference.nuts_warmup import Spread, Tuner, windows
from ppgen.inference.target import Target
from ppgen.program import Program


def scales():
    """25 independent normals with standard deviations from 0.01 to 100."""
    pyro.sample("x", dist.Normal(torch.zeros(25), torch.logspace(-2, 2, 25)).to_event(1))


def correlated():
    covariance = torch.tensor([[4.0, 1.9, 0.0], [1.9, 1.0, 0.1], [0.0, 0.1, 0.25]])
    pyro.sample("x", dist.MultivariateNormal(torch.ones(3), covariance))


# -- windows -------------------------------------------------------------------------------------


def test_the_windows_are_those_of_stan():
    assert windows(1000) == [75, 100, 150, 250, 450, 950]
    assert windows(500) == [75, 100, 150, 250, 450]
    assert windows(499) == [75, 100, 150, 449]  # a last window of 199 is no doubling
    assert windows(150) == [75, 100]
    assert windows(100) == [15, 90]  # too short for 75 + 25 + 50: shares of 15 and 10 %
    assert windows(19) == []


@pytest.mark.parametrize("warmup", [20, 77, 149, 151, 175, 176, 333, 2000, 12345])
def test_windows_double_and_fill_what_lies_between_the_first_and_the_last_iterations(warmup):
    edges = windows(warmup)
    lengths = np.diff(edges)
    assert (lengths > 0).all()
    assert edges[0] == min(75, int(0.15 * warmup)) or warmup >= 150
    assert (lengths[1:-1] == 2 * lengths[:-2]).all()
    assert len(lengths) < 2 or lengths[-1] >= 2 * lengths[-2]
    assert warmup - edges[-1] == (50 if warmup >= 150 else int(0.1 * warmup))


# -- covariance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [False, True])
def test_the_spread_is_the_regularised_covariance(dense):
    draws = np.random.default_rng(0).standard_normal((30, 3)) * [1.0, 10.0, 0.1] + 1e3
    spread = Spread(3, metric="dense" if dense else "diag")
    for draw in draws:
        spread.add(draw)
    expected = 30 / 35 * np.cov(draws.T) + 1e-3 * 5 / 35 * np.eye(3)
    factor = spread.factor()
    if dense:
        np.testing.assert_allclose(factor @ factor.T, expected, atol=1e-9)
    else:
        np.testing.assert_allclose(factor**2, np.diag(expected), atol=1e-9)


@pytest.mark.parametrize(
    ("correlation", "draws", "dense"),
    [
        (0.0, 500, False),
        (0.9, 500, False),  # condition number 19: below the limit of 20, and noise is allowed for
        (0.99, 500, True),  # 199
        (0.99999, 19, False),  # too few draws to tell
        (0.99999, 20, True),
    ],
)
def test_the_metric_is_dense_where_correlations_are_strong(correlation, draws, dense):
    covariance = [[1.0, correlation], [correlation, 1.0]]
    rng = np.random.default_rng(0)
    spread = Spread(2, metric="auto")
    for draw in rng.multivariate_normal([0, 0], covariance, draws):
        spread.add(draw)
    assert spread.factor().ndim == (2 if dense else 1)
    few = Spread(25, metric="auto")
    for draw in rng.standard_normal((25, 25)) * np.logspace(-2, 2, 25):
        few.add(draw)
    assert few.factor().ndim == 1  # 25 draws span 24 directions
    assert Spread(201, metric="auto").squares.ndim == 1  # no square matrix in high dimension


@pytest.mark.parametrize("dense", [False, True])
def test_each_metric_is_that_of_its_own_window(dense):
    draws = np.random.default_rng(0).standard_normal((300, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
    draws *= np.linspace(1, 5, 300)[:, None]
    tuner = Tuner(300, 2, target_accept=0.8, metric="dense" if dense else "diag")
    factors = []
    while not tuner.done:
        at = None if tuner.trying else tuner.iteration
        factor = tuner.hear(0.8 if at is not None else 0.9, draws[at or 0])
        if factor is not None:
            factors.append(factor)
    edges = windows(300)
    assert len(factors) == len(edges) - 1 == 3
    for begin, end, factor in zip(edges, edges[1:], factors, strict=False):
        spread = Spread(2, metric="dense" if dense else "diag")
        for draw in draws[begin:end]:
            spread.add(draw)
        np.testing.assert_allclose(factor, spread.factor())


# -- step size -----------------------------------------------------------------------------------


def drive(tuner, acceptance):
    """Feed a tuner the acceptance that its step size would have; the step sizes tried first."""
    tried = []
    while not tuner.done:
        if tuner.trying:
            tried.append(tuner.step_size)
        tuner.hear(acceptance(tuner.step_size), np.random.default_rng(0).standard_normal(2))
    return tried


@pytest.mark.parametrize("right", [1e-6, 0.3, 1e5])
@pytest.mark.parametrize("target", [0.6, 0.9])
def test_dual_averaging_finds_the_step_size_of_the_target(right, target):
    tuner = Tuner(1000, 2, target_accept=target, metric="diag")
    # a smooth curve that falls from 1 to 0 around the right step size
    drive(tuner, lambda step: 1 / (1 + (step / right) ** 2))
    wanted = right * math.sqrt(1 / target - 1)
    # at slope d acceptance / d log step >= 0.18, .03 of acceptance
    assert abs(math.log(tuner.step_size / wanted)) < 0.15


def test_the_step_size_that_is_kept_is_an_average():
    def last(acceptance):
        tuner = Tuner(1000, 2, target_accept=0.8, metric="diag")
        while tuner.trying or tuner.iteration < 999:
            tuner.hear(1 / (1 + tuner.step_size**2), np.zeros(2))
        tuner.hear(acceptance, np.zeros(2))
        return math.log(tuner.step_size)

    # weight 150^-.75 = .023 of an iterate that moves by 20 sqrt(150) / 160 = 1.5
    assert 0 < last(1.0) - last(0.0) < 0.05


def test_the_first_step_sizes_are_sought_by_doubling_and_halving():
    up = drive(Tuner(1, 2, target_accept=0.8, metric="diag"), lambda step: float(step < 10))
    assert up == [1, 2, 4, 8, 16]
    down = drive(Tuner(1, 2, target_accept=0.8, metric="diag"), lambda step: float(step < 0.2))
    assert down == [1, 0.5, 0.25, 0.125]


def test_a_step_size_that_nothing_stops_is_not_sought_for_ever():
    tried = drive(Tuner(5, 2, target_accept=0.8, metric="diag"), lambda step: 1.0)
    assert len(tried) < 100


def test_trees_stay_shorter_before_the_first_metric():
    tuner = Tuner(500, 2, target_accept=0.8, metric="diag")
    depths = []
    while not tuner.done:
        if not tuner.trying:
            depths.append(tuner.depth)
        tuner.hear(0.8, np.zeros(2))
    assert set(depths[:100]) == {8}
    assert min(depths[100:]) > 20
    assert Tuner(1, 2, target_accept=0.8, metric="diag").depth == 1  # a trial


# -- coordinates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [False, True])
def test_whitened_coordinates_stay_consistent_when_the_metric_changes(dense):
    target = Target(Program(correlated))
    rng = np.random.default_rng(0)
    whitened = Whitened(target, rng.standard_normal((4, 3)))
    factors = np.broadcast_to(np.eye(3) if dense else np.ones(3), (4, 3, 3) if dense else (4, 3))
    for _ in range(3):
        w = rng.standard_normal((4, 3))
        z = whitened.positions(w)
        value, gradient = whitened(w)
        spread = np.tril(rng.random((3, 3))) + np.eye(3) if dense else 0.5 + rng.random(3)
        point = np.stack([w[2], np.zeros(3), gradient[2]])
        whitened.renew(2, point, spread)
        factors = factors.copy()
        factors[2] = factors[2] @ spread if dense else factors[2] * spread
        # the same place in new coordinates, with the gradient that belongs to them
        w[2] = point[0]
        np.testing.assert_allclose(whitened.positions(w), z, atol=1e-12)
        again, slope = whitened(w)
        np.testing.assert_allclose(again, value, atol=1e-12)
        np.testing.assert_allclose(slope[2], point[2], atol=1e-10)
        _, plain = target(torch.from_numpy(z))
        expected = np.einsum("cij,ci->cj", factors, plain) if dense else factors * plain.numpy()
        np.testing.assert_allclose(slope, expected, atol=1e-10)
        np.testing.assert_allclose(whitened.positions(w[[2, 0]], np.array([2, 0])), z[[2, 0]])


def test_one_chain_may_become_dense_and_the_others_stay():
    """And a diagonal change of a dense metric scales its columns."""
    whitened = Whitened(Target(Program(correlated)), np.zeros((3, 3)))
    diagonal, lower = np.array([2.0, 3.0, 4.0]), np.tril(np.ones((3, 3)))
    for chain, spread in ((0, diagonal), (1, lower), (1, diagonal)):
        whitened.renew(chain, np.zeros((3, 3)), spread)
    expected = np.stack([np.diag(diagonal), lower * diagonal, np.eye(3)])
    np.testing.assert_array_equal(whitened.factor, expected)


# -- both together -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.7, 0.8, 0.9])
def test_the_mean_acceptance_is_the_target_and_the_scales_are_found(target):
    posterior = NUTS(chains=8, draws=150, warmup=1000, target_accept=target).run(scales)
    # sampling error .01 with a thousand draws; what dual averaging overshoots is .03 to .04
    assert abs(float(posterior.stats["acceptance_rate"].mean()) - target) < 0.06
    # standard normals need trees of 3 or 7 leaves, 15 with short steps; unscaled ones thousands
    assert float(posterior.stats["n_steps"].double().mean()) < 16
    assert len(set(posterior.stats["step_size"][:, 0].tolist())) == 8, "each chain its own"


@pytest.mark.slow
def test_a_dense_metric_removes_correlations():
    """Correlation .9995: the condition number is 4000, and diagonal trees some 60 times longer."""

    def narrow():
        covariance = torch.tensor([[1.0, 0.9995], [0.9995, 1.0]])
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance))

    program = Program(narrow)
    options = {"chains": 4, "draws": 200, "warmup": 300}
    dense = NUTS(**options, metric="dense").run(program).stats["n_steps"].double().mean()
    plain = NUTS(**options, metric="diag").run(program).stats["n_steps"].double().mean()
    chosen = NUTS(**options).run(program).stats["n_steps"].double().mean()
    assert float(dense) < 8
    assert float(chosen) < 8
    assert float(plain) > 5 * float(dense)
