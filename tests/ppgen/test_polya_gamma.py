"""The Polya-Gamma law against its Laplace transform, quadrature and its own draws."""

import math

import pytest
import torch
from scipy import stats

from ppgen.distributions import PolyaGamma

FAILURE_RATE = 2e-5
Z = 5.0  # two-sided normal quantile of FAILURE_RATE over 40 comparisons: 5.0
DRAWS = 50_000

# 2.9 and 3.1: proposals below the cut are of one kind and of the other
TILTS = [0.0, 1e-4, -0.7, 2.9, 3.1, 8.0, 30.0, 1500.0]
each_tilt = pytest.mark.parametrize("tilt", TILTS)


def log_laplace(tilt, t):
    """``log E exp(-t omega) = log cosh(c / 2) - log cosh sqrt((c^2 / 2 + t) / 2)``."""
    return _log_cosh(abs(tilt) / 2) - _log_cosh(math.sqrt((tilt * tilt / 2 + t) / 2))


def _log_cosh(x):
    return x + math.log1p(math.exp(-2 * x)) - math.log(2)


def grid(tilt):
    """Points, their density, and the width of each, over all of the mass."""
    law = PolyaGamma(torch.tensor(tilt))
    log = law.mean.log() + torch.linspace(-6.0, 6.0, 40_001) / math.sqrt(max(1.0, abs(tilt) / 4))
    omega = log.exp()
    return law, omega, law.log_prob(omega), omega * (log[1] - log[0])


@each_tilt
def test_density_moments_and_entropy_agree_with_closed_forms(tilt):
    law, omega, log_prob, width = grid(tilt)
    mass = log_prob.exp() * width

    def integral(values):
        return float((mass * values).sum())

    assert integral(1.0) == pytest.approx(1, rel=1e-10)
    for t in (0.5, 1.0, 3.0, 20.0):
        t = t / float(law.mean)
        transform = integral((-t * omega).exp())
        assert transform == pytest.approx(math.exp(log_laplace(tilt, t)), rel=1e-9)
    assert float(law.mean) == pytest.approx(integral(omega), rel=1e-9)
    variance = integral((omega - law.mean).square())
    assert float(law.variance) == pytest.approx(variance, rel=1e-8)
    assert float(law.entropy()) == pytest.approx(-integral(log_prob), rel=1e-9, abs=1e-9)
    untilted = PolyaGamma(torch.tensor(0.0)).log_prob(omega).clamp(min=-1e300)
    assert float(law.expected_log_untilted()) == pytest.approx(integral(untilted), rel=1e-9)


def test_moments_of_no_tilt():
    law = PolyaGamma(torch.zeros(2, 1))
    assert torch.equal(law.mean, torch.full((2, 1), 0.25))
    assert torch.allclose(law.variance, torch.full((2, 1), 1 / 24))


@each_tilt
def test_draws_have_the_moments_and_the_laplace_transform(tilt):
    law = PolyaGamma(torch.tensor(tilt))
    draws = law.sample((DRAWS,))
    mean, sd = float(law.mean), math.sqrt(float(law.variance))
    assert abs(float(draws.mean()) - mean) < Z * sd / math.sqrt(DRAWS)
    squares = (draws - mean).square()
    error = float(squares.std()) / math.sqrt(DRAWS)
    assert abs(float(squares.mean()) - sd * sd) < Z * error
    for t in (0.5 / mean, 3.0 / mean, 1.0 / sd):
        first, second = (math.exp(log_laplace(tilt, s)) for s in (t, 2 * t))
        error = math.sqrt((second - first * first) / DRAWS)
        assert abs(float((-t * draws).exp().mean()) - first) < Z * error, t


@each_tilt
def test_draws_have_the_distribution_function(tilt):
    law, omega, log_prob, width = grid(tilt)
    cdf = (log_prob.exp() * width).cumsum(0)
    uniform = torch.searchsorted(omega, law.sample((DRAWS,))).clamp(max=len(omega) - 1)
    assert stats.kstest(cdf[uniform].numpy(), "uniform").pvalue > FAILURE_RATE


def test_each_element_has_its_own_tilt_and_draws_keep_shape_and_dtype():
    law = PolyaGamma(torch.tensor([[0.0], [4.0], [40.0]], dtype=torch.float32)).expand((3, 5000))
    draws = law.sample((2,))
    assert draws.shape == (2, 3, 5000)
    assert draws.dtype == torch.float32
    error = law.variance[:, 0].sqrt() / math.sqrt(10_000)
    assert bool(((draws.mean((0, 2)) - law.mean[:, 0]).abs() < Z * error).all())


def test_a_tilt_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="the first of them inf; they must be finite"):
        PolyaGamma(torch.tensor([1.0, torch.inf])).sample()
