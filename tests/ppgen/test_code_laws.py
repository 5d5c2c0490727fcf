"""Posteriors and priors of codes, and the convolutional networks around them."""

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from ppgen.models.flow import Flow
from ppgen.networks.convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from ppgen.networks.posteriors import DiagonalNormal, FullNormal, OneCall, centre, scored
from ppgen.networks.priors import FlowPrior, MixturePrior, StandardNormal, VampPrior


def priors(encode):
    return {
        "standard": StandardNormal(1),
        "mixture": MixturePrior(1, 4),
        "VampPrior": VampPrior(torch.randn(5, 3)),
        "flow": FlowPrior(Flow(1, layers=2, hidden=(8,))),
    }


@pytest.mark.parametrize("name", ["standard", "mixture", "VampPrior", "flow"])
def test_priors_are_normalised_and_draw(name):
    encode = DiagonalNormal(3, 1)
    prior = priors(encode)[name]
    for parameter in prior.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    law = prior(encode)
    assert law.event_shape == (1,)
    z = torch.linspace(-30, 30, 60001)[:, None]
    # the trapezoid rule on densities that are smooth but for a spline's knots
    mass = law.log_prob(z).exp().sum() * (z[1, 0] - z[0, 0])
    assert mass.item() == pytest.approx(1, abs=1e-4)
    assert law.sample((7,)).shape == (7, 1)


def test_the_vampprior_is_the_average_of_posteriors_and_teaches_the_encoder():
    encode, start = DiagonalNormal(3, 2), torch.randn(5, 3)
    prior = VampPrior(start)
    z = torch.randn(4, 2)
    log_prob = prior(encode).log_prob(z)
    each = torch.stack([encode(u).log_prob(z) for u in start])
    torch.testing.assert_close(log_prob.exp(), each.exp().mean(0))
    log_prob.sum().backward()
    assert prior.pseudo_inputs.grad.abs().min() > 0
    assert encode.head.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match=r"\(K, D\)"):
        VampPrior(torch.zeros(3))


def test_the_full_normal_has_every_covariance():
    posterior = FullNormal(4, 3)
    law = posterior(torch.randn(5, 4))
    factor = law.scale_tril
    assert (factor.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert (factor.triu(1) == 0).all()
    loc = posterior.head.bias.new_tensor([1.0, -2, 0.5])
    target = torch.tensor([[2.0, 0.6, -0.4], [0.6, 1.0, 0.3], [-0.4, 0.3, 0.7]])
    nn.init.zeros_(posterior.head.weight)
    cholesky = torch.linalg.cholesky(target)
    raw = torch.log(torch.expm1(cholesky.diagonal() - posterior.smallest))
    below = cholesky.flatten()[posterior.below]
    posterior.head.bias.data = torch.cat([loc, raw, below])
    law = posterior(torch.zeros(4))
    z = torch.randn(6, 3)
    torch.testing.assert_close(law.log_prob(z), MultivariateNormal(loc, target).log_prob(z))


class Paired:
    """A code that can be scored with its own draw alone."""

    batch_shape, event_shape, support = torch.Size([3]), torch.Size([2]), None

    def __init__(self, base):
        self.base, self.calls = base, 0

    def rsample_with_log_prob(self, shape=()):
        self.calls += 1
        z = self.base.rsample(shape)
        return z, self.base.log_prob(z)

    def log_prob(self, value):
        raise AssertionError("asked for the density of its own draw")

    @property
    def mean(self):
        raise NotImplementedError

    def sample(self, shape):
        return self.base.sample(shape)


def test_a_draw_brings_its_density_along():
    base = DiagonalNormal(4, 2)(torch.randn(3, 4))
    code = scored(Paired(base))
    assert isinstance(code, OneCall)
    z = code.rsample((5,))
    assert torch.equal(code.log_prob(z), base.log_prob(z))
    assert code.code.calls == 1
    assert scored(base) is base


def test_the_centre_is_the_mean_or_that_of_draws():
    base = DiagonalNormal(4, 2)(torch.randn(3, 4))
    assert torch.equal(centre(base), base.mean)
    # 6 numbers, each a mean of 4000 draws: 4.8 errors once in 1e5
    error = 4.8 * base.stddev / 4000**0.5
    assert ((centre(Paired(base), 4000) - base.mean).abs() < error).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 8, 4)])
@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3)])
def test_convolutional_networks_keep_their_shapes(shape, batch):
    pixels = shape[0] * shape[1] * shape[2]
    encoder = ConvolutionalEncoder(shape, 9, (4, 6))
    decoder = ConvolutionalDecoder(shape, 2, (4, 6), parameters_each=3)
    assert encoder(torch.randn(*batch, pixels)).shape == (*batch, 9)
    assert decoder(torch.randn(*batch, 2)).shape == (*batch, 3 * pixels)


def test_the_numbers_of_a_pixel_stand_side_by_side():
    decoder = ConvolutionalDecoder((2, 4, 4), 3, (4,), parameters_each=3)
    last = decoder.body[-1]
    nn.init.zeros_(last.weight)
    # channel p * C + c holds number p of colour c
    last.bias.data = torch.tensor([0.0, 10, 1, 11, 2, 12])
    raw = decoder(torch.randn(3)).reshape(2, 16, 3)
    assert torch.equal(raw[0], torch.tensor([0.0, 1, 2]).expand(16, 3))
    assert torch.equal(raw[1], torch.tensor([10.0, 11, 12]).expand(16, 3))


def test_an_encoder_sees_where_a_pixel_is():
    encoder = ConvolutionalEncoder((1, 8, 8), 5, (4, 6))
    flat = torch.randn(64)
    image = encoder.body(flat.reshape(1, 1, 8, 8))
    assert torch.equal(encoder(flat), encoder.head(image)[0])


def test_images_that_cannot_be_halved_are_refused():
    for make in (ConvolutionalEncoder, ConvolutionalDecoder):
        with pytest.raises(ValueError, match="divisible by 4"):
            make((1, 28, 30), 5)
