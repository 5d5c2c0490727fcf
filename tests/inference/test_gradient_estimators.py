"""Gradient estimators against quadrature and closed forms, with their variances."""

import json
import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily

from ppgen.distributions import Rayleigh
from ppgen.inference.gradient_estimators import (
    ESTIMATORS,
    SCORE_FUNCTION,
    leave_one_out,
    moving_support,
    reinforce,
    reparameterisation,
)
from ppgen.inference.gradient_report import (
    gradient_report,
    measure,
    standard_problem,
    variance_against_dimension,
)
from ppgen.inference.quadrature import exact_gradient, expectation

FAILURE_RATE = 2e-5  # as in tests/conftest.py


def bounded(x):
    """Grows so slowly that even Cauchy has its expectation."""
    return torch.log1p(x.square())


# family of (*, P) with unconstrained parameters, and where the gradient is taken
FAMILIES = {
    "Normal": (lambda p: dist.Normal(p[..., 0], p[..., 1].exp()), (0.3, 0.2)),
    "Laplace": (lambda p: dist.Laplace(p[..., 0], p[..., 1].exp()), (0.3, 0.2)),
    "StudentT": (
        lambda p: dist.StudentT(p[..., 2].exp(), p[..., 0], p[..., 1].exp()),
        (0.3, 0.2, 1.0),
    ),
    "Logistic": (lambda p: dist.Logistic(p[..., 0], p[..., 1].exp()), (0.3, 0.2)),
    "Cauchy": (lambda p: dist.Cauchy(p[..., 0], p[..., 1].exp()), (0.3, 0.2)),
    "Rayleigh": (lambda p: Rayleigh(p[..., 0].exp()), (0.3,)),
    "Pareto": (lambda p: dist.Pareto(p[..., 0].exp(), p[..., 1].exp()), (0.3, 1.1)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_estimator_is_unbiased_where_the_support_stands_still(name):
    """The report's limit, 4.3 standard errors, is the quantile of FAILURE_RATE."""
    family, at = FAMILIES[name]
    report = gradient_report(family, torch.tensor(at), bounded, repetitions=1500)
    expected = set(SCORE_FUNCTION) if name == "Pareto" else set()
    assert set(report.biased) == expected, str(report)
    assert report.moving == (name == "Pareto")
    assert set(report.refused) == ({"implicit"} if name == "StudentT" else set())


def test_the_score_function_of_a_pareto_is_off_by_the_flow_through_its_boundary():
    """d/ds E[ln x] = d/ds (ln s + 1/alpha) = 1/s; the score misses -alpha ln(s) / s."""
    scale, alpha = torch.tensor([1.5]), 3.0
    report = gradient_report(
        lambda p: dist.Pareto(p[..., 0], alpha), scale, torch.log, repetitions=2000
    )
    assert float(report.exact) == pytest.approx(1 / 1.5, abs=1e-9)
    assert report.biased["REINFORCE"] == pytest.approx(alpha * math.log(1.5) / 1.5, abs=0.03)
    # f s has sd 1/alpha * alpha/s = .67: 4.3 * .67 / sqrt(32000) = .016
    assert float(report.measured["REINFORCE"].mean) == pytest.approx(1.477, abs=0.017)
    assert "reparameterisation" not in report.biased
    assert "support moves" in str(report)


def test_uniform_ends_move_and_normal_ones_do_not():
    ends = torch.tensor([0.0, 1.0])
    assert moving_support(lambda p: dist.Uniform(p[..., 0], p[..., 1]), ends)
    assert not moving_support(lambda p: dist.Normal(p, 1.0).to_event(1), ends)
    assert not moving_support(lambda p: dist.Uniform(0.0, 1.0).expand(p.shape[:-1]), ends)


def test_quadrature_gives_known_expectations_and_gradients():
    normal = dist.Normal(torch.tensor(1000.0), torch.tensor(0.01))
    assert float(expectation(normal, lambda x: x.square())) == pytest.approx(1e6 + 1e-4, rel=1e-12)
    gradient = exact_gradient(*_of("Normal"), torch.square)
    # E x^2 = mu^2 + exp(2 s)
    torch.testing.assert_close(gradient, torch.tensor([0.6, 2 * math.exp(0.4)]))
    ends = torch.tensor([0.2, 1.7])
    uniform = exact_gradient(lambda p: dist.Uniform(p[..., 0], p[..., 1]), ends, torch.square)
    # E x^2 = (a^2 + a b + b^2) / 3
    torch.testing.assert_close(uniform, torch.tensor([(0.4 + 1.7) / 3, (0.2 + 3.4) / 3]))
    # E log(1 + x^2) of a Cauchy is log((1 + gamma)^2 + mu^2)
    cauchy = dist.Cauchy(torch.tensor(0.3), torch.tensor(1.2))
    value = float(expectation(cauchy, bounded))
    assert value == pytest.approx(math.log(2.2**2 + 0.09), abs=1e-9)
    with pytest.raises(ValueError, match="does not exist"):
        expectation(cauchy, torch.square)
    # E x of a Gumbel is its location and 0.577 scales; far out its log density has no gradient
    gumbel = exact_gradient(
        lambda p: dist.Gumbel(p[0], p[1]), torch.tensor([0.3, 1.0]), lambda z: z
    )
    torch.testing.assert_close(gumbel, torch.tensor([1.0, 0.5772156649015329]))
    # of a Weibull's mean, l Gamma(1 + 1/k): near zero its log density is made of squares of x^k
    scale, k = torch.tensor([2.0, 3.0])
    weibull = exact_gradient(
        lambda p: dist.Weibull(p[0], p[1]), torch.tensor([2.0, 3.0]), lambda z: z
    )
    gamma = torch.lgamma(1 + 1 / k).exp()
    slope = -scale * gamma * torch.digamma(1 + 1 / k) / k**2
    torch.testing.assert_close(weibull, torch.stack([gamma, slope]))
    with pytest.raises(ValueError, match="comes out as"):
        exact_gradient(lambda p: dist.Normal(p[0].sqrt(), 1.0), torch.zeros(1), torch.square)
    # finitely many values are summed over: p (1 - p) (f(1) - f(0))
    coin = exact_gradient(
        lambda p: dist.Bernoulli(logits=p[0]), torch.tensor([0.3]), lambda z: z + 5
    )
    p = torch.tensor([0.3]).sigmoid()
    torch.testing.assert_close(coin, p * (1 - p))
    with pytest.raises(ValueError, match="give the exact gradient yourself"):
        exact_gradient(lambda p: dist.Normal(p, 1.0).to_event(1), torch.zeros(2), bounded)


def _of(name):
    family, at = FAMILIES[name]
    return family, torch.tensor(at)


def test_implicit_gradients_reach_where_no_sampler_can_be_differentiated():
    def mixture(p):
        weights = Categorical(logits=torch.stack([p[..., 0], -p[..., 0]], -1))
        means = torch.stack([p[..., 1], p[..., 1] + 3.0], -1)
        return MixtureSameFamily(weights, dist.Normal(means, 1.0))

    report = gradient_report(mixture, torch.tensor([0.3, -1.0]), bounded, repetitions=400)
    assert set(report.refused) == {"reparameterisation"}
    assert not report.biased, str(report)


def test_a_distribution_function_without_a_derivative_is_refused():
    """torch has that of a gamma law in its rate, and none in its shape."""

    def gamma(p):
        return dist.Gamma(p[..., 0].exp(), 1.0)

    with pytest.raises(ValueError, match="Gamma has no cdf that can be differentiated"):
        ESTIMATORS["implicit"](gamma, torch.zeros(1), lambda z: z, 5)

    def of_rate(p):
        return dist.Gamma(2.0, p[..., 0].exp())

    found = ESTIMATORS["implicit"](of_rate, torch.zeros(1), lambda z: z, 5, 2)
    assert (found < 0).all()  # d z / d log rate = -z


def test_implicit_and_explicit_gradients_of_a_location_and_scale_are_the_same():
    """By draw, for the same noise: dz = dmu + (z - mu) d log sigma."""
    for name in ("Normal", "Laplace", "Logistic", "Cauchy"):
        found = ESTIMATORS["implicit"](*_of(name), lambda z: z, 5, 3)
        z_gradient = torch.cat([torch.ones(3, 5, 1), found[..., 1:]], -1)
        torch.testing.assert_close(found, z_gradient)


DIMENSION, DRAWS = 10, 4
# of one draw, at q = N(0, I) and f = |z|^2, by moments of chi-square
CLOSED = {
    "reparameterisation": 4,
    "REINFORCE": (DIMENSION + 2) * (DIMENSION + 4),
    "optimal baseline": 2 * (DIMENSION + 2),
    "leave one out": 2 * DIMENSION + 8 + 2 * DIMENSION / (DRAWS - 1),
    # the average is over batches: its own variance, .1 / 1.9 of a batch mean's, adds 2 d / K of it
    "moving average": 2 * DIMENSION + 8 + 0.1 / 1.9 * 2 * DIMENSION / DRAWS,
}


@pytest.mark.parametrize("name", CLOSED)
def test_variances_are_those_of_the_closed_forms(name):
    repetitions = 20_000
    family, parameters, f = standard_problem(DIMENSION)
    found = measure(ESTIMATORS[name](family, parameters, f, DRAWS, repetitions))
    # The ten components' variances are averaged. One has the relative error sqrt((kurtosis - 1) /
    # n); the kurtosis of f^2 e^2 is below 30 for K = 4, and the components are nearly independent
    error = math.sqrt(30 / repetitions / DIMENSION)
    assert float(found.variance.mean()) == pytest.approx(CLOSED[name], rel=4.3 * error)


def test_a_baseline_takes_one_power_of_the_dimension_away_and_a_path_both():
    grown = variance_against_dimension((8, 16, 32, 64), draws=8, repetitions=200)
    slopes = grown.exponents
    # The closed forms, of the upper two dimensions: 1.86, .93 with the optimal baseline, .88 with
    # the others, 0. A variance from 200 estimates with kurtosis 3 + 27 / 8 in d components has a
    # relative error of sqrt(5.4 / 200 / d): .029 and .021, together .036, over ln 2 .05
    assert slopes["REINFORCE"] == pytest.approx(1.86, abs=4.3 * 0.05)
    for name in ("leave one out", "moving average", "optimal baseline"):
        assert slopes[name] == pytest.approx(0.90, abs=4.3 * 0.05)
    assert slopes["reparameterisation"] == pytest.approx(0.0, abs=4.3 * 0.05)
    assert "grows as d^" in str(grown)
    assert json.loads(json.dumps(grown.as_dict()))["dimensions"] == [8, 16, 32, 64]


def test_leave_one_out_of_two_draws_is_half_their_difference():
    family, parameters, f = standard_problem(3)
    torch.manual_seed(1)
    found = leave_one_out(family, parameters, f, 2).mean(1)[0]
    torch.manual_seed(1)
    z = family(parameters.expand(1, 2, 3)).sample()[0]
    expected = 0.5 * (f(z[0]) - f(z[1])) * (z[0] - z[1])
    torch.testing.assert_close(found, expected)


def test_a_baseline_knows_nothing_of_the_draws_that_it_is_taken_from():
    """One that does is off by the share of a draw in it: a tenth of the gradient, or all."""
    family, parameters = (lambda p: dist.Normal(p[..., 0], 1.0)), torch.zeros(1)
    average = ESTIMATORS["moving average"](family, parameters, lambda z: z, 1, 20_000)
    found = measure(average)  # the gradient is 1
    assert float((found.mean - 1).abs()) < 4.3 * float(found.error) < 0.06
    single = ESTIMATORS["optimal baseline"](family, parameters, lambda z: z, 1, 1)
    assert float(single.abs()) > 1e-6  # f less itself would be 0


def test_the_report_is_written_and_read(tmp_path):
    report = gradient_report(*_of("Normal"), bounded, names=["loc", "log scale"], repetitions=50)
    found = json.loads(report.save(tmp_path / "gradients.json").read_text())
    assert {row["component"] for row in found["rows"]} == {"loc", "log scale"}
    assert len(found["rows"]) == 2 * len(ESTIMATORS)
    assert found["support_moves"] is False


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, p: reparameterisation(f, p[None], bounded, 4), "one flat vector"),
        (lambda f, p: reparameterisation(f, p, bounded, 0), "draws must be at least 1"),
        (lambda f, p: leave_one_out(f, p, bounded, 1), "use >= 2"),
        (lambda f, p: reinforce(f, p, lambda z: z.sum(), 4), "one value for each of the draws"),
        (lambda f, p: reparameterisation(f, p, lambda z: z.detach(), 4), "f has no gradient"),
        (
            lambda f, p: reinforce(lambda q: dist.Normal(q, 1.0), p, bounded, 4),
            "log_prob of the family",
        ),
        (
            lambda f, p: reparameterisation(lambda q: dist.Poisson(q[..., 1].exp()), p, bounded, 4),
            "Poisson has no rsample",
        ),
        (lambda f, p: gradient_report(f, p, bounded, repetitions=1), "at least 2"),
        (lambda f, p: gradient_report(f, p, bounded, exact=torch.zeros(3)), "as many as"),
        (lambda f, p: variance_against_dimension((4, 2)), "ascending"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(*_of("Normal"))
