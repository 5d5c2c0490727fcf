"""The signed normal against quadrature and its own draws."""

import math

import pytest
import torch

from ppgen.distributions import SignedNormal

Z = 5.0  # two-sided normal quantile of 2e-5 over 14 comparisons: 4.8

LOCS = [-35.0, -8.0, -1.0, 0.0, 0.7, 3.0, 20.0]  # towards the sign; -35 is beyond the exact tail


@pytest.mark.parametrize("toward", LOCS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_density_moments_and_entropy_agree_with_quadrature(toward, sign):
    law = SignedNormal(torch.tensor(toward * sign), torch.tensor(sign))
    width = 1 / (1 + max(0.0, -toward))  # of the tail
    low, high = max(1e-12, toward - 9), max(0.0, toward) + (9 if toward > -5 else 45 * width)
    x = sign * torch.linspace(low, high, 200_001)
    p = law.log_prob(x).exp()

    def integral(values):
        return float(torch.trapezoid(values, sign * x))

    assert integral(p) == pytest.approx(1.0, abs=1e-6)
    assert float(law.mean) == pytest.approx(integral(p * x), rel=1e-6, abs=1e-7)
    square = integral(p * (x - law.mean).square())
    assert float(law.variance) == pytest.approx(square, rel=1e-4)
    terms = torch.where(p > 0, p * law.log_prob(x), 0.0)
    assert float(law.entropy()) == pytest.approx(-integral(terms), abs=1e-5)
    assert bool((law.log_prob(-x) == -math.inf).all())


@pytest.mark.parametrize("toward", LOCS)
def test_draws_have_the_sign_and_the_moments(toward):
    law = SignedNormal(torch.tensor(-toward), torch.tensor(-1.0))
    draws = law.sample((20_000,))
    assert bool((draws < 0).all())
    # beyond -30 the tail is taken as exponential: its mean is off by t^-2 of itself
    bias = float(law.mean.abs()) / toward**2 if toward < -30 else 0.0
    error = float(law.variance.sqrt()) / math.sqrt(20_000)
    assert abs(float(draws.mean() - law.mean)) < Z * error + bias
    squares = (draws - law.mean).square()
    error = float(squares.std()) / math.sqrt(20_000)
    bias *= 4 * float(law.mean.abs())
    assert abs(float(squares.mean() - law.variance)) < Z * error + bias
