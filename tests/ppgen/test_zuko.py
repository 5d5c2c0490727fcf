"""Zuko's flows in Pyro: the same density, draws and supports, wherever Pyro wants a law."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, autoguide
from torch.distributions import Distribution, constraints

from perturbation import perturbed
from ppgen.inference import VI, fit
from ppgen.models import Flow
from ppgen.transforms.zuko import ZukoTransform, from_zuko

validating = Distribution._validate_args
arguments = Distribution.__dict__.get("arg_constraints")
zuko = pytest.importorskip("zuko")
Distribution._validate_args = validating  # importing zuko changes both for all of torch
Distribution.arg_constraints = arguments

FLOWS = {
    "spline": lambda context=0: zuko.flows.NSF(2, context, transforms=2, hidden_features=(8,)),
    "coupling": lambda context=0: zuko.flows.RealNVP(2, context, hidden_features=(8,)),
    "masked": lambda context=0: zuko.flows.MAF(2, context, transforms=2, hidden_features=(8,)),
}


def zukos(flow, y):
    """The density as Zuko works it out; `flow().log_prob(y)`, but for torch's validation."""
    x, log_det = flow.transform().call_and_ladj(y)
    return flow.base().log_prob(x) + log_det


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_density_is_zukos_and_integrates_to_one(name):
    flow = perturbed(FLOWS[name]())
    law = from_zuko(flow)
    # y = sinh(t): out to +-200, and fine where the density is
    t = torch.linspace(-6, 6, 401)
    grid, volume = (
        torch.cartesian_prod(t.sinh(), t.sinh()),
        torch.cartesian_prod(t.cosh(), t.cosh()),
    )
    with torch.no_grad():
        assert torch.allclose(law.log_prob(grid), zukos(flow, grid), atol=1e-12)
        mass = (law.log_prob(grid).exp() * volume.prod(-1)).sum() * (t[1] - t[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)
    z, log_q = law.rsample_with_log_prob(torch.Size([5]))
    assert torch.allclose(law.log_prob(z), log_q, atol=1e-9)
    assert z.requires_grad


@pytest.mark.parametrize("name", FLOWS)
def test_log_determinants_are_those_of_autograd(name):
    transform = ZukoTransform(perturbed(FLOWS[name]()).transform)
    y = 2 * torch.randn(10, 2)
    x, log_det = transform.inverse_with_log_det(y)
    summed = torch.autograd.functional.jacobian(lambda y: transform.inv(y).sum(0), y)
    expected = torch.linalg.slogdet(summed.transpose(0, 1)).logabsdet
    assert torch.allclose(log_det, expected, atol=1e-9)
    assert torch.allclose(transform(x), y, atol=1e-6)
    assert torch.allclose(transform.log_abs_det_jacobian(x, y), -log_det, atol=1e-6)


def test_each_row_of_a_context_has_its_own_law():
    flow, context = perturbed(FLOWS["spline"](3)), torch.randn(4, 3)
    law = from_zuko(flow, context)
    assert (law.batch_shape, law.event_shape) == ((4,), (2,))
    y = law.sample(torch.Size([6]))
    for row in range(4):
        alone = from_zuko(flow, context[row]).log_prob(y[:, row])
        assert torch.allclose(law.log_prob(y)[:, row], alone, atol=1e-10)


def test_a_parameter_update_is_never_missed():
    flow, y = perturbed(FLOWS["spline"]()), torch.randn(5, 2)
    law = from_zuko(flow)
    before = law.log_prob(y)
    perturbed(flow, 0.1)
    assert not torch.allclose(law.log_prob(y), before)
    assert torch.allclose(law.log_prob(y), zukos(flow, y), atol=1e-12)


def story(flow, y):
    """A flow as the prior of two numbers that are seen with noise."""
    z = pyro.sample("z", from_zuko(flow))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)


@pytest.fixture
def prior():
    return perturbed(FLOWS["spline"]()).requires_grad_(False)


def test_autoguides_nuts_and_predictive_take_the_site(prior):
    y = torch.randn(6, 2)
    guide = autoguide.AutoNormal(story)
    svi = SVI(story, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert torch.tensor([svi.step(prior, y) for _ in range(3)]).isfinite().all()
    assert autoguide.AutoDelta(story)(prior, y)["z"].shape == (2,)
    draws = Predictive(story, guide=guide, num_samples=4)(prior, y)
    assert draws["y"].shape == (4, 6, 2)
    kernel = NUTS(story, jit_compile=False)
    mcmc = MCMC(kernel, num_samples=3, warmup_steps=3, disable_progbar=True)
    mcmc.run(prior, y)
    assert mcmc.get_samples()["z"].shape == (3, 2)


@pytest.mark.slow
def test_our_engines_take_the_site_and_find_its_posterior(prior, silent):
    y = torch.randn(6, 2)
    posterior = fit(story, prior, y, using=VI(max_steps=2000), seed=0)
    # exact by quadrature
    side = torch.linspace(-4, 4, 161)
    grid = torch.cartesian_prod(side, side)
    log_joint = from_zuko(prior).log_prob(grid) + dist.Normal(grid[:, None], 0.5).log_prob(y).sum(
        (1, 2)
    )
    exact = log_joint.softmax(0) @ grid
    # the posterior's sd is about 0.2; mean-field means of a nearly normal posterior
    assert torch.allclose(posterior["z"].mean((0, 1)), exact, atol=0.05)


def test_a_story_with_a_flow_of_zukos_is_trained_by_its_pair():
    pair = Flow(2, transforms=[ZukoTransform(perturbed(FLOWS["coupling"]()).transform)])
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    assert before
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(torch.randn(20, 2))
    assert all(not torch.equal(p, before[name]) for name, p in pair.named_parameters())
    twin = Flow(2, transforms=[ZukoTransform(FLOWS["coupling"]().double().transform)])
    twin.load_state_dict(pair.state_dict())
    assert torch.equal(twin.log_prob(torch.ones(3, 2)), pair.log_prob(torch.ones(3, 2)))


def test_a_support_that_is_given_is_the_sites():
    circle = constraints.independent(constraints.interval(-3.1416, 3.1416), 1)
    flow = zuko.flows.NCSF(2, transforms=1, hidden_features=(8,)).double()
    law = from_zuko(flow, support=circle)
    assert law.support is circle
    assert circle.check(law.sample(torch.Size([50]))).all()


def test_what_is_no_flow_is_refused():
    with pytest.raises(TypeError, match="GMM"):
        from_zuko(zuko.flows.GMM(2))
