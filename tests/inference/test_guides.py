"""Families of guides: their densities, their scores, and what may be called a guide."""

from functools import partial

import pytest
import torch
from pyro.infer import autoguide
from torch.distributions import MultivariateNormal

from ppgen.inference.flow_guides import AutoregressiveFlow, CouplingFlow, flow_guide
from ppgen.inference.guides import (
    Family,
    FullRank,
    LowRank,
    MeanField,
    full_rank_guide,
    low_rank_guide,
    mean_field_guide,
    standard_normal,
)
from ppgen.inference.vi_guides import GuideFactory, choose, describe

DIM = 5
CASES = {
    "mean-field": mean_field_guide(),
    "full-rank": full_rank_guide(),
    "low-rank": low_rank_guide(2),
    "affine flow": flow_guide("affine", layers=4, hidden=(8,)),
    "spline flow": flow_guide("spline", layers=3, hidden=(8,)),
    "autoregressive flow": flow_guide("autoregressive", layers=2, hidden=(8,)),
    "planar flow": flow_guide("planar", layers=4),
    "radial flow": flow_guide("radial", layers=4),
    "sylvester flow": flow_guide("sylvester", layers=2),
}


def perturbed(family: Family, dim: int = DIM):
    guide = family.build(dim).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return guide


def covariance(guide):
    if isinstance(guide, MeanField):
        return (2 * guide.log_scale).exp().diag()
    if isinstance(guide, FullRank):
        return guide.factor() @ guide.factor().mT
    inner = torch.eye(DIM) + guide.columns @ guide.columns.mT
    return inner * guide.log_scale.exp() * guide.log_scale.exp()[:, None]


@pytest.mark.parametrize("name", ["mean-field", "full-rank", "low-rank"])
def test_normal_families_have_the_density_of_their_moments(name):
    guide = perturbed(CASES[name])
    u, log_q = guide(torch.randn(7, guide.noise_dim))
    expected = MultivariateNormal(guide.loc, covariance(guide)).log_prob(u)
    assert torch.allclose(log_q, expected, atol=1e-9)


def test_low_rank_draws_have_its_covariance():
    guide = perturbed(CASES["low-rank"])
    with torch.no_grad():
        u, _ = guide(torch.randn(100_000, guide.noise_dim))
        expected = covariance(guide)
    sd = expected.diagonal().sqrt()
    # the sd of a sample covariance is at most sqrt(2 / n) of the product of the sds; z = 5
    assert ((u.mT.cov() - expected) / sd / sd[:, None]).abs().max() < 5 * (2 / 100_000) ** 0.5


@pytest.mark.parametrize("name", [n for n in CASES if "flow" in n])
@pytest.mark.parametrize("dim", [1, DIM])
def test_flows_have_the_density_of_their_jacobian(name, dim):
    guide = perturbed(CASES[name], dim)
    noise = torch.randn(4, dim)
    _, log_q = guide(noise)
    jacobians = [
        torch.autograd.functional.jacobian(lambda e: guide(e[None])[0][0], e) for e in noise
    ]
    log_det = torch.stack([torch.linalg.slogdet(j)[1] for j in jacobians])
    assert torch.allclose(log_q, standard_normal(noise) - log_det, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in CASES if "flow" in n])
def test_flows_know_the_density_of_any_point(name):
    guide = perturbed(CASES[name])
    u, log_q = guide(torch.randn(6, DIM))
    assert torch.allclose(guide.log_prob(u), log_q, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_scores_are_the_gradients_of_log_densities(name):
    guide = perturbed(CASES[name])
    noise = torch.randn(3, guide.noise_dim)
    u = guide(noise)[0].detach()
    point = u.clone().requires_grad_()
    if "flow" in name:
        value = guide.log_prob(point)
    else:
        value = MultivariateNormal(guide.loc.detach(), covariance(guide).detach()).log_prob(point)
    (expected,) = torch.autograd.grad(value.sum(), point)
    assert torch.allclose(guide.score(u, noise), expected, atol=1e-8)


def test_autoguide_classes_become_families():
    assert str(choose(None)) == "mean-field"
    assert str(choose(autoguide.AutoNormal)) == "mean-field"
    assert str(choose(autoguide.AutoMultivariateNormal)) == "full-rank"
    assert (
        str(choose(partial(autoguide.AutoLowRankMultivariateNormal, rank=2))) == "low-rank(rank=2)"
    )
    assert choose(autoguide.AutoIAFNormal).options["transform"] == "autoregressive"
    assert isinstance(choose(low_rank_guide(9)).build(4), LowRank)
    assert isinstance(choose(flow_guide()).build(4), CouplingFlow)
    assert isinstance(choose(flow_guide("autoregressive")).build(4), AutoregressiveFlow)
    assert str(choose(flow_guide("planar", layers=16))) == "flow(transform=planar, layers=16)"


def test_other_autoguides_and_functions_of_the_model_are_factories():
    assert isinstance(choose(autoguide.AutoStructured), GuideFactory)
    assert isinstance(choose(partial(autoguide.AutoNormal, init_scale=0.5)), GuideFactory)
    assert isinstance(choose(lambda model: autoguide.AutoGaussian(model)), GuideFactory)
    assert describe(partial(autoguide.AutoNormal, init_scale=0.5)) == "AutoNormal(init_scale=0.5)"


@pytest.mark.parametrize(
    ("guide", "error", "words"),
    [
        (autoguide.AutoDelta, ValueError, "MAP"),
        (autoguide.AutoLaplaceApproximation, ValueError, "Laplace"),
        (dict, TypeError, "dict"),
        ("mean-field", TypeError, "str"),
    ],
)
def test_what_is_no_guide_is_refused(guide, error, words):
    with pytest.raises(error, match=words):
        choose(guide)


def test_options_of_families_are_checked():
    with pytest.raises(ValueError, match="rank"):
        low_rank_guide(0)
    with pytest.raises(ValueError, match="transform must be one of affine, "):
        flow_guide("plane")
    with pytest.raises(ValueError, match="layers"):
        flow_guide(layers=0)
