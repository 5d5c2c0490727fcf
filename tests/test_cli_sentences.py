"""``ppgen train sentences`` and what can be asked of its runs."""

import json

import pytest
import torch

from ppgen.cli import exits, run
from ppgen.cli.runs import load_data, read_settings
from ppgen.cli.training import hold_out
from ppgen.data import Tokenizer, small_english
from ppgen.data.tokens import token_counts
from ppgen.diagnostics import ngram_log_prob

TEXT = "hello world\nhow are you\nhello you\n"
LITTLE = ["--epochs", "2", "--hidden", "6", "--latent", "2", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("sentences")
    (place / "text.txt").write_text(TEXT)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # the tests' own, which a run has to be opened under
    with torch.random.fork_rng():
        command = ["train", "sentences", "--data", str(place / "text.txt"), *LITTLE]
        command += ["--word-dropout", "0.3", "--warm-up", "2", "--free-bits", "0.1"]
        assert run([*command, "--out", str(place / "run")]) == exits.DONE
    torch.set_default_dtype(dtype)
    return place


def asked(capsys, *command):
    capsys.readouterr()
    assert run([*map(str, command), "--json", "--quiet"]) == exits.DONE
    return json.loads(capsys.readouterr().out)


def test_the_run_keeps_its_vocabulary_and_does_without_the_file(folder, tmp_path, capsys):
    settings = read_settings(folder / "run")
    tokenizer = Tokenizer.from_dict(settings["tokenizer"])
    assert set(tokenizer.tokens) == set(TEXT.split())
    assert tokenizer.length == 4
    other = tmp_path / "other.txt"
    other.write_text("hello you\nhello strangers\n")
    command = ["evaluate", folder / "run", "--data", other, "--split", "train", "--samples", "5"]
    found = asked(capsys, *command)
    assert found["examples"] == 2
    assert found["nats_per_token"] == pytest.approx(-found["lower"] / 3)  # 3 tokens, EOS counted
    assert "entropy" not in found


def test_training_ends_with_held_out_nats_beside_those_of_counted_neighbours(folder, capsys):
    text = folder / "more.txt"
    text.write_text(TEXT * 4 + "goodbye world\n")
    command = ["train", "sentences", "--data", text, *LITTLE[:-1], "--least", 4]
    found = asked(capsys, *command, "--out", folder / "more")
    settings = read_settings(folder / "more")
    assert "goodbye" not in settings["tokenizer"]["tokens"]
    kept, held_out = hold_out(load_data(settings, "train"))
    vocabulary = Tokenizer.from_dict(settings["tokenizer"]).vocabulary
    for name, order in (("unigram", 1), ("bigram", 2), ("trigram", 3)):
        nats = -ngram_log_prob(kept.x, held_out.x, vocabulary, order).sum()
        assert found[name] == pytest.approx((nats / token_counts(held_out.x).sum()).item())
    assert found["nats_per_token"] > 0


def test_sentences_are_drawn_reconstructed_and_walked_between(folder, capsys):
    place = folder / "run"
    words = {*TEXT.split(), "<unk>"}
    drawn = asked(capsys, "sample", place, "--count", 5)
    assert len(drawn["sentences"]) == 5
    assert {w for s in drawn["sentences"] for w in s.split()} <= words
    way = asked(capsys, "interpolate", place, "--pairs", 1, "--steps", 4, "--split", "train")
    assert [len(w) for w in way["interpolations"]] == [4]
    seen = asked(capsys, "reconstruct", place, "--count", 3, "--split", "train")
    assert sorted(before for before, _ in seen["reconstructions"]) == sorted(TEXT.splitlines())
    assert 0 <= seen["exact"] <= 1
    held_out = asked(capsys, "evaluate", place, "--samples", 5, "--split", "validation")
    assert held_out["examples"] == 1
    assert held_out["data"].startswith(f"{folder / 'text.txt'}, 1 held out of all")
    new = folder / "nodir" / "new.txt"
    assert run(["sample", str(place), "--out", str(new), "--quiet"]) == exits.DONE
    assert len(new.read_text().split("\n")) == 65  # 64 lines, each ended
    assert "drawn from the model" in (place / "report.html").read_text()


@pytest.mark.slow  # it trains on ten thousand sentences
def test_on_the_grammar_the_gap_to_its_entropy_is_said(tmp_path, capsys):
    command = ["train", "sentences", "--data", "grammar", "--epochs", "1", "--hidden", "16"]
    place = str(tmp_path / "run")
    assert run([*command, "--out", place, "--quiet"]) == exits.DONE
    found = asked(capsys, "evaluate", place, "--samples", 5)
    assert found["entropy"] == small_english().entropy
    # the test sentences' own log-probability differs from the entropy by 5 standard errors at most
    assert found["gap"] > -5 * 2.5 / 1000**0.5
    assert "grammatical" in asked(capsys, "sample", place, "--count", 5)


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["train", "sentences", "--data", "digits"], exits.BAD_DATA, "from a .txt file"),
        (["train", "sentences", "--data", "no.txt"], exits.MISSING, "no such file"),
        (["train", "sentences", "--data", "one.txt"], exits.BAD_DATA, "one sentence"),
        (
            ["train", "sentences", "--data", "text.txt", "--word-dropout", "1"],
            exits.USAGE,
            "below 1",
        ),
        (["evaluate", "run", "--data", "text.txt"], exits.BAD_DATA, "--split validation"),
        (["evaluate", "run", "--data", "long.txt", "--split", "train"], exits.BAD_DATA, "row 1"),
        (["sample", "run", "--out", "x.png"], exits.USAGE, "to a .txt file"),
    ],
)
def test_errors_are_one_line(folder, capsys, monkeypatch, command, code, says):
    monkeypatch.chdir(folder)
    (folder / "one.txt").write_text("one\n")
    (folder / "long.txt").write_text("you\nyou you you you you\n")
    assert run([*command, "--quiet"]) == code
    printed = capsys.readouterr().err.strip()
    assert says in printed
    assert len(printed.splitlines()) == 1
