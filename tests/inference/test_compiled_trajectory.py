"""Compiled trajectories are those of `leapfrog`, whatever their length and metric."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference import HMC
from ppgen.inference.compiled_trajectory import CompiledTarget
from ppgen.inference.hmc import Metric, init, leapfrog
from ppgen.inference.target import Target
from ppgen.program import Program

pytestmark = pytest.mark.usefixtures("silent")


def story(y, more):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("groups", 3):
        mu = pyro.sample("mu", dist.StudentT(4.0, 0.0, scale))
    pyro.sample("y", dist.Normal(y @ mu + more @ mu, 1.0).to_event(1), obs=torch.ones(3))


def factorised(y):
    """A matrix that is not positive definite beyond x = 2.5."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    root = torch.linalg.cholesky(torch.eye(2) + 0.4 * x * torch.eye(2).flip(0))
    pyro.sample("y", dist.Normal(root.diagonal(dim1=-2, dim2=-1).sum(-1), 1.0), obs=y)


FACTORS = {
    "diagonal": [0.5, 1.0, 2.0, 1.5],
    "dense": [
        [1.0, 0.0, 0.0, 0.0],
        [0.3, 0.8, 0.0, 0.0],
        [-0.2, 0.1, 1.0, 0.0],
        [0, 0.4, 0.2, 0.7],
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("factor", FACTORS.values(), ids=list(FACTORS))
def test_trajectories_of_any_length_are_those_of_the_steps(factor):
    x = torch.randn(3, 3)
    program = Program(story, x, x.mT)  # of one memory
    target, plain, metric = CompiledTarget(program), Target(program), Metric(torch.tensor(factor))
    state = init(program.initial(6), plain)
    momentum = torch.randn(6, 4)
    seconds = set()
    for count in (1, 2, 9):
        options = {"metric": metric, "step_size": 0.1, "leapfrogs": count}
        before = target.gradients
        found, end = leapfrog(state, momentum, value_and_grad=target, **options)
        expected, end_expected = leapfrog(state, momentum, value_and_grad=plain, **options)
        for ours, theirs in zip((*found, end), (*expected, end_expected), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert target.gradients - before == 6 * count
        seconds.add(target.seconds_compiling)
    assert len(seconds) == 1, "compiled anew for another length"
    assert target.seconds_compiling > 0


@pytest.mark.slow
def test_the_posterior_is_the_exact_one():
    def conjugate(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    posterior = HMC(chains=16, draws=200, compile=True).run(conjugate, torch.tensor(1.0))
    assert posterior.cost.compiling > 0
    mu, ess = posterior["mu"], posterior.diagnosis()["ess_bulk"]
    assert abs(mu.mean() - 0.5) < 4.5 * math.sqrt(0.5 / ess)
    assert abs(mu.var() / 0.5 - 1) < 4.5 * math.sqrt(2 / ess)


@pytest.mark.slow
def test_a_factorisation_that_fails_costs_one_proposal_not_the_run():
    program = Program(factorised, torch.tensor(2.0))
    target, plain, metric = CompiledTarget(program), Target(program), Metric(torch.ones(1))
    state, _ = (init(torch.tensor([[0.0], [0.5], [-0.3]]), known) for known in (target, plain))
    out = torch.tensor([[0.1], [40.0], [0.1]])  # the second leaves where it is positive
    options = {"metric": metric, "step_size": 0.1, "leapfrogs": 1}
    ended, _ = leapfrog(state, out, value_and_grad=target, **options)
    assert target.seconds_compiling > 0
    assert not ended.log_density[1] > -torch.inf
    expected, _ = leapfrog(state, out, value_and_grad=plain, **options)
    torch.testing.assert_close(ended.z[[0, 2]], expected.z[[0, 2]])


@pytest.mark.slow
def test_without_a_compiler_it_samples_all_the_same(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no C++ compiler was found\n a long story")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(UserWarning, match="not compiled: no C\\+\\+ compiler was found$"):
        posterior = HMC(chains=8, draws=20, warmup=20, compile=True).run(
            story, torch.eye(3), torch.eye(3)
        )
    assert posterior["mu"].shape == (8, 20, 3)
