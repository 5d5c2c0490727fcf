"""Laplace: exact where the posterior is normal, and an error where there is no mode."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference.independent import Clock
from ppgen.inference.laplace import Laplace
from ppgen.inference.mode import Batched, hessian
from ppgen.inference.psis import repair
from ppgen.inference.verdict import marginals
from ppgen.posterior import Cost
from ppgen.program import Program

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5  # as in tests/conftest.py
Z = 4.3  # two-sided normal quantile of FAILURE_RATE: 4.26


def regression(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


def regression_data():
    x = torch.randn(30, 3) * torch.tensor([1.0, 0.01, 50.0])  # badly scaled on purpose
    x[:, 1] += 0.02 * x[:, 0]
    return x, x @ torch.tensor([1.0, -20.0, 0.03]) + 0.5 * torch.randn(30)


def evidence(x, y):
    covariance = 100.0 * x @ x.T + 0.25 * torch.eye(len(x))
    return dist.MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(y)


def test_the_phases_of_a_run_are_told_apart():
    program = Program(regression, *regression_data())
    now = 0.0
    program.now, program.seconds_recording = lambda: now, 0.5
    clock = Clock(program)
    now, program.seconds_recording = 5.0, 2.5
    clock.fitted(compiling=1.0)
    now, program.seconds_recording = 9.0, 3.5
    expected = Cost(recording=3.0, compiling=1.0, adapting=2.0, sampling=3.0, gradients=7)
    assert clock.cost(7) == expected


def test_is_exact_on_a_conjugate_regression():
    x, y = regression_data()
    posterior = Laplace(draws=500).run(regression, x, y)
    # q = p: every importance weight is the evidence
    weights = posterior.log_density - posterior.log_guide
    assert torch.allclose(weights, evidence(x, y).expand_as(weights), rtol=0, atol=1e-6)
    assert posterior.converged
    assert posterior.kind == "independent"


def test_draws_have_the_moments_of_the_conjugate_posterior():
    x, y = regression_data()
    beta = Laplace(draws=4000).run(regression, x, y)["beta"][0]
    covariance = torch.linalg.inv(x.T @ x / 0.25 + torch.eye(3) / 100)
    mean = covariance @ x.T @ y / 0.25
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), (beta - mean).T, upper=False
    )
    # means of 4000 standard normals, and their second moments (variance 2, off-diagonal 1)
    assert white.mean(1).abs().max() < Z / math.sqrt(4000)
    moments = white @ white.T / 4000 - torch.eye(3)
    assert moments.abs().max() < Z * math.sqrt(2 / 4000)


def test_a_log_normal_site_is_normal_on_its_log_scale():
    def story():
        pyro.sample("x", dist.LogNormal(1.0, 0.3))

    posterior = Laplace(draws=100).run(story)
    weights = posterior.log_density - posterior.log_guide
    assert torch.allclose(weights, torch.zeros_like(weights), atol=1e-6)  # a prior: log Z = 0


def test_hessian_agrees_with_autograd():
    def story(k):
        a = pyro.sample("a", dist.Gamma(2.0, 3.0))
        b = pyro.sample("b", dist.Normal(0.0, a))
        pyro.sample("k", dist.Poisson(torch.exp(b)), obs=k)

    program = Program(story, torch.tensor(3.0))
    z = torch.tensor([0.3, -0.7])

    def density(point):
        u, b = point  # the same by hand, up to constants; a = exp(u) with its Jacobian
        prior = 2 * u - 3 * u.exp() - u - 0.5 * (b / u.exp()) ** 2
        return prior + 3 * b - b.exp()

    exact = torch.func.hessian(density)(z)
    # fourth-order differences: truncation (eps^0.2)^4 and rounding eps^0.8 are about 3e-13
    assert torch.allclose(hessian(Batched(program, 8), z), exact, atol=1e-9)


def test_names_the_sites_along_a_ridge():
    def story(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0).mask(False))
        b = pyro.sample("b", dist.Normal(0.0, 1.0).mask(False))
        pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    with pytest.raises(ValueError, match="direction of a and b") as error:
        Laplace().run(story, torch.tensor(1.0))
    assert " c " not in str(error.value)


def test_refuses_a_funnel_whose_density_has_no_mode():
    def story():
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            pyro.sample("theta", dist.Normal(0.0, tau))

    with pytest.raises(ValueError, match=r"tau.*no mode"):
        Laplace().run(story)


def test_options_are_checked():
    with pytest.raises(ValueError, match="draws"):
        Laplace(draws=0)
    with pytest.raises(ValueError, match="starts"):
        Laplace(starts=1000)
    with pytest.raises(ValueError, match="no continuous latent site"):
        Laplace().run(lambda: pyro.sample("k", dist.Bernoulli(0.5), obs=torch.tensor(1.0)))


@pytest.mark.slow
def test_a_wall_beside_the_highest_point_is_an_error_in_words():
    """The density is highest where it ends: beyond x = 1 the root is no number."""

    def story():
        x = pyro.sample("x", dist.Normal(0.0, 1.0).mask(False))
        pyro.factor("wall", -torch.sqrt(1.0 - x))

    with pytest.raises(ValueError, match=r"no finite curvature .* x = 1:.*right support"):
        Laplace().run(story)


def test_a_covariance_that_is_singular_on_the_way_is_an_error_in_words():
    def story():
        r = pyro.sample("r", dist.Normal(10.0, 1.0))
        pyro.factor("wall", torch.linalg.cholesky(torch.eye(2) * (3.0 - r)).sum())

    with pytest.raises(ValueError, match=r"Laplace: a matrix could not be factorised.*jitter"):
        Laplace().run(story)


def test_weights_that_contradict_a_width_are_reported():
    """Gamma(1/2, 1): log x is skew to the left, and x has sd 0.71, not that of a log-normal."""

    def story():
        pyro.sample("x", dist.Gamma(0.5, 1.0))

    posterior = Laplace().run(story)
    assert "importance weights contradict x" in posterior.messages[-1]
    assert not any("contradict" in said for said in repair(posterior).messages)


def test_the_ones_of_a_correlation_matrix_are_constants():
    """Their rounding, 1e-16, was a width that weights contradict, and a scalar to compare."""

    def story():
        root = pyro.sample("root", dist.LKJCholesky(3, 2.0))
        pyro.deterministic("r", root @ root.mT)

    posterior = Laplace().run(story)
    ones = posterior["r"].diagonal(dim1=-2, dim2=-1)
    assert float(ones.std()) > 0.0
    assert not any("contradict" in said for said in posterior.messages)
    named = {row.name for row in marginals(posterior, posterior)}
    assert {f"r[{i},{i}]" for i in range(3)}.isdisjoint(named)
    assert "r[0,1]" in named


def test_weights_that_are_worth_too_little_to_tell_are_reported():
    """Its mode is at s u = y with a large s, away from the mass: k-hat alone may not object."""

    def story(y):
        s = pyro.sample("s", dist.HalfNormal(0.5))
        with pyro.plate("group", len(y)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(s * u, 1.0), obs=y)

    y = torch.tensor([0.6, -0.7, 1.2, -0.2, -0.5, 0.8, 1.5, -1.4])
    grid = torch.linspace(0.0, 4.0, 4001)
    evidence = dist.Normal(0.0, (1 + grid[:, None] ** 2).sqrt()).log_prob(y).sum(-1)
    weight = (evidence + dist.HalfNormal(0.5).log_prob(grid)).softmax(0)  # u integrated out
    mean = weight @ grid
    sd = (weight @ (grid - mean) ** 2).sqrt()
    posterior = Laplace().run(story, y)
    assert float(posterior["s"].mean() - mean) > 2 * sd
    assert "too few draws to check its means and widths" in posterior.messages[-1]
