"""Greedy stacks, a DBM from pretraining and without it, and runs that go on."""

import sys
import types
from functools import partial

import pytest
import torch

import ppgen
from ppgen.inference import ContrastiveDivergence, UpDown, greedy
from ppgen.models.dbm import DBM
from ppgen.models.dbn import DBN
from ppgen.models.duplicated_rbm import pretraining_machines
from ppgen.models.rbm import RBM

pytestmark = pytest.mark.usefixtures("silent")

PCD = partial(ContrastiveDivergence, 3, persistent=True)


def pairs(rows=300):
    """Three fair bits, each with a copy that errs one time in ten: 3.05 nats, alone 4.16."""
    first = torch.rand(rows, 3).round()
    second = torch.where(torch.rand(rows, 3) < 0.9, first, 1 - first)
    return torch.cat([first, second], 1)


def test_each_machine_is_trained_on_the_layer_below():
    """The second starts at the base rates of what it is shown, and one tiny step keeps them."""
    x = pairs()
    stack = [RBM(6, 4, weight_scale=1.0), RBM(4, 3, weight_scale=0.0)]
    torch.nn.init.constant_(stack[0].hidden_bias, -2.0)
    greedy(stack, x, upwards="means", epochs=1, batch_size=300, learning_rate=1e-9)
    shown = torch.sigmoid(stack[0].hidden_logits(x)).mean(0)
    torch.testing.assert_close(stack[1].visible_bias.sigmoid(), shown, rtol=0, atol=1e-6)
    greedy(stack, x, epochs=1, batch_size=300, learning_rate=1e-9)
    # one draw for each row: sd of a mean at most 0.5 / sqrt(300), times 4.9 for four units
    assert (stack[1].visible_bias.sigmoid() - shown).abs().max() < 4.9 * 0.5 / 300**0.5


@pytest.mark.parametrize("upwards", ["samples", "means"])
def test_a_layer_is_shown_draws_or_means_of_the_one_below(upwards, monkeypatch):
    x, shown = pairs(2000), []

    def seen(story, x, **_):
        shown.append(x)
        return types.SimpleNamespace(stopped="finished")

    monkeypatch.setattr(sys.modules[greedy.__module__], "train", seen)
    stack = [RBM(6, 4, weight_scale=2.0), RBM(4, 3)]
    greedy(stack, x, upwards=upwards)
    means = torch.sigmoid(stack[0].hidden_logits(x)).detach()
    if upwards == "means":
        torch.testing.assert_close(shown[1], means)
        return
    assert ((shown[1] == 0) | (shown[1] == 1)).all()
    variance = means * (1 - means)
    # each unit of each row is a coin of its own: their sum, weighted so that one row's units or
    # one unit's rows in common would show, is normal; 2 tests of 2e-5 each
    for weights in (torch.ones_like(means), (means - means.mean(0)).sign()):
        z = (weights * (shown[1] - means)).sum() / variance.sum().sqrt()
        assert abs(z) < 4.3


def test_a_duplicated_bottom_shows_what_the_doubled_input_drives():
    x = pairs()
    stack = pretraining_machines((6, 4, 3), weight_scale=0.5)
    greedy(stack, x, upwards="means", epochs=1, batch_size=300, learning_rate=1e-9)
    below, above = (part.rbm for part in stack)
    shown = torch.sigmoid(2 * x @ below.weight + below.hidden_bias).mean(0)
    torch.testing.assert_close(above.visible_bias.sigmoid(), shown, rtol=0, atol=1e-6)


@pytest.mark.slow  # 3 s each on a quiet core
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_dbm_learns_a_toy_to_its_entropy(pretrained):
    """Exact likelihood beside the true law's on the same rows; overfitting adds about 0.05."""
    x = pairs()
    alike = x[:, :3] == x[:, 3:]
    best = torch.where(alike, 0.45, 0.05).log().sum(1).mean().item()
    falling = {"schedule": lambda epoch: 1 - epoch / 60, "batch_size": 50, "averaging": 0.9}
    if pretrained:
        dbm = DBM(6, (5, 4))
        stack = pretraining_machines(dbm.sizes, weight_scale=0.1)
        greedy(stack, x, loss=PCD, epochs=30, learning_rate=0.05, **falling)
        dbm.assemble(stack)
    else:
        dbm = DBM.from_data(x, (5, 4), weight_scale=0.1)
    ppgen.train(dbm, x, loss=PCD(), epochs=60, learning_rate=0.05, **falling)
    found = ppgen.log_likelihood(dbm, x)
    assert found.kind == "exact"
    assert best - 0.15 < found.lower < best + 0.1


@pytest.mark.parametrize("kind", ["DBM", "DBN"])
def test_a_resumed_run_ends_where_the_whole_one_does(kind, tmp_path):
    """Chains and random numbers included: a restart of the chains from the data would show."""
    x = pairs(60)

    def run(epochs, out, resume=False):
        torch.manual_seed(5)
        story = DBM(6, (4, 3)) if kind == "DBM" else DBN(6, (4, 3), tied=False)
        loss = PCD() if kind == "DBM" else UpDown(2)
        ppgen.train(
            story, x, loss=loss, epochs=epochs, batch_size=25, seed=2, out=out, resume=resume
        )
        return list(story.parameters())

    whole = run(4, tmp_path / "whole")
    run(2, tmp_path / "halves")
    halves = run(4, tmp_path / "halves", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


def test_a_stack_of_runs_is_resumed(tmp_path):
    x = pairs(60)
    ends = []
    for resume in (False, True):
        torch.manual_seed(5)
        stack = [RBM(6, 4), RBM(4, 3)]
        options = {"epochs": 2, "batch_size": 30, "out": tmp_path, "resume": resume}
        results = greedy(stack, x, loss=PCD, seed=3, **options)
        assert [r.out.name for r in results] == ["layer-1", "layer-2"]
        ends.append([p for rbm in stack for p in rbm.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_held_out_data_give_a_dbm_its_gap_of_variational_free_energies():
    x, held_out = pairs(60), pairs(20)
    dbm = DBM(6, (4, 3), weight_scale=0.5)
    options = {"epochs": 1, "batch_size": 60, "learning_rate": 1e-12}
    result = ppgen.train(dbm, x, validation=held_out, **options)
    expected = dbm.bound(x[:20]).mean() - dbm.bound(held_out).mean()
    assert abs(result.history["validation"][0] - expected.item()) < 1e-8


def test_wrong_stacks_are_refused():
    with pytest.raises(ValueError, match="machine 2 has 5 visible units"):
        greedy([RBM(6, 4), RBM(5, 2)], pairs(), epochs=1)
