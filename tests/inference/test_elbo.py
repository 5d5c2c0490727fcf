"""The ELBO against Pyro's estimates under the same noise, and against closed forms."""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO, autoguide
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import kl_divergence

from ppgen.inference.elbo import ELBO, NormalDivergence
from ppgen.models.vae import VAE


class Story(PyroModule):
    """Two latents of which the second depends on the first; options for the trimmings."""

    def __init__(self, subsample=None, scale=1.0, mask=None, order="zw"):
        super().__init__()
        self.subsample, self.scale, self.mask, self.order = subsample, scale, mask, order
        self.loc = nn.Parameter(torch.randn(2))
        self.log_scale = nn.Parameter(0.1 * torch.randn(2))
        self.weight = nn.Parameter(torch.randn(3))

    def plate(self, x):
        return pyro.plate("data", len(x), subsample_size=self.subsample)

    def masked(self, i):
        return nullcontext() if self.mask is None else poutine.mask(mask=self.mask[i])

    @pyro_method
    def model(self, x):
        w = pyro.sample("w", dist.Gamma(2.0, 1.0))
        with poutine.scale(scale=self.scale), self.plate(x) as i, self.masked(i):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            mean = z[:, None] * self.weight
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x[i])
            pyro.sample("b", dist.Bernoulli(logits=mean).to_event(1), obs=(x[i] > 0).to(x))

    @pyro_method
    def guide(self, x):
        def w():
            return pyro.sample("w", dist.LogNormal(self.loc[0], self.log_scale[0].exp()))

        def z():
            with poutine.scale(scale=self.scale), self.plate(x) as i, self.masked(i):
                loc = self.loc[1] * x[i].sum(-1)
                pyro.sample("z", dist.Normal(loc, self.log_scale[1].exp()))

        for draw in (w, z) if self.order == "wz" else (z, w):
            draw()


MASK = torch.arange(6) % 3 > 0
STORIES = {
    "plain": {"order": "wz"},
    "other order": {"order": "zw"},
    "subsampled": {"order": "wz", "subsample": 4},
    "scaled": {"order": "wz", "scale": 0.3},
    "masked": {"order": "wz", "mask": MASK},
    "all": {"order": "wz", "mask": MASK, "scale": 2.5, "subsample": 3},
}


def value_and_gradients(loss, story, *args):
    story.zero_grad()
    torch.manual_seed(3)
    with pyro.get_param_store().scope():
        value = loss.loss_and_grads(story.model, story.guide, *args)
    return value, {name: p.grad for name, p in story.named_parameters()}


def assert_alike(ours, pyros):
    assert ours[0] == pytest.approx(pyros[0], abs=1e-10)
    assert ours[1].keys() == pyros[1].keys()
    for name, gradient in pyros[1].items():
        assert gradient is not None, name
        assert torch.allclose(ours[1][name], gradient, atol=1e-10, rtol=1e-10), name


@pytest.mark.parametrize("options", STORIES.values(), ids=STORIES)
@pytest.mark.parametrize("particles", [1, 3])
def test_equals_trace_elbo_under_the_same_noise(options, particles):
    story, x = Story(**options), torch.randn(6, 3)
    ours = value_and_gradients(ELBO(particles, analytic=False), story, x)
    assert_alike(ours, value_and_gradients(Trace_ELBO(particles), story, x))


@pytest.mark.parametrize("name", [name for name in STORIES if name != "other order"])
def test_equals_trace_mean_field_elbo_under_the_same_noise(name):
    story, x = Story(**STORIES[name]), torch.randn(6, 3)
    ours = value_and_gradients(ELBO(), story, x)
    assert_alike(ours, value_and_gradients(TraceMeanField_ELBO(), story, x))


@pytest.mark.parametrize("analytic", [True, False])
def test_a_vae_equals_pyro(analytic):
    vae, x = VAE(6, 2, (5,)), torch.bernoulli(torch.full((8, 6), 0.4))
    ours = value_and_gradients(ELBO(analytic=analytic), vae, x)
    pyros = TraceMeanField_ELBO() if analytic else Trace_ELBO()
    assert_alike(ours, value_and_gradients(pyros, vae, x))


def test_the_divergence_of_normals_and_its_derivatives_of_both_orders():
    raw = [torch.randn(3, 2) for _ in range(4)]
    inputs = [raw[0], raw[1].exp(), raw[2], raw[3].exp()]
    for x in inputs:
        x.requires_grad_()
    loc, scale, prior_loc, prior_scale = inputs
    expected = kl_divergence(dist.Normal(loc, scale), dist.Normal(prior_loc, prior_scale)).sum()
    torch.testing.assert_close(NormalDivergence.apply(*inputs), expected)
    assert gradcheck(NormalDivergence.apply, inputs)
    assert gradgradcheck(NormalDivergence.apply, inputs)


def test_divergence_is_not_analytic_where_the_guide_draws_a_parent_later():
    """The guide is the exact posterior, drawn in the other order: the ELBO is log p(x) = 0."""
    many = 20000

    def model():
        with pyro.plate("many", many):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("z", dist.Normal(w, 1.0))

    def guide():
        with pyro.plate("many", many):
            z = pyro.sample("z", dist.Normal(0.0, torch.tensor(2.0).sqrt()))
            pyro.sample("w", dist.Normal(z / 2, torch.tensor(0.5).sqrt()))

    # KL(q(z) || p(z | w)), analytic, would be wrong by one; one term's deviation is below 2
    assert abs(ELBO().loss(model, guide) / many) < 4.3 * 2 / many**0.5
    assert ELBO(analytic=False).loss(model, guide) == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("auto", [autoguide.AutoNormal, autoguide.AutoDelta])
def test_the_jacobian_of_an_autoguide_counts(auto):
    def model():
        pyro.sample("s", dist.Gamma(3.0, 2.0))

    guide = auto(model)
    guide()
    torch.manual_seed(1)
    ours = ELBO().loss(model, guide)
    torch.manual_seed(1)
    assert ours == pytest.approx(Trace_ELBO().loss(model, guide), abs=1e-12)


def test_score_function_guides_have_the_right_gradient():
    """A Bernoulli guide: the gradient of p f(1) + (1 - p) f(0) in closed form."""
    logit = nn.Parameter(torch.tensor(0.3))
    many = 20000

    def model():
        with pyro.plate("many", many):
            b = pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(2 * b, 1.0), obs=torch.full((many,), 1.5))

    def guide():
        with pyro.plate("many", many):
            pyro.sample("b", dist.Bernoulli(logits=logit))

    ELBO().loss_and_grads(model, guide)
    p = torch.sigmoid(logit.detach())
    # d/dl of p log p(x, 1) + (1 - p) log p(x, 0) + entropy: p (1 - p) (log-odds difference - l)
    posterior = (1.5**2 - 0.5**2) / 2
    expected = -many * p * (1 - p) * (posterior - logit.detach())
    # each term is (log p - log q) (b - p): below 2.6 * 0.6 in size; 4.3 deviations: 2e-5
    assert abs(logit.grad - expected) < 4.3 * 1.6 * many**0.5


def test_enumerated_sites_are_summed_out():
    locs = nn.Parameter(torch.tensor([-1.0, 1.0]))
    x = torch.tensor([0.3, -0.8])

    @pyro.infer.config_enumerate
    def model():
        with pyro.plate("data", 2):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide():
        pass

    density = dist.Normal(locs, 1.0).log_prob(x[:, None]) + torch.tensor([0.4, 0.6]).log()
    exact = density.logsumexp(-1).sum()
    assert ELBO().loss_and_grads(model, guide) == pytest.approx(-exact.item(), abs=1e-12)
    expected = torch.autograd.grad(-exact, locs)[0]
    assert torch.allclose(locs.grad, expected, atol=1e-12)


class Constrained(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(1.5), dist.constraints.positive)

    @pyro_method
    def model(self):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    @pyro_method
    def guide(self):
        pyro.sample("z", dist.Normal(0.0, self.scale))


@pytest.mark.parametrize("turn", [1, 2])
def test_svi_trains_every_instance_of_a_class(turn):
    for _ in range(turn):
        story = Constrained()
        with pyro.get_param_store().scope():
            svi = SVI(story.model, story.guide, pyro.optim.Adam({"lr": 0.1}), loss=ELBO())
            for _ in range(100):
                svi.step()
            # the KL of N(0, s) from N(0, 1) is analytic here: its minimum is at s = 1
            assert abs(story.scale.item() - 1) < 1e-2
            assert svi.evaluate_loss() == pytest.approx(0.0, abs=1e-3)


def test_it_leaves_no_parameters_of_plain_modules_behind_but_the_gradients():
    vae = VAE(6, 2, (5,))
    ELBO().loss_and_grads(vae.model, vae.guide, torch.zeros(3, 6))
    assert not list(pyro.get_param_store().keys())
    assert all(p.grad is not None and p.grad.any() for p in vae.decoder[-1].parameters())


def test_differentiable_loss_and_module_form_agree():
    story, x = Story(order="wz"), torch.randn(6, 3)
    torch.manual_seed(0)
    loss = ELBO(2).differentiable_loss(story.model, story.guide, x)
    torch.manual_seed(0)
    assert ELBO(2).loss(story.model, story.guide, x) == pytest.approx(loss.item(), abs=1e-12)


def test_missing_values_name_the_site_and_write_no_gradient():
    story, x = Story(order="wz"), torch.randn(6, 3)
    x[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"'x' is nan at \[2, 1\]"):
        ELBO().loss_and_grads(story.model, story.guide, x)
    assert all(p.grad is None for p in story.parameters())


def test_a_guide_that_lacks_a_site_is_refused_by_name():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'z' is not in the guide"):
        ELBO().loss(model, lambda: None)


def test_a_site_name_used_twice_is_refused():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="named 'z'"):
        ELBO().loss(model, model)


def test_particles_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        ELBO(0)
