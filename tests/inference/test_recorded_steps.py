"""Recorded steps of the ELBO: bit for bit what Pyro's run gives, or not used."""

import pyro
import pytest
import torch
from torch import nn

from ppgen.inference.elbo import ELBO
from ppgen.models.vae import VAE
from ppgen.networks.mlp import MLP, hidden_layers

X = (torch.rand(40, 6, generator=torch.Generator().manual_seed(1)) < 0.5).double()


class Foreign(MLP):
    """Not a module of ours: it may do anything."""


def encoder(first):
    """Features from a network that begins with another layer."""
    return nn.Sequential(first, hidden_layers((6, 5)))


def trained(story, elbo, steps=12, recorded=True):
    """Losses and parameters after some steps, two sizes of batch in turn."""
    if not recorded:
        elbo._steps.run = lambda *_: None
    optimizer = torch.optim.Adam(story.parameters(), 1e-2)
    losses = []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=step % 5 > 0)
        losses.append(elbo.loss_and_grads(story.model, story.guide, X[: 40 if step % 2 else 7]))
        optimizer.step()
    return losses, [p.detach().clone() for p in story.parameters()]


def recordings(elbo):
    return sum(map(len, elbo._steps._steps.values()))


def pair(make, **options):
    for recorded in (True, False):
        torch.manual_seed(3)
        story, elbo = make(), ELBO(**options)
        yield trained(story, elbo, recorded=recorded), elbo, story


@pytest.mark.parametrize(
    ("make", "options", "count"),
    [
        (lambda: VAE(6, 2, (5,)), {}, 2),
        (lambda: VAE(6, 2, (5,)), {"particles": 3}, 2),
        (lambda: VAE(6, 2, (5,)), {"analytic": False}, 2),
        (lambda: VAE(6, 2, (5,), encoder=encoder(nn.Dropout(0.3))), {}, 2),
        (
            lambda: VAE(6, 2, (5,), encoder=encoder(nn.BatchNorm1d(6))),
            {},
            0,
        ),  # it writes to buffers
        (lambda: VAE(6, 2, (5,), encoder=Foreign((6, 5))), {}, 0),
    ],
    ids=["plain", "particles", "not analytic", "dropout", "batch norm", "unknown module"],
)
def test_training_is_the_same_bit_for_bit(make, options, count):
    (ours, elbo, story), (plain, _, other) = pair(make, **options)
    assert recordings(elbo) == count
    assert ours[0] == plain[0]
    for a, b in zip(ours[1], plain[1], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(story.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def warm():
    """A VAE whose step has been recorded, and its loss."""
    vae, elbo = VAE(6, 2, (5,), encoder=encoder(nn.Dropout(0.3))), ELBO()
    for _ in range(3):
        elbo.loss_and_grads(vae.model, vae.guide, X)
    assert recordings(elbo) == 1
    return vae, elbo


def freeze(vae):
    vae.decoder[0].weight.requires_grad_(False)


def bound(vae):
    vae.posterior.log_variance_bound = 0.1


def replace(vae):
    vae.decoder[0].weight = nn.Parameter(torch.randn_like(vae.decoder[0].weight))


def hook(vae):
    vae.encoder.register_forward_hook(lambda *given: given[2] + 1)


def gradient_hook(vae):
    vae.decoder[0].weight.register_hook(lambda g: 2 * g)


def method(vae):
    decode = vae.decode
    vae.decode = lambda z: decode(-z)


def layer(vae):
    vae.decoder.append(nn.Tanh())


@pytest.mark.parametrize(
    "change",
    [nn.Module.eval, freeze, bound, replace, hook, gradient_hook, method, layer],
    ids=lambda f: f.__name__,
)
def test_what_changes_is_seen(warm, change):
    vae, elbo = warm
    change(vae)
    found = []
    for loss in (elbo, ELBO()):  # the second has recorded nothing
        vae.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        value = loss.loss_and_grads(vae.model, vae.guide, X)
        found.append(
            (value, [None if p.grad is None else p.grad.clone() for p in vae.parameters()])
        )
    assert found[0][0] == found[1][0]
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_returning_to_an_earlier_state_uses_its_recording(warm):
    vae, elbo = warm
    for _ in range(5):
        vae.eval()
        elbo.loss_and_grads(vae.model, vae.guide, X)
        vae.train()
        elbo.loss_and_grads(vae.model, vae.guide, X)
    assert recordings(elbo) == 2


def test_bad_data_are_named_and_write_no_gradient(warm):
    vae, elbo = warm
    vae.zero_grad()
    x = X.clone()
    x[3, 1] = 0.5
    with pytest.raises(ValueError, match="row 3"):
        elbo.loss_and_grads(vae.model, vae.guide, x)
    assert all(p.grad is None for p in vae.parameters())


def test_handlers_outside_are_obeyed(warm):
    vae, elbo = warm
    torch.manual_seed(0)
    value = elbo.loss_and_grads(vae.model, vae.guide, X)
    torch.manual_seed(0)
    with pyro.poutine.scale(scale=2.0):
        assert elbo.loss_and_grads(vae.model, vae.guide, X) == pytest.approx(2 * value)
