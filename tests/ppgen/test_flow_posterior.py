"""Amortised flow posteriors: normalised, one pass and inverse agree, better than the normal."""

from __future__ import annotations

import math

import pytest
import torch

from ppgen.inference import train
from ppgen.inference.likelihood import log_likelihood
from ppgen.models import VAE
from ppgen.networks.flow_posterior import AutoregressivePosterior, FlowPosterior
from ppgen.networks.posteriors import scored
from ppgen.transforms.autoregressive import Autoregressive
from ppgen.transforms.planar import Planar
from ppgen.transforms.radial import Radial
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.scalar import Affine
from ppgen.transforms.sylvester import Sylvester
from ppgen.transforms.vector import VectorChain

POSTERIORS = {
    "planar": lambda L: FlowPosterior(4, L, VectorChain([Planar(L), Planar(L)])),
    "radial": lambda L: FlowPosterior(4, L, Radial(L)),
    "Sylvester": lambda L: FlowPosterior(4, L, Sylvester(L)),
    "IAF": lambda L: AutoregressivePosterior(4, L, layers=2, hidden=(6,)),
    "spline": lambda L: AutoregressivePosterior(
        4, L, RationalQuadratic(4, 3.0), layers=2, hidden=(6,)
    ),
}


def perturbed(posterior, spread=0.3):
    for parameter in posterior.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return posterior


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_draw_brings_the_density_that_the_inverse_finds(name):
    code = perturbed(POSTERIORS[name](3))(torch.randn(5, 4))
    z, log_q = code.rsample_with_log_prob(torch.Size([7]))
    assert z.shape == (7, 5, 3)
    assert torch.allclose(log_q, code.log_prob(z), atol=1e-9)
    other = scored(code)
    assert torch.equal(other.log_prob(other.rsample()), other.log_q)


@pytest.mark.parametrize("name", POSTERIORS)
def test_each_row_is_a_normalised_density_of_its_own(name):
    # wilder networks have features that the grid does not resolve
    spread = 0.2 if name in ("IAF", "spline") else 0.5
    code = perturbed(POSTERIORS[name](2), spread)(torch.randn(2, 4))
    # y = sinh(t): out to +-27, and fine where the density is
    t = torch.linspace(-4, 4, 200)
    grid, volume = (torch.cartesian_prod(side, side) for side in (t.sinh(), t.cosh()))
    with torch.no_grad():
        density = code.log_prob(grid[:, None]).exp()
    mass = (density * volume.prod(-1)[:, None]).sum(0) * (t[1] - t[0]) ** 2
    assert torch.allclose(mass, torch.ones(2), atol=1e-3)
    assert not torch.allclose(density[:, 0], density[:, 1])


@pytest.mark.parametrize("latent", [1, 3])
def test_every_layer_of_an_autoregressive_posterior_begins_as_the_identity(latent):
    features = torch.randn(5, 4)
    for name in ("IAF", "spline"):
        posterior = POSTERIORS[name](latent)
        code, z = posterior(features), torch.randn(7, 5, latent)
        torch.testing.assert_close(code.log_prob(z), posterior.base(features).log_prob(z))


def test_the_encoder_tells_the_first_coordinate_and_later_ones_see_those_before():
    posterior = perturbed(AutoregressivePosterior(4, 3, layers=1, hidden=(9,)), 1.0)
    layer = posterior.layers[0]
    noise, features = torch.randn(3), torch.randn(4)
    jacobian = torch.autograd.functional.jacobian

    def push(noise, told):
        return layer.inverse_with_log_det(noise, told)[0]

    of_noise, of_features = jacobian(push, (noise, features))
    assert not of_noise.triu(1).any()
    assert of_noise.tril().count_nonzero() == 6
    assert of_features.abs().sum(1).min() > 0


def test_a_context_that_is_missing_or_not_wanted_is_refused():
    with pytest.raises(ValueError, match="a context of 4 numbers; got none"):
        Autoregressive(3, Affine(), context=4).inverse_with_log_det(torch.zeros(3))
    with pytest.raises(ValueError, match="told no context"):
        Autoregressive(3, Affine()).inverse_with_log_det(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="needs hidden units"):
        Autoregressive(3, Affine(), (), context=4)


def test_a_flow_of_another_dimension_than_the_code_is_refused():
    with pytest.raises(ValueError, match="3 dimensions and the flow 2"):
        FlowPosterior(8, 3, Planar(2))


@pytest.mark.slow
def test_where_the_posterior_is_bent_a_flow_tightens_the_bound():
    # One code, banana-shaped posterior: x = z1^2 + z2 + noise, fixed decoder, so that log p(x)
    # is the same for both guides and only the gap between bound and truth can shrink.
    class Parabola(torch.nn.Module):
        def forward(self, z):
            return z[..., :1].square() + z[..., 1:]

    from ppgen.networks.likelihoods import GaussianLikelihood

    torch.manual_seed(0)
    z = torch.randn(500, 2)
    x = Parabola()(z) + 0.2 * torch.randn(500, 1)
    bounds = {}
    flows = {
        "normal": lambda: None,
        "planar": lambda: FlowPosterior(32, 2, VectorChain([Planar(2) for _ in range(8)])),
        "IAF": lambda: AutoregressivePosterior(32, 2, layers=2, hidden=(32,)),
    }
    for name, flow in flows.items():
        torch.manual_seed(1)
        vae = VAE(
            1,
            2,
            (32,),
            decoder=Parabola(),
            likelihood=GaussianLikelihood(0.2),
            posterior=flow(),
        )
        train(vae, x, epochs=60, batch_size=50, learning_rate=5e-3)
        bounds[name] = vae.log_weights(x, 400).mean().item()
    # the true value, by quadrature over z2 | z1 in closed form and a grid for z1
    grid = torch.linspace(-5, 5, 2001)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(grid)
    given = torch.distributions.Normal(grid.square(), math.sqrt(1 + 0.04)).log_prob(x)
    truth = torch.logsumexp(prior + given, -1).mean().item() + math.log(10 / 2000)
    for name in ("planar", "IAF"):
        assert bounds["normal"] < bounds[name] + 0.05 < truth + 0.05
        assert truth - bounds[name] < 0.7 * (truth - bounds["normal"])


def test_importance_weights_through_a_flow_are_those_of_its_density():
    torch.manual_seed(0)
    vae = VAE(6, 2, (8,), posterior=FlowPosterior(8, 2, Sylvester(2)))
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    found = log_likelihood(vae, x, samples=2000, seed=0)
    # against quadrature of p(x, z) over the plane
    side = torch.linspace(-8, 8, 161)
    grid = torch.cartesian_prod(side, side)
    joint = vae.decode(grid[:, None, :]).log_prob(x) + vae.prior().log_prob(grid)[:, None]
    exact = torch.logsumexp(joint, 0) + 2 * (side[1] - side[0]).log()
    # the bound's bias is some variance of the weights over 2 * 2000
    assert found.lower == pytest.approx(exact.mean().item(), abs=0.02)
