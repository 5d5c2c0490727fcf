import json
import math
import os
import re
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import nn

from ppgen import checkpoint
from ppgen.data import Dataset
from ppgen.inference.contrastive_divergence import ContrastiveDivergence
from ppgen.inference.train import restore_story, train
from ppgen.inference.training.averaging import ParameterAverage
from ppgen.models.rbm import RBM
from ppgen.run_folder import RunFolder, read_config

pytestmark = pytest.mark.usefixtures("silent")


class Coins(PyroModule):
    """Independent coins; their maximum likelihood is the mean of the data."""

    def __init__(self, sides=3):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(sides))

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=self.logits).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        pass


class PlainCoins(nn.Module):
    """The same as a plain module, with `pyro.module`."""

    def __init__(self, sides=3):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(sides))

    def model(self, x):
        pyro.module("coins", self)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=self.logits).to_event(1), obs=x)

    def guide(self, x):
        pass


class Factor(PyroModule):
    """x = w z + noise with a noisy gradient."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
        self.scale = PyroParam(torch.tensor(0.7), constraint=dist.constraints.positive)
        self.mean = nn.Linear(2, 1)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * self.w, self.scale).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean(x), 0.5).to_event(1))


def coins(rows=40, sides=3):
    return (torch.rand(rows, sides) < torch.tensor([0.2, 0.5, 0.8])[:sides]).double()


QUICK = {"batch_size": 10, "epochs": 3, "optimizer": torch.optim.SGD, "learning_rate": 0.02}


@pytest.mark.parametrize("story", [Coins, PlainCoins])
@pytest.mark.parametrize("loss", [None, Trace_ELBO], ids=["default", "Trace_ELBO"])
def test_training_reaches_the_maximum_likelihood_for_the_second_story_of_a_class_too(story, loss):
    """Full batches: gradient descent on a smooth convex function, to its known minimum."""
    x = coins()
    for _ in range(2):
        result = train(
            story(), x, loss=loss and loss(), epochs=200, batch_size=40, learning_rate=0.1,
            optimizer=torch.optim.SGD,
        )  # fmt: skip
        # contraction at least 1 - .1 * 40 * .1 = .6 a step near the minimum: .6^200 < 1e-40
        torch.testing.assert_close(result.story.logits.sigmoid(), x.mean(0))
        p = x.mean(0)
        entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
        assert result.history["loss"][-1] == pytest.approx(float(entropy))
    assert not pyro.get_param_store().keys()


def test_a_step_is_that_of_a_loop_by_hand():
    """Plain torch with the same batches: equal to the last bit."""
    x = coins(25)
    result = train(Coins(), x, loss=Trace_ELBO(), seed=7, **QUICK)
    by_hand = Coins()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.02)
    seen = []
    train(Coins(), x, loss=_Spy(seen), seed=7, **QUICK)
    assert [len(batch) for batch in seen] == [10, 10, 5] * 3
    for batch in seen:
        optimizer.zero_grad()
        (-dist.Bernoulli(logits=by_hand.logits).log_prob(batch).sum()).backward()
        optimizer.step()
    torch.testing.assert_close(by_hand.logits, result.story.logits, rtol=1e-12, atol=1e-12)


class _Spy(Trace_ELBO):
    """Keeps the batches it sees."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def loss_and_grads(self, model, guide, *args, **kwargs):
        self.seen.append(args[0].clone())
        return super().loss_and_grads(model, guide, *args, **kwargs)


def test_every_epoch_is_a_permutation_of_its_own():
    class Indifferent(Coins):
        @pyro_method
        def model(self, x):
            pyro.factor("x", -(self.logits**2).sum())

    seen = []
    train(Indifferent(), torch.arange(25.0), loss=_Spy(seen), **QUICK)
    epochs = [torch.cat(seen[3 * e : 3 * e + 3]) for e in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(25.0))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_the_same_seed_gives_the_same_bits_and_leaves_the_generator_alone():
    x = torch.randn(30, 2)
    trained = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        story = Factor()
        before = torch.get_rng_state()
        trained.append(train(story, x, seed=seed, **QUICK).story.w)
        assert torch.equal(torch.get_rng_state(), before)
    assert [torch.equal(trained[0], w) for w in trained] == [True, True, False]


def test_dynamic_binarisation_is_redrawn_each_epoch_and_reproduced():
    grey = torch.full((20, 3), 0.5)
    x = (torch.rand(20, 3) < grey).double()
    data = Dataset(x=x, grey=grey, binarisation="dynamic")
    seen, again = [], []
    train(Coins(), data, loss=_Spy(seen), **QUICK)
    train(Coins(), data, loss=_Spy(again), **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))
    totals = [int(torch.cat(seen[2 * e : 2 * e + 2]).sum()) for e in range(3)]
    rows = [torch.cat(seen[2 * e : 2 * e + 2]).sum(0).tolist() for e in range(3)]
    assert len(set(map(tuple, rows))) == 3, totals  # a permutation would keep the columns' sums


@pytest.mark.parametrize("stop", [1, 4, 6, 7])
def test_a_resumed_run_ends_at_the_same_bits(tmp_path, stop):
    """Stopped by an error at a step: Adam, noise, averages, a schedule, a validation, patience."""
    x = torch.randn(30, 2)
    options = {
        "epochs": 3, "batch_size": 8, "averaging": 0.9, "validation": torch.randn(9, 2),
        "schedule": lambda epoch: 1 / (1 + epoch), "patience": 5, "checkpoint_every": 2,
    }  # fmt: skip

    class Stops(Trace_ELBO):
        left = stop

        def loss_and_grads(self, *args, **kwargs):
            Stops.left -= 1
            if not Stops.left:
                raise KeyError("the power")
            return super().loss_and_grads(*args, **kwargs)

    torch.manual_seed(1)
    whole = train(Factor(), x, loss=Trace_ELBO(), **options)
    torch.manual_seed(1)
    with pytest.raises(KeyError):
        train(Factor(), x, loss=Stops(), out=tmp_path / "run", **options)
    options["loss"] = Stops()
    resumed = train(Factor(), x, out=tmp_path / "run", resume=True, **options)
    for ours, theirs in zip(resumed.story.parameters(), whole.story.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name in ("epoch", "step", "loss", "validation", "learning_rate"):
        assert resumed.history[name] == whole.history[name]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["loss"] for row in rows] == whole.history["loss"]
    restored = restore_story(Factor(), tmp_path / "run")
    for ours, theirs in zip(restored.parameters(), whole.story.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_persistent_chains_are_resumed(tmp_path):
    x = coins(30)
    options = {"batch_size": 10, "learning_rate": 0.1, "optimizer": torch.optim.SGD}

    def loss():
        return ContrastiveDivergence(persistent=True)

    def machine():
        torch.manual_seed(2)
        return RBM(3, 4)

    whole = train(machine(), x, loss=loss(), epochs=4, **options)
    train(machine(), x, loss=loss(), epochs=2, out=tmp_path / "run", **options)
    tensors, _ = checkpoint.load(tmp_path / "run" / "ckpt")
    assert any("chains" in k for k in checkpoint.unpack(tensors["rank/0"].numpy().tobytes(), ""))
    resumed = train(
        machine(), x, loss=loss(), epochs=4, out=tmp_path / "run", resume=True, **options
    )
    assert resumed.epochs == 4
    for ours, theirs in zip(resumed.story.parameters(), whole.story.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_resuming_with_other_options_data_or_another_story_is_refused(tmp_path):
    x, out = coins(), tmp_path / "run"
    train(Coins(), x, out=out, **QUICK)
    for change, message in [
        ({"batch_size": 20}, "batch_size=10, not 20"),
        ({"seed": 3}, "seed=0, not 3"),
        ({"optimizer": torch.optim.Adam}, "optimizer=SGD, not Adam"),
        ({"learning_rate": 0.5}, "learning_rate"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(Coins(), x, out=out, resume=True, **{**QUICK, **change})
    with pytest.raises(ValueError, match="other data"):
        train(Coins(), 1 - x, out=out, resume=True, **QUICK)
    story = Coins(4)
    with pytest.raises(ValueError, match=r"logits: the checkpoint holds \(3,\).*\(4,\)"):
        train(story, x, out=out, resume=True, **QUICK)
    with pytest.raises(ValueError, match="logits is only in one of them"):
        restore_story(Factor(), out)
    assert train(Coins(), x, out=out, resume=True, **QUICK).epochs == 3


def test_a_resumed_run_keeps_its_config_but_for_what_is_new(tmp_path):
    x, config = coins(), {"story": {"name": "coins"}, "command": {"epochs": 3}}
    train(Coins(), x, out=tmp_path, config=config, **QUICK)
    more = {"out": tmp_path, "resume": True, **QUICK, "epochs": 4}
    train(Coins(), x, config={"command": {"epochs": 4}}, **more)
    found = read_config(tmp_path)
    assert found["options"]["epochs"] == found["command"]["epochs"] == 4
    assert found["story"] == {"name": "coins"}


def test_averages_are_in_the_story_and_weigh_the_steps_as_documented():
    p = torch.zeros(2)
    average = ParameterAverage([p], 0.5)
    expected = torch.zeros(2)
    for t in range(1, 20):
        p += 1
        average.update()
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * p
    torch.testing.assert_close(average.averages[0], expected)
    with average.applied():
        torch.testing.assert_close(p, expected)
    assert torch.equal(p, torch.full((2,), 19.0))
    x = coins()
    seen = []
    plain = train(Coins(), x, **QUICK)
    averaged = train(
        Coins(), x, averaging=0.9, callbacks=[lambda s, _: seen.append(s.logits.clone())], **QUICK
    )
    assert torch.equal(averaged.story.logits, seen[-1])  # what was validated is what is returned
    assert not torch.equal(averaged.story.logits, plain.story.logits)


def test_patience_stops_and_keeps_the_best_parameters(tmp_path):
    numbers = iter([3.0, 1.0, 2.0, 2.0, 0.0])
    stories = []

    def validation(story):
        stories.append(story.logits.clone())
        return next(numbers)

    options = {**QUICK, "epochs": 5, "validation": validation, "patience": 2}
    result = train(Coins(), coins(), out=tmp_path / "run", **options)
    assert (result.stopped, result.epochs) == ("patience", 4)
    assert "since epoch 2" in result.message
    assert torch.equal(result.story.logits, stories[1])
    assert torch.equal(restore_story(Coins(), tmp_path / "run").logits, stories[1])
    again = train(Coins(), coins(), out=tmp_path / "run", overwrite=True, **{
        **options, "patience": None, "validation": lambda story: float(story.logits.sum()),
    })  # fmt: skip
    assert again.stopped == "finished"


def test_validation_is_the_loss_per_example_and_takes_no_noise_from_the_training():
    x, held_out = torch.randn(30, 2), torch.randn(7, 2)
    torch.manual_seed(3)
    story = Factor()
    state = {k: v.clone() for k, v in story.state_dict().items()}
    alone = train(story, x, loss=Trace_ELBO(), **QUICK)
    other = Factor()
    other.load_state_dict(state)
    beside = train(other, x, loss=Trace_ELBO(), validation=held_out, **QUICK)
    assert torch.equal(alone.story.w, beside.story.w)
    assert alone.history["loss"] == beside.history["loss"]
    held_out = coins(11)
    coin = train(Coins(), coins(), loss=Trace_ELBO(), validation=held_out, **QUICK)
    log_prob = dist.Bernoulli(logits=coin.story.logits).log_prob(held_out).sum(-1).mean()
    assert coin.history["validation"][-1] == pytest.approx(-log_prob.item())


def test_the_validation_of_a_boltzmann_machine_is_its_free_energy_gap():
    x, held_out = coins(40), coins(9)
    rbm = RBM(3, 2)
    result = train(rbm, x, validation=held_out, **QUICK)
    gap = rbm.free_energy(held_out).mean() - rbm.free_energy(x[:9]).mean()
    assert result.history["validation"][-1] == pytest.approx(gap.item())
    with pytest.raises(ValueError, match="free-energy gap"):
        train(rbm, x, validation=held_out, patience=2, **QUICK)


class _Explodes(Trace_ELBO):
    """From the given step on the loss is not a number."""

    def __init__(self, at, how):
        super().__init__()
        self.at, self.how = at, how

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = super().loss_and_grads(model, guide, *args, **kwargs)
        self.at -= 1
        if self.at > 0:
            return loss
        if self.how == "raises":
            raise ValueError("the ELBO is -inf, from site 'x' on")
        if self.how == "gradient":
            model.__self__.logits.grad.fill_(math.nan)
            return loss
        return math.nan


@pytest.mark.parametrize("how", ["returns", "raises", "gradient"])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path, how, capsys):
    out = tmp_path / "run"
    at_the_end = []
    result = train(
        Coins(), coins(), loss=_Explodes(6, how), out=out,
        callbacks=[lambda s, _: at_the_end.append(s.logits.clone())], **QUICK,
    )  # fmt: skip
    assert result.stopped == "diverged"
    assert (result.epochs, result.steps) == (1, 4)
    assert re.search(r"not finite in epoch 2, .*learning rate 0\.02.*smaller", result.message)
    assert result.message in capsys.readouterr().err
    assert torch.equal(result.story.logits, at_the_end[-1])
    assert torch.equal(restore_story(Coins(), out).logits, at_the_end[-1])


def test_an_error_of_the_story_is_not_taken_for_divergence():
    class Wrong(Trace_ELBO):
        calls = 0

        def loss_and_grads(self, *args, **kwargs):
            self.calls += 1
            if self.calls == 3:
                raise ValueError("shape mismatch at site 'x'")
            return super().loss_and_grads(*args, **kwargs)

    with pytest.raises(ValueError, match="shape mismatch"):
        train(Coins(), coins(), loss=Wrong(), **QUICK)


def test_fewer_rows_than_a_batch_are_one_batch(tmp_path):
    x, held_out = coins(), coins(50)  # held-out rows may be more
    few, all_of_them = Coins(), Coins()
    out = tmp_path / "run"
    options = {"validation": held_out, "epochs": 3}
    result = train(few, x, out=out, **options)  # by the default of a hundred
    same = train(all_of_them, x, batch_size=len(x), **options)
    assert result.steps == same.steps == 3
    assert torch.equal(few.logits, all_of_them.logits)
    assert result.history["validation"] == same.history["validation"]
    assert read_config(out)["options"]["batch_size"] == len(x)
    more = train(few, x, out=out, resume=True, **{**options, "epochs": 5, "batch_size": 300})
    assert more.steps == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0: expected a whole number, at least 1"),
        ({"epochs": 2.5}, "epochs=2.5: expected a whole number"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 1e6}, r"learning_rate=1e\+06: expected a number above 0, at most 100"),
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"learning_rate": -1.0}, "learning_rate=-1"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"averaging": 1.0}, "averaging=1: expected"),
        ({"averaging": -0.1}, "averaging=-0.1"),
        ({"patience": 1}, "patience needs a validation"),
        ({"seed": -1}, "seed=-1"),
        ({"resume": True}, "need a folder"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"schedule": "cosine"}, "schedule='cosine'"),
        ({"config": {"options": 1}}, "'options' is written by train itself"),
        ({"validation": 5}, "validation: expected data or a function"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_with_the_range(tmp_path, options, message):
    out = None if "resume" in options else tmp_path / "run"
    with pytest.raises((ValueError, TypeError), match=message):
        train(Coins(), coins(), out=out, **{**QUICK, **options})
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_used_are_refused_by_row_and_column(tmp_path):
    for value, word in ((math.nan, "NaN"), (math.inf, "infinite")):
        x = coins()
        x[7, 2] = value
        with pytest.raises(ValueError, match=f"data:row 7, column 2: {word}"):
            train(Coins(), x, out=tmp_path / "run", **QUICK)
        with pytest.raises(ValueError, match=f"validation:row 7, column 2: {word}"):
            train(Coins(), coins(), validation=x, out=tmp_path / "run", **QUICK)
    with pytest.raises(ValueError, match=r"data\[1\]: 3 rows, but data\[0\] has 40"):
        train(Coins(), [coins(), coins(3)], **QUICK)
    with pytest.raises(TypeError, match="data: expected a tensor"):
        train(Coins(), "digits", **QUICK)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_several_tensors_are_the_arguments_of_the_pair():
    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.zeros(()))

        @pyro_method
        def model(self, x, y):
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(self.slope * x, 1.0), obs=y)

        @pyro_method
        def guide(self, x, y):
            pass

    x = torch.randn(30)
    options = {**QUICK, "epochs": 100, "batch_size": 30}
    result = train(Regression(), (x, 3 * x), **options)
    torch.testing.assert_close(result.story.slope.detach(), torch.tensor(3.0))


def test_what_is_no_story_is_refused():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        train(lambda x: x, coins())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no method `model`"):
        train(nn.Linear(2, 2), coins())
    frozen = Coins()
    frozen.logits.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train"):
        train(frozen, coins())


class Unseen(nn.Module):
    """Pyro sees none of its parameters."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=self.logits).to_event(1), obs=x)

    def guide(self, x):
        pass


class Stray(Coins):
    """A parameter that only Pyro knows."""

    @pyro_method
    def model(self, x):
        bias = pyro.param("bias", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=self.logits + bias).to_event(1), obs=x)


def test_parameters_that_would_silently_not_train_are_refused_by_name():
    with pytest.raises(ValueError, match="reaches no parameter of Unseen"):
        train(Unseen(), coins(), loss=Trace_ELBO(), **QUICK)
    with pytest.raises(ValueError, match=r"'bias' is made by pyro\.param"):
        train(Stray(), coins(), loss=Trace_ELBO(), **QUICK)


def test_the_run_folder_says_how_the_run_was_made(tmp_path):
    out = tmp_path / "run"
    result = train(
        Coins(), coins(), out=out, config={"story": {"name": "coins", "options": {}}}, **QUICK
    )
    assert result.out == out
    config = read_config(out)
    assert config["story"]["name"] == "coins"
    assert config["options"]["batch_size"] == 10
    assert config["options"]["optimizer"] == "SGD"
    assert config["options"]["loss"]["name"] == "ELBO"
    assert sorted(os.listdir(out)) == ["ckpt", "config.json", "metrics.csv", "metrics.jsonl"]
    header, *rows = (out / "metrics.csv").read_text().splitlines()
    assert header == "epoch,step,loss,learning_rate,seconds"
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3"]
    with pytest.raises(ValueError, match="overwrite"):
        train(Coins(), coins(), out=out, **QUICK)
    again = train(Coins(), coins(), out=out, overwrite=True, **{**QUICK, "epochs": 1})
    assert again.epochs == 1
    with RunFolder(out, resume=True), pytest.raises(ValueError, match="is being written"):
        train(Coins(), coins(), out=out, resume=True, **QUICK)


def test_a_full_disk_ends_the_run_in_one_line_with_the_last_checkpoint_intact(
    tmp_path, monkeypatch
):
    real, calls = os.fsync, [0]

    def full(descriptor):
        calls[0] += 1
        if calls[0] > 20:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "run"
    with pytest.raises(OSError, match="No space left") as info:
        train(Coins(), coins(), out=out, **{**QUICK, "epochs": 20})
    assert "\n" not in str(info.value)
    monkeypatch.undo()
    _, meta = checkpoint.load(out / "ckpt")
    assert 0 < meta["position"]["epoch"] < 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_ctrl_c_saves_and_tells_how_to_go_on(tmp_path, capsys, number):
    x, out = coins(), tmp_path / "run"

    class Interrupted(Trace_ELBO):
        left = 6

        def loss_and_grads(self, *args, **kwargs):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), number)
            return super().loss_and_grads(*args, **kwargs)

    whole = train(Coins(), x, loss=Trace_ELBO(), **QUICK)
    cut = train(Coins(), x, loss=(loss := Interrupted()), out=out, **QUICK)
    assert cut.stopped == "interrupted"
    assert cut.steps in (6, 7)  # Python runs a handler soon after the signal, not at once
    assert f"train(..., out={str(out)!r}, resume=True)" in capsys.readouterr().err
    resumed = train(Coins(), x, loss=loss, out=out, resume=True, **QUICK)
    assert resumed.stopped == "finished"
    assert torch.equal(resumed.story.logits, whole.story.logits)


@pytest.mark.parametrize(("visible", "threads"), [(16, 1), (784, 2)])
def test_little_work_takes_one_thread_and_gives_the_others_back(visible, threads):
    seen = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(
            RBM(visible, 70),
            torch.zeros(20, visible),
            loss=ContrastiveDivergence(),
            epochs=1,
            batch_size=10,
            callbacks=[lambda story, row: seen.append(torch.get_num_threads())],
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]
