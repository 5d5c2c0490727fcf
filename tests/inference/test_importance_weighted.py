"""Importance weighted losses on linear-Gaussian stories, whose evidence and posterior are exact."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.nn import PyroModule, pyro_method
from torch import nn
from torch.distributions import MultivariateNormal

from ppgen.inference import (
    ELBO,
    DReG,
    ImportanceWeightedELBO,
    ReweightedWakeSleep,
    StickingTheLanding,
)
from ppgen.inference.importance_weights import weigh
from ppgen.models.vae import VAE

LOSSES = [ImportanceWeightedELBO, DReG, StickingTheLanding, ReweightedWakeSleep]


class Linear(PyroModule):
    """z ~ N(0, I), x | z ~ N(W z, s^2 I): x ~ N(0, W W^T + s^2 I), and z | x is normal."""

    def __init__(self, exact=False, subsample=None, scale=1.0):
        super().__init__()
        self.subsample, self.scale = subsample, scale
        self.W = nn.Parameter(torch.tensor([[1.0, 0.4], [-0.3, 0.8], [0.5, 0.5]]))
        precision = torch.eye(2) + self.W.T @ self.W / 0.5
        cov = torch.linalg.inv(precision).detach()
        gain = (cov @ self.W.T / 0.5).detach()
        self.gain = nn.Parameter(gain if exact else 0.7 * gain)
        # contiguous: Pyro keeps a copy of other parameters, and trains that
        factor = torch.linalg.cholesky(cov).contiguous()
        self.factor = nn.Parameter(factor if exact else 1.3 * factor)

    def plate(self, x):
        return pyro.plate("data", len(x), subsample_size=self.subsample)

    @pyro_method
    def model(self, x):
        W = self.W
        with poutine.scale(scale=self.scale), self.plate(x) as i:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ W.T, math.sqrt(0.5)).to_event(1), obs=x[i])

    @pyro_method
    def guide(self, x):
        gain, factor = self.gain, self.factor.tril()
        with poutine.scale(scale=self.scale), self.plate(x) as i:
            pyro.sample("z", dist.MultivariateNormal(x[i] @ gain.T, scale_tril=factor))

    def evidence(self, x):
        W = self.W
        return MultivariateNormal(torch.zeros(3), W @ W.T + 0.5 * torch.eye(3)).log_prob(x)


class TwoLayers(Linear):
    """The same law of x with z in two sites, the second of which depends on the first."""

    @pyro_method
    def model(self, x):
        W = self.W
        with self.plate(x) as i:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.5 * a, math.sqrt(0.75)))
            z = torch.stack([a, (b - 0.5 * a) / math.sqrt(0.75)], -1)
            pyro.sample("x", dist.Normal(z @ W.T, math.sqrt(0.5)).to_event(1), obs=x[i])

    @pyro_method
    def guide(self, x):
        gain, factor = self.gain, self.factor.tril()
        with self.plate(x) as i:
            loc = x[i] @ gain.T
            a = pyro.sample("a", dist.Normal(loc[..., 0], factor[0, 0]))
            b = loc[..., 1] + factor[1, 0] * a
            pyro.sample("b", dist.Normal(b, factor[1, 1]))


X = torch.tensor([[1.2, -0.4, 0.9]], dtype=torch.float64)


def gradients(loss, story, x, repeats):
    """Gradients of the negative bound per example, (repeats, parameters), and their sizes."""
    rows = []
    for _ in range(repeats):
        story.zero_grad()
        loss.loss_and_grads(story.model, story.guide, x)
        rows.append(torch.cat([p.grad.flatten() for p in story.parameters()]) / len(x))
    return torch.stack(rows)


def test_the_bounds_are_in_their_order_below_the_evidence():
    story, x = Linear(), X.expand(5000, 3)
    exact = story.evidence(X).item()
    found = []
    for draws in (1, 4, 32):
        value = ImportanceWeightedELBO(draws).loss(story.model, story.guide, x)
        found.append(-value / len(x))
    # log weights of this guide deviate by 0.6: an error of a mean is below 0.01
    assert found[0] + 0.02 < found[1] < found[2] < exact + 0.02
    assert exact - found[2] < 0.02
    assert -ELBO().loss(story.model, story.guide, x) / len(x) == pytest.approx(found[0], abs=0.05)


@pytest.mark.parametrize("loss", [ImportanceWeightedELBO, DReG, StickingTheLanding])
def test_one_draw_is_the_elbo(loss):
    story, x = Linear(), X + 0.3 * torch.randn(7, 3)
    torch.manual_seed(2)
    elbo = ELBO(analytic=False).loss(story.model, story.guide, x)
    torch.manual_seed(2)
    assert loss(1).loss(story.model, story.guide, x) == pytest.approx(elbo, abs=1e-10)
    torch.manual_seed(2)
    assert loss(1).loss_and_grads(story.model, story.guide, x) == pytest.approx(elbo, abs=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("subsample", [None, 5])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_with_the_exact_posterior_each_is_the_evidence_also_subsampled(loss, subsample, scale):
    """Every weight is p(x); the factor 20 / 5 inside the logarithm would be off by nats."""
    story, x = Linear(True, subsample, scale), X.expand(20, 3)
    expected = -20 * scale * story.evidence(X).item()
    assert loss(6).loss(story.model, story.guide, x) == pytest.approx(expected, abs=1e-9)
    assert loss(6).loss_and_grads(story.model, story.guide, x) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("loss", [DReG, StickingTheLanding])
def test_with_the_exact_posterior_the_guides_gradient_has_no_noise(loss):
    story, x = Linear(exact=True), X + torch.randn(9, 3)
    loss(5).loss_and_grads(story.model, story.guide, x)
    assert story.gain.grad.abs().max() < 1e-9
    assert story.factor.grad.abs().max() < 1e-9
    assert story.W.grad.abs().max() > 0.1


@pytest.mark.parametrize("make", [Linear, TwoLayers])
@pytest.mark.parametrize(
    ("ours", "other"),
    [
        (DReG(5), ImportanceWeightedELBO(5)),
        (StickingTheLanding(5), ELBO(5, analytic=False)),
        (StickingTheLanding(1), DReG(1)),
    ],
    ids=["DReG", "sticking the landing", "one draw"],
)
def test_estimators_of_one_gradient_agree_in_the_mean(make, ours, other):
    story, x = make(), X.expand(500, 3)
    a, b = gradients(ours, story, x, 40), gradients(other, story, x, 40)
    error = ((a.var(0) + b.var(0)) / 40).sqrt()
    # 16 parameters, 80 - 2 degrees of freedom: beyond 5.6 errors once in 16 * 3e-7 = 5e-6
    assert ((a.mean(0) - b.mean(0)).abs() < 5.6 * error + 1e-12).all()
    assert a.mean(0).abs().max() > 0.1


def test_dreg_keeps_the_guides_signal_above_the_noise():
    story, x = Linear(), X.expand(20, 3)
    guide = slice(6, None)  # the first six parameters are W
    noisy = gradients(ImportanceWeightedELBO(64), story, x, 60)[:, guide].var(0).sum()
    quiet = gradients(DReG(64), story, x, 60)[:, guide].var(0).sum()
    # measured ratio: 30; two variances of 60 runs are each right within a factor of two
    assert noisy > 4 * quiet


class Coin(PyroModule):
    """A discrete latent: b ~ Bernoulli(p), x | b ~ N(2 b, 1)."""

    def __init__(self):
        super().__init__()
        self.prior = nn.Parameter(torch.tensor(0.2))
        self.logit = nn.Parameter(torch.tensor(0.0))
        self.logit.data = self.posterior().detach()

    def posterior(self):
        return self.prior + (1.5**2 - 0.5**2) / 2  # log-odds after x = 1.5

    @pyro_method
    def model(self, x):
        prior = self.prior
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=prior))
            pyro.sample("x", dist.Normal(2 * b, 1.0), obs=x)

    @pyro_method
    def guide(self, x):
        logit = self.logit
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=logit))


def test_reweighted_wake_sleep_teaches_discrete_latents():
    story, x = Coin(), torch.full((20000,), 1.5)
    story.logit.data -= 0.8
    loss = ReweightedWakeSleep(50)
    loss.loss_and_grads(story.model, story.guide, x)
    p, posterior = torch.sigmoid(story.prior), torch.sigmoid(story.posterior())
    # d log p(x) / d logit = posterior - p; weights of 50 draws are biased by about 1 / 50
    assert -story.prior.grad / len(x) == pytest.approx((posterior - p).item(), abs=0.02)
    q = torch.sigmoid(story.logit)
    assert -story.logit.grad / len(x) == pytest.approx((posterior - q).item(), abs=0.02)


def test_each_is_a_loss_of_svi_that_moves_every_parameter_twice():
    for loss in LOSSES * 2:
        story, x = Linear(), X.expand(8, 3)
        before = [p.detach().clone() for p in story.parameters()]
        with pyro.get_param_store().scope():
            svi = SVI(story.model, story.guide, pyro.optim.Adam({"lr": 0.01}), loss=loss(4))
            assert isinstance(svi.step(x), float)
            assert isinstance(svi.evaluate_loss(x), float)
        for p, q in zip(story.parameters(), before, strict=True):
            assert not torch.equal(p, q)


@pytest.mark.parametrize("loss", LOSSES)
def test_recorded_steps_are_the_same_bit_for_bit(loss):
    found = []
    for recorded in (True, False):
        torch.manual_seed(3)
        vae, bound = VAE(6, 2, (5,)), loss(4)
        x = torch.bernoulli(torch.full((8, 6), 0.4))
        if not recorded:
            bound._steps.run = lambda *_: None
        optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
        values = []
        for _ in range(6):
            optimizer.zero_grad()
            values.append(bound.loss_and_grads(vae.model, vae.guide, x))
            optimizer.step()
        found.append([values, *(p.detach() for p in vae.parameters())])
        assert sum(map(len, bound._steps._steps.values())) == recorded
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1:], found[1][1:], strict=True))


def test_a_vae_has_the_bound_of_its_log_weights():
    vae, x = VAE(6, 2, (5,)), torch.bernoulli(torch.full((8, 6), 0.4))
    torch.manual_seed(1)
    weights = vae.log_weights(x, 5)
    expected = (weights.logsumexp(0) - math.log(5)).sum().item()
    torch.manual_seed(1)
    assert -ImportanceWeightedELBO(5).loss(vae.model, vae.guide, x) == pytest.approx(expected)


class Global(PyroModule):
    """A latent outside the data plate: all examples share their weights."""

    def __init__(self, subsample=None):
        super().__init__()
        self.subsample = subsample
        self.loc, self.scale = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.4))

    @pyro_method
    def model(self, x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=self.subsample) as i:
            pyro.sample("x", dist.Normal(m, 1.0), obs=x[i])

    @pyro_method
    def guide(self, x):
        pyro.sample("m", dist.Normal(self.loc, self.scale))


def test_a_global_latent_has_one_joint_weight():
    story, x = Global(), torch.tensor([0.3, 1.1, -0.2, 0.8, 0.5])
    exact = MultivariateNormal(torch.zeros(5), torch.eye(5) + torch.ones(5, 5)).log_prob(x)
    found = -ImportanceWeightedELBO(20000).loss(story.model, story.guide, x)
    # the posterior is N(1/3, 1/6): weights under N(0.5, 0.16) have a deviation below 0.6
    assert found == pytest.approx(exact.item(), abs=4.3 * 0.6 / 20000**0.5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_subsampled_plate_beside_a_global_latent_is_refused(loss):
    story = Global(subsample=2)
    with pytest.raises(ValueError, match=r"'x.*scaled by 2.5|inside the logarithm"):
        loss(4).loss(story.model, story.guide, torch.zeros(5))


def test_masked_examples_count_for_nothing():
    story, x, mask = Linear(), X.expand(6, 3), torch.arange(6) < 4

    def masked(program):
        return lambda x: poutine.mask(program, mask=mask)(x)

    loss = ImportanceWeightedELBO(3)
    torch.manual_seed(0)
    found = loss.loss(masked(story.model), masked(story.guide), x)
    torch.manual_seed(0)
    pair = loss._pair(story.model, story.guide, (x,), {})
    weights = weigh(pair, pair.run_guide())
    each = weights.log_w.logsumexp(0) - math.log(3)
    assert -found == pytest.approx(each[:4].sum().item())


@pytest.mark.parametrize("loss", [ImportanceWeightedELBO, DReG, StickingTheLanding])
def test_a_guide_without_reparameterised_draws_is_refused_by_name(loss):
    story = Coin()
    with pytest.raises(ValueError, match=r"'b' \(Bernoulli\).*ReweightedWakeSleep"):
        loss(4).loss_and_grads(story.model, story.guide, torch.zeros(3))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_bound_that_is_not_finite_names_its_site_and_writes_no_gradient(loss):
    story, x = Linear(), X.expand(4, 3).clone()
    x[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"not finite, first at site '[xz]'"):
        loss(3).loss_and_grads(story.model, story.guide, x)
    assert all(p.grad is None for p in story.parameters())


def test_a_guide_that_lacks_a_site_is_refused_by_name():
    story = Linear()
    with pytest.raises(ValueError, match="'z' is not in the guide"):
        ImportanceWeightedELBO(3).loss(story.model, lambda x: None, X)


@pytest.mark.parametrize("loss", LOSSES)
def test_draws_must_be_enough(loss):
    with pytest.raises(ValueError, match="at least"):
        loss(0)
