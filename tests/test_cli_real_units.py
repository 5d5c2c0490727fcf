"""``ppgen train rbm --visible-units gaussian``: grey levels and tables as real numbers."""

import json

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import ppgen
from ppgen.cli import exits, real_units, run
from ppgen.cli.runs import load_data, read_settings, restored
from ppgen.cli.training import build, hold_out
from ppgen.data import DataError, Dataset

TRAIN = ["train", "rbm", "--visible-units", "gaussian", "--epochs", "1", "--hidden", "3", "--quiet"]


def _settings(**more):
    return {"model": "rbm", "hidden": [2], "seed": 0, "visible_units": "gaussian", **more}


def _independent(examples):
    """An untrained machine without couplings, the settings, and the data as it sees them."""
    settings = _settings(weight_scale=0.0)
    seen = real_units.standardised(examples, settings)
    return build(settings, hold_out(seen)[0]), settings, seen


def test_a_density_in_the_units_of_the_data_is_that_of_their_normal_law():
    x = torch.randn(500, 3) * torch.tensor([0.2, 1.0, 30.0]) + torch.tensor([5.0, 0.0, -100.0])
    story, settings, seen = _independent(Dataset(x))
    kept = hold_out(Dataset(x))[0].x
    law = Normal(kept.mean(0), kept.std(0, correction=0))
    text, numbers = real_units.density(ppgen.log_likelihood(story, seen.x), settings)
    expected = law.log_prob(x).sum(-1).mean().item()
    assert numbers == {"nats_in_own_units": pytest.approx(expected)}
    assert f"{expected:.2f} nats); not comparable" in text
    np.testing.assert_allclose(real_units.own_units(seen.x.numpy(), settings), x.numpy())


def test_bits_per_dimension_bound_those_of_whole_levels():
    """The law of a level is the normal's mass in its cell; the noise can only lose by it."""
    levels = torch.randint(0, 9, (4000, 2)) * torch.tensor([1, 3])
    story, settings, seen = _independent(Dataset(levels / 24, white=24.0))
    assert seen.notes == ("noise within whole levels", "standardised")
    scale = settings["standard"]
    law = Normal(torch.tensor(scale["mean"]), torch.tensor(scale["deviation"]))
    cells = (law.cdf(levels + 0.5) - law.cdf(levels - 0.5)).log2()
    text, numbers = real_units.density(ppgen.log_likelihood(story, seen.x), settings)
    lost = numbers["bits_per_dimension"] + cells.mean().item()
    # normals with deviations of 2.6 and 7.8 hardly bend within a cell: (1/24) / (2 sd^2) nats each
    assert lost == pytest.approx(0.5 * sum(1 / 48 / law.scale**2).item() / np.log(2), abs=0.01)
    assert f"at most {numbers['bits_per_dimension']:.3f} bits per dimension" in text


def test_noise_and_scale_are_those_of_training_whatever_is_read_next():
    settings = _settings(data="digits", binarisation="none", folder=None)
    train, again = load_data(settings, "train"), load_data(settings, "train")
    assert (train.x == again.x).all()
    kept = hold_out(train)[0].x
    torch.testing.assert_close(kept.mean(0), torch.zeros(64), atol=1e-12, rtol=0)
    torch.testing.assert_close(kept.std(0, correction=0), torch.ones(64))
    known = json.loads(json.dumps(settings))
    test = load_data(settings, "test")
    assert settings == known
    own = torch.as_tensor(real_units.own_units(test.x.numpy(), settings))
    levels = ppgen.data.load("digits", "test", binarisation="none").in_levels().x
    assert (own.round() == levels).all()
    assert real_units.as_grey(test.x.numpy(), settings).max() < 1.04


def test_a_run_is_trained_evaluated_sampled_and_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ppgen.cli.train.write_page", lambda *_: (None, None))
    place = str(tmp_path / "run")
    assert run([*TRAIN, "--out", place]) == exits.DONE
    assert run(["resume", place, "--epochs", "2", "--quiet"]) == exits.DONE
    capsys.readouterr()
    assert run(["evaluate", place, "--json", "--quiet"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "exact"
    settings = read_settings(tmp_path / "run")
    story = restored(settings, load_data(settings, "train"), tmp_path / "run")
    with torch.no_grad():
        exact = story.marginal().log_prob(load_data(settings, "test").x).mean().item()
    assert found["lower"] == pytest.approx(exact)
    assert found["bits_per_dimension"] == pytest.approx(
        -found["nats_in_own_units"] / 64 / np.log(2)
    )
    sample = ["sample", place, "--count", "400", "--gibbs-steps", "3", "--quiet", "--out"]
    assert run([*sample, str(tmp_path / "x.npy")]) == exits.DONE
    x = np.load(tmp_path / "x.npy")  # levels from 0 to 16 and a noise, in the mean as in the data
    data = ppgen.data.load("digits", binarisation="none").in_levels().x.numpy()
    assert np.abs(x.mean(0) - data.mean(0)).max() < 5 * data.std(0).max() / 20
    assert ((x != x.round()).mean()) > 0.99
    wrong = ["train", "dbm", "--hidden", "3", "2", "--start-from", place, "--quiet"]
    assert run(wrong) == exits.USAGE
    assert "it has gaussian visible units, this dbm binary ones" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_shows_means_and_says_what_the_likelihood_is(tmp_path):
    assert run([*TRAIN, "--out", str(tmp_path / "run")]) == exits.DONE
    assert run(["sample", str(tmp_path / "run"), "--quiet"]) == exits.DONE
    page = (tmp_path / "run" / "report.html").read_text()
    shown = ["not comparable with likelihoods of binary data", "bits per dimension", "start at no"]
    assert [words for words in shown if words not in page] == []


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["rbm", "--binarisation", "none"], exits.BAD_DATA, "--visible-units gaussian"),
        (["dbm", "--binarisation", "none"], exits.BAD_DATA, "a dbm has binary units only"),
        (["dbn", "--visible-units", "gaussian"], exits.USAGE, "dbn has binary ones only"),
        (["rbm", "--pixels", "gaussian"], exits.USAGE, "by --visible-units gaussian"),
        (["flow", "--pixels", "grey"], exits.USAGE, "of a vae, not of flow"),
        ([*TRAIN[1:], "--binarisation", "static"], exits.USAGE, "leave --binarisation out"),
        ([*TRAIN[1:], "--hidden-units", "relu"], exits.USAGE, "no density once weights are large"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_fit_is_one_line(tmp_path, capsys, command, code, says):
    assert run(["train", *command, "--out", str(tmp_path / "run")]) == code
    printed = capsys.readouterr().err.strip()
    assert says in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.tensor([[0.0, 1.0], [1.0, 1.0]] * 9), "every value is 0 or 1"),
        (torch.tensor([[0.5, 2.5], [0.5, 1.0]] * 9), "column 0: always 0.5"),
    ],
)
def test_data_without_a_density_are_refused(x, says):
    with pytest.raises(DataError, match=says):
        real_units.standardised(Dataset(x), _settings())


def test_fractions_and_other_columns_than_in_training_are_refused():
    settings = _settings()
    x = torch.randint(0, 5, (40, 2)).double()
    real_units.standardised(Dataset(x), settings)
    with pytest.raises(DataError, match="1 columns, 2 in the training data"):
        real_units.standardised(Dataset(x[:, :1]), settings)
    x[3, 1] += 0.5
    with pytest.raises(DataError, match="row 3, column 1: not a whole number"):
        real_units.standardised(Dataset(x), settings)
