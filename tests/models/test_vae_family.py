"""VAEs with two layers, with given classes, with missing classes: against quadrature and sums."""

import itertools
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import nn

from ppgen.inference import ELBO, Annealing, DReG, ImportanceWeightedELBO, log_likelihood, train
from ppgen.inference.peak_memory import peak_memory
from ppgen.models import ConditionalVAE, HierarchicalVAE, SemiSupervisedVAE
from ppgen.models.semi_supervised_vae import MISSING
from ppgen.networks.likelihoods import GaussianLikelihood
from ppgen.networks.priors import VampPrior

EVERY = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)
LINE = torch.linspace(-8, 8, 801, dtype=torch.float64)[:, None]
STEP = torch.log(LINE[1, 0] - LINE[0, 0])


def two_layers():
    vae = HierarchicalVAE(3, (1, 1), (4, 3), activation=nn.Tanh)  # smooth, for quadrature
    for parameter in vae.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return vae


def marginal(vae):
    """log p(z1) of two layers on the line, by quadrature of z2 over +-8."""
    given = vae.upper_decoder(LINE).log_prob(LINE[:, None])  # (z1, z2)
    return (given + vae.upper_prior().log_prob(LINE)).logsumexp(1) + STEP


def evidence(vae, x):
    """log p(x) of two layers, by quadrature."""
    return (vae.decode(LINE[:, None]).log_prob(x) + marginal(vae)[:, None]).logsumexp(0) + STEP


def test_two_layers_are_normalised_and_bounded():
    vae = two_layers()
    exact = evidence(vae, EVERY).detach()
    # z1 = mu(z2) + sigma(z2) e stays within +-8 but for 1e-8 of its mass
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-6)
    found = log_likelihood(vae, EVERY, samples=5000, seed=0)
    assert found.details["elbo"] < found.lower
    assert abs(found.lower - exact.mean().item()) < 0.01 + 4.3 * found.lower_error


def test_two_layers_weights_average_to_the_evidence():
    vae = two_layers()
    weights = (vae.log_weights(EVERY, 4000) - evidence(vae, EVERY)).exp().detach()
    error = weights.std(0) / 4000**0.5
    # 8 means, each off by 4.8 errors once in 1.6e-6
    assert ((weights.mean(0) - 1).abs() < 4.8 * error).all()


def test_two_layers_are_annealed_together():
    """p(z2) is not the law of z1, of whichever sizes both are."""
    vae = two_layers()
    vae.upper_decoder[1].head.bias.data[0] += 3  # so that z1 is not near z2's prior
    vae.decoder[0].weight.data *= 5
    vae.decoder[-1].weight.data *= 5
    exact = evidence(vae, EVERY).mean().item()
    options = Annealing(chains=32, temperatures=20, leapfrogs=3)
    found = log_likelihood(vae, EVERY, annealing=options, seed=0)
    # 32 chains of 20 temperatures lose some .01 nats; p(z2) in the place of p(z1) is off by more
    assert exact - 0.05 < found.lower < exact + 4.3 * found.lower_error
    alone = vae.decode(LINE[:, None]).log_prob(EVERY) + vae.upper_prior().log_prob(LINE)[:, None]
    assert abs((alone.logsumexp(0) + STEP).mean().item() - exact) > 0.1


def test_two_layers_elbo_is_pyros():
    vae = two_layers()
    found = []
    for loss in (ELBO(analytic=False), Trace_ELBO()):
        vae.zero_grad()
        torch.manual_seed(5)
        with pyro.get_param_store().scope():
            value = loss.loss_and_grads(vae.model, vae.guide, EVERY)
        found.append([value, *(p.grad.clone() for p in vae.parameters())])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("analytic", [True, False])
def test_two_layers_elbo_is_the_mean_log_weight_in_either_form(analytic):
    """z1 is drawn before z2 and generated after it: its divergence is no closed form."""
    vae = two_layers()
    x = EVERY.repeat(500, 1)
    weights = vae.log_weights(EVERY, 4000).detach()
    expected, error = weights.mean(), weights.std() / 32000**0.5
    found = -ELBO(analytic=analytic).loss(vae.model, vae.guide, x) / len(x)
    # 4000 more draws here: their error is sqrt(8) times the other
    assert abs(found - expected) < 4.3 * 3 * error


def test_two_layers_train_by_importance_weighting_and_say_what_they_use():
    vae, x = HierarchicalVAE(6, (3, 2), (5, 4)), torch.bernoulli(torch.full((8, 6), 0.4))
    for loss in (ELBO(), ImportanceWeightedELBO(4), DReG(4)):
        vae.zero_grad()
        for _ in range(3):
            loss.loss_and_grads(vae.model, vae.guide, x)
        assert all(p.grad.abs().max() > 0 for p in vae.parameters())
        assert sum(map(len, loss._steps._steps.values())) == 1
    use = vae.latent_use(x)
    assert (len(use["z1"].variance), len(use["z2"].variance)) == (3, 2)
    assert str(use).splitlines()[1] == f"z2: {use['z2']}"
    weights = vae.log_weights(x, 4000).detach()
    reconstruction = vae.decode(vae.encode(x).sample((4000,))).log_prob(x).mean()
    total = use["z1"].divergence + use["z2"].divergence
    # both divergences together are reconstruction less ELBO; terms deviate by less than 3
    assert total == pytest.approx((reconstruction - weights.mean()).item(), abs=4.3 * 6 / 800**0.5)
    assert vae.sample(4).shape == (4, 6)
    assert vae.reconstruct(x).shape == x.shape
    with pytest.raises(ValueError, match="two sizes"):
        HierarchicalVAE(6, (3,), (5, 4))


def test_what_many_examples_use_is_that_of_their_parts_in_the_memory_of_a_few():
    vae = two_layers()
    x = EVERY.repeat(38, 1)[:300]
    few, many = (peak_memory(lambda n=n: vae.latent_use(x[:n])) for n in (100, 300))
    assert many < 1.5 * few
    whole = vae.latent_use(x)
    parts = [vae.latent_use(x[i::3]) for i in range(3)]
    mean = sum(part["z1"].divergence for part in parts) / 3
    # 300 examples by 100 draws, whose terms deviate by less than 3
    assert whole["z1"].divergence == pytest.approx(mean, abs=4.3 * 3 * (2 / 30_000) ** 0.5)
    mean = vae.encode(x).mean.detach()
    assert whole["z1"].variance == pytest.approx(mean.var(0).numpy(), rel=1e-2)


def test_two_layers_take_other_parts():
    vae = HierarchicalVAE(
        3, (2, 1), (4, 3), prior=VampPrior(torch.randn(4, 2)), likelihood=GaussianLikelihood(None)
    )
    x = vae.sample(5)
    assert vae.log_weights(x, 3).shape == (3, 5)
    ELBO().loss_and_grads(vae.model, vae.guide, x)
    assert vae.code_prior.pseudo_inputs.grad.abs().max() > 0


def conditional():
    return ConditionalVAE(3, 4, 1, (5,))


def conditional_evidence(vae, y):
    """log p(x | y) of every x, by quadrature."""
    label = torch.eye(4)[y]
    joint = vae.decode(LINE[:, None], label).log_prob(EVERY) + vae.prior().log_prob(LINE)[:, None]
    return joint.logsumexp(0) + STEP


def test_each_class_has_a_law_of_its_own_that_the_weights_average_to():
    vae = conditional()
    laws = torch.stack([conditional_evidence(vae, y) for y in range(4)]).detach()
    torch.testing.assert_close(laws.exp().sum(1), torch.ones(4))
    assert (laws[0] - laws[1]).abs().max() > 1e-3
    y = torch.arange(8) % 4
    weights = (vae.log_weights(EVERY, y, 4000) - laws[y, torch.arange(8)]).exp().detach()
    error = weights.std(0) / 4000**0.5
    assert ((weights.mean(0) - 1).abs() < 4.8 * error).all()


def test_labels_in_a_column_are_not_every_class_for_every_example():
    vae, y = ConditionalVAE(3, 2, 1, (4,)), torch.arange(8) % 2
    for use in (vae.model, vae.guide, lambda x, y: vae.log_weights(x, y, 2)):
        with pytest.raises(ValueError, match=r"the examples \(8,\); got labels of shape \(8, 1\)"):
            use(EVERY, y[:, None])


def test_a_conditional_vae_learns_its_classes(silent):
    torch.manual_seed(0)
    patterns = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    y = torch.arange(64) % 2
    vae = ConditionalVAE(4, 2, 1, (16,))
    train(vae, (patterns[y], y.double()), epochs=120, batch_size=64, learning_rate=0.03)
    drawn = vae.sample(y)
    # each pixel is right with 0.95 or more after this training
    assert (drawn == patterns[y]).double().mean() > 0.9
    swapped = vae.translate(patterns[:1], torch.tensor([0]), torch.tensor([1]))
    assert torch.equal(swapped.round(), patterns[1:])


@pytest.mark.parametrize("make", [conditional, lambda: SemiSupervisedVAE(3, 4, 1, (5,))])
def test_labels_out_of_range_are_refused_by_row(make):
    vae, y = make(), torch.tensor([0, 1, 9, 2])
    with pytest.raises(ValueError, match=r"row 2: 9 is not one of the classes 0, 1, \.\.\., 3"):
        vae.model(EVERY[:4], y)


def semi():
    return SemiSupervisedVAE(3, 4, 1, (5,))


def test_the_labels_that_are_missing_are_summed_out():
    vae = semi()
    exact = torch.stack([conditional_evidence(vae.conditional, y) for y in range(4)])
    exact = (exact.logsumexp(0) - math.log(4)).detach()
    weights = (vae.log_weights(EVERY, 4000) - exact).exp().detach()
    error = weights.std(0) / 4000**0.5
    assert ((weights.mean(0) - 1).abs() < 4.8 * error).all()
    found = log_likelihood(vae, EVERY, samples=1000, seed=0)
    assert abs(found.lower - exact.mean().item()) < 0.01 + 4.3 * found.lower_error


@pytest.mark.parametrize("seen", [0, 3, 8])
def test_the_elbo_is_the_papers_formula_with_exact_sums(seen, monkeypatch):
    vae, y = semi(), torch.arange(8) % 4
    y[seen:] = MISSING
    x = EVERY.repeat(400, 1)
    guess = vae.classify(EVERY)
    each = torch.stack(
        [vae.conditional.log_weights(EVERY, torch.full((8,), k), 4000).mean(0) for k in range(4)], 1
    ).detach() - math.log(4)
    unlabelled = (guess.probs * each).sum(1) + guess.entropy()
    labelled = each[torch.arange(8), y.clamp(min=0)]
    expected = torch.where(y == MISSING, unlabelled, labelled).mean().item()
    # a guess of the plates would run the pair once more at every step, and log a line
    monkeypatch.setattr(TraceEnum_ELBO, "_guess_max_plate_nesting", None)
    pyros = [TraceEnum_ELBO(max_plate_nesting=1)] if seen < 8 else []  # else it warns
    for loss in (ELBO(), *pyros):
        found = -loss.loss(vae.model, vae.guide, x, y.repeat(400)) / len(x)
        # log weights deviate by less than one: 3200 terms here, 32000 there
        assert found == pytest.approx(expected, abs=4.3 * 1.1 / 3200**0.5)


def test_the_classifier_learns_from_labels_with_the_extra_term_alone():
    y = torch.arange(8) % 4
    for weight in (0.0, 2.0):
        vae = SemiSupervisedVAE(3, 4, 1, (5,), classification=weight)
        with pyro.get_param_store().scope():
            value = ELBO().loss_and_grads(vae.model, vae.guide, EVERY, y)
        learned = vae.classifier[0].weight.grad
        assert (learned is not None and learned.abs().max() > 0) == bool(weight)
        assert math.isfinite(value)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        SemiSupervisedVAE(3, 4, classification=-1.0)


def test_svi_and_predictive_run_semi_supervised():
    vae, y = semi(), torch.tensor([0, 1, MISSING, MISSING, 2, MISSING, 3, 0])
    with pyro.get_param_store().scope():
        svi = SVI(
            vae.model, config_enumerate(vae.guide), pyro.optim.Adam({"lr": 0.01}), loss=ELBO()
        )
        before = [p.detach().clone() for p in vae.parameters()]
        svi.step(EVERY, y)
        svi.step(EVERY, y)
    assert all(not torch.equal(p, q) for p, q in zip(vae.parameters(), before, strict=True))
    assert vae.sample(5).shape == (5, 3)
    draws = Predictive(vae.guide, num_samples=3)(EVERY, y)
    assert draws["z, unlabelled"].shape == (3, 3, 1)
    with pytest.raises(ValueError, match="a label for each of 8 examples"):
        vae.model(EVERY, y[:5])
