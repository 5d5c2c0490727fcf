"""Gibbs-Langevin leaves the law of a Gaussian RBM invariant, if each step is adjusted."""

import pytest
import torch
from pyro.infer import MCMC
from scipy import stats

import ppgen
from ppgen.inference import ContrastiveDivergence, GibbsLangevin, Langevin
from ppgen.inference.gibbs_langevin import step
from ppgen.models import RBM, GaussianRBM

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5
DRAWS = 20_000


def machine():
    rbm = GaussianRBM(3, 4, weight_scale=1.0)
    for p in (rbm.visible_bias, rbm.hidden_bias, rbm.raw_variance):
        torch.nn.init.normal_(p)
    return rbm.requires_grad_(False)


def p_value(x, rbm):
    """Residuals of x given h drawn from x are standard normal (chi-square of their squares)."""
    h = rbm.hidden_given_visible(x).sample()
    residuals = (x - rbm.loc - h @ rbm.components.T) / rbm.variance.sqrt()
    total = residuals.square().sum().item()
    law = stats.chi2(residuals.numel())
    index = (h @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    expected = rbm.hidden_marginal().log_prob(states).exp() * len(x)
    found = torch.bincount(index, minlength=16).double()
    rare = expected < 10
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        found = torch.cat([found[~rare], found[rare].sum()[None]])
    discrete = stats.chisquare(found.numpy(), expected.numpy()).pvalue
    return min(2 * min(law.cdf(total), law.sf(total)), discrete)


@pytest.mark.parametrize(("langevin_steps", "step_size"), [(1, 0.5), (10, 0.5), (3, 1.5)])
def test_adjusted_steps_leave_exact_draws_exact(langevin_steps, step_size):
    rbm = machine()
    kernel = GibbsLangevin(
        rbm,
        rbm.marginal().sample((DRAWS,)),
        langevin=Langevin(langevin_steps, step_size),
        sweeps=4,
    )
    start = kernel.initial_params
    x = kernel.sample(start)["x"]
    assert (x != start["x"]).double().mean() > 0.3
    assert p_value(x, rbm) > FAILURE_RATE / 2


def test_steps_that_are_not_adjusted_are_caught():
    rbm = machine()
    x = rbm.marginal().sample((DRAWS,))
    moved = step(x, machine=rbm, langevin_steps=10, step_size=0.7, adjusted=False)
    assert p_value(moved, rbm) < FAILURE_RATE / 2


def test_unadjusted_steps_tend_to_the_variance_that_is_documented():
    """Without couplings x is N(sigma^2 a, sigma^2), and the chain an autoregression."""
    rbm = machine()
    rbm.weight.zero_()
    x = torch.zeros(DRAWS, 3)
    x = step(x, machine=rbm, langevin_steps=60, step_size=1.0, adjusted=False)
    expected = rbm.variance / (1 - 1 / 4)
    # a sample variance of normals; three of them: quantile of 1 - 1e-5 / 3 is 4.5
    assert ((x.var(0) / expected - 1).abs() < 4.5 * (2 / DRAWS) ** 0.5).all()
    assert ((x.mean(0) - rbm.loc).abs() < 4.5 * (expected / DRAWS).sqrt()).all()


def test_it_runs_under_mcmc_and_as_a_negative_phase():
    rbm = machine()
    kernel = GibbsLangevin(rbm, torch.zeros(10, 3))
    mcmc = MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["x"].shape == (3, 10, 3)
    for persistent in (True, False):
        story = GaussianRBM.from_data(torch.randn(20, 3), 4)
        loss = ContrastiveDivergence(2, persistent, sampler=Langevin(3))
        before = story.weight.detach().clone()
        ppgen.train(story, torch.randn(20, 3), loss=loss, epochs=1, batch_size=7)
        assert (story.weight != before).all()
        assert ("chains" in loss.state_dict()) == persistent


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Langevin(0), "langevin_steps"),
        (lambda: Langevin(step_size=2.0), "step_size"),
        (lambda: GibbsLangevin(RBM(3, 2), torch.zeros(2, 3)), "real visible units"),
        (lambda: GibbsLangevin(machine(), torch.zeros(2, 4)), "start: expected shape"),
    ],
)
def test_wrong_options_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
