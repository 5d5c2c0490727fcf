"""Glow and its parts: shapes, log-determinants on images, and the start from the data."""

import copy

import pyro.distributions as dist
import pytest
import torch

from perturbation import perturbed
from ppgen.transforms.actnorm import ActNorm
from ppgen.transforms.glow import Glow, ImageCoupling, squeeze, unsqueeze
from ppgen.transforms.invertible_linear import InvertibleLinear
from ppgen.transforms.pushforward import Pushforward
from ppgen.transforms.rational_quadratic import RationalQuadratic

SHAPE = (2, 4, 4)
IMAGE_MAPS = {
    "actnorm": lambda: ActNorm(2, event_dim=3),
    "convolution": lambda: InvertibleLinear(2, event_dim=3),
    "coupling": lambda: ImageCoupling(2, 8, RationalQuadratic(4, 2.0)),
    "glow": lambda: Glow(SHAPE, scales=2, steps=2, hidden=8),
    "glow of splines": lambda: Glow(
        SHAPE, scales=1, steps=2, hidden=8, scalar_map=RationalQuadratic(4, 2.0)
    ),
}


def build(name, spread):
    return perturbed(IMAGE_MAPS[name]().eval(), spread)


@pytest.mark.parametrize("name", IMAGE_MAPS)
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_log_determinant_on_images_is_that_of_autograd_and_the_round_trip_closes(name, spread):
    transform = build(name, spread)
    y = torch.randn(3, *SHAPE)
    x, log_det = transform.inverse_with_log_det(y)
    summed = torch.autograd.functional.jacobian(
        lambda y: transform.inverse_with_log_det(y)[0].flatten(1).sum(0), y
    )
    jacobian = summed.movedim(1, 0).flatten(2)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    # 1e-9 is the target; slogdet's own rounding grows with the condition number
    condition = torch.linalg.cond(jacobian)
    assert ((log_det - expected).abs() <= 1e-9 + 1e-15 * condition).all()
    back, log_det_back = transform.forward_with_log_det(x)
    # beyond a condition of 1e12, where random matrices of 8 channels in a row end, the inverse
    # has no digit left
    error = torch.maximum((back - y).abs().amax((1, 2, 3)), (log_det_back + log_det).abs())
    assert ((error <= 1e-9 + 1e-13 * condition) | (condition > 1e12)).all()


@pytest.mark.parametrize("name", IMAGE_MAPS)
def test_single_precision_agrees_and_has_no_nan_up_to_ten_thousand(name):
    transform = build(name, 0.1)
    y = torch.randn(20, *SHAPE).float()
    x, log_det = transform.inverse_with_log_det(y.double())
    single = transform.float()
    x32, log_det32 = single.inverse_with_log_det(y)
    assert ((log_det32 - log_det).abs() <= 1e-5 * (1 + log_det.abs())).all()
    assert torch.allclose(single.forward_with_log_det(x32)[0], y, atol=1e-4)
    scales = torch.logspace(-8, 4, 50)[:, None, None, None]
    far = (scales * torch.randn(50, *SHAPE).sign()).float().requires_grad_()
    for way, value in (
        (single.inverse_with_log_det, far),
        (single.forward_with_log_det, far.reshape(50, *x.shape[1:])),
    ):
        out, log_det = way(value)
        for tensor in (out, log_det, *torch.autograd.grad(out.sum() + log_det.sum(), far)):
            assert not tensor.isnan().any()


@pytest.mark.parametrize("name", IMAGE_MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3)])
def test_images_may_come_in_any_batch_and_dtype(name, dtype, batch):
    transform = build(name, 0.1).to(dtype)
    y = torch.randn(*batch, *SHAPE, dtype=dtype)
    x, log_det = transform.inverse_with_log_det(y)
    back, log_det_back = transform.forward_with_log_det(x)
    assert back.shape == y.shape
    assert log_det.shape == log_det_back.shape == batch
    assert x.dtype == back.dtype == log_det.dtype == dtype


def test_squeeze_keeps_every_pixel_and_its_place():
    x = torch.arange(2 * 4 * 6.0).reshape(2, 4, 6)
    y = squeeze(x)
    assert y.shape == (8, 2, 3)
    # the four channels of each colour: the pixels of a 2 x 2 block, row by row
    assert torch.equal(y[:4, 0, 0], torch.tensor([0.0, 1.0, 6.0, 7.0]))
    assert torch.equal(unsqueeze(y), x)


def test_linear_map_starts_as_a_rotation_and_weighs_as_it_maps():
    linear = InvertibleLinear(5)
    W = linear.weight()
    assert torch.allclose(W @ W.mT, torch.eye(5), atol=1e-12)
    y = torch.randn(7, 5)
    assert torch.allclose(linear.inv(y), y @ W.mT, atol=1e-12)


def test_actnorm_starts_from_the_first_batch_alone_and_remembers_it():
    norm, y = ActNorm(3, event_dim=3), 5 + 2 * torch.randn(50, 3, 4, 4)
    norm.inverse_with_log_det(y[:0])  # an empty batch tells nothing
    assert not norm.started
    x, _ = norm.inverse_with_log_det(y)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-12)
    assert torch.allclose(x.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-12)
    copy = ActNorm(3, event_dim=3)
    copy.load_state_dict(norm.state_dict())
    again, _ = copy.inverse_with_log_det(y + 1)
    assert torch.equal(again, norm.inverse_with_log_det(y + 1)[0])
    assert again.mean() > 0.3  # 1 / sd: it did not start again


def test_actnorm_starts_neither_from_one_number_nor_over_what_was_trained():
    norm, y = ActNorm(2), torch.randn(50, 2)
    assert torch.equal(norm.inverse_with_log_det(y[:1])[0], y[:1])  # no scale in a single row
    assert not norm.started
    with torch.no_grad():
        norm.loc.fill_(3.0)  # as a fit to an energy does, which only draws
    assert torch.equal(norm.inverse_with_log_det(y)[0], y - 3)


def test_actnorm_refuses_other_channels():
    norm = ActNorm(1)
    for use in (norm.forward_with_log_det, norm.inverse_with_log_det):
        with pytest.raises(ValueError, match=r"1 channels, axis -1; got .* \(4, 3\)"):
            use(torch.randn(4, 3))


def test_actnorm_does_not_start_while_evaluating_nor_on_a_constant_become_infinite():
    norm = ActNorm(2)
    y = torch.full((10, 2), 3.0)
    assert torch.equal(norm.eval().inverse_with_log_det(y)[0], y)
    x, log_det = norm.train().inverse_with_log_det(y)
    assert torch.equal(x, torch.zeros(10, 2))
    assert log_det.isfinite().all()


def test_glow_is_a_distribution_of_images():
    glow = build("glow", 0.1)
    base = dist.Normal(torch.zeros(32), 1.0).to_event(1)
    flow = Pushforward(base, [glow])
    assert flow.event_shape == SHAPE
    y, log_prob = flow.rsample_with_log_prob(torch.Size([5]))
    assert y.shape == (5, *SHAPE)
    assert torch.allclose(flow.log_prob(y), log_prob, atol=1e-8)
    assert flow.sample().shape == SHAPE


def test_glow_never_misses_a_parameter_update():
    glow, y = build("glow", 0.1), torch.randn(5, *SHAPE)
    flow = Pushforward(dist.Normal(torch.zeros(32), 1.0).to_event(1), [glow])
    before = flow.log_prob(y)
    with torch.no_grad():
        for parameter in glow.parameters():
            parameter.add_(0.1)
    after = flow.log_prob(y)
    assert not torch.allclose(after, before)
    twin = Pushforward(dist.Normal(torch.zeros(32), 1.0).to_event(1), [copy.deepcopy(glow)])
    assert torch.equal(after, twin.log_prob(y))


def test_glow_complains_in_the_users_words():
    with pytest.raises(ValueError, match="divisible by 8"):
        Glow((1, 4, 4), scales=3)
    with pytest.raises(ValueError, match="even number"):
        ImageCoupling(3, 8, RationalQuadratic(4))
    with pytest.raises(ValueError, match="built for image"):
        build("glow", 0.0).inverse_with_log_det(torch.zeros(5, 1, 4, 4))
