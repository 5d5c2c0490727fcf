"""The VAE and the base rate: against enumeration and quadrature, and under plain Pyro."""

import itertools

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

from ppgen.inference.elbo import ELBO
from ppgen.inference.likelihood import log_likelihood
from ppgen.models.base_rate import BaseRate, whole_levels
from ppgen.models.vae import VAE
from ppgen.networks.mlp import MLP, GaussianMLP

EVERY = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)


def evidence(vae, x):
    """log p(x) of a VAE with one latent, by quadrature of z over +-8."""
    z = torch.linspace(-8, 8, 2001)[:, None]
    joint = vae.decode(z[:, None]).log_prob(x) + vae.prior().log_prob(z)[:, None]
    return joint.logsumexp(0) + torch.log(z[1, 0] - z[0, 0])


def test_bounds_enclose_the_evidence_and_probabilities_sum_to_one():
    vae = VAE(4, latent=1, hidden=(5,))
    exact = evidence(vae, EVERY).detach()
    # quadrature of an analytic, decaying function: exact to rounding but for the tails, 1e-15
    assert exact.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    likelihood = log_likelihood(vae, EVERY, samples=5000, seed=0)
    assert likelihood.details["elbo"] < likelihood.lower
    assert abs(likelihood.lower - exact.mean().item()) < 0.01 + 4.3 * likelihood.lower_error


def test_log_weights_average_to_the_evidence():
    vae = VAE(4, latent=1, hidden=(5,))
    weights = (vae.log_weights(EVERY, 4000) - evidence(vae, EVERY)).exp().detach()
    error = weights.std(0) / 4000**0.5
    # 16 means, each off by 4.8 errors once in 1.6e-6
    assert ((weights.mean(0) - 1).abs() < 4.8 * error).all()


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO, ELBO])
@pytest.mark.parametrize("times", [1, 2])
def test_svi_changes_every_parameter_of_every_instance(loss, times):
    x = torch.bernoulli(torch.full((10, 6), 0.3))
    for _ in range(times):
        vae = VAE(6, 2, (5,))
        before = {name: p.detach().clone() for name, p in vae.named_parameters()}
        with pyro.get_param_store().scope():
            svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=loss())
            for _ in range(3):
                svi.step(x)
        for name, parameter in vae.named_parameters():
            assert not torch.equal(parameter, before[name]), name


def test_predictive_draws_and_the_graph_renders():
    vae, x = VAE(6, 2, (5,)), torch.zeros(3, 6)
    draws = Predictive(vae.guide, num_samples=4)(x)
    assert draws["z"].shape == (4, 3, 2)
    graph = pyro.infer.inspect.get_model_relations(vae.model, (x,))
    assert graph["sample_sample"] == {"z": [], "x": ["z"]}
    assert graph["plate_sample"] == {"data": ["z", "x"]}


def test_trained_on_two_patterns_it_gives_each_half():
    patterns = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    x = patterns.repeat(32, 1)
    vae = VAE(4, latent=1, hidden=(16,))
    optimizer, loss = torch.optim.Adam(vae.parameters(), 0.03), ELBO()
    for _ in range(200):
        optimizer.zero_grad()
        loss.loss_and_grads(vae.model, vae.guide, x)
        optimizer.step()
    # the best any model does is log(1/2) = -0.69; independent pixels reach 4 log(1/2) = -2.77
    assert evidence(vae, patterns).mean() > -0.9
    assert torch.equal(vae.reconstruct(patterns).round(), patterns)


def test_pictures_have_their_shapes_and_ends():
    vae, x = VAE(6, 2, (5,)), torch.bernoulli(torch.full((3, 6), 0.5))
    path = vae.interpolate(x[0], x[1], steps=5)
    assert path.shape == (5, 6)
    assert torch.allclose(path[[0, -1]], vae.reconstruct(x[:2]))
    assert vae.interpolate(x, x.flip(0), steps=4).shape == (4, 3, 6)
    samples = vae.sample(7)
    assert samples.shape == (7, 6)
    assert whole_levels(samples) is samples


def test_networks_can_be_passed_in():
    encoder, decoder = GaussianMLP((6, 3, 2)), MLP((2, 3, 6))
    vae = VAE(6, 2, encoder=encoder, decoder=decoder)
    assert vae.encoder is encoder
    assert vae.decoder is decoder


def test_data_of_another_dtype_follow_the_parameters():
    vae = VAE(6, 2, (5,)).float()
    x = torch.zeros(3, 6, dtype=torch.uint8)
    assert vae.log_weights(x, 2).dtype == torch.float32
    assert isinstance(ELBO().loss_and_grads(vae.model, vae.guide, x), float)


def test_state_comes_back():
    vae, other, x = VAE(6, 2, (5,)), VAE(6, 2, (5,)), torch.ones(3, 6)
    other.load_state_dict(vae.state_dict())
    assert torch.equal(vae.reconstruct(x), other.reconstruct(x))


@pytest.mark.parametrize("wrong", [0.5, 255.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("use", ["model", "log_weights", "base rate", "ELBO"])
def test_anything_but_binary_is_refused_with_its_row_and_column(wrong, use):
    vae, x = VAE(6, 2, (5,)), torch.zeros(4, 6)
    x[2, 3] = wrong
    uses = {
        "model": lambda: vae.model(x),
        "log_weights": lambda: vae.log_weights(x, 2),
        "base rate": lambda: BaseRate(x),
        "ELBO": lambda: ELBO().loss_and_grads(vae.model, vae.guide, x.nan_to_num(0.5, 0.5)),
    }
    with pytest.raises(ValueError, match="row 2, column 3"):
        uses[use]()


def test_data_of_another_width_are_refused():
    with pytest.raises(ValueError, match="6"):
        VAE(6, 2, (5,)).model(torch.zeros(3, 5))


def test_base_rate_is_normalised_and_its_pair_scores_the_same():
    story = BaseRate(EVERY[[3, 5, 9]])
    assert story.log_prob(EVERY).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    loss = ELBO().loss(story.model, story.guide, EVERY)
    assert loss == pytest.approx(-story.log_prob(EVERY).sum().item(), abs=1e-10)
    assert story.sample(5).shape == (5, 4)


def test_base_rate_has_no_impossible_image():
    story = BaseRate(torch.zeros(9, 4))
    assert torch.allclose(story.rates, torch.full((4,), 0.05))  # (0 + 1/2) / 10
    assert story.log_prob(torch.ones(4)).isfinite()
