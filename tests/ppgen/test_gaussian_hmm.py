"""Linear state-space models against a Kalman filter, step by step."""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.distributions import GaussianHMM
from ppgen.lean import Lean
from ppgen.program import Program


def kalman(hmm, x):
    """Log density by prediction and update; the arguments of `hmm` in a dictionary."""
    mean, covariance = hmm["initial"].mean, hmm["initial"].covariance_matrix
    total = 0.0
    for t in range(len(x)):
        F, Q, G, R = (v[t] if v.dim() == 3 else v for v in (hmm[k] for k in "FQGR"))
        mean, covariance = mean @ F, F.T @ covariance @ F + Q
        marginal = dist.MultivariateNormal(mean @ G, G.T @ covariance @ G + R)
        total = total + marginal.log_prob(x[t])
        gain = covariance @ G @ torch.linalg.inv(marginal.covariance_matrix)
        mean = mean + gain @ (x[t] - marginal.mean)
        covariance = covariance - gain @ G.T @ covariance
    return total


def spread(*batch, size):
    half = torch.randn(*batch, size, size)
    return half @ half.mT + torch.eye(size)


def case(hidden, seen, steps, varies):
    time = (steps,) if varies else ()
    return {
        "initial": dist.MultivariateNormal(
            torch.randn(hidden).requires_grad_(), spread(size=hidden)
        ),
        "F": (0.5 * torch.randn(*time, hidden, hidden)).requires_grad_(),
        "Q": spread(*time, size=hidden),
        "G": torch.randn(*time, hidden, seen),
        "R": spread(*time, size=seen),
    }


def made(kind, h, steps):
    q, r = (dist.MultivariateNormal(torch.zeros(h[k].shape[-1]), h[k]) for k in "QR")
    return kind(h["initial"], h["F"], q, h["G"], r, duration=steps)


@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize(("hidden", "seen", "steps"), [(1, 1, 1), (1, 2, 7), (2, 1, 8), (3, 2, 13)])
def test_the_density_and_its_gradient_are_those_of_a_kalman_filter(hidden, seen, steps, varies):
    h, x = case(hidden, seen, steps, varies), torch.randn(steps, seen)
    exact = kalman(h, x)
    inputs = [h["F"], h["initial"].loc]
    for context in (nullcontext(), Lean()):  # as it runs, and as it is recorded
        with context:
            value = made(GaussianHMM, h, steps).log_prob(x)
        torch.testing.assert_close(value, exact, rtol=1e-10, atol=1e-10)
        for got, expected in zip(
            torch.autograd.grad(value, inputs),
            torch.autograd.grad(exact, inputs, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_batches_and_expanded_laws_are_scored_row_by_row():
    h, x = case(2, 1, 5, False), torch.randn(4, 5, 1)
    hmm = made(GaussianHMM, h, 5)
    each = torch.stack([hmm.log_prob(row) for row in x])
    torch.testing.assert_close(hmm.log_prob(x), each)
    for context in (nullcontext(), Lean()):
        with context:
            torch.testing.assert_close(hmm.expand([4]).log_prob(x), each)
            alike = hmm.expand([4]).log_prob(x[0])  # one series under four laws
        torch.testing.assert_close(alike, each[:1].expand(4))
    assert type(hmm.expand([4])) is GaussianHMM


def test_large_states_are_left_to_pyro():
    h, x = case(5, 1, 3, False), torch.randn(3, 1)
    torch.testing.assert_close(made(GaussianHMM, h, 3).log_prob(x), kalman(h, x))


@pytest.mark.slow
def test_it_is_recorded_in_half_of_pyros_operations():
    def story(kind):
        def model(x):
            phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
            noise = dist.Normal(torch.zeros(1), 1.0).to_event(1)
            one = torch.ones(1, 1)
            pyro.sample("x", kind(noise, phi * one, noise, one, noise, duration=60), obs=x)

        return model

    x, z = torch.randn(60, 1), torch.randn(4, 1)
    ours, theirs = Program(story(GaussianHMM), x), Program(story(dist.GaussianHMM), x)
    for mine, other in zip(ours.value_and_grad(z), theirs.value_and_grad(z), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
    assert ours.fallback is None
    assert 1.8 * ours.operations < theirs.operations


@pytest.mark.parametrize(("kind", "hidden"), [(dist.GaussianHMM, 2), (GaussianHMM, 5)])
def test_states_of_several_dimensions_are_recorded_and_right(kind, hidden):
    h, x = case(hidden, 1, 4, varies=False), torch.randn(4, 1)

    def story(x):
        decay = pyro.sample("decay", dist.Uniform(0.0, 1.0))
        pyro.sample("x", made(kind, {**h, "F": decay * h["F"]}, 4), obs=x)

    def density(z):
        decay = z[0].sigmoid()
        return kalman({**h, "F": decay * h["F"]}, x) + (decay * (1 - decay)).log()

    z = torch.randn(5, 1)
    value, slope = Program(story, x).value_and_grad(z)  # warnings are errors
    torch.testing.assert_close(value, torch.stack([density(row) for row in z]).detach())
    torch.testing.assert_close(slope, torch.stack([torch.func.grad(density)(row) for row in z]))
