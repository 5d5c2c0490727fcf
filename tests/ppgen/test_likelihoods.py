"""Likelihoods of pixels: each is a law of the data that it lets pass."""

import re

import numpy as np
import pytest
import torch

from ppgen.distributions import DiscretisedLogistic
from ppgen.networks.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretisedLogisticLikelihood,
    GaussianLikelihood,
)


def legendre(low, high, count=400):
    """Nodes and log weights that integrate smooth functions to rounding."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    half = 0.5 * (high - low)
    return torch.tensor(low + half * (nodes + 1)), torch.tensor(half * weights).log()


def levels(count):
    return torch.arange(count).double(), torch.zeros(count, dtype=torch.float64)


CASES = {
    "Bernoulli": (BernoulliLikelihood, levels(2)),
    "continuous Bernoulli": (ContinuousBernoulliLikelihood, legendre(0, 1)),
    "Gaussian": (lambda: GaussianLikelihood(0.7), legendre(-20, 20)),
    "Gaussian, learned scale": (lambda: GaussianLikelihood(0.7, learned=True), legendre(-20, 20)),
    "Gaussian, scale of each": (lambda: GaussianLikelihood(None), legendre(-30, 30, 800)),
    "discretised logistic": (lambda: DiscretisedLogisticLikelihood(17), levels(17)),
    "two levels": (lambda: DiscretisedLogisticLikelihood(2), levels(2)),
    "categorical": (lambda: CategoricalLikelihood(5), levels(5)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_probabilities_sum_to_one_and_give_the_mean(name, spread):
    make, (x, log_weights) = CASES[name]
    likelihood = make()
    # one pixel, so that its law is all there is
    raw = spread * torch.randn(6, likelihood.parameters_each)
    if "Gaussian" in name:
        raw = raw.clamp(-2, 2)  # within the interval of the quadrature by ten deviations
    law = likelihood(raw)
    assert law.batch_shape == (6,)
    assert law.event_shape == (1,)
    mass = law.log_prob(x[:, None, None]) + log_weights[:, None]
    torch.testing.assert_close(mass.logsumexp(0), torch.zeros(6), atol=1e-8, rtol=0)
    mean = (mass.exp() * x[:, None]).sum(0)
    torch.testing.assert_close(law.mean[:, 0], mean, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_draws_pass_the_check_and_parameters_stay_with_their_pixel(name):
    likelihood = CASES[name][0]()
    raw = torch.randn(3, 4 * likelihood.parameters_each, requires_grad=True)
    law = likelihood(raw)
    x = law.sample()
    assert x.shape == (3, 4)
    assert likelihood.check(x) is x
    assert likelihood.network_input(x).shape == (3, 4)
    if hasattr(likelihood, "levels"):
        ends = likelihood.network_input(torch.tensor([0.0, likelihood.levels - 1]))
        assert ends.tolist() == [-1.0, 1.0]
    law.base_dist.log_prob(x)[1, 2].backward()
    touched = raw.grad.unflatten(-1, (4, -1)).abs().sum(-1) > 0
    assert touched.nonzero().tolist() == [[1, 2]]


def test_a_learned_scale_is_a_parameter_and_a_fixed_one_is_not():
    assert [n for n, _ in GaussianLikelihood(0.5, learned=True).named_parameters()]
    assert not list(GaussianLikelihood(0.5).parameters())
    with pytest.raises(ValueError, match="positive"):
        GaussianLikelihood(0.0)


@pytest.mark.parametrize(
    ("likelihood", "wrong", "advice"),
    [
        (BernoulliLikelihood(), 0.5, "ContinuousBernoulliLikelihood|DiscretisedLogistic"),
        (ContinuousBernoulliLikelihood(), 1.5, "divide by the largest level"),
        (ContinuousBernoulliLikelihood(), float("nan"), "divide by the largest level"),
        (GaussianLikelihood(), float("nan"), "NaN"),
        (DiscretisedLogisticLikelihood(4), 4.0, "0, 1, ..., 3"),
        (DiscretisedLogisticLikelihood(4), 0.5, "raw levels"),
        (CategoricalLikelihood(3), -1.0, "0, 1, ..., 2"),
    ],
)
def test_what_has_no_probability_is_refused_with_row_column_and_a_way_out(
    likelihood, wrong, advice
):
    x = torch.zeros(4, 6)
    x[2, 3] = wrong
    with pytest.raises(ValueError, match="row 2, column 3") as caught:
        likelihood.check(x)
    assert re.search(advice, str(caught.value))


def test_the_discretised_logistic_is_a_difference_of_distribution_functions():
    loc, scale = torch.tensor([3.2, -4.0, 12.0]), torch.tensor([0.4, 2.0, 5.0])
    law, x = DiscretisedLogistic(loc, scale, 9), torch.arange(9.0)[:, None]
    upper = torch.sigmoid((x + 0.5 - loc) / scale)
    lower = torch.sigmoid((x - 0.5 - loc) / scale)
    upper[-1], lower[0] = 1, 0
    torch.testing.assert_close(law.log_prob(x).exp(), upper - lower)


def test_its_tails_are_finite_in_single_precision_with_their_gradients():
    loc = torch.tensor([0.0, 255.0, 128.0], dtype=torch.float32, requires_grad=True)
    scale = torch.full((3,), 0.1, dtype=torch.float32, requires_grad=True)
    log_prob = DiscretisedLogistic(loc, scale, 256).log_prob(torch.tensor([255.0, 0.0, 7.0]))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert loc.grad.isfinite().all()
    assert scale.grad.isfinite().all()
    # far below the centre log P(x) is (x + 1/2 - m) / s + log(1 - exp(-1 / s))
    assert log_prob[2].item() == pytest.approx((7.5 - 128) / 0.1 - 4.54e-5, rel=1e-5)


def test_its_draws_have_its_probabilities():
    law = DiscretisedLogistic(torch.tensor(2.3), torch.tensor(1.1), 6)
    expected = law.log_prob(torch.arange(6.0)).exp() * 20000
    counts = torch.bincount(law.sample((20000,)).long(), minlength=6)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 29.0  # five degrees of freedom, 2e-5


def test_expanding_keeps_the_law():
    law = DiscretisedLogistic(torch.tensor([1.0, 2.0]), torch.tensor(1.0), 4).expand((3, 2))
    assert law.sample((5,)).shape == (5, 3, 2)
    assert law.log_prob(torch.zeros(3, 2)).shape == (3, 2)


def test_no_two_levels_are_refused():
    for make in (DiscretisedLogisticLikelihood, CategoricalLikelihood):
        with pytest.raises(ValueError, match="at least 2"):
            make(1)
