"""Annealing of codes on a linear-Gaussian VAE, whose evidence is exact."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from ppgen.inference import (
    Annealing,
    annealed_likelihood,
    log_likelihood,
    simulated_likelihood,
)
from ppgen.inference.decoder_likelihood import _log_mean_weight, _Path, sigmoid_schedule
from ppgen.models import RBM, RBMVAE, VAE, ConditionalVAE
from ppgen.networks.likelihoods import GaussianLikelihood

FEW = Annealing(chains=8, temperatures=25, leapfrogs=3)


@pytest.fixture
def pca():
    return VAE(3, 2, (), likelihood=GaussianLikelihood(0.6))


def exact(vae, x):
    W, b = vae.decoder[0].weight.detach(), vae.decoder[0].bias.detach()
    return MultivariateNormal(b, W @ W.T + 0.36 * torch.eye(3)).log_prob(x)


def test_annealing_bounds_the_evidence_from_below_and_closely(pca):
    x = pca.sample(50) * 1.5
    found = annealed_likelihood(pca, x, FEW)
    value = exact(pca, x).mean().item()
    assert found.kind == "lower"
    # 8 chains of 25 temperatures lose 0.04 to 0.16 nats, measured on six seeds
    assert value - 0.4 < found.lower < value + 4.3 * found.lower_error
    assert found.lower_error < 0.1
    assert 0.4 < found.details["acceptance"] < 0.95


def test_weights_of_a_coarse_path_are_unbiased_both_ways(pca):
    with torch.no_grad():
        z = pca.prior().sample((3,))
        x = pca.decode(z).sample()
    path = _Path(pca, x, Annealing(chains=4000, temperatures=4, leapfrogs=2, step_size=0.3))
    steps = [0.0, 0.5, 0.5, 0.5, 0.5]
    weights = (path.forward(steps)[0] - exact(pca, x)).exp()
    error = weights.std(0) / 4000**0.5
    # 3 means, each off by 4.8 errors once in 1.6e-6
    assert ((weights.mean(0) - 1).abs() < 4.8 * error).all()
    assert (weights.std(0) > 0.05).any()  # a coarse path has weights that differ


def test_the_reverse_weights_from_posterior_draws_are_unbiased(pca):
    """Over codes and data drawn together, E[1 / w | x] = 1 / p(x)."""
    with torch.no_grad():
        z = pca.prior().sample((4000,))
        x = pca.decode(z).sample()
    path = _Path(pca, x, Annealing(chains=1, temperatures=4, leapfrogs=2))
    inverse = (exact(pca, x) - path.reverse(z, [0.0, 0.5, 0.5, 0.5, 0.5])[0]).exp()
    # skewed, so that the bound is wider than for a normal mean
    assert abs(inverse.mean() - 1) < 6 * inverse.std() / 4000**0.5
    assert inverse.std() > 0.05


def test_simulated_data_have_bounds_from_both_sides(pca):
    found = simulated_likelihood(pca, 50, FEW)
    slack = 4.3 * (found.lower_error + found.upper_error)
    assert found.kind == "bounds"
    assert found.lower < found.upper + slack
    assert found.upper - found.lower < 0.5
    assert "simulated" in str(found)


@pytest.mark.slow
def test_it_works_for_binary_pixels_and_says_what_it_did():
    vae = VAE(6, 2, (5,))
    x = vae.sample(4)
    found = log_likelihood(vae, x, annealing=FEW, batch=3, seed=0)
    assert found == log_likelihood(vae, x, annealing=FEW, batch=3, seed=0)
    assert found.lower < 0
    assert found.details["temperatures"] == 25
    assert all(p.grad is None for p in vae.parameters())


def test_the_schedule_ends_where_it_should():
    betas = sigmoid_schedule(10)
    assert (betas[0], betas[-1], len(betas)) == (0.0, 1.0, 11)
    assert sorted(betas) == betas


def test_weights_of_one_chain_have_no_error():
    log_w = torch.randn(1, 3)
    each, error = _log_mean_weight(log_w)
    assert torch.equal(each, log_w[0])
    assert error == math.inf


def test_what_cannot_be_annealed_is_refused(pca):
    with pytest.raises(TypeError, match=r"RBM is no decoder.*prior\(\) and decode"):
        annealed_likelihood(RBM(3, 2), torch.zeros(2, 3))
    with pytest.raises(TypeError, match="RBMVAE is no decoder"):
        annealed_likelihood(RBMVAE(3, RBM(2, 2)), torch.zeros(2, 3))
    told = ConditionalVAE(3, 2, 2, (4,))
    with pytest.raises(TypeError, match="ConditionalVAE is told more"):
        log_likelihood(told, (torch.zeros(2, 3), torch.zeros(2)), annealing=FEW)
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        annealed_likelihood(pca, torch.zeros(3))
    with pytest.raises(ValueError, match="support"):
        annealed_likelihood(VAE(3, 2, (4,)), torch.full((2, 3), 0.5))
    with pytest.raises(ValueError, match="count"):
        simulated_likelihood(pca, 0)
    for name in ("chains", "temperatures", "leapfrogs", "step_size"):
        with pytest.raises(ValueError, match=name):
            Annealing(**{name: 0})
