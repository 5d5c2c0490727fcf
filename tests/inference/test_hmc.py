"""The transition: identities of the integrator, and invariance from exact draws."""

import math

import pytest
import torch
from scipy import stats

from ppgen.inference.hmc import DIVERGENCE, Metric, State, init, leapfrog, step

FAILURE_RATE = 2e-5  # of one correct statistical test, as in conftest


def gaussian(covariance):
    precision = torch.linalg.inv(covariance)

    def value_and_grad(z):
        gradient = -z @ precision
        return 0.5 * (z * gradient).sum(-1), gradient

    return value_and_grad


def log_gamma(z):
    """Independent z = log x with x ~ Gamma(2, 1): skewed, with known quantiles."""
    return (2 * z - z.exp()).sum(-1), 2 - z.exp()


def quartic(z):
    return -(z**4).sum(-1) / 4 - (z[..., 0] * z[..., 1]), -(z**3) - z.flip(-1)


def half_normal(z):
    """A standard normal on the positive half line, log density -inf elsewhere."""
    inside = (z > 0).all(-1)
    return torch.where(inside, -0.5 * z.square().sum(-1), -torch.inf), -z


def half_normal_nan(z):
    """The same; outside, value and gradient are NaN."""
    inside = (z > 0).all(-1)
    value = torch.where(inside, -0.5 * z.square().sum(-1), torch.nan)
    return value, torch.where(inside.unsqueeze(-1), -z, torch.nan)


COVARIANCE = torch.tensor([[2.0, 0.9], [0.9, 0.5]], dtype=torch.float64)
METRICS = {
    "unit": lambda: Metric(torch.ones(2)),
    "diagonal": lambda: Metric(torch.tensor([1.5, 0.4])),
    "dense": lambda: Metric(torch.tensor([[1.2, 0.0], [0.7, 0.4]])),
}


@pytest.fixture(params=METRICS, name="metric")
def _metric(request):
    return METRICS[request.param]()


def z_limit(comparisons):
    """Two-sided normal quantile for that many comparisons at the common failure rate."""
    return stats.norm.isf(FAILURE_RATE / (2 * comparisons))


def test_the_leapfrog_retraces_its_path_when_the_momentum_is_flipped(metric):
    state = init(torch.randn(50, 2), quartic)
    momentum = torch.randn(50, 2)
    options = {"value_and_grad": quartic, "metric": metric, "step_size": 0.1, "leapfrogs": 13}
    end, arrived = leapfrog(state, momentum, **options)
    assert (end.z - state.z).abs().max() > 0.1
    back, returned = leapfrog(end, -arrived, **options)
    # 26 steps, each a few roundings of numbers below 10
    torch.testing.assert_close(back.z, state.z, rtol=0, atol=1e-11)
    torch.testing.assert_close(returned, -momentum, rtol=0, atol=1e-11)
    torch.testing.assert_close(back.log_density, state.log_density, rtol=0, atol=1e-10)


def test_the_leapfrog_preserves_volume(metric):
    def flow(both):
        z, momentum = both.reshape(1, 4).split(2, dim=1)
        start = State(z, *quartic(z))
        options = {"value_and_grad": quartic, "metric": metric, "step_size": 0.3, "leapfrogs": 3}
        end, arrived = leapfrog(start, momentum, **options)
        return torch.cat([end.z, arrived], 1).flatten()

    jacobian = torch.autograd.functional.jacobian(flow, torch.randn(4))
    assert torch.linalg.det(jacobian) == pytest.approx(1.0, abs=1e-10)


def test_the_energy_error_is_quadratic_in_the_step_size(metric):
    state = init(torch.randn(200, 2), quartic)
    momentum = torch.randn(200, 2)

    def error(leapfrogs):
        end, arrived = leapfrog(
            state,
            momentum,
            value_and_grad=quartic,
            metric=metric,
            step_size=0.5 / leapfrogs,
            leapfrogs=leapfrogs,
        )
        kinetic = 0.5 * (arrived.square() - momentum.square()).sum(-1)
        return (kinetic - end.log_density + state.log_density).abs().mean()

    # the next term of the expansion is of relative order eps^2 = 4e-4 at the coarser of the two
    assert float(error(25) / error(50)) == pytest.approx(4.0, rel=0.02)


def test_the_trajectory_is_that_of_the_hamiltonian(metric):
    """Gaussian whose covariance is the metric: the exact solution is a rotation."""
    factor = metric.factor if metric.dense else metric.factor.diag()
    state = init(torch.randn(10, 2), gaussian(factor @ factor.mT))
    momentum = torch.randn(10, 2)
    end, arrived = leapfrog(
        state,
        momentum,
        value_and_grad=gaussian(factor @ factor.mT),
        metric=metric,
        step_size=1e-3,
        leapfrogs=700,
    )
    white, angle = metric.whiten(state.z), 0.7
    expected = metric.push(math.cos(angle) * white + math.sin(angle) * momentum)
    # the frequency is off by eps^2 / 24, the phase by 3e-8
    torch.testing.assert_close(end.z, expected, rtol=0, atol=1e-5)
    turned = math.cos(angle) * momentum - math.sin(angle) * white
    torch.testing.assert_close(arrived, turned, rtol=0, atol=1e-5)


def test_the_mean_of_exp_minus_the_energy_error_is_one_in_stationarity(metric):
    chains = 200_000
    factor = torch.linalg.cholesky(COVARIANCE)
    target = gaussian(COVARIANCE)
    state = init(torch.randn(chains, 2) @ factor.mT, target)
    _, info = step(state, value_and_grad=target, metric=metric, step_size=0.4, leapfrogs=4)
    ratio = (-info.energy_error).exp()
    assert 0.05 < ratio.std() < 3.0  # neither trivial nor without a variance
    error = ratio.std() / math.sqrt(chains)
    assert abs(ratio.mean() - 1.0) < z_limit(1) * error


def test_steps_leave_a_correlated_gaussian_invariant(metric):
    chains, target = 100_000, gaussian(COVARIANCE)
    factor = torch.linalg.cholesky(COVARIANCE)
    state = init(torch.randn(chains, 2) @ factor.mT, target)
    rates = []
    for _ in range(5):
        state, info = step(state, value_and_grad=target, metric=metric, step_size=0.5, leapfrogs=3)
        rates.append(float(info.acceptance.mean()))
    assert 0.3 < min(rates) < 0.99, "the accept step must matter"
    white = torch.linalg.solve_triangular(factor, state.z.mT, upper=False)
    # chains are independent: means of N(0, 1), of squares (variance 2), of products (variance 1)
    scores = torch.cat(
        [
            white.mean(1) * math.sqrt(chains),
            (white.square().mean(1) - 1) * math.sqrt(chains / 2),
            (white[:1] * white[1:]).mean(1) * math.sqrt(chains),
        ]
    )
    assert scores.abs().max() < z_limit(5)


def test_steps_leave_a_skewed_target_invariant():
    chains = 100_000
    start = torch.distributions.Gamma(2.0, 1.0).sample((chains, 2)).log()
    state = init(start, log_gamma)
    metric = Metric(torch.tensor([1.0, 0.7]))
    for _ in range(5):
        state, info = step(
            state, value_and_grad=log_gamma, metric=metric, step_size=0.9, leapfrogs=2
        )
    assert 0.5 < info.acceptance.mean() < 0.97
    assert (state.z != start).any(-1).double().mean() > 0.9
    for column in state.z.exp().mT:
        assert stats.kstest(column.numpy(), stats.gamma(2).cdf).pvalue > FAILURE_RATE / 2
    # independent coordinates stay so
    correlation = torch.corrcoef(state.z.mT)[0, 1]
    assert abs(correlation) * math.sqrt(chains) < z_limit(1)


@pytest.mark.parametrize("target", [half_normal, half_normal_nan])
def test_a_wall_is_never_crossed_and_the_target_kept(target):
    chains = 100_000
    state = init(torch.randn(chains, 1).abs(), target)
    for _ in range(5):
        state, info = step(
            state,
            value_and_grad=target,
            metric=Metric(torch.ones(1)),
            step_size=0.5,
            leapfrogs=2,
        )
        assert info.diverging.any()
        assert not (info.diverging & info.accepted).any()
        assert (info.acceptance[info.diverging] == 0).all()
    assert torch.isfinite(state.gradient).all()
    assert (state.z > 0).all()
    p = stats.kstest(state.z[:, 0].numpy(), stats.halfnorm.cdf).pvalue
    assert p > FAILURE_RATE


def test_position_log_density_and_gradient_stay_together():
    target = gaussian(COVARIANCE)
    state = init(torch.randn(1000, 2), target)
    for _ in range(3):
        state, info = step(
            state, value_and_grad=target, metric=METRICS["unit"](), step_size=0.9, leapfrogs=2
        )
    assert 0 < info.accepted.sum() < 1000
    value, gradient = target(state.z)
    torch.testing.assert_close(state.log_density, value)
    torch.testing.assert_close(state.gradient, gradient)
    torch.testing.assert_close(info.proposal[info.accepted], state.z[info.accepted])


def test_a_trajectory_that_explodes_is_rejected_and_counted():
    target = gaussian(torch.eye(3) * 1e-6)
    state = init(torch.randn(20, 3) * 1e-3, target)
    new, info = step(
        state, value_and_grad=target, metric=Metric(torch.ones(3)), step_size=1.0, leapfrogs=200
    )
    assert info.diverging.all()
    assert (info.energy_error > DIVERGENCE).all()
    torch.testing.assert_close(new.z, state.z, rtol=0, atol=0)


def test_an_infinitely_dense_point_is_no_trap():
    """Log density +inf is as wrong as NaN: accepted once, a chain would never leave."""

    def target(z):
        value = -0.5 * z.square().sum(-1)
        return torch.where(z[:, 0] > 1, torch.inf, value), -z

    state = init(-torch.rand(500, 1), target)
    for _ in range(5):
        state, _ = step(
            state, value_and_grad=target, metric=Metric(torch.ones(1)), step_size=0.5, leapfrogs=3
        )
    assert (state.z <= 1).all()
    assert torch.isfinite(state.log_density).all()


def test_the_metric_whitens_what_it_pushes(metric):
    r = torch.randn(7, 2)
    torch.testing.assert_close(metric.whiten(metric.push(r)), r)
    volume = torch.linalg.slogdet(metric.push(torch.eye(2)))[1]
    torch.testing.assert_close(metric.log_det, volume)
    # pull is the transpose of push
    gradient = torch.randn(7, 2)
    left, right = (gradient * metric.push(r)).sum(-1), (metric.pull(gradient) * r).sum(-1)
    torch.testing.assert_close(left, right)
