"""The normal above zero against quadrature and SciPy, from far below zero to far above."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from ppgen.distributions import PositiveNormal, positive_normal

FAILURE_RATE = 2e-5
LOCS = [-300.0, -40.0, -5.01, -4.99, -1.0, 0.0, 3.0, 9.0, 40.0]


def moments(loc):
    """log of the mass, and the mean: integrals about the mode, scaled by it."""
    mode = max(loc, 0.0)
    end = mode + (60 / -loc if loc < -1 else 12)

    def part(power):
        def integrand(h):
            return h**power * math.exp(loc * (h - mode) - (h * h - mode * mode) / 2)

        middle = [min(max(mode, 1e-3), end / 2)]
        return integrate.quad(integrand, 0, end, points=middle, epsabs=0, epsrel=1e-12)[0]

    return math.log(part(0)) + loc * mode - mode * mode / 2, part(1) / part(0)


@pytest.mark.parametrize("loc", LOCS)
def test_mass_and_mean_equal_quadrature(loc):
    log_mass, mean = moments(loc)
    at = torch.tensor(loc, requires_grad=True)
    value = positive_normal.log_mass(at)
    assert abs(value.item() - log_mass) < 1e-10 * max(1, abs(log_mass))
    (slope,) = torch.autograd.grad(value, at)
    assert abs(slope.item() / mean - 1) < 1e-9
    assert abs(PositiveNormal(at.detach()).mean.item() / mean - 1) < 1e-9


@pytest.mark.parametrize("loc", LOCS)
def test_draws_are_exact(loc):
    x = PositiveNormal(torch.tensor(loc)).sample((20_000,)).numpy()
    p = stats.kstest(x, lambda h: -np.expm1(special.log_ndtr(loc - h) - special.log_ndtr(loc)))
    assert p.pvalue > FAILURE_RATE / len(LOCS)
    assert (x >= 0).all()


def test_one_precision_is_enough_for_finite_numbers():
    locs = torch.tensor([-1e4, -100.0, -13.0, 0.0, 13.0, 100.0], requires_grad=True).float()
    value = positive_normal.log_mass(locs)
    (slope,) = torch.autograd.grad(value.sum(), locs)
    for found in (value, slope, positive_normal.mean(locs), positive_normal.draw(locs.detach())):
        assert found.dtype == torch.float32
        assert found.isfinite().all()


def test_density_variance_and_shapes():
    law = PositiveNormal(torch.tensor([-0.7, 1.2]))
    theirs = [stats.truncnorm(-loc, np.inf, loc=loc) for loc in (-0.7, 1.2)]
    value = torch.tensor([0.4, 2.0])
    expected = [t.logpdf(v) for t, v in zip(theirs, value, strict=True)]
    torch.testing.assert_close(law.log_prob(value), torch.tensor(expected))
    torch.testing.assert_close(law.variance, torch.tensor([t.var() for t in theirs]))
    assert law.expand((3, 2)).sample((5,)).shape == (5, 3, 2)
    with pytest.raises(ValueError, match="support"):
        law.log_prob(torch.tensor(-1.0))
