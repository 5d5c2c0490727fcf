"""The classification RBM: exact p(y | x), its side of two kinds, and accuracy on digits."""

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

import ppgen
from ppgen.inference import BlockGibbs, ContrastiveDivergence
from ppgen.models import ClassificationRBM, labelled

pytestmark = pytest.mark.usefixtures("silent")

EXACT = {"rtol": 1e-10, "atol": 1e-10}
DRAWS = 20_000


def states(units):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * units).reshape(-1, units)


def machine():
    rbm = ClassificationRBM(6, 4, classes=3, weight_scale=1.5)
    torch.nn.init.normal_(rbm.visible_bias)
    torch.nn.init.normal_(rbm.hidden_bias)
    return rbm.requires_grad_(False)


def everything():
    """All 8 x 3 rows (x, y), y fastest."""
    x, y = states(3).repeat_interleave(3, 0), torch.arange(3).repeat(8)
    return labelled(x, y, 3)


def test_labels_given_data_equal_the_enumerated_joint():
    rbm, rows = machine(), everything()
    log_p = rbm.marginal().log_prob(rows)
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(()), **EXACT)
    joint = -(-rbm.energy(rows[:, None], states(4)[None])).logsumexp(1)
    torch.testing.assert_close(rbm.free_energy(rows), joint, **EXACT)
    expected = log_p.reshape(8, 3).log_softmax(1)
    torch.testing.assert_close(rbm.label_logits(states(3)).log_softmax(1), expected, **EXACT)
    assert torch.equal(rbm.classify(states(3)), expected.argmax(1))


def test_clamped_pixels_give_the_exact_law_of_labels():
    rbm, x = machine(), torch.tensor([1.0, 0.0, 1.0])
    p = rbm.label_given_data(x).probs
    start = labelled(x.expand(DRAWS, -1), torch.multinomial(p, DRAWS, replacement=True), 3)
    kernel = BlockGibbs(rbm, start, sweeps=3, clamp=torch.arange(6) < 3)
    rows = kernel.sample(kernel.initial_params)["x"]
    assert torch.equal(rows[:, :3], start[:, :3])
    assert (rows[:, 3:].sum(1) == 1).all()
    assert (rows != start).any()
    # 3 comparisons: normal quantile of 1 - 1e-5 / 3 is 4.5
    assert ((rows[:, 3:].mean(0) - p).abs() < 4.5 * (p * (1 - p) / DRAWS).sqrt()).all()
    with pytest.raises(ValueError, match="all or none"):
        BlockGibbs(rbm, start, clamp=torch.arange(6) < 4)


# rows (x, y) of which some is missing: pixels, the label, both, everything, nothing
SEEN = [[1, 0, 1, 1], [1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize("seen", SEEN, ids=str)
def test_what_is_missing_is_summed_out(seen):
    rbm, rows = machine(), everything()
    observed = torch.tensor(seen).bool()[[0, 1, 2, 3, 3, 3]]
    x = torch.where(observed, rows[10], torch.nan)
    same = (rows == rows[10])[:, observed].all(1)
    joint = -rbm.free_energy(rows[same])
    found = rbm.log_observed(x[None], observed)
    torch.testing.assert_close(found, joint.logsumexp(0)[None], **EXACT)
    if not observed.all():
        law = rbm.missing_given_observed(x, observed)
        given = law.log_prob(rows[same][:, ~observed])
        torch.testing.assert_close(given, joint.log_softmax(0), **EXACT)


def test_a_label_is_summed_out_however_many_hidden_units_there_are():
    rbm = ClassificationRBM(40, 60, classes=10, weight_scale=0.5).requires_grad_(False)
    x = torch.bernoulli(torch.full((5, 30), 0.5))
    rows, observed = torch.cat([x, torch.full((5, 10), torch.nan)], 1), torch.arange(40) < 30
    # what label_logits leave out is the part of the pixels alone
    expected = rbm.label_logits(x).logsumexp(1) + x @ rbm.visible_bias[:30]
    torch.testing.assert_close(rbm.log_observed(rows, observed), expected, **EXACT)
    x[0, 0] = 1
    rows[0, 0], observed[0] = torch.nan, False
    either = torch.stack([x[0] * (torch.arange(30) > 0), x[0]])
    expected = (rbm.label_logits(either).logsumexp(1) + either @ rbm.visible_bias[:30]).logsumexp(0)
    torch.testing.assert_close(rbm.log_observed(rows[:1], observed)[0], expected, **EXACT)
    with pytest.raises(ValueError, match="observed in part"):
        rbm.log_observed(rows, torch.arange(40) < 35)


def test_it_trains_generatively_and_discriminatively():
    rows = everything()[torch.randint(24, (40,))]
    labels = rows[:, 3:].argmax(1)
    rbm = ClassificationRBM.from_data(rows, 4, classes=3)
    before = rbm.weight.detach().clone()
    ppgen.train(rbm, rows, epochs=1, batch_size=10)
    assert (rbm.weight != before).all()
    assert ppgen.log_likelihood(rbm, rows).kind == "exact"
    with pyro.get_param_store().scope():
        optimizer = pyro.optim.Adam({"lr": 0.05})
        svi = SVI(rbm.classifier, rbm.no_latents, optimizer, Trace_ELBO())
        with torch.no_grad():
            expected = -rbm.label_given_data(rows[:, :3]).log_prob(labels).sum().item()
        first = svi.step(rows[:, :3], labels)
        assert abs(first - expected) < 1e-9
        for _ in range(50):
            last = svi.step(rows[:, :3], labels)
        assert last < first - 0.5


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: ClassificationRBM(3, 2, classes=3),
            "a whole number of at least 4, got 3",
        ),
        (lambda: labelled(torch.ones(2, 3), torch.tensor([0, 3]), 3), "0 to 2, got 3"),
    ],
)
def test_wrong_calls_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.slow
def test_digits_are_classified():
    """0.87 after CD-5; logistic regression on the same binary digits: 0.83."""
    train, test = (ppgen.data.load("digits", split) for split in ("train", "test"))
    rows = labelled(train.x.double(), train.labels, 10)
    rbm = ClassificationRBM.from_data(rows, 100, classes=10)
    loss = ContrastiveDivergence(gibbs_steps=5, weight_decay=1e-3)
    ppgen.train(rbm, rows, loss=loss, epochs=100, batch_size=50, learning_rate=1e-2, averaging=0.99)
    accuracy = (rbm.classify(test.x.double()) == test.labels).double().mean()
    assert accuracy > 0.84
