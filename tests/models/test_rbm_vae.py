"""An RBM as the prior of a VAE: gradients and bounds against enumeration of its few latents."""

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO

import ppgen
from ppgen.inference import LeaveOneOut
from ppgen.models import RBM, RBMVAE, GaussianRBM
from ppgen.types import MachinePrior

pytestmark = pytest.mark.usefixtures("silent")

Z = 5.0


def states(units):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * units).reshape(-1, units)


def story(latent=3, hidden=2, visible=4, scale=1.0):
    prior = RBM(latent, hidden, weight_scale=scale)
    torch.nn.init.normal_(prior.visible_bias)
    return RBMVAE(visible, prior, hidden=(5,))


def test_networks_of_another_width_are_refused():
    """One logit would broadcast: every pixel, or every unit of the code, would be that one."""
    with pytest.raises(ValueError, match="decoder gives 1 logits for 4 units"):
        RBMVAE(4, RBM(3, 2), decoder=torch.nn.Linear(3, 1)).model(data())
    with pytest.raises(ValueError, match="encoder gives 1 logits for 3 units"):
        RBMVAE(4, RBM(3, 2), encoder=torch.nn.Linear(4, 1)).guide(data())


def data(rows=3):
    return torch.tensor([[1.0, 0, 1, 0], [1, 1, 1, 0], [0, 1, 0, 0]])[:rows]


def joint(vae, x):
    """``log p(x, z)`` of all z, ``(N, 2**L)``."""
    z = states(vae.latent).expand(len(x), -1, -1)
    return vae.decode(z).log_prob(x[:, None]) + vae.prior.marginal().log_prob(z)


def exact_elbo(vae, x):
    z = states(vae.latent)[:, None].expand(-1, len(x), -1)
    log_q = vae.encode(x).log_prob(z).T
    return (log_q.exp() * (joint(vae, x) - log_q)).sum(1).mean()


def test_it_meets_the_protocol():
    assert isinstance(story(), MachinePrior)


def estimates(vae, x, count, samples=3):
    """Gradients of `count` steps whose chains start exact."""
    found = []
    loss = LeaveOneOut(samples, 1)
    for _ in range(count):
        loss.state = vae.prior.marginal().sample((10,))
        vae.zero_grad()
        loss.loss_and_grads(vae.model, vae.guide, x)
        found.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
    return torch.stack(found)


def test_the_gradient_is_that_of_the_exact_bound():
    vae, x = story(), data()
    gradients = torch.autograd.grad(-exact_elbo(vae, x), list(vae.parameters()))
    exact = torch.cat([g.flatten() for g in gradients])
    found = estimates(vae, x, 250)
    error = found.std(0) / 250**0.5
    # 97 comparisons with some 250 degrees of freedom: normal quantile of 1 - 1e-5 / 97 is 5.2
    assert ((found.mean(0) - exact).abs() < 5.3 * error + 1e-12).all()
    assert (error > 0).double().mean() > 0.7  # but for dead ReLUs


@pytest.mark.slow
def test_a_baseline_that_sees_its_own_draw_is_caught():
    """The planted bug: f minus the mean of all K shrinks the gradient of q by (K - 1) / K."""
    vae, x = story(), data()
    exact = torch.autograd.grad(-exact_elbo(vae, x), list(vae.encoder.parameters()))
    found = estimates(vae, x, 250, samples=2)
    names = [name for name, p in vae.named_parameters() for _ in range(p.numel())]
    encoder = torch.tensor([name.startswith("encoder") for name in names])
    whole = torch.cat([g.flatten() for g in exact])
    share = (found.mean(0)[encoder] @ whole) / (whole @ whole)
    spread = ((found[:, encoder] @ whole) / (whole @ whole)).std() / 250**0.5
    assert abs(share - 1) < Z * spread
    assert Z * spread < 0.5  # so that one half, which the bug would give, is excluded


@pytest.mark.parametrize("loss", [LeaveOneOut(), Trace_ELBO(), TraceGraph_ELBO()])
def test_svi_trains_it_twice_in_one_process(loss):
    for _ in range(2):
        vae = story()
        if isinstance(loss, LeaveOneOut):
            loss.load_state_dict({})
        before = {name: p.detach().clone() for name, p in vae.named_parameters()}
        with pyro.get_param_store().scope():
            svi = SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 0.1}), loss)
            svi.step(data())
        assert all((p != before[name]).any() for name, p in vae.named_parameters())


def test_training_raises_the_exact_likelihood():
    x = data().repeat(20, 1)
    vae = story(scale=0.1)
    with torch.no_grad():
        before = joint(vae, data()).logsumexp(1).mean()
    loss = LeaveOneOut(8, 2, chains=100)
    ppgen.train(vae, x, loss=loss, epochs=150, batch_size=60, learning_rate=0.02)
    with torch.no_grad():
        after = joint(vae, data()).logsumexp(1).mean()
        bound = exact_elbo(vae, data())
    assert before + 0.7 < after <= -torch.tensor(3.0).log()  # three examples, as likely
    assert bound <= after


def test_the_likelihood_is_a_bound_that_becomes_tight():
    vae, x = story(), data()
    exact = joint(vae, x).logsumexp(1).mean().item()
    found = ppgen.log_likelihood(vae, x, samples=4000, seed=0)
    assert found.kind == "lower"
    assert "enumeration" in found.method
    assert abs(found.lower - exact) < Z * found.lower_error + 1e-3
    few = torch.tensor([ppgen.log_likelihood(vae, x, samples=1, seed=s).lower for s in range(100)])
    with torch.no_grad():
        assert abs(few.mean() - exact_elbo(vae, x)) < Z * few.std() / 100**0.5


def test_a_large_prior_is_bracketed_and_its_higher_log_z_subtracted():
    vae = story(latent=21, hidden=21, scale=0.1)
    found = ppgen.log_likelihood(
        vae, data(), samples=50, chains=20, temperatures=50, burn_in=20, seed=0
    )
    z = found.details["log_partition"]
    assert found.kind == "lower"
    with torch.no_grad():
        exact = vae.prior.log_partition(21).item()
    assert max(z.lower, z.upper) + Z * z.upper_error > exact
    with pytest.raises(ValueError, match="site 'z'"):  # no ELBO without log Z
        Trace_ELBO().loss(vae.model, vae.guide, data())


def test_samples_and_resumed_chains_have_their_shapes():
    vae, loss = story(), LeaveOneOut(chains=7)
    assert vae.sample(5, gibbs_steps=2).shape == (5, 4)
    loss.loss_and_grads(vae.model, vae.guide, data())
    kept = loss.state_dict()["chains"]
    assert kept.shape == (7, 3)
    loss.loss(vae.model, vae.guide, data())
    assert torch.equal(loss.state_dict()["chains"], kept)
    other = LeaveOneOut()
    other.load_state_dict({"chains": kept})
    assert torch.equal(other.state, kept)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: RBMVAE(4, GaussianRBM(3, 2)), "binary visible units"),
        (lambda: LeaveOneOut(1), "at least 2, got 1"),
        (lambda: LeaveOneOut(chains=0), "chains"),
        (lambda: LeaveOneOut().loss(story().model, None, torch.ones(2, 5)), r"\(B, 4\)"),
    ],
)
def test_wrong_calls_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_another_story_is_refused_by_name():
    rbm = RBM(4, 2)
    with pytest.raises(TypeError, match="ContrastiveDivergence"):
        LeaveOneOut().loss(rbm.model, rbm.guide, data())
