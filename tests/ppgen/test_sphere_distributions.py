"""Laws on spheres against quadrature, closed forms and conjugacy, in every dimension."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints as pyro_constraints
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy import special, stats
from torch.distributions import biject_to, kl_divergence

from ppgen.distributions import SphereUniform, VonMisesFisher
from ppgen.distributions.bessel import bessel_ratio, log_bessel_i, log_mean_exp
from ppgen.distributions.sphere import _height_slope, log_area
from ppgen.inference.hmc_engine import HMC
from ppgen.program import Program
from ppgen.transforms.stereographic import Stereographic, sphere

FAILURE_RATE = 2e-5
Z = 4.27  # two-sided normal quantile of it
DIMS = (1, 2, 3, 5, 10, 40)
KAPPAS = (0.01, 0.7, 5.0, 60.0)


def direction(*shape):
    x = torch.randn(shape)
    return x / x.norm(dim=-1, keepdim=True)


NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


def heights(dim, kappa):
    """Nodes in the angle from the mean direction, and the probability that each stands for."""
    nodes, weights, count = NODES, WEIGHTS, len(NODES)
    theta = (torch.tensor(nodes) + 1) * math.pi / 2
    log_ring = log_area(dim - 1) if dim > 1 else math.log(2)  # S^0 is two points
    mu = torch.eye(dim + 1)[0]
    x = torch.zeros(count, dim + 1)
    x[:, 0], x[:, 1] = theta.cos(), theta.sin()
    law = VonMisesFisher(mu, torch.tensor(kappa))
    log_mass = law.log_prob(x) + log_ring + (dim - 1) * theta.sin().log()
    return theta, log_mass.exp() * torch.tensor(weights) * math.pi / 2, law, x


def angles(dim, k, count=20_001):
    """Angles from the mean direction, their density and distribution function, by trapezoids.

    The error is the square of the step, 1.6e-4, over that of the density's width, .1 at least.
    """
    theta = torch.linspace(0, math.pi, count)
    f = (k * (theta.cos() - 1)).exp() * theta.sin().clamp(min=0) ** (dim - 1)
    cumulative = torch.cumsum(f, 0) - f / 2 - f[0] / 2
    total = cumulative[-1]
    return theta, f / total / theta[1], cumulative / total


# --- Bessel functions


@pytest.mark.parametrize("order", [0, 0.5, 1, 3.3, 10, 29.5, 30, 100, 499.5])
def test_log_bessel_and_its_gradient_are_scipys(order):
    x = torch.tensor([1e-3, 0.1, 1, 5, 20, 29.99, 30.01, 31, 100, 700, 1e4, 1e6])
    x.requires_grad_()
    ours = log_bessel_i(order, x)
    (slope,) = torch.autograd.grad(ours.sum(), x)
    scaled = special.ive(order, x.detach().numpy())
    known = scaled > 1e-280  # scipy's underflows, ours does not
    expected = np.log(scaled[known]) + x.detach().numpy()[known]
    # 1e-13 is scipy's own error; the rest is rounding of the large terms of a logarithm
    np.testing.assert_allclose(ours.detach().numpy()[known], expected, rtol=1e-13, atol=4e-12)
    ratio = special.ive(order + 1, x.detach().numpy())[known] / scaled[known]
    expected_slope = ratio + order / x.detach().numpy()[known]
    np.testing.assert_allclose(slope.numpy()[known], expected_slope, rtol=1e-11)
    np.testing.assert_allclose(bessel_ratio(order, x).detach().numpy()[known], ratio, rtol=2e-11)


def test_scaled_bessel_is_finite_with_its_gradient_from_zero_to_the_largest_numbers():
    for dtype, largest in ((torch.float32, 1e30), (torch.float64, 1e150)):
        x = torch.tensor([0.0, 1e-30, 1.0, largest], dtype=dtype, requires_grad=True)
        for order in (0, 0.5, 200):
            value = log_mean_exp(order, x)
            (slope,) = torch.autograd.grad(value.sum(), x)
            assert value.dtype == dtype
            assert value.isfinite().all()
            assert slope.isfinite().all()
            assert abs(value[0].item()) < 1e-12
    with pytest.raises(ValueError, match="at least 0"):
        log_mean_exp(-0.5, x)


# --- densities


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kappa", [0.0, *KAPPAS])
def test_density_mean_entropy_and_divergence_by_quadrature(dim, kappa):
    theta, mass, law, x = heights(dim, kappa)
    # 200 nodes integrate functions as smooth as these to rounding
    assert mass.sum().item() == pytest.approx(1, abs=1e-11)
    assert (mass * theta.cos()).sum().item() == pytest.approx(law.mean_length.item(), abs=1e-11)
    entropy = -(mass * law.log_prob(x)).sum().item()
    assert law.entropy().item() == pytest.approx(entropy, abs=1e-10)
    uniform = SphereUniform(dim, (2,))
    assert torch.allclose(uniform.entropy(), -uniform.log_prob(x[0]))
    assert torch.equal(uniform.mean, torch.zeros(2, dim + 1))
    divergence = kl_divergence(law, SphereUniform(dim)).item()
    assert divergence == pytest.approx(log_area(dim) - entropy, abs=1e-10)
    if kappa == 0:
        assert torch.allclose(law.log_prob(x), SphereUniform(dim).log_prob(x), atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("kappa", [0.0, 5.0])
def test_the_divergence_of_two_laws_is_the_mean_of_their_log_ratio(dim, kappa):
    """On the circle by the midpoint rule, exact for functions of whole turns; else by draws."""
    p = VonMisesFisher(direction(dim + 1), 3.0)
    q = VonMisesFisher(direction(dim + 1), kappa)
    divergence = kl_divergence(p, q).item()
    if dim == 1:
        angle = 2 * math.pi * (torch.arange(400) + 0.5) / 400
        x = torch.stack([angle.cos(), angle.sin()], -1)
        log_p = p.log_prob(x)
        mean = (log_p.exp() * (log_p - q.log_prob(x))).mean() * 2 * math.pi
        assert divergence == pytest.approx(mean.item(), abs=1e-10)
    else:
        ratio = (lambda x: p.log_prob(x) - q.log_prob(x))(p.sample(torch.Size([20_000])))
        assert abs(ratio.mean() - divergence) < Z * ratio.std() / 20_000**0.5


def test_areas_and_the_target_of_rezende():
    assert math.exp(log_area(1)) == pytest.approx(2 * math.pi)
    assert math.exp(log_area(2)) == pytest.approx(4 * math.pi)
    # the reference sheet's log Z of exp(10 x.mu) on S^1 to S^4
    for dim, expected in ((1, 9.78085), (2, 9.53529), (3, 9.26337), (4, 8.96522)):
        mu = torch.eye(dim + 1)[0]
        log_z = 10 - VonMisesFisher(mu, 10.0).log_prob(mu).item()
        assert log_z == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_high_concentration_is_the_normal_law_of_the_tangents(dim):
    mu, kappa = direction(dim + 1), 1e10
    peak = VonMisesFisher(mu, kappa).log_prob(mu)
    # the next term is of order dim^2 / kappa
    assert peak.item() == pytest.approx(dim / 2 * math.log(kappa / (2 * math.pi)), abs=1e-7)


# --- draws and their gradients


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kappa", [0.0, 0.7, 60.0])
def test_draws_follow_the_density(dim, kappa):
    mu, count = direction(dim + 1), 4000
    law = VonMisesFisher(mu, kappa)
    x = law.sample(torch.Size([count]))
    assert sphere.check(x).all()
    theta, _, below = angles(dim, torch.tensor(kappa))
    w = x @ mu
    share = np.interp(w.clamp(-1, 1).acos().numpy(), theta.numpy(), below.numpy())
    assert stats.kstest(share, "uniform").pvalue > FAILURE_RATE
    aside = x - w[:, None] * mu
    c = direction(dim + 1)
    c = c - (c @ mu) * mu
    error = (aside @ c).std() / count**0.5
    assert (aside @ c).mean().abs() < Z * error


def test_uniform_draws_are_uniform():
    x = SphereUniform(2).sample(torch.Size([4000]))
    for axis in range(3):  # Archimedes: each coordinate is uniform
        assert stats.kstest((x[:, axis] + 1) / 2, "uniform").pvalue > FAILURE_RATE
    assert SphereUniform(2).expand([5]).sample().shape == (5, 3)
    assert SphereUniform(2, dtype=torch.float32).sample().dtype == torch.float32


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kappa", KAPPAS)
def test_the_path_of_each_quantile_is_that_of_the_distribution_function(dim, kappa):
    """-dF/dkappa / f, with F summed over a fine grid of angles and differentiated exactly."""
    k = torch.tensor(kappa, requires_grad=True)
    theta, f, cumulative = angles(dim, k)
    below = cumulative.detach()
    for i in torch.searchsorted(below, torch.tensor([0.01, 0.3, 0.6, 0.99])).tolist():
        (change,) = torch.autograd.grad(cumulative[i], k, retain_graph=True)
        # F counts angles: a larger share below means a smaller angle, a larger height
        expected = change / f[i].detach() * theta[i].sin()
        gap = 1 - theta[i].cos()
        ours = _height_slope(k.detach().reshape(1), gap.reshape(1), dim)
        assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dim", DIMS)
def test_gradients_of_expectations_are_right_in_every_dimension(dim):
    raw, c = torch.randn(dim + 1, requires_grad=True), direction(dim + 1)
    kappa = torch.tensor(3.0, requires_grad=True)
    mu, count = raw / raw.norm(), 20_000
    each = kappa.expand(count) * 1  # a gradient for each draw tells its error
    x = VonMisesFisher(mu, each).rsample()
    height = x @ mu
    (slopes,) = torch.autograd.grad((height**2).sum(), each, retain_graph=True)
    # E height^2 = 1 - n A / kappa
    exact = 1 - dim * bessel_ratio((dim - 1) / 2, kappa) / kappa
    (expected,) = torch.autograd.grad(exact, kappa)
    assert (slopes.mean() - expected).abs() < Z * slopes.std() / count**0.5
    (turn,) = torch.autograd.grad((x @ c).mean(), raw)
    length = bessel_ratio((dim - 1) / 2, kappa.detach())
    (expected_turn,) = torch.autograd.grad(length * (c @ (raw / raw.norm())), raw)
    # each draw's gradient is at most 2 / |raw| long
    assert ((turn - expected_turn).abs() < Z * 2 / raw.norm() / count**0.5).all()


def test_a_mixture_has_densities_and_no_pathwise_gradient():
    mu, kappa = direction(3, 3), torch.tensor([1.0, 5.0, 20.0])
    weights = torch.tensor([0.2, 0.3, 0.5])
    parts = VonMisesFisher(mu, kappa)
    mixture = dist.MixtureSameFamily(dist.Categorical(weights), parts)
    x = mixture.sample(torch.Size([7]))
    expected = torch.logsumexp(weights.log() + parts.log_prob(x[:, None]), -1)
    assert torch.allclose(mixture.log_prob(x), expected)
    assert not mixture.has_rsample


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtypes_and_large_concentrations(dtype):
    kappa = torch.tensor([[0.0], [1.0], [1e6]], dtype=dtype, requires_grad=True)
    law = VonMisesFisher(direction(4, 3).to(dtype), kappa)
    x = law.rsample(torch.Size([5]))
    assert law.batch_shape == (3, 4)
    assert x.shape == (5, 3, 4, 3)
    assert x.dtype == law.log_prob(x).dtype == dtype
    (slope,) = torch.autograd.grad((x[..., 0] + law.log_prob(x)).sum(), kappa)
    assert slope.isfinite().all()
    assert law.expand([2, 3, 4]).sample().shape == (2, 3, 4, 3)
    assert law.mean.shape == (3, 4, 3)


def test_what_is_no_direction_is_refused():
    with pytest.raises(ValueError, match="mean_direction"):
        VonMisesFisher(torch.tensor([1.0, 1.0]), 1.0)
    with pytest.raises(ValueError, match="at least 2 coordinates"):
        VonMisesFisher(torch.ones(1), 1.0)
    with pytest.raises(ValueError, match="dim="):
        SphereUniform(0)
    with pytest.raises(ValueError, match="support"):
        SphereUniform(2).log_prob(torch.ones(3))
    with pytest.raises(ValueError, match="no divergence"):
        kl_divergence(VonMisesFisher(direction(3), 1.0), SphereUniform(3))


# --- the chart


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
def test_the_chart_has_the_log_det_of_the_surface(dim):
    chart = Stereographic()
    u = torch.cat([2 * torch.randn(10, dim), torch.zeros(1, dim), 1e4 * torch.randn(1, dim)])
    x = chart(u)
    assert torch.allclose(x.norm(dim=-1), torch.ones(12), atol=1e-15)
    assert torch.allclose(chart.inv(x), u, rtol=1e-10, atol=1e-14)
    for i in range(len(u)):
        J = torch.autograd.functional.jacobian(chart, u[i])
        expected = 0.5 * torch.linalg.slogdet(J.T @ J).logabsdet
        assert chart.log_abs_det_jacobian(u[i], x[i]).item() == pytest.approx(
            expected.item(), rel=1e-9
        )


def test_the_uniform_law_is_a_multivariate_t_on_the_chart():
    chart, u = Stereographic(), torch.randn(20, 3)
    ours = SphereUniform(3).log_prob(chart(u)) + chart.log_abs_det_jacobian(u, chart(u))
    t = dist.MultivariateStudentT(3.0, torch.zeros(3), torch.eye(3) / 3**0.5)
    assert torch.allclose(ours, t.log_prob(u), atol=1e-12)


def test_the_registry_knows_our_constraint_and_pyros_stays_as_it_was():
    assert isinstance(biject_to(SphereUniform(2).support), Stereographic)
    with pytest.raises(NotImplementedError):
        biject_to(pyro_constraints.sphere)


def test_far_and_polar_points_are_finite_in_single_precision():
    chart = Stereographic()
    u = torch.tensor([[1e4, -1e4], [1e20, 1e20], [0.0, 0.0]], dtype=torch.float32)
    assert sphere.check(chart(u)).all()
    assert chart.log_abs_det_jacobian(u, chart(u))[::2].isfinite().all()
    poles = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], dtype=torch.float32)
    assert chart.inv(poles).isfinite().all()


# --- in stories


def directions(x, prior, kappa):
    mu = pyro.sample("mu", prior)
    with pyro.plate("data", len(x)):
        pyro.sample("x", VonMisesFisher(mu, kappa), obs=x)


def conjugate(dim):
    """Data, prior, kappa, and the posterior of the mean direction, which is von Mises-Fisher."""
    prior = VonMisesFisher(-torch.eye(dim + 1)[0], torch.tensor(2.0))
    kappa = torch.tensor(3.0)
    x = VonMisesFisher(-torch.eye(dim + 1)[1], kappa).sample(torch.Size([8]))
    sum_ = prior.concentration * prior.mean_direction + kappa * x.sum(0)
    return x, prior, kappa, VonMisesFisher(sum_ / sum_.norm(), sum_.norm())


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_program_is_the_joint_density_on_the_chart(dim):
    x, prior, kappa, _ = conjugate(dim)
    program = Program(directions, x, prior, kappa)
    assert program.dim == dim
    u = torch.randn(4, dim)
    mu = program.constrain(u)["mu"]
    expected = prior.log_prob(mu) + Stereographic().log_abs_det_jacobian(u, mu)
    expected = expected + VonMisesFisher(mu[:, None], kappa).log_prob(x).sum(-1)
    assert torch.allclose(program.log_density(u), expected, atol=1e-10)
    assert torch.allclose(program.unconstrain({"mu": mu}), u, atol=1e-12)
    assert program.fallback is None


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_hmc_finds_the_conjugate_posterior_of_a_mean_direction(dim, silent):
    x, prior, kappa, exact = conjugate(dim)
    posterior = HMC(chains=32, draws=250).run(directions, x, prior, kappa)
    draws = posterior["mu"]
    assert sphere.check(draws).all()
    # along and across the exact direction, first and second moments
    c = direction(dim + 1)
    h = draws @ exact.mean_direction
    A = exact.mean_length
    for statistic, expected in (
        (h, A),
        (h**2, 1 - dim * A / exact.concentration),
        (draws @ c, A * (c @ exact.mean_direction)),
    ):
        chains = statistic.mean(1)  # 32 independent chains tell the error
        error = chains.std() / 32**0.5
        # Student's t with 31 degrees of freedom exceeds 5.0 with probability 2e-5
        assert (chains.mean() - expected).abs() < 5.0 * error


@pytest.mark.slow
def test_pyros_nuts_runs_on_the_chart(silent):
    x, prior, kappa, _ = conjugate(2)
    mcmc = MCMC(NUTS(directions), num_samples=10, warmup_steps=10, disable_progbar=True)
    mcmc.run(x, prior, kappa)
    assert sphere.check(mcmc.get_samples()["mu"]).all()


@pytest.mark.parametrize("guide", [AutoNormal, AutoMultivariateNormal])
def test_autoguides_and_predictive_run_on_the_chart(guide):
    x, prior, kappa, exact = conjugate(2)
    guide = guide(directions)
    svi = SVI(directions, guide, pyro.optim.Adam({"lr": 0.2}), Trace_ELBO())
    for _ in range(30):
        svi.step(x, prior, kappa)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = Predictive(directions, guide=guide, num_samples=20)(x, prior, kappa)
    assert sphere.check(drawn["mu"]).all()
    # the exact law's mean angle is about 15 degrees: a fit is somewhere there
    assert (drawn["mu"] @ exact.mean_direction).mean() > 0.8


def test_the_pathwise_gradient_leads_to_the_conjugate_posterior():
    """Without the score term its gradient has no noise there, so that the fit stops."""
    x, prior, kappa, exact = conjugate(2)
    raw, log_k = torch.tensor([0.3, -0.5, 0.8]), torch.tensor(1.0)
    optimizer = torch.optim.Adam([raw.requires_grad_(), log_k.requires_grad_()], 0.1)
    for _ in range(120):
        q = VonMisesFisher(raw / raw.norm(), log_k.exp())
        mu = q.rsample(torch.Size([16]))
        joint = prior.log_prob(mu) + VonMisesFisher(mu[:, None], kappa).log_prob(x).sum(-1)
        optimizer.zero_grad()
        held = VonMisesFisher(q.mean_direction.detach(), q.concentration.detach())
        (held.log_prob(mu) - joint).mean().backward()
        optimizer.step()
    assert ((raw / raw.norm()) @ exact.mean_direction).item() > 1 - 1e-4
    assert log_k.exp().item() == pytest.approx(exact.concentration.item(), rel=0.02)
