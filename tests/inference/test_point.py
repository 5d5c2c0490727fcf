"""MAP and MLE against closed forms, and what they refuse."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference.point import MAP, MLE, parents
from ppgen.program import Program

pytestmark = pytest.mark.usefixtures("silent")

COUNTS = torch.tensor([3.0, 5.0, 2.0, 4.0])
# The estimates end where a Newton step promises 1e-8 nats or less (in practice rounding, 1e-16):
# an error of sqrt(2e-16) standard deviations.
CLOSE = 1e-6


def log_normal():
    pyro.sample("x", dist.LogNormal(0.0, 1.0))


def poisson(k):
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("data", len(k)):
        pyro.sample("k", dist.Poisson(rate), obs=k)


def line(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(intercept + slope * x, sigma), obs=y)


def centred(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 10.0), obs=y)


def non_centred(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, 10.0), obs=y)


SCHOOLS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


@pytest.mark.parametrize(("scale", "mode"), [("constrained", math.exp(-1)), ("unconstrained", 1.0)])
def test_the_mode_depends_on_the_scale(scale, mode):
    posterior = MAP(scale=scale).run(log_normal)
    assert posterior["x"].item() == pytest.approx(mode, abs=CLOSE)
    assert posterior.kind == "point"
    assert posterior["x"].shape == (1, 1)
    assert scale in posterior.messages[0] or "own scale" in posterior.messages[0]


@pytest.mark.parametrize(("scale", "less"), [("constrained", 1.0), ("unconstrained", 0.0)])
def test_map_of_gamma_poisson(scale, less):
    posterior = MAP(scale=scale).run(poisson, COUNTS)
    # the posterior is Gamma(2 + sum k, 0.5 + n)
    assert posterior["rate"].item() == pytest.approx((2 + 14 - less) / 4.5, abs=CLOSE)
    assert posterior.converged


def test_mle_forgets_the_prior():
    assert MLE().run(poisson, COUNTS)["rate"].item() == pytest.approx(14 / 4, abs=CLOSE)


def test_mle_of_a_regression_is_least_squares():
    x = 1e3 + torch.randn(40)  # nearly collinear with the intercept
    y = 3 - 2 * x + 0.3 * torch.randn(40)
    posterior = MLE().run(line, x, y)
    design = torch.stack([torch.ones_like(x), x], 1)
    intercept, slope = torch.linalg.lstsq(design, y).solution
    sigma = (y - design @ torch.stack([intercept, slope])).square().mean().sqrt()
    # least squares on this design loses about 6 digits itself
    assert posterior["slope"].item() == pytest.approx(slope.item(), abs=1e-6)
    assert posterior["intercept"].item() == pytest.approx(intercept.item(), abs=1e-3)
    assert posterior["sigma"].item() == pytest.approx(sigma.item(), abs=1e-6)
    assert posterior.converged


def test_map_finds_the_higher_of_two_modes():
    def story(y):
        x = pyro.sample("x", dist.Normal(0.0, 2.0))
        pyro.sample("y", dist.Normal(x * x, 0.5), obs=y)
        pyro.factor("tilt", x)

    x = MAP().run(story, torch.tensor(2.0))["x"].item()
    # stationary: -x/4 - (x^2 - 2) 2x / 0.25 + 1 = 0, the root near +sqrt(2)
    assert x > 1
    assert -x / 4 - (x * x - 2) * 8 * x + 1 == pytest.approx(0, abs=1e-6)


def test_mle_refuses_sites_that_the_likelihood_does_not_touch():
    with pytest.raises(ValueError, match="does not change at all as mu and tau") as error:
        MLE().run(centred, SCHOOLS)
    assert "ties mu to tau, theta" in str(error.value)


def test_mle_refuses_a_ridge_and_names_its_sites():
    with pytest.raises(ValueError, match=r"mu.*eta"):
        MLE().run(non_centred, SCHOOLS)


def test_mle_refuses_a_likelihood_without_maximum():
    def story(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)

    x = torch.randn(20)
    with pytest.raises(ValueError, match="as slope moves"):
        MLE().run(story, x, (x > 0).double())  # separable


def test_mle_refuses_a_story_without_data():
    with pytest.raises(ValueError, match="observes nothing"):
        MLE().run(log_normal)


def test_map_says_that_a_funnel_has_no_mode():
    posterior = MAP().run(centred, SCHOOLS)
    assert not posterior.converged
    assert "tau" in posterior.headline()
    assert "no mode" in posterior.headline()


def test_map_says_that_a_scale_went_to_zero():
    posterior = MAP().run(non_centred, torch.full((8,), 5.0))  # schools that do not differ
    assert posterior["tau"].item() < 1e-6
    assert "edge of the support of tau" in posterior.headline()


def test_ties_of_a_hierarchy_are_found():
    assert parents(Program(centred, SCHOOLS)) == {
        "mu": ["tau", "theta"],
        "tau": ["mu", "theta"],
        "theta": ["mu", "tau"],
    }
    assert parents(Program(non_centred, SCHOOLS)) == {"mu": [], "tau": [], "eta": []}


def test_a_program_serves_as_the_model():
    program = Program(poisson, COUNTS)
    assert MLE().run(program)["rate"].item() == pytest.approx(3.5, abs=CLOSE)
    with pytest.raises(ValueError, match="holds its data already"):
        MLE().run(program, COUNTS)


def test_options_are_checked():
    with pytest.raises(ValueError, match="starts"):
        MAP(starts=0)
    with pytest.raises(ValueError, match="scale"):
        MAP(scale="log")
