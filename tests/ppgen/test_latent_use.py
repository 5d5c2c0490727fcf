"""Active units, divergences and posterior collapse, where they are known by construction."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from ppgen.diagnostics import latent_use, unit_divergences
from ppgen.models.vae import VAE
from ppgen.networks.flow_posterior import FlowPosterior
from ppgen.networks.posteriors import FullNormal
from ppgen.networks.priors import MixturePrior
from ppgen.transforms.planar import Planar


def linear_vae(gains, **parts):
    """Units whose posterior means are `gains` times a pixel, with unit scales."""
    vae = VAE(4, len(gains), (), **parts)
    head = getattr(vae.posterior, "base", vae.posterior).head
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    head.weight.data[: len(gains), 0] = torch.tensor(gains)
    return vae


HALF = torch.tensor([[0.0, 1, 0, 1]] * 50 + [[1.0, 0, 1, 0]] * 50, dtype=torch.float64)


def test_active_units_and_divergences_are_those_of_the_formula():
    use = linear_vae([2.0, 0.0, 0.1]).latent_use(HALF)
    # the pixel's variance is 100 / 99 / 4; of 0.1 times it, below 0.01
    assert use.variance == pytest.approx([4 * 0.2525252525, 0, 0.002525252525])
    assert use.active.tolist() == [True, False, False]
    # KL(N(m, 1) || N(0, 1)) = m^2 / 2 for half of the data
    assert use.units == pytest.approx([1.0, 0.0, 0.0025])
    assert use.divergence == pytest.approx(1.0025)
    assert "1 of 3 units active, divergence 1.00 nats" in str(use)
    assert "collapsed onto the prior" in str(use)


def test_posterior_collapse_is_said_and_a_way_out():
    use = linear_vae([0.0, 0.0]).latent_use(HALF)
    assert use.collapsed
    assert str(use).startswith("posterior collapse: 0 of 2 units active")
    assert "WarmUp" in str(use)


@pytest.mark.parametrize("parts", [{"prior": True}, {"posterior": True}])
def test_laws_with_dependent_units_have_one_divergence(parts):
    if "prior" in parts:
        prior = MixturePrior(2, 3)
        torch.nn.init.zeros_(prior.loc)  # all components are the standard normal
        vae = linear_vae([2.0, 1.0], prior=prior)
        expected = 0.5 * (4 + 1) / 2
    else:
        vae = linear_vae([2.0, 1.0], posterior=FullNormal(4, 2))
        scale = torch.log(torch.tensor(2.0)) + vae.posterior.smallest  # softplus(0)
        expected = (0.5 * (4 + 1) / 2 + 2 * (0.5 * (scale**2 - 1) - scale.log())).item()
    use = vae.latent_use(HALF)
    assert use.units is None
    # 100 draws for each of 100 examples; a term deviates by less than 3
    assert use.divergence == pytest.approx(expected, abs=4.3 * 3 / 100)


def test_the_noise_of_means_of_draws_makes_no_unit_active():
    posterior = FlowPosterior(4, 2, Planar(2))
    torch.nn.init.zeros_(posterior.head.weight)  # the identity for every example
    vae = linear_vae([2.0, 0.0], posterior=posterior)
    posterior.base.head.bias.data[2:] = 10 * math.atanh(2 * math.log(2) / 10)  # a scale of 2
    use = vae.latent_use(HALF.repeat(20, 1))
    assert use.active.tolist() == [True, False]
    # means of 100 draws have a variance of 2^2 / 100 of their own: of 2,000 such, 4.3 errors
    allowed = 4.3 * 0.04 * (2 / 2000) ** 0.5
    assert use.variance[1] < allowed
    # and the variance about 0 and 2: the noise also crosses with the pixel
    assert use.variance[0] == pytest.approx(1, abs=allowed + 4.3 * 2 * (0.04 / 2000) ** 0.5)


def test_unit_divergences_are_torchs_or_none():
    q = dist.Normal(torch.randn(5, 3), torch.rand(5, 3) + 0.1).to_event(1)
    p = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
    each = unit_divergences(q, p)
    torch.testing.assert_close(each.sum(-1), kl_divergence(q, p.expand((5,))))
    assert unit_divergences(q, MixturePrior(3, 2)(None)) is None
    assert unit_divergences(dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), p) is None
    assert unit_divergences(dist.Cauchy(torch.zeros(3), 1.0).to_event(1), p) is None


def test_other_shapes_are_refused():
    for means, divergences in [([[1.0]], [[1.0]]), ([[1.0], [2.0]], [1.0, 2.0, 3.0]), ([1.0], [1])]:
        with pytest.raises(ValueError, match=r"\(N, L\)"):
            latent_use(means, divergences)
