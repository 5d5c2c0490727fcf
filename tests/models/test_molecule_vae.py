"""The VAE of molecules: its strings by enumeration, its density by a loop and quadrature."""

import itertools
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from scipy.stats import chi2

from perturbation import perturbed
from ppgen import latent
from ppgen.chemistry import reconstruction
from ppgen.data.tokens import BOS, EOS, PAD, UNK
from ppgen.distributions import Sentence
from ppgen.inference.elbo import ELBO
from ppgen.models import MoleculeVAE
from ppgen.types import Autoencoder, ImportanceWeighted

FAILURE_RATE = 2e-5  # of one correct statistical test
V, T = 5, 4  # one symbol beside the special tokens, of which UNK may be written too
SYMBOLS = (UNK, 4)
STRINGS = torch.tensor(
    [
        [*symbols, EOS, *[PAD] * (T - n - 1)]
        for n in range(T)
        for symbols in itertools.product(SYMBOLS, repeat=n)
    ]
    + [list(symbols) for symbols in itertools.product(SYMBOLS, repeat=T)]
)
Y = (torch.tensor([0.8, 2.0]), torch.tensor([0.1, 0.9]))


def tiny(latent=1, properties=None):
    """With parameters large enough for the tokens before and the code to matter."""
    return perturbed(MoleculeVAE(V, T, latent, 6, properties=properties), 0.5)


def evidence(vae, x):
    """log p(x) of a VAE with one latent, by quadrature of z over +-8."""
    z = torch.linspace(-8, 8, 401)[:, None]
    joint = vae.decode(z[:, None]).log_prob(x) + vae.prior().log_prob(z)[:, None]
    return joint.logsumexp(0) + torch.log(z[1, 0] - z[0, 0])


def test_probabilities_of_all_strings_sum_to_one():
    assert len(STRINGS) == 1 + 2 + 4 + 8 + 16
    vae, z = tiny(2), torch.randn(5, 1, 2)
    # 31 terms rounded at 1e-16 each
    assert torch.allclose(vae.decode(z).log_prob(STRINGS).exp().sum(1), torch.ones(5), atol=1e-12)


def test_all_places_at_once_are_a_loop_that_takes_off_what_it_has_read():
    vae, z = tiny(2), torch.randn(len(STRINGS), 2)
    decoder = vae.decoder
    expected = []
    for code, row in zip(z, STRINGS.tolist(), strict=True):
        total, before, state = 0.0, BOS, decoder.begin(code[None])
        for place, token in enumerate(row):
            logits, state = decoder.step(code[None], torch.tensor([before]), state)
            taken = sum(decoder.code.parts[t, row[t]] for t in range(place))
            assert torch.allclose(state.left[0], code - decoder.code.centre - taken)
            total += logits[0].log_softmax(-1)[token - EOS].item()
            if token == EOS:
                break
            before = token
        expected.append(total)
    assert torch.allclose(vae.decode(z).log_prob(STRINGS), torch.tensor(expected), atol=1e-12)
    assert len({round(e, 6) for e in expected}) == len(STRINGS)


def test_the_code_is_a_sum_over_places_and_padding_adds_nothing():
    vae = tiny(3)
    code = vae.decoder.code
    row = STRINGS[4]  # two symbols and the end
    expected = code.centre + sum(code.parts[t, row[t]] for t in range(3))
    assert torch.allclose(vae.encode(STRINGS[4:5]).mean, expected[None])
    assert torch.allclose(vae.encode(STRINGS[4:5, :3]).mean, expected[None])
    with pytest.raises(ValueError, match="rows of 5 tokens, where this code has 4 places"):
        vae.encode(torch.full((1, 5), 4))


def test_a_score_depends_on_tokens_before_and_never_on_those_after():
    vae, z = tiny(2), torch.randn(1, 2)
    rows = torch.tensor([[4, 4, 3, EOS], [4, 4, 4, EOS], [3, 4, 3, EOS]])
    inputs = torch.cat([torch.full((3, 1), BOS), rows[:, :-1]], 1)
    logits = vae.decoder(z.expand(3, -1), inputs)
    torch.testing.assert_close(logits[0, :3], logits[1, :3])  # the rows differ at place 2 alone
    assert not torch.allclose(logits[0, 3], logits[1, 3])
    torch.testing.assert_close(logits[0, 0], logits[2, 0])  # and these at place 0
    assert not torch.allclose(logits[0, 1], logits[2, 1])


def test_samples_follow_the_law():
    law = tiny(2).decode(torch.randn(2))
    p = law.log_prob(STRINGS).exp().detach()
    draws = 20_000
    x = law.sample(torch.Size([draws]))
    counts = (x[:, None] == STRINGS).all(-1).sum(0)
    assert counts.sum() == draws  # nothing but strings
    statistic = ((counts - draws * p) ** 2 / (draws * p)).sum().item()
    assert statistic < chi2.isf(FAILURE_RATE, 30)


def test_log_weights_average_to_the_evidence():
    vae = tiny()
    with torch.no_grad():  # a guide as wide as the prior, so that no weight is rare and large
        vae.posterior.log_scale.zero_()
        vae.decoder.code.parts.mul_(0.2)
    exact = evidence(vae, STRINGS).detach()
    # quadrature of an analytic, decaying function: exact to rounding but for the tails, 1e-15
    assert exact.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    weights = (vae.log_weights(STRINGS, 800) - exact).exp().detach()
    error = weights.std(0) / 800**0.5
    # 31 means, each off by 5 errors once in 6e-7
    assert ((weights.mean(0) - 1).abs() < 5 * error).all()


def test_the_joint_density_is_the_sum_of_its_parts_in_the_units_of_the_properties():
    vae = tiny(2, Y)
    y = Y[0] + Y[1] * torch.randn(len(STRINGS), 2)
    trace = pyro.poutine.trace(vae.model).get_trace(STRINGS, y)
    z = trace.nodes["z"]["value"]
    mean, noise = Y[0] + Y[1] * vae.head(z), Y[1] * vae.log_noise.exp()
    errors = (y - mean) / noise
    by_hand = (
        -0.5 * (z**2).sum()
        - len(z) * math.log(2 * math.pi)
        + vae.decode(z).log_prob(STRINGS).sum()
        - (0.5 * errors**2 + noise.log() + 0.5 * math.log(2 * math.pi)).sum()
    )
    assert trace.log_prob_sum().item() == pytest.approx(by_hand.item(), rel=1e-12)


def test_the_encoder_sees_every_place_and_the_protocols_hold():
    vae = tiny(2)
    assert isinstance(vae, Autoencoder)
    assert isinstance(vae, ImportanceWeighted)
    means = vae.encode(STRINGS).mean
    assert len({tuple(m.tolist()) for m in means}) == len(STRINGS)
    assert torch.equal(latent.codes(vae, STRINGS), means.detach())
    assert vae.sample(6).shape == (6, T)
    assert vae.reconstruct(STRINGS).shape == STRINGS.shape


@pytest.mark.parametrize("loss", [Trace_ELBO, ELBO])
@pytest.mark.parametrize("times", [1, 2])
def test_svi_changes_every_parameter_of_every_instance(loss, times):
    y = Y[0] + Y[1] * torch.randn(len(STRINGS), 2)
    for _ in range(times):
        vae = tiny(2, Y)
        before = {name: p.detach().clone() for name, p in vae.named_parameters()}
        with pyro.get_param_store().scope():
            svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=loss())
            for _ in range(2):
                svi.step(STRINGS, y)
        for name, parameter in vae.named_parameters():
            assert not torch.equal(parameter, before[name]), name


def test_both_bounds_are_the_same_number_on_average():
    vae, y = tiny(1, Y), Y[0].expand(len(STRINGS), 2)
    ours, pyros = ELBO(), Trace_ELBO()
    a, b = (
        torch.tensor([e.loss(vae.model, vae.guide, STRINGS, y) for _ in range(60)])
        for e in (ours, pyros)
    )
    error = ((a.var() + b.var()) / 60).sqrt()
    assert (a.mean() - b.mean()).abs() < 4.3 * error  # two-sided, FAILURE_RATE


@pytest.mark.slow
def test_trained_on_strings_that_hold_a_property_it_reconstructs_and_predicts():
    x = STRINGS[torch.tensor([3, 8, 15, 22, 27, 30])].repeat(8, 1)
    y = (x == 4).sum(1, keepdim=True).to(torch.get_default_dtype())
    vae = MoleculeVAE(V, T, 4, 24, properties=(y.mean(0), y.std(0)))
    optimizer, loss = torch.optim.Adam(vae.parameters(), 0.02), ELBO(beta=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss.loss_and_grads(vae.model, vae.guide, x, y)
        optimizer.step()
    assert torch.equal(vae.reconstruct(x), x)
    z = vae.encode(x[:6]).mean
    predicted = vae.properties_given_code(z).mean
    # numbers of one token, 0 to 4: rounding tells them apart
    assert torch.equal(predicted.round(), y[:6])
    # what the protocol samples is E_q[p(x | z)], here averaged over as many codes without sampling
    by_protocol = reconstruction(vae, x[:6], 40, 40)
    exact = vae.decode(vae.encode(x[:6]).sample(torch.Size([1000]))).log_prob(x[:6]).exp()
    assert by_protocol.share == pytest.approx(exact.mean().item(), abs=0.1)
    # without strings what is left to chance is the mean over 6 x 1000 codes of numbers in [0, 1],
    # whose difference from such another mean has a standard error of at most 0.009
    unsampled = reconstruction(vae, x[:6], 1000, None)
    assert unsampled.share == pytest.approx(exact.mean().item(), abs=0.04)
    assert "decodings" not in str(unsampled)
    # and along the gradient of the predictor inside the trust region it grows
    ascent = latent.ascend(
        z, lambda z: vae.properties_given_code(z).mean[:, 0], vae.prior(), steps=10
    )
    assert (ascent.property[-1] > ascent.property[0]).all()


def test_predictive_draws_and_the_graph_renders():
    vae = tiny(2, Y)
    y = torch.ones(len(STRINGS), 2)
    assert Predictive(vae.guide, num_samples=4)(STRINGS)["z"].shape == (4, 31, 2)
    graph = pyro.infer.inspect.get_model_relations(vae.model, (STRINGS, y))
    assert graph["sample_sample"] == {"z": [], "x": ["z"], "y": ["z"]}


def test_state_comes_back_with_the_scale_of_the_properties():
    vae, other = tiny(2, Y), tiny(2, (torch.zeros(2), torch.ones(2)))
    other.load_state_dict(vae.state_dict())
    z = torch.randn(3, 2)
    assert torch.equal(vae.properties_given_code(z).mean, other.properties_given_code(z).mean)
    assert torch.equal(vae.decode(z).log_prob(STRINGS[:3]), other.decode(z).log_prob(STRINGS[:3]))


@pytest.mark.parametrize("use", ["model", "guide", "encode", "log_weights"])
def test_what_is_no_string_is_refused_with_its_place(use):
    x = STRINGS.clone()
    x[1, 1] = 7
    with pytest.raises(ValueError, match=r"row 1, column 1.*0 to 4"):
        getattr(tiny(), use)(*((x, 2) if use == "log_weights" else (x,)))


def test_wrong_shapes_and_missing_heads_are_said():
    with pytest.raises(ValueError, match="scales must be positive; got"):
        MoleculeVAE(9, 6, 4, properties=(torch.zeros(2), torch.tensor([1.0, 0.0])))
    with pytest.raises(ValueError, match="no properties: make it with"):
        tiny().properties_given_code(torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"properties \(31, 2\); got \(31, 1\)"):
        tiny(1, Y).model(STRINGS, torch.zeros(31, 1))
    with pytest.raises(ValueError, match="row 0, column 1: expected finite"):
        tiny(1, Y).model(STRINGS[:1], torch.tensor([[0.0, float("nan")]]))
    with pytest.raises(ValueError, match="at least one string"):
        reconstruction(tiny(), STRINGS, encodings=0)


def test_a_law_expands_like_its_codes():
    law = tiny(2).decode(torch.randn(2))
    wide = law.expand(torch.Size([3, 5]))
    assert isinstance(wide, Sentence)
    assert wide.batch_shape == (3, 5)
    assert wide.log_prob(STRINGS[4]).shape == (3, 5)
    assert wide.sample().shape == (3, 5, T)
