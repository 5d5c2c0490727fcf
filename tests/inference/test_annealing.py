"""Beta, warm-up and free bits: training objectives in closed form, evaluation always the ELBO."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import nn
from torch.distributions import kl_divergence

from ppgen.inference import ELBO, WarmUp, train
from ppgen.models.vae import VAE
from ppgen.networks.priors import MixturePrior

X = (torch.rand(8, 6, generator=torch.Generator().manual_seed(1)) < 0.5).double()


def parts(vae, x, seed):
    """Reconstruction and the divergence of each unit, summed over the batch."""
    torch.manual_seed(seed)
    q = vae.encode(x)
    z = q.rsample()
    each = kl_divergence(q.base_dist, vae.prior().expand(q.batch_shape).base_dist)
    return -vae.decode(z).log_prob(x).sum(), each.sum(0)


def objective(loss, vae, x, seed=5):
    torch.manual_seed(seed)
    vae.zero_grad()
    value = loss.loss_and_grads(vae.model, vae.guide, x)
    return value, [p.grad.clone() for p in vae.parameters()]


def expected(vae, x, beta, free_bits, seed=5):
    reconstruction, each = parts(vae, x, seed)
    total = reconstruction + beta * each.clamp(min=free_bits * len(x)).sum()
    return total.item(), list(torch.autograd.grad(total, list(vae.parameters())))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("free_bits", [0.0, 0.08, 50.0])
def test_the_objective_is_the_formula_recorded_or_not(beta, free_bits):
    vae, loss = VAE(6, 3, (5,)), ELBO(beta=beta, free_bits=free_bits)
    want = expected(vae, X, beta, free_bits)
    for _ in range(4):
        found = objective(loss, vae, X)
        assert found[0] == pytest.approx(want[0], abs=1e-10)
        torch.testing.assert_close(found[1], want[1])
    assert sum(map(len, loss._steps._steps.values())) == 1


def test_some_units_are_free_and_others_are_not():
    vae = VAE(6, 3, (5,))
    _, each = parts(vae, X, 0)
    floor = each.sort().values[1].item() / len(X) + 1e-3  # between the second unit and the third
    assert (each / len(X) < floor).sum() == 2
    want = expected(vae, X, 1.0, floor)
    assert objective(ELBO(free_bits=floor), vae, X)[0] == pytest.approx(want[0], abs=1e-10)


def test_evaluation_is_the_elbo_whatever_training_does():
    vae = VAE(6, 3, (5,))
    values = []
    for loss in (ELBO(), ELBO(beta=0.1, free_bits=2.0), ELBO(beta=WarmUp(100))):
        torch.manual_seed(0)
        values.append(loss.loss(vae.model, vae.guide, X))
    assert values[0] == values[1] == values[2]


def test_warm_up_rises_with_the_steps_and_then_costs_nothing():
    vae, loss = VAE(6, 3, (5,)), ELBO(beta=WarmUp(4, start=0.2))
    for step in range(6):
        beta = min(1.0, 0.2 + 0.2 * step)
        want = expected(vae, X, beta, 0.0)
        assert objective(loss, vae, X)[0] == pytest.approx(want[0], abs=1e-10)
    assert WarmUp(0)(0) == 1.0
    torch.manual_seed(5)
    plain = ELBO().loss_and_grads(vae.model, vae.guide, X)
    assert objective(loss, vae, X)[0] == pytest.approx(plain, abs=1e-10)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_warm_up(tmp_path, silent):
    def story():
        torch.manual_seed(0)
        return VAE(6, 2, (5,))

    options = {"batch_size": 4, "seed": 1}
    whole = train(story(), X, loss=ELBO(beta=WarmUp(6)), epochs=4, **options)
    train(story(), X, loss=ELBO(beta=WarmUp(6)), epochs=2, out=tmp_path / "run", **options)
    resumed = train(
        story(),
        X,
        loss=ELBO(beta=WarmUp(6)),
        epochs=4,
        out=tmp_path / "run",
        resume=True,
        **options,
    )
    for a, b in zip(whole.story.parameters(), resumed.story.parameters(), strict=True):
        assert torch.equal(a, b)


class Trimmed(PyroModule):
    """A pair under a subsampled plate, a scale and a mask."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([0.3, -0.2]))

    def around(self):
        return pyro.plate("data", 6, subsample=torch.tensor([0, 2, 3]))

    @pyro_method
    def model(self):
        mask = torch.tensor([True, True, False])
        with poutine.scale(scale=0.5), self.around(), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    @pyro_method
    def guide(self):
        loc, mask = self.loc, torch.tensor([True, True, False])
        with poutine.scale(scale=0.5), self.around(), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def test_plates_scales_and_masks_weigh_the_floor_too():
    story = Trimmed()
    # KL of the units 0.045 and 0.02, two of three examples, each standing for 0.5 * 6 / 3
    for free_bits in (0.0, 0.03, 0.1):
        want = 2 * (max(0.045, free_bits) + max(0.02, free_bits))
        found = ELBO(free_bits=free_bits).loss_and_grads(story.model, story.guide)
        assert found == pytest.approx(want)


def test_a_prior_without_units_has_one_floor_for_all():
    vae = VAE(6, 3, (5,), prior=MixturePrior(3, 4))
    torch.manual_seed(5)
    q = vae.encode(X)
    z = q.rsample()
    reconstruction = -vae.decode(z).log_prob(X).sum().item()
    value, _ = objective(ELBO(free_bits=7.0), vae, X)
    assert value == pytest.approx(reconstruction + 7.0 * 3 * len(X))


def test_a_guide_without_reparameterised_draws_is_refused():
    def model():
        pyro.sample("b", dist.Bernoulli(0.5))

    def guide():
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))))

    with pytest.raises(ValueError, match="beta and free_bits need"):
        ELBO(beta=0.5).loss_and_grads(model, guide)


@pytest.mark.parametrize("options", [{"beta": -1.0}, {"beta": float("nan")}, {"free_bits": -0.1}])
def test_what_is_no_weight_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ELBO(**options)
