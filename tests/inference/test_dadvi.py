"""DADVI: exact on normal posteriors, by the closed forms of mean-field and linear response."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference.dadvi import DADVI, Fit, _error_note, judge, minimise
from ppgen.inference.fixed_draws import Objective
from ppgen.inference.frame import Frame
from ppgen.program import Program

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5  # as in tests/conftest.py
Z = 4.3  # two-sided normal quantile of FAILURE_RATE: 4.26
DIM = 4


def correlated():
    root = torch.randn(DIM, DIM)
    scale = torch.logspace(-2, 2, DIM)
    return scale[:, None] * (root @ root.mT + 0.1 * torch.eye(DIM)) * scale


def normal(covariance):
    def story():
        pyro.sample("x", dist.MultivariateNormal(torch.arange(4.0), covariance))

    return story


def test_linear_response_is_exact_on_a_normal():
    """Antithetic draws have mean zero, so the mean is exact, and so is the density."""
    posterior = DADVI(draws=200).run(normal(correlated()))
    assert posterior.converged
    # q = p: every weight is 1. Differences of gradients are good to eps^(2/3) = 4e-11, times
    # squares of standardised draws and a condition number of about 1000
    weights = posterior.log_density - posterior.log_guide
    torch.testing.assert_close(weights, torch.zeros_like(weights), rtol=0, atol=1e-4)


def test_draws_have_the_moments_of_the_normal():
    covariance = correlated()
    posterior = DADVI().run(normal(covariance))
    factor = torch.linalg.cholesky(covariance)
    x = posterior["x"][0] - torch.arange(4.0)
    white = torch.linalg.solve_triangular(factor, x.mT, upper=False)
    assert white.mean(1).abs().max() < Z / math.sqrt(4000)
    moments = white @ white.mT / 4000 - torch.eye(DIM)
    assert moments.abs().max() < Z * math.sqrt(2 / 4000)


def test_independent_normals_are_as_narrow_as_the_precision_says():
    """Mean-field sd of a normal: 1 / sqrt of the diagonal of the precision (Bishop 2006, 10.1.2).

    The second moments of M fixed draws are off by sqrt(2 / M).
    """
    covariance = correlated()
    fixed = 4000
    posterior = DADVI(linear_response=False, fixed=fixed, draws=20_000).run(normal(covariance))
    assert posterior.converged, posterior.messages
    expected = torch.linalg.inv(covariance).diagonal().rsqrt()
    ratio = posterior["x"][0].std(0) / expected
    assert (ratio - 1).abs().max() < Z * (math.sqrt(1 / fixed) + math.sqrt(0.5 / 20_000)) * 2
    assert posterior.log_guide is not None


def test_the_gradient_and_curvature_are_those_of_the_objective():
    """Against autograd through a density whose Hessian is not constant."""

    def density(z):
        return -(z.exp() - 2 * z).sum(-1) - 0.5 * z[..., 0] * z[..., 1]

    def value_and_grad(z):
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            value = density(z)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    half = torch.randn(5, 3)
    noise = torch.cat([half, -half])
    frame = Frame(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 0.5, 2.0]))
    objective = Objective(value_and_grad, frame, noise)

    def f(eta):
        z = frame.centre + frame.factor * (eta[:3] + eta[3:].exp() * noise)
        return -eta[3:].sum() - frame.log_det - density(z).mean()

    eta = 0.3 * torch.randn(6)
    value, gradient = objective(eta[None])
    torch.testing.assert_close(value[0], f(eta))
    torch.testing.assert_close(gradient[0], torch.func.grad(f)(eta))
    exact = torch.func.hessian(f)(eta)
    # central differences: eps^(2/3) = 4e-11 times third derivatives
    torch.testing.assert_close(objective.curved(eta, torch.eye(6)), exact, rtol=1e-7, atol=1e-7)
    direction = torch.randn(1, 6)
    curved = objective.curved(eta, 100 * direction)
    torch.testing.assert_close(curved[0], 100 * exact @ direction[0], rtol=1e-7, atol=1e-5)
    ascent = minimise(objective, 100)
    response = torch.linalg.inv(torch.func.hessian(f)(ascent.eta))[:3, :3]
    precision = judge(objective, ascent, dense=True).precision
    torch.testing.assert_close(torch.linalg.inv(precision), response, rtol=1e-6, atol=1e-6)


def log_gamma(z):
    """Gamma(2, 1) on the log scale, up to a constant."""
    return (2 * z - z.exp()).sum(-1), 2 - z.exp()


def test_the_optimiser_ends_where_the_gradient_vanishes():
    half = torch.randn(15, 3)
    frame = Frame(torch.zeros(3), torch.ones(3))
    objective = Objective(log_gamma, frame, torch.cat([half, -half]))
    ascent = minimise(objective, 100)
    assert objective(ascent.eta[None])[1].norm() < 1e-6
    assert (ascent.elbo.diff() >= -1e-12).all()  # each iteration gains
    torch.testing.assert_close(ascent.elbo[-1], -objective(ascent.eta[None])[0][0])


@pytest.mark.parametrize("dense", [True, False])
def test_an_optimiser_that_stops_early_says_how_far_from_the_minimum(dense):
    """On a standard normal the objective of antithetic draws is quadratic in the mean."""
    half = torch.randn(5, 2)
    frame = Frame(torch.zeros(2), torch.ones(2))
    objective = Objective(
        lambda z: (-0.5 * z.square().sum(-1), -z), frame, torch.cat([half, -half])
    )
    best = minimise(objective, 100)
    off = torch.tensor([0.4, -0.5, 0.0, 0.0])
    gap = float(objective((best.eta + off)[None])[0] - objective(best.eta[None])[0])
    assert gap == pytest.approx(0.205)
    assert judge(objective, best, dense).complaints == ()
    (said,) = judge(objective, best._replace(eta=best.eta + off), dense).complaints
    assert said == "the optimiser stopped 0.21 nats above the minimum of the objective"


def test_the_error_of_the_fixed_draws_is_what_their_choice_does_to_the_mean():
    """The spread of the means over 40 choices, against the errors that are reported.

    A standard deviation of 40 values is known to 1 / sqrt(80); the errors, from 10 pairs each,
    average to better than that.
    """
    frame, means, errors = Frame(torch.zeros(1), torch.ones(1)), [], []
    for _ in range(40):
        half = torch.randn(10, 1)
        objective = Objective(log_gamma, frame, torch.cat([half, -half]))
        fit = judge(objective, minimise(objective, 100), dense=True)
        assert not fit.complaints
        means.append(float(fit.mean))
        errors.append(float(fit.error))
    ratio = np.std(means, ddof=1) / np.sqrt(np.mean(np.square(errors)))
    assert abs(ratio - 1) < Z / math.sqrt(80)


def test_without_a_minimum_it_says_so():
    def ridge(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0).mask(False))
        b = pyro.sample("b", dist.Normal(0.0, 1.0).mask(False))
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    posterior = DADVI().run(ridge, torch.tensor(1.0))
    assert not posterior.converged
    assert "no minimum" in posterior.headline()


def test_the_error_is_reported_for_the_worst_site():
    def story():
        pyro.sample("easy", dist.Normal(0.0, 1.0))
        pyro.sample("skewed", dist.Gamma(0.3, 1.0))

    posterior = DADVI(fixed=10).run(story)
    assert posterior.converged, posterior.messages
    assert "10 fixed draws leave an error" in posterior.headline()
    assert "(skewed)" in posterior.headline()
    easy, skewed = posterior.history["fixed_draw_error"]
    assert easy < 1e-6  # a normal's mean does not depend on antithetic draws
    assert skewed > 0.01


def test_errors_of_means_are_in_their_own_standard_deviations():
    program = Program(normal(torch.eye(DIM)))
    precision = torch.diag(torch.tensor([1.0, 1.0, 25.0, 1.0]))  # an sd of .2
    error = torch.tensor([0.001, 0.001, 0.01, 0.002])
    (said,) = _error_note(program, Fit(torch.zeros(DIM), precision, error, ()), 10)
    assert "up to 0.05 sd in means (x)" in said
    assert _error_note(program, Fit(torch.zeros(DIM), precision, error * math.nan, ()), 10) == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed": 3}, r"fixed=.*at least 4, got 3"),
        ({"fixed": 7}, r"fixed=.*even.*got 7"),
        ({"draws": 0}, r"draws=.*at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DADVI(**options)


def test_linear_response_in_too_many_dimensions_is_refused():
    def story():
        pyro.sample("x", dist.Normal(torch.zeros(501), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"501 dimensions.*linear_response=False"):
        DADVI().run(story)
