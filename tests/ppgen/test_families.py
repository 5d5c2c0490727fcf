"""The reparameterisable families of scalars, against quadrature and their own draws."""

import math
from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.gof import auto_goodness_of_fit
from scipy.integrate import quad
from torch.distributions import kl_divergence

import ppgen
from ppgen import Program
from ppgen.distributions import Rayleigh
from ppgen.inference import HMC, VI, Laplace

FAILURE_RATE = 2e-5  # as in tests/conftest.py
Z = 4.3  # two-sided normal quantile of FAILURE_RATE: 4.26

# name -> two members of the family, and the points at which quadrature breaks the line
FAMILIES = {
    "Normal": (dist.Normal(0.3, 1.2), dist.Normal(-0.5, 2.0), [0.3]),
    "Laplace": (dist.Laplace(0.3, 1.2), dist.Laplace(-0.5, 2.0), [-0.5, 0.3]),
    "StudentT": (dist.StudentT(5.0, 0.3, 1.2), dist.StudentT(3.0, -0.5, 2.0), [0.3]),
    "Logistic": (dist.Logistic(0.3, 1.2), dist.Logistic(-0.5, 2.0), [0.3]),
    "Cauchy": (dist.Cauchy(0.3, 1.2), dist.Cauchy(-0.5, 2.0), [0.3]),
    "Rayleigh": (Rayleigh(1.2), Rayleigh(2.0), [1.2]),
    "Pareto": (dist.Pareto(1.5, 3.0), dist.Pareto(1.2, 2.0), [2.0]),
}
NO_KL = {"StudentT", "Logistic"}  # no closed form: Monte Carlo, as TraceMeanField_ELBO does


def integral(law, g, breaks):
    """Of g times the density, by adaptive quadrature on the support, broken at `breaks`."""

    def integrand(x):
        value = torch.tensor(x, dtype=torch.float64)
        density = float(law.log_prob(value).exp())
        return float(g(value)) * density if density > 0 else 0.0

    lower = getattr(law.support, "lower_bound", -math.inf)
    ends = [float(lower), *breaks, math.inf]
    return sum(quad(integrand, a, b, epsabs=1e-11, limit=200)[0] for a, b in pairwise(ends))


@pytest.fixture(autouse=True)
def _double():
    """The members above are made before the fixture that sets float64."""
    for name, (p, q, breaks) in FAMILIES.items():
        FAMILIES[name] = (_double_of(p), _double_of(q), breaks)


def _double_of(law):
    return type(law)(**{name: getattr(law, name).double() for name in law.arg_constraints})


@pytest.mark.parametrize("name", FAMILIES)
def test_density_integrates_to_one_and_gives_mean_variance_and_entropy(name):
    law, _, breaks = FAMILIES[name]
    assert integral(law, torch.ones_like, breaks) == pytest.approx(1, abs=1e-8)
    if name != "Cauchy":
        mean = integral(law, lambda x: x, breaks)
        assert float(law.mean) == pytest.approx(mean, abs=1e-7)
        square = integral(law, lambda x: (x - mean) ** 2, breaks)
        assert float(law.variance) == pytest.approx(square, rel=1e-6)
    entropy = integral(law, lambda x: -law.log_prob(x), breaks)
    assert float(law.entropy()) == pytest.approx(entropy, abs=1e-7)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "StudentT"])
def test_distribution_function_and_quantiles_belong_to_the_density(name):
    law, _, _ = FAMILIES[name]
    u = torch.linspace(0.01, 0.99, 24)  # not 0.5, where Laplace has its kink
    x = law.icdf(u).requires_grad_()
    below = law.cdf(x)
    torch.testing.assert_close(below, u, rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(below.sum(), x)
    torch.testing.assert_close(slope, law.log_prob(x).exp().detach())


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_follow_the_density(name):
    law, _, _ = FAMILIES[name]
    draws = law.sample((10_000,))
    assert auto_goodness_of_fit(draws, law.log_prob(draws).exp()) > FAILURE_RATE


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in NO_KL])
def test_closed_divergences_agree_with_quadrature(name):
    p, q, breaks = FAMILIES[name]
    expected = integral(p, lambda x: p.log_prob(x) - q.log_prob(x), breaks)
    assert float(kl_divergence(p, q)) == pytest.approx(expected, abs=1e-6)
    assert float(kl_divergence(p, p)) == pytest.approx(0, abs=1e-12)


def test_rayleigh_is_weibull_of_shape_two():
    x = torch.linspace(0.1, 9, 30)
    scale = torch.tensor([0.5, 2.0]).reshape(2, 1)
    weibull = dist.Weibull(scale * 2**0.5, torch.tensor(2.0))
    rayleigh = Rayleigh(scale)
    torch.testing.assert_close(rayleigh.log_prob(x), weibull.log_prob(x))
    torch.testing.assert_close(rayleigh.entropy(), weibull.entropy())
    torch.testing.assert_close(rayleigh.mode, weibull.mode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rayleigh_keeps_shapes_dtype_and_support(dtype):
    law = Rayleigh(torch.tensor([0.5, 2.0], dtype=dtype)).expand([3, 2])
    draws = law.rsample((4,))
    assert draws.shape == (4, 3, 2)
    assert draws.dtype == dtype
    assert law.log_prob(draws).shape == (4, 3, 2)
    assert law.to_event(1).log_prob(draws).shape == (4, 3)
    many = Rayleigh(torch.ones((), dtype=dtype)).sample((1_000_000,))
    assert bool(torch.isfinite(Rayleigh(many.new_ones(())).log_prob(many)).all())
    with pytest.raises(ValueError, match="scale"):
        Rayleigh(torch.tensor(-1.0), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        Rayleigh(torch.tensor(1.0), validate_args=True).log_prob(torch.tensor(-1.0))


def story(y):
    """A Rayleigh prior that the data leave alone: its posterior is known."""
    x = pyro.sample("x", Rayleigh(torch.tensor(2.0)))
    pyro.sample("y", dist.Normal(0.0 * x, 1.0), obs=y)


@pytest.mark.slow
def test_rayleigh_is_recorded_as_latent_and_as_likelihood():
    def both(y):
        scale = pyro.sample("scale", Rayleigh(torch.tensor(2.0)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", Rayleigh(scale), obs=y)

    y = torch.tensor([1.0, 2.0, 0.7])
    program = Program(both, y)
    z = torch.tensor([[-0.4], [0.1], [0.8]])
    value, gradient = program.value_and_grad(z)
    assert program.fallback is None

    def expected(z):
        scale = z.exp()
        return Rayleigh(2.0).log_prob(scale) + Rayleigh(scale).log_prob(y).sum() + z

    for i, point in enumerate(z[:, 0]):
        torch.testing.assert_close(value[i], expected(point))
        slope = torch.func.grad(expected)(point)
        torch.testing.assert_close(gradient[i, 0], slope)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    "engine",
    [pytest.param(HMC(chains=16, draws=250), id="HMC", marks=pytest.mark.slow), Laplace()],
)
def test_rayleigh_under_hmc_and_guides(engine):
    posterior = ppgen.fit(story, torch.tensor(0.3), using=engine)
    if isinstance(engine, HMC):
        assert posterior.converged, posterior.messages
        # sd over the root of an effective size of at least 400
        error = math.sqrt(float(Rayleigh(2.0).variance) / 400)
        assert float(posterior["x"].mean()) == pytest.approx(
            float(Rayleigh(2.0).mean), abs=Z * error
        )
    else:
        # mode of log p(e^z) + z: x = sigma sqrt 2, curvature 4 there, so the median is that
        ratio = float(posterior["x"].median()) / (2 * math.sqrt(2))
        # sd of log x is 1/2, of its median over 4000 draws sqrt(pi / 2 / 4000) as much
        assert abs(math.log(ratio)) < Z * 0.5 * math.sqrt(math.pi / 2 / 4000)


@pytest.mark.usefixtures("silent")
@pytest.mark.slow
def test_rayleigh_under_a_mean_field_guide():
    posterior = ppgen.fit(story, torch.tensor(0.3), using=VI())
    assert posterior.converged, posterior.messages
    # best normal for log x: E[x^2] = 2 sigma^2 under it, sd 1/2 (stationarity of the ELBO)
    x = posterior["x"].numpy()
    assert np.log(x).std() == pytest.approx(0.5, abs=0.03)
    assert np.square(x).mean() == pytest.approx(8.0, rel=0.15)
