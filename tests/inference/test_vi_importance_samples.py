"""VI by the importance weighted bound, against the evidence and quadrature."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference import VI, repair
from ppgen.inference.flow_guides import flow_guide
from ppgen.inference.frame import Frame
from ppgen.inference.guides import MeanField, full_rank_guide
from ppgen.inference.mode import Batched
from ppgen.inference.vi_fit import Fit
from ppgen.program import Program

Y = torch.tensor(1.0)
# two scalars whose sum is seen: the posterior is normal, with a correlation of -0.92
EVIDENCE = dist.Normal(0.0, math.sqrt(2.09)).log_prob(Y).item()
MEAN, SD = 1 / 2.09, math.sqrt(1 - 1 / 2.09)


def two(y):
    a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
    pyro.sample("y", dist.Normal(a + b, 0.3), obs=y)


def bound(posterior):
    """The bound by the draws of a posterior, nats, and its standard error."""
    log_weights = posterior.history["log_weights"]
    each = log_weights.logsumexp(-1) - math.log(log_weights.shape[1])
    return each.mean().item(), (each.std() / math.sqrt(len(each))).item()


def skewed():
    pyro.sample("x", dist.Gamma(2.0, 1.0))


def fit(importance_samples, path_gradient):
    """A normal that is wrong for the logarithm of a Gamma's x, in a frame."""
    guide = MeanField(1)
    guide.begin(torch.tensor([0.4]), torch.tensor([-0.5]))
    frame = Frame(torch.tensor([0.3]), torch.tensor([1.3]))
    function = Batched(Program(skewed), 1000)
    return Fit(guide, frame, function, path_gradient, importance_samples)


def log_weights(fit, noise):
    """By the formulas, differentiable in the guide's parameters."""
    u, log_q = fit.guide(noise)
    z = fit.frame.push(u)[:, 0]
    return dist.Gamma(2.0, 1.0).log_prob(z.exp()) + z - log_q + fit.frame.log_det


def exact_bound(fit, nodes=60):
    """Two draws to a logarithm, integrated over both."""
    x, weight = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(nodes))
    weight = weight / weight.sum()
    log_w = log_weights(fit, x[:, None])
    both = torch.logaddexp(log_w[:, None], log_w) - math.log(2.0)
    return weight @ both @ weight


@pytest.mark.parametrize("path_gradient", [True, False])
def test_the_gradient_is_that_of_the_bound_by_quadrature(path_gradient):
    """With shares that are not squared the path's gradient is off by more than 70 errors."""
    trial = fit(2, path_gradient)
    exact = exact_bound(trial)
    expected = torch.autograd.grad(exact, trial.parameters)
    values, slopes = [], []
    for _ in range(100):
        value, gradients = trial.slope(trial.noise(4000), trial.function)
        values.append(value)
        slopes.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    found = torch.cat([torch.stack(values)[:, None], torch.stack(slopes)], 1)
    error = found.std(0) / math.sqrt(len(found))
    # of 100 batches, 3 numbers: beyond 5 standard errors once in 1e5
    off = (found.mean(0) - torch.cat([exact[None], *expected])) / error
    assert (off.abs() < 5.0).all(), off


def test_the_gradient_is_autograds_by_the_same_draws():
    trial = fit(4, path_gradient=False)
    noise = trial.noise(24)
    expected = (log_weights(trial, noise).reshape(6, 4).logsumexp(-1) - math.log(4.0)).mean()
    value, gradients = trial.slope(noise, trial.function)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, trial.parameters))


@pytest.mark.slow  # 4 s
def test_the_bound_rises_with_the_draws_to_the_evidence():
    """Mean-field lies 0.95 nats below it."""
    found = {k: bound(VI(importance_samples=k, draws=2000).run(two, Y)) for k in (2, 8, 64)}
    elbo = VI().run(two, Y).diagnosis()["elbo"]
    (first, second, third), errors = zip(*found.values(), strict=True)
    assert elbo < first < second < third
    assert third < EVIDENCE + 4.3 * errors[2]
    assert third == pytest.approx(EVIDENCE, abs=0.04)


def test_resampled_draws_come_near_the_posterior_that_the_guide_cannot_be():
    """Independent normals alone have 0.4 of the sd, and no correlation."""
    posterior = VI(importance_samples=32).run(two, Y)
    assert posterior.converged
    a, b = posterior["a"].flatten(), posterior["b"].flatten()
    assert a.mean().item() == pytest.approx(MEAN, abs=0.06)
    assert a.std().item() == pytest.approx(SD, rel=0.06)
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].item() == pytest.approx(-0.917, abs=0.02)
    assert posterior.history["log_weights"].shape == (4000, 32)
    assert posterior.diagnosis()["khat"] < 0.7
    assert posterior.log_guide is None
    assert posterior.guide_log_prob is None
    assert any("importance weighted bound" in said for said in posterior.messages)
    with pytest.raises(ValueError, match="resampled already"):
        repair(posterior)


@pytest.mark.parametrize("guide", [full_rank_guide(), flow_guide(layers=2)], ids=str)
def test_a_recorded_step_of_groups_is_the_step(guide):
    program = Program(two, Y)
    function = Batched(program, 24)
    flat = guide.build(2).to(program.device, program.dtype)
    one = Fit(flat, Frame(torch.zeros(2), torch.ones(2)), function, flat.has_score, 3)
    noise = one.noise(24)
    value, gradients = one.slope(noise, function)
    one.record()
    assert one._recorded is not None
    again, recorded = one._recorded(noise, *one.parameters, *one._kept)
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(recorded, gradients)


def rows(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def by_hand(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("mu", dist.Normal(loc, 1.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 5}, "all rows at once"),
        ({"guide": by_hand}, "for families.*DReG"),
    ],
)
def test_what_has_no_bound_or_no_family_is_refused(options, said):
    with pytest.raises(ValueError, match=f"importance_samples=4.*{said}"):
        VI(importance_samples=4, **options).run(rows, torch.randn(20))


def test_fewer_than_one_is_refused():
    with pytest.raises(ValueError, match=r"importance_samples=.*at least 1, got 0"):
        VI(importance_samples=0)
