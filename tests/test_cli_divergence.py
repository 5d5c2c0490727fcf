"""Options of contrastive divergence on the command line: they reach the loss, and runs resume."""

from functools import partial

import pytest

from ppgen import checkpoint
from ppgen.cli import exits, run
from ppgen.cli.machine_pictures import layer_means
from ppgen.cli.runs import load_data, read_settings, restored
from ppgen.cli.training import divergence
from ppgen.inference import ContrastiveDivergence, Tempered, contrastive_divergence
from ppgen.inference.training.options import describe

OLDEST = {"gibbs_steps": 2, "persistent": True}  # what the first runs were recorded with


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppgen.cli.train.write_page", lambda *_: (None, None))
    return tmp_path


def resumed_as_whole(here, model, options):
    """The run's settings, after one that was resumed has ended bit for bit as a whole one."""
    train = ["train", model, "--hidden", "4", "--batch-size", "400", "--quiet", *options]
    if model != "rbm":
        train += ["--pretraining-epochs", "1"]
    assert run([*train, "--epochs", "3", "--out", "whole"]) == exits.DONE
    assert run([*train, "--epochs", "1", "--out", "run"]) == exits.DONE
    assert run(["resume", "run", "--epochs", "3", "--quiet"]) == exits.DONE
    ends = [checkpoint.pack(checkpoint.load(here / out / "ckpt")[0]) for out in ("whole", "run")]
    assert ends[0] == ends[1]
    return read_settings(here / "run")


def refused(here, capsys, options, says):
    epochs = [] if "--epochs" in options else ["--epochs", "1"]
    assert run(["train", *options, *epochs, "--quiet"]) == exits.USAGE
    printed = capsys.readouterr().err.strip()
    assert says in printed
    assert len(printed.splitlines()) == 1
    assert not list(here.iterdir())


def test_runs_of_older_versions_have_the_options_that_they_were_made_with():
    plain = ContrastiveDivergence(2, persistent=True)
    found = ContrastiveDivergence(**divergence(OLDEST))
    assert describe(found) == describe(plain)  # what `resume` compares


def test_a_schedule_is_described_by_all_that_it_is_bound_to():
    """So that a run is not resumed with another one."""
    half, third = partial(pow, 0.5), partial(pow, 1 / 3)
    assert describe(half) == {"name": "pow", "options": {"arguments": [0.5]}} != describe(third)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("rbm", ["--labels"]),
        pytest.param("dbm", [], marks=pytest.mark.slow),
        pytest.param("dbn", [], marks=pytest.mark.slow),
    ],
)
def test_tempered_runs_are_resumed(here, model, more):
    options = ["--sampler", "tempering", "--temperatures", "2", "--persistent", *more]
    settings = resumed_as_whole(here, model, options)
    assert settings["temperatures"] == 2
    assert divergence(settings)["sampler"] == Tempered(2)
    kept = checkpoint.load(here / "run" / "ckpt")[0]["rank/0"].numpy().tobytes()
    chains = [v for name, v in checkpoint.unpack(kept, "").items() if name.endswith("chains")]
    assert [len(replicas) for replicas in chains] == [3]  # at betas of 0, 1/2 and 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sampler", "tempering"], "give --persistent too"),
        (["--temperatures", "3"], "this is --sampler gibbs"),
        (["--sampler", "tempering", "--persistent", "--temperatures", "0"], "1 or more"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_tempering_that_means_nothing_is_refused(here, capsys, options, says):
    refused(here, capsys, ["rbm", *options], says)


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("rbm", 0),
        pytest.param("dbm", 0, marks=pytest.mark.slow),
        pytest.param("dbn", 1, marks=pytest.mark.slow),
    ],
)
def test_sparse_runs_are_resumed_and_their_units_are_mostly_off(here, model, layer):
    """A new machine has half of them on, and so has one that is trained without."""
    options = ["--sparsity", "5", "--sparsity-target", "0.01"]
    settings = resumed_as_whole(here, model, options)
    found = divergence(settings)
    assert (found["sparsity"], found["sparsity_target"]) == (5.0, 0.01)
    data = load_data(settings, "test")
    means = layer_means(restored(settings, data, here / "run"), data.x)
    assert means[layer].mean() < 0.25


@pytest.mark.slow
def test_runs_with_a_sampled_positive_phase_are_resumed(here):
    settings = resumed_as_whole(here, "dbm", ["--posterior-sweeps", "2"])
    assert divergence(settings)["posterior_sweeps"] == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sparsity-target", "0.2"], "with a --sparsity above 0"),
        (["--sparsity", "1", "--sparsity-target", "1"], "between 0 and 1"),
        (["--sparsity", "-1"], "--sparsity -1"),
        (["--posterior-sweeps", "2"], "posterior-sweeps"),
        (["--sparsity", "1", "--hidden-units", "gaussian"], "are never off"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_sparsity_that_means_nothing_is_refused(here, capsys, options, says):
    refused(here, capsys, ["rbm", *options], says)


class Killed(BaseException):
    """Passes through everything, as death does."""


def test_parts_of_the_epochs_are_as_equal_as_they_can_be():
    parts = divergence({**OLDEST, "gibbs_steps": [1, 5, 25], "epochs": 7})["gibbs_steps"]
    assert [parts(epoch) for epoch in range(8)] == [1, 1, 1, 5, 5, 25, 25, 25]


@pytest.mark.parametrize(
    "model",
    [
        "rbm",
        pytest.param("dbm", marks=pytest.mark.slow),
        pytest.param("dbn", marks=pytest.mark.slow),
    ],
)
def test_each_part_of_the_epochs_has_its_gibbs_steps_resumed_or_not(here, model, monkeypatch):
    """Killed in the middle of the second epoch of three, of which each has four updates."""
    taken, step = [], contrastive_divergence.step

    def counting(*args, gibbs_steps, **options):
        if "out" in options:  # an update, and no look at held-out data
            taken.append(gibbs_steps)
        return step(*args, gibbs_steps=gibbs_steps, **options)

    monkeypatch.setattr(contrastive_divergence, "step", counting)
    options = ["--gibbs-steps", "1", "2", "4", "--persistent", "--hidden", "4", "--quiet"]
    options += ["--batch-size", "400", "--epochs", "3", "--pretraining-epochs", "1"]
    train = ["train", model, *(options if model != "rbm" else options[:-2])]
    assert run([*train, "--out", "whole"]) == exits.DONE
    assert taken[-12:] == [1] * 4 + [2] * 4 + [4] * 4
    whole, left = taken.copy(), iter(range(len(taken) - 6))
    taken.clear()

    def stopping(*args, **options):
        if next(left, None) is None:
            raise Killed
        return counting(*args, **options)

    monkeypatch.setattr(contrastive_divergence, "step", stopping)
    killed = [*train, "--checkpoint-every", "1", "--out", "run"]
    with pytest.raises(Killed):
        run(killed)
    monkeypatch.setattr(contrastive_divergence, "step", counting)
    assert run(["resume", "run", "--quiet"]) == exits.DONE
    assert taken == whole
    ends = [checkpoint.pack(checkpoint.load(here / out / "ckpt")[0]) for out in ("whole", "run")]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--gibbs-steps", "0"], "each at least 1"),
        (["--gibbs-steps", "1", "5"], "2 parts of 1 epochs"),
        (["--gibbs-steps", "1", "5", "--epochs", "2", "--compile"], "for good"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_numbers_of_gibbs_steps_that_mean_nothing_are_refused(here, capsys, options, says):
    refused(here, capsys, ["rbm", *options], says)
