"""Flows on spheres: exact, trained by the one loop, and true to a density that is known."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO

from perturbation import perturbed
from ppgen.distributions import SphereUniform, VonMisesFisher
from ppgen.distributions.sphere import log_area
from ppgen.inference.elbo import ELBO
from ppgen.inference.likelihood import log_likelihood
from ppgen.inference.train import train
from ppgen.models.sphere_flow import SphereFlow
from ppgen.transforms.sphere import ExponentialMap

Z = 4.27  # two-sided normal quantile of FAILURE_RATE = 2e-5


def test_an_untrained_flow_on_the_globe_is_uniform():
    x = SphereUniform(2).sample(torch.Size([5]))
    assert torch.allclose(SphereFlow().log_prob(x), torch.full((5,), -log_area(2)), atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("loss", [Trace_ELBO, ELBO])
def test_the_loss_of_the_pair_is_the_log_likelihood(dim, loss):
    flow = perturbed(SphereFlow(dim, layers=2, hidden=(8,), bins=4))
    x = SphereUniform(dim).sample(torch.Size([6]))
    value = loss().loss(flow.model, flow.guide, x)
    assert value == pytest.approx(-flow.log_prob(x).sum().item(), abs=1e-10)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_samples_follow_the_density(dim):
    flow = perturbed(SphereFlow(dim, layers=2, hidden=(8,), bins=4), 0.2)
    draws = flow.sample(2000)
    # E_p[q(x) / p(x)] = 1 for any density q
    q = VonMisesFisher(torch.eye(dim + 1)[0], 1.0)
    with torch.no_grad():
        ratio = (q.log_prob(draws) - flow.log_prob(draws)).exp()
    assert abs(ratio.mean() - 1) < Z * ratio.std() / 2000**0.5


@pytest.mark.slow
def test_trained_on_a_von_mises_fisher_law_it_reaches_its_entropy(silent):
    law = VonMisesFisher(torch.tensor([0.6, 0.0, 0.8]), torch.tensor(5.0))
    x, held_out = law.sample(torch.Size([600])), law.sample(torch.Size([2000]))
    flow = SphereFlow(transforms=[ExponentialMap(2, 1, start="data") for _ in range(2)])
    train(flow, x, epochs=10, batch_size=100, learning_rate=0.05)
    result = log_likelihood(flow, held_out)
    assert result.kind == "exact"
    # E log p <= -entropy; the difference to the truth on the same points has little noise
    gap = law.log_prob(held_out).mean().item() - result.lower
    assert -0.02 < gap < 0.1
    assert result.lower > -log_area(2) + 0.5  # far above the uniform law


def test_svi_changes_every_parameter_of_two_instances():
    x = SphereUniform(2).sample(torch.Size([20]))
    for _ in range(2):
        story = perturbed(SphereFlow(hidden=(8,), bins=4), 0.1)
        before = {name: p.detach().clone() for name, p in story.named_parameters()}
        with pyro.get_param_store().scope():
            svi = SVI(story.model, story.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
            svi.step(x)
        for name, parameter in story.named_parameters():
            assert not torch.equal(parameter, before[name]), name


def test_the_loop_of_every_story_trains_it(silent):
    x = VonMisesFisher(torch.tensor([0.6, 0.0, 0.8]), torch.tensor(5.0)).sample(torch.Size([60]))
    flow = SphereFlow(hidden=(8,), bins=4)
    result = train(flow, x, epochs=2, batch_size=20, learning_rate=0.05)
    assert result.stopped == "finished"
    assert log_likelihood(flow, x).lower > -log_area(2)  # better than the uniform start


def test_predictive_draws_and_state_dicts_make_the_round_trip():
    flow = perturbed(SphereFlow(hidden=(8,), bins=4))
    draws = Predictive(pyro.poutine.uncondition(flow.model), num_samples=3)(torch.eye(3))
    assert draws["x"].shape == (3, 3, 3)
    twin = SphereFlow(hidden=(8,), bins=4)
    twin.load_state_dict(flow.state_dict())
    assert torch.equal(twin.log_prob(torch.eye(3)), flow.log_prob(torch.eye(3)))
    assert SphereFlow().float().sample(4).dtype == torch.float32


def test_data_off_the_sphere_are_refused_by_row():
    flow = SphereFlow()
    with pytest.raises(ValueError, match=r"row \[1\]: a vector of length 2"):
        flow.log_prob(torch.eye(3) * torch.tensor([[1.0], [2.0], [1.0]]))
    with pytest.raises(ValueError, match="unit vectors of 3 coordinates"):
        flow.log_prob(torch.ones(4, 2) / math.sqrt(2))
