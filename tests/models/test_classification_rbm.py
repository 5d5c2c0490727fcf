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
        (lambda: ClassificationRBM(3, 2, classes=3), "a unit of x beside"),
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
