"""Flows of angles: normalised, one point at 0 and a whole turn, true to a density that is known."""

import math

import pyro.distributions as dist
import pytest
import torch

from perturbation import perturbed
from ppgen.inference import fit_energy
from ppgen.models.torus_flow import TorusFlow
from ppgen.transforms.circle import TURN, Moebius

Z = 4.27  # two-sided normal quantile of FAILURE_RATE = 2e-5


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("f", [None, Moebius(3)])
def test_the_density_integrates_to_one_and_has_no_seam(dim, f):
    flow = perturbed(TorusFlow(dim, layers=2, hidden=(8,), scalar_map=f))
    t = TURN * (torch.arange(300) + 0.5) / 300
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(*[t] * dim).reshape(-1, dim)).exp()
        # the midpoint rule on a torus: exact but for the splines' kinks
        assert density.mean().item() * TURN**dim == pytest.approx(1, abs=1e-3)
        for i in range(dim):
            x = TURN * torch.rand(2, dim)
            x[0], x[1, i] = x[1], 0.0
            x[0, i] = TURN
            assert torch.allclose(*flow.log_prob(x), atol=1e-9)


def test_an_untrained_flow_is_uniform_and_its_loss_the_log_likelihood():
    flow, x = TorusFlow(3), TURN * torch.rand(5, 3)
    assert torch.allclose(flow.log_prob(x), torch.full((5,), -3 * math.log(TURN)), atol=1e-12)


def test_samples_follow_the_density():
    flow = perturbed(TorusFlow(2, layers=2, hidden=(8,)), 0.2)
    draws = flow.sample(2000)
    assert ((draws >= 0) & (draws <= TURN)).all()
    # E_p[q(x) / p(x)] = 1 for any density q
    q = dist.VonMises(torch.tensor([1.0, 4.0]), 1.0).to_event(1)
    with torch.no_grad():
        ratio = (q.log_prob(draws) - flow.log_prob(draws)).exp()
    assert abs(ratio.mean() - 1) < Z * ratio.std() / 2000**0.5


@pytest.mark.slow
def test_it_is_fitted_to_the_correlated_target_of_rezende(silent):
    flow = TorusFlow(2, layers=2, hidden=(16,), scalar_map=Moebius(4))
    found = fit_energy(lambda t: -(t.sum(-1) - 1.94).cos(), flow, steps=200)
    log_z = 3.911668  # log 4 pi^2 I_0(1)
    assert found.elbo < log_z + Z * found.elbo_error
    assert found.elbo > log_z - 0.02  # the uniform law is 0.24 nats away


def test_what_is_no_angle_is_refused_by_row():
    with pytest.raises(ValueError, match=r"row 1: -0\.5 is no angle"):
        TorusFlow(2).log_prob(torch.tensor([[1.0, 2.0], [-0.5, 2.0]]))
    with pytest.raises(ValueError, match="2 angles"):
        TorusFlow(2).log_prob(torch.zeros(3))
