"""``ppgen train rbm --labels``: an example's label is a part of it, which classifies and draws."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from ppgen import checkpoint
from ppgen.cli import exits, labels, run
from ppgen.cli.inpainting import fill_in
from ppgen.cli.real_units import as_grey
from ppgen.cli.runs import draw_examples, load_data, read_settings, restored
from ppgen.data import DataError, Dataset
from ppgen.likelihood import Likelihood
from ppgen.models import ClassificationRBM, labelled

FAILURE_RATE = 2e-5
DRAWS = 8_000
TRAIN = ["train", "rbm", "--labels", "--hidden", "3", "--quiet"]
KNOWN = {"labels": True, "classes": [2, 5, 7]}


def machine():
    rbm = ClassificationRBM(5, 4, classes=3)
    for p in rbm.parameters():
        torch.nn.init.normal_(p)
    return rbm.requires_grad_(False)


def everything():
    """All 4 x 3 rows (x, y), y fastest."""
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 2).repeat_interleave(3, 0)
    return labelled(x, torch.arange(3).repeat(4), 3)


@pytest.mark.parametrize("binarisation", ["static", "dynamic"])
def test_rows_are_pixels_and_labels_in_every_epoch(binarisation):
    settings = {"model": "rbm", "data": "digits", "binarisation": binarisation, "folder": None,
                "seed": 0}  # fmt: skip
    plain = load_data(settings, "test")
    known = settings | {"labels": True, "classes": list(range(10))}
    found = load_data(known, "test")
    one_hot = torch.nn.functional.one_hot(plain.labels, 10).double()
    torch.testing.assert_close(found.x, torch.cat([plain.x, one_hot], 1))
    for part in found.hold_out(100):
        for epoch in (0, 1, 2):
            rows = part.at_epoch(epoch)[:, 64:]
            assert torch.equal(rows.argmax(1), part.labels)
            assert torch.equal(rows.sum(1), torch.ones(len(part)))
    np.testing.assert_array_equal(as_grey(found.x.numpy(), known), plain.x.numpy())
    column = labels.label_column(found.x.numpy(), known)
    np.testing.assert_array_equal(column[:, -1], plain.labels)


def test_labels_of_a_table_are_those_of_training():
    table = Dataset(torch.ones(4, 2), labels=torch.tensor([7, 2, 5, 2]), columns=("a", "b"))
    settings = {"labels": True}
    rows = labels.beside_labels(table, settings)
    assert settings["classes"] == KNOWN["classes"]
    assert rows.columns == ("a", "b", "label 2", "label 5", "label 7")
    assert rows.x[:, 2:].argmax(1).tolist() == [2, 0, 1, 0]
    with pytest.raises(DataError, match="row 1: no label of the training data, which has 2, 5, 7"):
        labels.beside_labels(replace(table, labels=torch.tensor([2, 3, 5, 9])), settings)
    with pytest.raises(DataError, match="every label is 1"):
        labels.beside_labels(replace(table, labels=torch.ones(4).long()), {})


def test_words_are_known_by_themselves_and_not_by_their_places(here):
    settings = {"labels": True}
    some = Dataset(torch.ones(3, 2), labels=torch.tensor([1, 0, 1]), words=("cat", "dog"))
    rows = labels.beside_labels(some, settings)
    assert settings["classes"] == ["cat", "dog"]
    assert rows.x[:, 2:].argmax(1).tolist() == [1, 0, 1]
    # of other data, in which "dog" is the first and only word
    other = replace(some, labels=torch.tensor([0, 0, 0]), words=("dog",))
    assert labels.beside_labels(other, settings).x[:, 2:].argmax(1).tolist() == [1, 1, 1]
    bird = replace(some, words=("bird", "dog"))
    for wrong in (bird, replace(some, words=None)):
        with pytest.raises(DataError, match=r"row \d: no label of the .* which has cat, dog"):
            labels.beside_labels(wrong, settings)
    column = labels.label_column(rows.x.numpy(), settings)
    assert column[:, -1].tolist() == [1, 0, 1]


def test_a_run_of_words_is_sampled_by_a_word(here, capsys):
    rows = ["1,0,dog", "0,1,cat", "1,1,dog", "0,0,cat", "1,0,dog"]
    (here / "pets.csv").write_text("\n".join(["tail,purrs,label", *rows]))
    assert run([*TRAIN, "--data", "pets.csv", "--epochs", "1", "--out", "pets"]) == exits.DONE
    assert read_settings(here / "pets")["classes"] == ["cat", "dog"]
    sample = ["sample", "pets", "--count", "3", "--gibbs-steps", "2", "--quiet", "--out", "x.npy"]
    assert run([*sample, "--label", "dog"]) == exits.DONE
    assert np.load("x.npy")[:, -1].tolist() == [1, 1, 1]
    (here / "more.csv").write_text("tail,purrs,label\n1,0,dog\n0,1,dog\n")
    assert run(["evaluate", "pets", "--data", "more.csv", "--split", "train"]) == exits.DONE
    capsys.readouterr()
    assert run([*sample, "--label", "0"]) == exits.USAGE
    assert "--label 0: this run has the labels cat, dog" in capsys.readouterr().err
    (here / "pets.csv").write_text("\n".join(["tail,purrs,label", *rows, "1,0,"]))
    assert run(["evaluate", "pets", "--split", "train"]) == exits.BAD_DATA
    assert "row 7, column label: missing value" in capsys.readouterr().err


def test_classification_and_likelihood_are_those_of_the_enumerated_joint():
    story, rows = machine(), everything()[torch.tensor([0, 4, 4, 5, 11])]
    log_p = story.marginal().log_prob(everything()).reshape(4, 3)
    x, y = torch.tensor([0, 1, 1, 1, 3]), torch.tensor([0, 1, 1, 2, 2])
    joint, alone = log_p[x, y].mean().item(), log_p.logsumexp(1)[x].mean().item()
    found = Likelihood("exact", joint, joint, 0.0, 0.0, "enumeration", 5)
    text, numbers = labels.classification(story, found, rows, "test")
    share = (log_p.argmax(1)[x] != y).double().mean().item()
    assert numbers["classification_error"] == share
    assert numbers["nats_per_label"] == pytest.approx(alone - joint)
    assert numbers["unlabelled_lower"] == numbers["unlabelled_upper"] == pytest.approx(alone)
    assert f"of the examples alone {alone:.2f} nats (exact)" in text
    assert f"({int(5 * share)} of 5, test;" in text
    apart = replace(found, kind="bounds", upper=joint + 9.0, upper_error=0.0)
    assert "unlabelled_lower" not in labels.classification(story, apart, rows, "test")[1]


def test_draws_given_a_label_have_its_law():
    story, data = machine(), Dataset(everything())
    for place in range(3):
        drawn = torch.as_tensor(draw_examples(story, data, DRAWS, 30, seed=place, label=place))
        assert (drawn[:, 2:].argmax(1) == place).all()
        law = story.marginal().log_prob(everything()).reshape(4, 3)[:, place].softmax(0)
        found = torch.bincount((drawn[:, :2] @ torch.tensor([2.0, 1.0])).long(), minlength=4)
        p = stats.chisquare(found.numpy(), (DRAWS * law).numpy()).pvalue
        assert p > FAILURE_RATE / 3


def test_a_hidden_label_is_drawn_given_the_pixels():
    story, x = machine(), everything()[3:4]
    seen = (torch.arange(5) < 2)[None]
    drawn, _ = fill_in(story, x, seen, DRAWS, 30)
    law = story.label_given_data(x[:, :2]).probs[0]
    p = stats.chisquare(drawn[0, :, 2:].sum(0).numpy(), (DRAWS * law).numpy()).pvalue
    assert p > FAILURE_RATE


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppgen.cli.train.write_page", lambda *_: (None, None))
    return tmp_path


def test_a_run_is_trained_resumed_evaluated_sampled_and_filled_in(here, capsys):
    train = [*TRAIN, "--persistent", "--batch-size", "400"]
    assert run([*train, "--epochs", "2", "--out", "whole"]) == exits.DONE
    assert run([*train, "--epochs", "1", "--out", "run"]) == exits.DONE
    assert run(["resume", "run", "--epochs", "2", "--quiet"]) == exits.DONE
    ends = [checkpoint.pack(checkpoint.load(here / out / "ckpt")[0]) for out in ("whole", "run")]
    assert ends[0] == ends[1]
    capsys.readouterr()
    assert run(["evaluate", "run", "--json", "--quiet"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)
    settings = read_settings(here / "run")
    test = load_data(settings, "test")
    story = restored(settings, test, here / "run")
    wrong = story.classify(test.x[:, :64]) != test.labels
    assert found["kind"] == "exact"
    assert found["classification_error"] == pytest.approx(wrong.double().mean().item())
    assert found["unlabelled_lower"] > found["lower"]
    sample = ["sample", "run", "--gibbs-steps", "2", "--quiet", "--count"]
    assert run([*sample, "5", "--label", "3", "--out", "x.npy"]) == exits.DONE
    assert np.load("x.npy").shape == (5, 65)
    assert (np.load("x.npy")[:, -1] == 3).all()
    assert run([*sample, "5", "--label", "11"]) == exits.USAGE
    assert "this run has the labels 0, 1, 2" in capsys.readouterr().err
    inpaint = ["inpaint", "run", "--count", "2", "--fills", "2", "--gibbs-steps", "2", "--quiet"]
    assert run([*inpaint, "--json", "--hide", "random", "--out", "y.npy"]) == exits.DONE
    assert np.load("y.npy").shape == (2, 2, 65)
    assert 0 <= json.loads(capsys.readouterr().out)["labels_right"] <= 1
    above = ["train", "dbm", "--hidden", "3", "2", "--start-from", "run", "--quiet"]
    assert run(above) == exits.USAGE
    assert "it was asked for --labels, a part of the visible" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_shows_pixels_and_says_how_well_it_classifies(tmp_path):
    assert run([*TRAIN, "--epochs", "1", "--out", str(tmp_path / "run")]) == exits.DONE
    assert run(["sample", str(tmp_path / "run"), "--label", "3", "--quiet"]) == exits.DONE
    page = (tmp_path / "run" / "report.html").read_text()
    shown = ["whose label units stay", "classification error", "a likelihood of examples with"]
    assert [words for words in shown if words not in page] == []


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["dbm", "--labels"], exits.USAGE, "--labels: of rbm"),
        (["rbm", "--labels", "--hidden-units", "relu"], exits.USAGE, "over binary hidden ones"),
        (["rbm", "--labels", "--visible-units", "gaussian"], exits.USAGE, "--labels: beside"),
        (["rbm", "--labels", "--data", "earthquakes"], exits.BAD_DATA, "no labels come with"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_has_no_labels_is_one_line(here, capsys, command, code, says):
    assert run(["train", *command]) == code
    printed = capsys.readouterr().err.strip()
    assert says in printed
    assert len(printed.splitlines()) == 1


def test_a_run_without_labels_draws_none(here, capsys):
    assert run(["train", "rbm", "--hidden", "3", "--epochs", "1", "--quiet"]) == exits.DONE
    assert run(["sample", "runs/rbm-digits", "--label", "3"]) == exits.USAGE
    assert "--label 3: this run knows no labels" in capsys.readouterr().err
