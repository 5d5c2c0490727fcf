"""The VAE and the base rate: against enumeration and quadrature, and under plain Pyro."""

import itertools

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from ppgen import latent
from ppgen.inference.elbo import ELBO
from ppgen.inference.likelihood import log_likelihood
from ppgen.models.base_rate import BaseRate, whole_levels
from ppgen.models.conditional_vae import ConditionalVAE
from ppgen.models.flow import Flow
from ppgen.models.hierarchical_vae import HierarchicalVAE
from ppgen.models.rbm import RBM
from ppgen.models.rbm_vae import RBMVAE
from ppgen.models.vae import VAE
from ppgen.networks.convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from ppgen.networks.flow_posterior import AutoregressivePosterior
from ppgen.networks.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretisedLogisticLikelihood,
    GaussianLikelihood,
)
from ppgen.networks.mlp import MLP, hidden_layers
from ppgen.networks.posteriors import FullNormal
from ppgen.networks.priors import FlowPrior, MixturePrior, VampPrior

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
    encoder, decoder = hidden_layers((6, 3)), MLP((2, 3, 6))
    vae = VAE(6, 2, (3,), encoder=encoder, decoder=decoder)
    assert vae.encoder is encoder
    assert vae.decoder is decoder


def test_data_of_another_dtype_follow_the_parameters():
    vae = VAE(6, 2, (5,)).float()
    x = torch.zeros(3, 6, dtype=torch.uint8)
    assert vae.log_weights(x, 2).dtype == torch.float32
    assert isinstance(ELBO().loss_and_grads(vae.model, vae.guide, x), float)
    for other in (torch.uint8, torch.bool, torch.float64):
        assert vae.encode(x.to(other)).mean.dtype == torch.float32
    assert latent.codes(vae, x).shape == (3, 2)
    assert latent.midpoint_likelihood(vae, x[:1], x[1:2]).middle.isfinite().all()


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


PARTS = {
    "continuous Bernoulli": lambda: {"likelihood": ContinuousBernoulliLikelihood()},
    "Gaussian": lambda: {"likelihood": GaussianLikelihood(0.8, learned=True)},
    "Gaussian, each": lambda: {"likelihood": GaussianLikelihood(None)},
    "discretised logistic": lambda: {"likelihood": DiscretisedLogisticLikelihood(5)},
    "categorical": lambda: {"likelihood": CategoricalLikelihood(3)},
    "full covariance": lambda: {"posterior": FullNormal(5, 1)},
    "IAF": lambda: {"posterior": AutoregressivePosterior(5, 1, layers=2, hidden=(3,))},
    "mixture": lambda: {"prior": MixturePrior(1, 3)},
    "VampPrior": lambda: {"prior": VampPrior(EVERY[:3])},
    "flow prior": lambda: {"prior": FlowPrior(Flow(1, layers=1, hidden=(4,)))},
}


@pytest.mark.parametrize("name", PARTS)
def test_with_any_part_the_weights_average_to_the_evidence(name):
    vae = VAE(4, 1, (5,), **PARTS[name]())
    with torch.no_grad():
        x = vae.sample(6)
        weights = (vae.log_weights(x, 4000) - evidence(vae, x)).exp()
    # codes from the prior are within the quadrature's +-8 (a flow or mixture starts near N(0, 1));
    # 6 means, each off by 4.8 errors once in 1.6e-6
    error = weights.std(0) / 4000**0.5
    assert ((weights.mean(0) - 1).abs() < 4.8 * error + 1e-6).all()


@pytest.mark.parametrize("name", PARTS)
def test_any_part_trains_under_our_elbo_and_pyros_alike(name):
    vae = VAE(4, 1, (5,), **PARTS[name]())
    x = vae.sample(6)
    gradients = []
    for loss in (ELBO(analytic=False), Trace_ELBO()):
        vae.zero_grad()
        torch.manual_seed(5)
        with pyro.get_param_store().scope():
            value = loss.loss_and_grads(vae.model, vae.guide, x)
        gradients.append([value, *(p.grad.clone() for p in vae.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1])
    for path in (vae.reconstruct(x), vae.interpolate(x[0], x[1], 3)):
        assert path.isfinite().all()
    graph = pyro.infer.inspect.get_model_relations(vae.model, (x,))
    assert graph["plate_sample"] == {"data": ["z", "x"]}


@pytest.mark.parametrize("name", PARTS)
def test_the_steps_of_any_part_are_recorded(name):
    vae, elbo = VAE(4, 1, (5,), **PARTS[name]()), ELBO()
    x = vae.sample(6)
    for _ in range(3):
        elbo.loss_and_grads(vae.model, vae.guide, x)
    assert sum(map(len, elbo._steps._steps.values())) == 1


def test_a_linear_gaussian_vae_is_probabilistic_pca():
    """Tipping and Bishop (1999): x ~ N(b, W W^T + s^2 I), and the posterior is Gaussian."""
    vae = VAE(3, 2, (), posterior=FullNormal(3, 2), likelihood=GaussianLikelihood(0.6))
    W, b = vae.decoder[0].weight.detach(), vae.decoder[0].bias.detach()
    precision = torch.eye(2) + W.T @ W / 0.36
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    head = vae.posterior.head
    gain = torch.linalg.solve(precision, W.T / 0.36)
    with torch.no_grad():  # the exact posterior: a linear mean, one covariance for all
        head.weight.zero_()[:2] = gain
        diagonal = torch.log(torch.expm1(factor.diagonal() - vae.posterior.smallest))
        head.bias.copy_(torch.cat([-gain @ b, diagonal, factor[1, :1]]))
    x = vae.sample(20)
    exact = torch.distributions.MultivariateNormal(b, W @ W.T + 0.36 * torch.eye(3)).log_prob(x)
    # with the exact posterior every weight is the evidence
    torch.testing.assert_close(vae.log_weights(x, 7), exact.expand(7, 20))
    assert ELBO(analytic=False).loss(vae.model, vae.guide, x) == pytest.approx(-exact.sum().item())


def test_a_convolutional_vae_trains():
    encoder = ConvolutionalEncoder((1, 8, 8), 10, (4, 8))
    vae = VAE(64, 3, (10,), encoder=encoder, decoder=ConvolutionalDecoder((1, 8, 8), 3, (4, 8)))
    x, elbo = torch.bernoulli(torch.full((5, 64), 0.5)), ELBO()
    for _ in range(3):
        elbo.loss_and_grads(vae.model, vae.guide, x)
    assert all(p.grad.abs().max() > 0 for p in vae.parameters())
    assert vae.log_weights(x, 2).shape == (2, 5)


def test_parts_that_do_not_fit_are_refused_by_their_widths():
    x = torch.zeros(3, 6)
    with pytest.raises(ValueError, match=r"encoder gives 7 features .* takes 5"):
        VAE(6, 2, (5,), encoder=nn.Linear(6, 7)).encode(x)
    wrong = VAE(6, 2, (5,), decoder=nn.Linear(2, 6), likelihood=GaussianLikelihood(None))
    with pytest.raises(ValueError, match="decoder gives 6 numbers, and 6 pixels with 2 each"):
        wrong.model(x)
    with pytest.raises(ValueError, match=r"code has 1 dimensions and the prior \(3,\)"):
        VAE(6, 1, (5,), prior=MixturePrior(3)).model(x)  # would broadcast, and be no bound
    with pytest.raises(ValueError, match=r"code has 3 dimensions and the posterior \(1,\)"):
        VAE(6, 3, (5,), posterior=FullNormal(5, 1)).guide(x)
    with pytest.raises(ValueError, match=r"code has 1 dimensions and the prior \(2,\)"):
        HierarchicalVAE(6, (2, 1), (5, 4), prior=MixturePrior(2)).model(x)
    with pytest.raises(ValueError, match="decoder gives 1 numbers, and 6 pixels"):
        HierarchicalVAE(6, (2, 1), (5, 4), decoder=nn.Linear(2, 1)).model(x)
    with pytest.raises(ValueError, match="decoder gives 1 numbers, and 6 pixels"):
        ConditionalVAE(6, 2, 1, (5,), decoder=nn.Linear(3, 1)).model(x, torch.zeros(3))


def test_a_network_without_layers_is_the_one_that_is_used():
    """An empty sequence of layers is the identity, and counts as false."""
    nothing = nn.Sequential()
    assert VAE(6, 2, (5,), encoder=nothing).encoder is nothing
    assert VAE(6, 6, (5,), decoder=nothing).decode(torch.ones(6)).base_dist.logits.eq(1).all()
    assert HierarchicalVAE(6, (2, 1), (5, 4), encoder=nothing).encoder is nothing
    assert HierarchicalVAE(6, (6, 1), (5, 4), decoder=nothing).decoder is nothing
    told = ConditionalVAE(6, 2, 1, (5,), encoder=nothing, decoder=nothing)
    assert told.encoder is told.decoder is nothing
    both = RBMVAE(4, RBM(4, 2), encoder=nothing, decoder=nothing)
    assert both.encoder is both.decoder is nothing


def test_grey_values_are_refused_with_what_takes_them():
    assert isinstance(VAE(6).likelihood, BernoulliLikelihood)
    with pytest.raises(ValueError, match=r"ContinuousBernoulliLikelihood.*DiscretisedLogistic"):
        VAE(6, 2, (5,)).model(torch.full((2, 6), 0.3))


def test_use_of_the_code_does_not_depend_on_how_many_examples_are_looked_at_at_once(monkeypatch):
    vae, x = VAE(6, 2, (5,)), torch.bernoulli(torch.full((9, 6), 0.5))
    whole = vae.latent_use(x)
    monkeypatch.setattr("ppgen.models.vae._AT_ONCE", 4)
    parts = vae.latent_use(x)
    assert parts.divergence == pytest.approx(whole.divergence)
    assert parts.variance == pytest.approx(whole.variance)
