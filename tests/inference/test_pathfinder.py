"""Pathfinder: its normals against dense BFGS, and posteriors that are known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference import hmc, hmc_starts, hmc_warmup, lbfgs, pathfinder
from ppgen.inference.pathfinder_engine import Mixture, Pathfinder
from ppgen.models.eight_schools import data, eight_schools_centred

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5  # as in tests/conftest.py
Z = 4.3  # two-sided normal quantile of FAILURE_RATE: 4.26
DIM = 5


class Gaussian:
    """``N(3, covariance)`` times exp(7), with condition number near 1000."""

    log_mass = 7.0

    def __init__(self):
        root = torch.randn(DIM, DIM)
        self.covariance = root @ root.mT + 0.05 * torch.eye(DIM)
        self.law = dist.MultivariateNormal(torch.full((DIM,), 3.0), self.covariance)
        self.precision = torch.linalg.inv(self.covariance)

    def __call__(self, z):
        return self.law.log_prob(z) + self.log_mass, -(z - 3.0) @ self.precision


def antithetic(count, paths, dim):
    noise = torch.randn(count // 2, paths, dim)
    return torch.cat([noise, -noise])


def climbed(target, paths=4, steps=12):
    found = pathfinder.init(torch.randn(paths, DIM), target, antithetic(8, paths, DIM), memory=6)
    for _ in range(steps):
        active = torch.ones(paths, dtype=torch.bool)
        found = pathfinder.step(found, target, antithetic(8, paths, DIM), active)
    return found


def bfgs(found, path):
    """Textbook BFGS updates of the diagonal, ``(D, D)``."""
    covariance = found.diagonal[path].diag()
    for s, y in zip(found.climb.moves[:, path], found.climb.turns[:, path], strict=True):
        if s @ y > 0:
            left = torch.eye(DIM) - torch.outer(s, y) / (s @ y)
            covariance = left @ covariance @ left.mT + torch.outer(s, s) / (s @ y)
    return covariance


def test_the_product_form_is_bfgs():
    found = climbed(Gaussian())
    normals = pathfinder.normals(found.climb, found.diagonal)
    for path in range(4):
        covariance = bfgs(found, path)
        unit = torch.eye(DIM)[:, None].expand(-1, 4, -1)
        factor = (normals.push(unit) - normals.mean)[:, path].mT
        torch.testing.assert_close(factor @ factor.mT, covariance)
        at = found.climb.at
        torch.testing.assert_close(normals.mean[path], at.z[path] + covariance @ at.gradient[path])
        z = torch.randn(9, DIM)
        law = dist.MultivariateNormal(normals.mean[path], covariance)
        torch.testing.assert_close(normals.log_prob(z[:, None])[:, path], law.log_prob(z))
        one = normals.rows(torch.tensor([path]))
        torch.testing.assert_close(one.log_prob(z[:, None])[:, 0], law.log_prob(z))


def test_no_elbo_exceeds_the_log_mass_and_the_best_reach_it():
    """KL >= 0; its estimate from K draws errs by sqrt(var / K), near 0 at the optimum."""
    target = Gaussian()
    noise = antithetic(400, 8, DIM)
    found = pathfinder.search(torch.randn(8, DIM), target, noise, patience=20)
    fresh = pathfinder.elbos(found.best, target, antithetic(4000, 8, DIM))
    # log weights of D = 5 dimensions vary by a few nats at most: sd / sqrt(4000) < 0.05
    assert (fresh < target.log_mass + Z * 0.05).all()
    assert fresh.max() > target.log_mass - 0.2


def test_a_climb_of_lbfgs_reaches_the_mode():
    target = Gaussian()
    state = lbfgs.init(hmc.init(torch.randn(6, DIM), target), memory=6)
    for _ in range(100):
        state, _ = lbfgs.step(state, target)
    torch.testing.assert_close(state.at.z, torch.full((6, DIM), 3.0), rtol=0, atol=1e-6)


def test_a_climb_that_is_not_active_stays():
    target = Gaussian()
    state = lbfgs.init(hmc.init(torch.randn(2, DIM), target), memory=6)
    after, info = lbfgs.step(state, target, torch.tensor([True, False]))
    assert info.moved.tolist() == [True, False]
    assert torch.equal(after.at.z[1], state.at.z[1])


def conjugate(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


def conjugate_data():
    x = torch.randn(30, 3) * torch.tensor([1.0, 0.01, 50.0])  # badly scaled on purpose
    x[:, 1] += 0.02 * x[:, 0]
    return x, x @ torch.tensor([1.0, -20.0, 0.03]) + 0.5 * torch.randn(30)


def test_a_conjugate_posterior_is_found():
    x, y = conjugate_data()
    posterior = Pathfinder().run(conjugate, x, y)
    assert posterior.converged, posterior.messages
    assert posterior.kind == "independent"
    diagnosis = posterior.diagnosis()
    assert diagnosis["khat"] < 0.7
    covariance = torch.linalg.inv(x.T @ x / 0.25 + torch.eye(3) / 100)
    factor = torch.linalg.cholesky(covariance)
    mean = covariance @ x.T @ y / 0.25
    white = torch.linalg.solve_triangular(factor, (posterior["beta"][0] - mean).T, upper=False)
    # as many draws as their weights are worth, resampled once more: twice the variance
    count = posterior.count
    assert count > 400
    assert white.mean(1).abs().max() < Z * math.sqrt(2 / count)
    moments = white @ white.T / count - torch.eye(3)
    assert moments.abs().max() < Z * math.sqrt(2 * 2 / count)


def test_the_mixture_has_the_density_that_it_draws_from():
    """E_q[p / q] = Z for a normalised q: here p is a normal of mass exp(7)."""
    target = Gaussian()
    paths = pathfinder.search(torch.randn(4, DIM), target, antithetic(16, 4, DIM))
    frame = hmc.Metric(torch.linalg.cholesky(target.covariance) * 1.3)
    framed = pathfinder.search(
        torch.randn(4, DIM), frame.inside(target), antithetic(16, 4, DIM), iterations=3
    )
    one = hmc.Metric(torch.ones(DIM))
    mixture = Mixture.of([(one, paths), (frame, framed)])
    z, log_q = mixture.sample(4000)
    torch.testing.assert_close(log_q, mixture.log_prob(z))
    weights = (target(z)[0] - target.log_mass - log_q).exp()
    assert abs(weights.mean() - 1) < Z * weights.std() / math.sqrt(4000)


def test_a_tenth_of_the_draws_is_twice_as_wide():
    """Covariance .9 + .1 * 4 = 1.3 times that of the normals, here the target's own."""
    target = Gaussian()
    exact = hmc.Metric(torch.linalg.cholesky(target.covariance))
    mean = exact.whiten(torch.full((4, DIM), 3.0))
    paths = pathfinder.search(mean, exact.inside(target), antithetic(4, 4, DIM))
    z, _ = Mixture.of([(exact, paths)]).sample(4000)
    white = exact.whiten(z - 3.0)
    # a component's variance is 1.3, its fourth moment .9 * 3 + .1 * 48 = 7.5; five of them
    error = math.sqrt((7.5 - 1.3**2) / 4000)
    assert (white.square().mean(0) - 1.3).abs().max() < 4.7 * error


def test_its_mixture_serves_as_a_guide():
    x, y = conjugate_data()
    posterior = Pathfinder(resample=False, draws=500).run(conjugate, x, y)
    assert posterior.count == 500
    assert posterior.log_guide is not None
    evidence = dist.MultivariateNormal(
        torch.zeros(len(x)), 100.0 * x @ x.T + 0.25 * torch.eye(len(x))
    ).log_prob(y)
    weights = (posterior.log_density - posterior.log_guide - evidence).exp()
    assert abs(weights.mean() - 1) < Z * weights.std() / math.sqrt(500)


@pytest.mark.slow
def test_a_funnel_is_not_called_converged():
    posterior = Pathfinder(paths=8).run(eight_schools_centred, **data())
    assert not posterior.converged
    assert "k-hat" in posterior.headline()
    assert posterior.count == 4000  # the mixture's own


def test_both_of_two_modes_are_found():
    def story():
        x = pyro.sample("x", dist.Normal(0.0, 100.0))
        pyro.factor("modes", torch.logaddexp(-50 * (x - 1.5) ** 2, -1 - 50 * (x + 1.5) ** 2))

    posterior = Pathfinder().run(story)
    assert posterior.converged, posterior.messages
    share = (posterior["x"] > 0).double().mean()
    truth = 1 / (1 + math.exp(-1))
    assert abs(share - truth) < Z * math.sqrt(2 * truth * (1 - truth) / posterior.count)


def test_without_any_finite_normal_it_says_so():
    paths = pathfinder.search(torch.randn(4, DIM), Gaussian(), antithetic(2, 4, DIM), iterations=2)
    lost = paths._replace(elbo=torch.full((4,), -torch.inf))
    with pytest.raises(ValueError, match="no normal on any path has a finite ELBO"):
        Mixture.of([(hmc.Metric(torch.ones(DIM)), lost)])


@pytest.mark.parametrize("options", [{"paths": 0}, {"paths": 65}, {"draws": 0}, {"elbo_draws": 1}])
def test_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        Pathfinder(**options)


def test_paths_are_resampled_by_their_mass():
    at = torch.zeros(8, 2)
    nothing = torch.zeros(6, 8, 2)
    normals = pathfinder.Normals(at, at + 1, nothing, nothing, at[:, 0])
    climb = lbfgs.State(hmc.State(at, at[:, 0], at), nothing, nothing, at, at[:, 0])
    found = pathfinder.Paths(climb, at + 1, normals, at[:, 0], at, at[:, 0])
    source, moved = hmc_starts.choose_paths(found)
    assert source.tolist() == list(range(8))  # equal masses: a chain each
    assert moved == 0
    elbo = torch.tensor([0.0, 0.0, -100.0, 0.0, -100.0, 0.0, -torch.inf, 0.0])
    source, moved = hmc_starts.choose_paths(found._replace(elbo=elbo))
    assert moved == 3
    assert set(source.tolist()) == {0, 1, 3, 5, 7}
    lost = found._replace(elbo=torch.full((8,), -torch.inf))
    assert hmc_starts.choose_paths(lost)[0].tolist() == list(range(8))


def test_a_bulk_that_few_climbs_reach_is_where_the_chains_start():
    """Groups 40 apart, measured to 5: the pole at scale 0 has a share of exp(-25)."""
    y = 2 * torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = 0.5 * torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def hierarchy(z):
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            mu, log_tau, theta = z[:, 0], z[:, 1], z[:, 2:]
            tau = log_tau.exp()
            value = -0.5 * (mu / 50) ** 2 - 0.5 * (tau / 50) ** 2 + log_tau
            value = value - 0.5 * (((theta - mu[:, None]) / tau[:, None]) ** 2).sum(-1)
            value = value - 8 * log_tau - 0.5 * (((theta - y) / sigma) ** 2).sum(-1)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    state, _, moved = hmc_warmup.starts(torch.rand(64, 10) * 4 - 2, hierarchy, "auto")
    assert moved > 0
    assert (state.z[:, 1] > 1.0).all()
