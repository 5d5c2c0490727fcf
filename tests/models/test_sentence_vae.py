"""The sentence VAE and the language model: against loops, enumeration and quadrature."""

import itertools

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

from perturbation import perturbed
from ppgen.data import DataError
from ppgen.data.tokens import BOS, EOS, PAD, UNK
from ppgen.distributions import Sentence
from ppgen.inference import ELBO, Annealing, log_likelihood
from ppgen.models import LanguageModel, SentenceVAE
from ppgen.types import Autoencoder, DecoderModel, ExactDensity, ImportanceWeighted

V, T = 6, 4  # two words beside the special tokens; UNK may be written too
WORDS = (UNK, 4, 5)
ROWS = torch.tensor([[4, 5, EOS, PAD], [EOS, PAD, PAD, PAD], [5, 5, 4, EOS], [UNK, 4, 5, 4]])
ENOUGH = 0.5  # spread of the parameters with which the tokens before and the code matter
Z = 4.3  # two-sided normal quantile of 2e-5: 4.26


def every_row(length=T):
    """All sentences shorter than `length`, padded, and all beginnings of that length."""
    ended = [
        [*words, EOS, *[PAD] * (length - n - 1)]
        for n in range(length)
        for words in itertools.product(WORDS, repeat=n)
    ]
    return torch.tensor(ended + [list(w) for w in itertools.product(WORDS, repeat=length)])


def vae(latent=1, **options):
    return perturbed(SentenceVAE(V, T, latent, hidden=5, embedding=3, **options), ENOUGH)


def by_a_loop(decoder, z, row):
    """Log p(x | z) of one sentence, token by token, one step of the unit at a time."""
    total, state, before = 0.0, decoder.begin(z[None]), BOS
    for token in row.tolist():
        if before == EOS:
            break
        logits, state = decoder.step(z[None], torch.tensor([before]), state)
        total += logits.log_softmax(-1)[0, token - EOS]
        before = token
    return total


def evidence(story, x):
    """log p(x) of a story with one latent, by quadrature of z over +-8."""
    z = torch.linspace(-8, 8, 1001)[:, None]
    joint = story.decode(z[:, None]).log_prob(x) + story.prior().log_prob(z)[:, None]
    return joint.logsumexp(0) + torch.log(z[1, 0] - z[0, 0])


def test_the_protocols_are_met():
    assert isinstance(vae(), Autoencoder)
    assert isinstance(vae(), DecoderModel)
    assert isinstance(vae(), ImportanceWeighted)
    assert isinstance(LanguageModel(V, T, 5), ExactDensity)


def test_the_masked_likelihood_is_a_loop_over_tokens():
    story, z = vae(latent=2), torch.randn(len(ROWS), 2)
    expected = torch.stack(
        [by_a_loop(story.decoder, c, row) for c, row in zip(z, ROWS, strict=True)]
    )
    torch.testing.assert_close(story.decode(z).log_prob(ROWS), expected)
    assert len(expected.round(decimals=3).unique()) == len(ROWS)


def test_probabilities_of_all_rows_sum_to_one_for_each_code():
    story, z = vae(latent=2), torch.randn(3, 1, 2)
    rows = every_row()
    assert len(rows) == 1 + 3 + 9 + 27 + 81
    total = story.decode(z).log_prob(rows).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(3))
    lm = perturbed(LanguageModel(V, T, 5, embedding=3), ENOUGH)
    assert lm.log_prob(rows).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_padding_changes_nothing():
    story, z = vae(), torch.randn(3, 1)
    x = ROWS[:3]
    longer = torch.cat([x, torch.full((3, 5), PAD)], 1)
    torch.testing.assert_close(story.decode(z).log_prob(longer), story.decode(z).log_prob(x))
    torch.testing.assert_close(story.encode(longer).mean, story.encode(x).mean)


def test_a_score_depends_on_tokens_before_and_never_on_those_after():
    story, z = vae(), torch.randn(1, 1)
    rows = torch.tensor([[4, 4, 5, EOS], [4, 4, 4, EOS], [5, 4, 5, EOS]])
    inputs = story.decode(z.expand(3, 1))._inputs(rows)
    logits = story.decoder(z.expand(3, 1), inputs)
    torch.testing.assert_close(logits[0, :3], logits[1, :3])  # the rows differ at place 2 alone
    assert not torch.allclose(logits[0, 3], logits[1, 3])
    torch.testing.assert_close(logits[0, 0], logits[2, 0])  # and these at place 0
    assert not torch.allclose(logits[0, 1], logits[2, 1])


def test_shapes_broadcast_as_those_of_any_distribution():
    story = vae(latent=2)
    law = story.decode(torch.randn(7, 4, 2))
    assert law.log_prob(ROWS).shape == (7, 4)
    assert law.log_prob(ROWS[0]).shape == (7, 4)
    assert law.sample(torch.Size([3])).shape == (3, 7, 4, T)
    assert law.greedy().shape == (7, 4, T)
    one = story.decode(torch.randn(2))
    assert one.log_prob(ROWS[0]).shape == ()
    assert one.expand(torch.Size([3])).sample().shape == (3, T)
    assert story.encode(ROWS[None].expand(2, -1, -1)).mean.shape == (2, 4, 2)


def test_draws_have_their_probabilities():
    story, z, count = vae(), torch.randn(1), 20_000
    rows, draws = every_row(), story.decode(z).sample(torch.Size([count]))
    expected = count * story.decode(z).log_prob(rows).exp().detach()
    same = (draws[:, None] == rows).all(-1)
    assert same.any(1).all()  # every draw is a row: PAD after EOS, and no BOS
    seen, large = same.sum(0), expected >= 5
    cells = torch.cat([expected[large], expected[~large].sum()[None] + 1e-9])
    found = torch.cat([seen[large], seen[~large].sum()[None]])
    chi2, freedom = float(((found - cells) ** 2 / cells).sum()), len(cells) - 1
    # Wilson-Hilferty quantile of chi-square at 2e-5 (z = 4.11)
    limit = freedom * (1 - 2 / (9 * freedom) + 4.11 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert chi2 < limit


def test_greedy_takes_the_most_probable_token_each_time():
    story, z = vae(), torch.randn(5, 1)
    for code, row in zip(z, story.decode(z).greedy(), strict=True):
        state, before = story.decoder.begin(code[None]), BOS
        for token in row.tolist():
            if before in (EOS, PAD):
                assert token == PAD
            else:
                logits, state = story.decoder.step(code[None], torch.tensor([before]), state)
                assert token == int(logits.argmax()) + EOS
            before = token


def test_bounds_enclose_the_evidence_which_sums_to_one():
    story = vae()
    rows = every_row(3)
    exact = evidence(story, rows).detach()
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-9)
    found = log_likelihood(story, rows, samples=5000, seed=0)
    assert found.details["elbo"] < exact.mean() + Z * found.lower_error
    assert abs(found.lower - exact.mean().item()) < 0.01 + Z * found.lower_error


def test_log_weights_are_drawn_in_parts_of_bounded_size(monkeypatch):
    monkeypatch.setattr("ppgen.models.token_vae.ROWS", 10)
    story = vae()
    assert story.log_weights(ROWS, 7).shape == (7, 4)
    weights = (story.log_weights(ROWS, 500) - evidence(story, ROWS)).exp().detach()
    # 4 means, each off by 4.8 errors once in 1.6e-6
    assert ((weights.mean(0) - 1).abs() < 4.8 * weights.std(0) / 500**0.5).all()


@pytest.mark.slow
def test_its_code_can_be_annealed():
    story = vae()
    exact = evidence(story, ROWS[:2]).mean().item()
    options = Annealing(chains=20, temperatures=20, leapfrogs=3)
    found = log_likelihood(story, ROWS[:2], annealing=options, seed=0)
    assert abs(found.lower - exact) < 0.02 + Z * found.lower_error


def test_the_language_model_is_exact_and_its_pair_scores_the_same():
    story = perturbed(LanguageModel(V, T, 5), ENOUGH)
    found = log_likelihood(story, ROWS)
    assert found.kind == "exact"
    loss = ELBO().loss(story.model, story.guide, ROWS)
    assert loss == pytest.approx(-4 * found.lower)


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO, ELBO])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_svi_changes_every_parameter(loss, dropout):
    story = vae(latent=2, word_dropout=dropout)
    before = {name: p.detach().clone() for name, p in story.named_parameters()}
    svi = SVI(story.model, story.guide, pyro.optim.Adam({"lr": 0.01}), loss=loss())
    for _ in range(3):
        svi.step(ROWS)
    for name, parameter in story.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_recorded_steps_are_those_of_pyro():
    story, loss = vae(latent=2, word_dropout=0.4), ELBO()
    values = []
    for objective in (loss, loss, loss, TraceMeanField_ELBO()):
        torch.manual_seed(3)
        story.zero_grad()
        value = objective.loss_and_grads(story.model, story.guide, ROWS)
        values.append([value, *[p.grad.clone() for p in story.parameters()]])
    for found in values[1:]:
        torch.testing.assert_close(found, values[0])
    draws = {loss.loss_and_grads(story.model, story.guide, ROWS) for _ in range(5)}
    assert len(draws) == 5  # the noise of a recording is drawn anew


def test_word_dropout_replaces_input_tokens_by_unk_in_training_alone():
    x = torch.tensor([[4, 5, 4, EOS, PAD]]).expand(4000, -1)
    story = vae(word_dropout=0.3)
    read = Sentence(story.decoder, torch.zeros(4000, 1), 5, word_dropout=0.3)._inputs(x)
    plain = torch.tensor([BOS, 4, 5, 4, EOS])
    assert (read[:, 0] == BOS).all()
    assert ((read == UNK) | (read == plain)).all()
    shares = (read[:, 1:] == UNK).double().mean(0)
    # 4 shares of 4000: standard error 0.0072, 4.6 of them are exceeded once in 6e4
    assert ((shares - 0.3).abs() < 4.6 * 0.0072).all()
    assert torch.equal(story.decode(torch.zeros(1, 1))._inputs(x[:1])[0], plain)
    coded = pyro.condition(story.model, {"z": torch.zeros(4000, 1)})
    for training in (True, False):
        story.train(training)
        scores = {pyro.poutine.trace(coded).get_trace(x).log_prob_sum().item() for _ in range(3)}
        assert len(scores) == (3 if training else 1)


def test_predictive_draws_sentences_and_the_graph_renders():
    story = vae(latent=2)
    assert Predictive(story.guide, num_samples=4)(ROWS)["z"].shape == (4, 4, 2)
    free = pyro.poutine.uncondition(story.model)
    assert Predictive(free, num_samples=3)(ROWS)["x"].shape == (3, 4, T)
    graph = pyro.infer.inspect.get_model_relations(story.model, (ROWS,))
    assert graph["sample_sample"] == {"z": [], "x": ["z"]}


def test_reconstructions_and_interpolations_have_shapes_and_ends():
    story = vae(latent=2)
    assert torch.equal(story.reconstruct(ROWS), story.decode(story.code(ROWS)).greedy())
    assert story.reconstruct(ROWS, draws=3).shape == (3, 4, T)
    way = story.interpolate(ROWS[0], ROWS[2], steps=5)
    assert way.shape == (5, T)
    assert torch.equal(way[[0, -1]], story.reconstruct(ROWS[[0, 2]]))
    use = story.latent_use(ROWS)
    assert use.variance.shape == (2,)
    exact = torch.distributions.kl_divergence(story.encode(ROWS), story.prior()).mean()
    assert use.divergence == pytest.approx(exact.item())


@pytest.mark.slow
def test_trained_on_two_sentences_it_gives_each_half_and_remembers_which():
    x = ROWS[[0, 2]].repeat(16, 1)
    story = SentenceVAE(V, T, 1, 16, embedding=8, word_dropout=0.5)
    optimizer, loss = torch.optim.Adam(story.parameters(), 0.03), ELBO(free_bits=0.3)
    for _ in range(120):
        optimizer.zero_grad()
        loss.loss_and_grads(story.model, story.guide, x)
        optimizer.step()
    # the best any model does is log(1/2) = -0.69
    assert evidence(story.eval(), x[:2]).mean() > -0.9
    assert torch.equal(story.reconstruct(x[:2]), x[:2])


def test_state_comes_back_and_floats_are_taken():
    story, other = vae(), vae()
    other.load_state_dict(story.state_dict())
    assert torch.equal(story.code(ROWS), other.code(ROWS))
    single = vae().float()
    assert single.log_weights(ROWS, 2).dtype == torch.float32
    assert single.log_weights(ROWS.float(), 2).shape == (2, 4)


@pytest.mark.parametrize("use", ["model", "guide", "encode", "log_weights", "log_prob"])
def test_rows_that_are_no_sentences_are_refused_by_place(use):
    x = ROWS.clone()
    x[2, 1] = 17
    story = LanguageModel(V, T, 5) if use == "log_prob" else vae()
    arguments = (x, 2) if use == "log_weights" else (x,)
    with pytest.raises(DataError, match=r"row 2, column 1.*0 to 5"):
        getattr(story, use)(*arguments)


def test_a_dropout_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"word_dropout.*got 1"):
        SentenceVAE(V, T, word_dropout=1.0)
