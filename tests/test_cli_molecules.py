"""``ppgen train molecules`` and what can be asked of its runs; rdkit is stood in for."""

import json

import pytest
import torch

from ppgen import chemistry
from ppgen.cli import exits, molecules, run
from ppgen.cli.runs import read_settings
from ppgen.data import Vocabulary

SMILES = ["CCO", "CCBr", "C[nH]C", "CCN", "OCC", "C"]
LITTLE = ["--epochs", "2", "--hidden", "6", "--latent", "3", "--notation", "smiles", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("molecules")
    (place / "few.smi").write_text("smiles name\n" + "".join(f"{s}\tno {s}\n" for s in SMILES))
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # the tests' own, which a run has to be opened under
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        command = ["train", "molecules", "--data", str(place / "few.smi"), *LITTLE]
        assert run([*command, "--out", str(place / "run")]) == exits.DONE
    torch.set_default_dtype(dtype)
    return place


@pytest.fixture
def chem(monkeypatch):
    stand_in(monkeypatch)


def stand_in(patch):
    """For chemistry: what has no symbol but those of SMILES above is a molecule."""
    patch.setattr(
        chemistry, "canonical", lambda s: s if s and set(s) <= set("".join(SMILES)) else None
    )
    patch.setattr(
        chemistry,
        "properties",
        lambda found: torch.tensor([[s.count("C"), len(s), 1.0 + s.count("O")] for s in found]),
    )


def asked(capsys, *command):
    capsys.readouterr()
    assert run([*map(str, command), "--json", "--quiet"]) == exits.DONE
    return json.loads(capsys.readouterr().out)


def test_the_run_keeps_vocabulary_beta_and_scales_of_the_properties(folder):
    settings = read_settings(folder / "run")
    assert settings["beta"] == 0.02
    tokenizer = Vocabulary.from_dict(settings["tokenizer"])
    assert set(tokenizer.tokens) == {"C", "O", "N", "Br", "[nH]"}
    # of the stand-in: numbers of C, letters, and oxygens and one
    assert settings["properties"][0] == pytest.approx([11 / 6, 10 / 3, 4 / 3], abs=1e-12)
    assert "word_dropout" not in settings


def test_molecules_are_scored_drawn_reconstructed_and_walked_between(folder, chem, capsys):
    place = folder / "run"
    scored = asked(capsys, "evaluate", place, "--split", "train")
    assert 0 <= scored["exact_at_random"] <= 1
    assert scored["nats_per_token"] > 0
    drawn = asked(capsys, "sample", place, "--count", 5)
    assert len(drawn["sentences"]) == 5
    assert 0 <= drawn["valid"] <= 1
    way = asked(capsys, "interpolate", place, "--pairs", 1, "--steps", 4, "--split", "train")
    assert [len(w) for w in way["interpolations"]] == [4]
    seen = asked(capsys, "reconstruct", place, "--count", 6, "--split", "train")
    assert sorted(before for before, _ in seen["reconstructions"]) == sorted(SMILES)
    page = (place / "report.html").read_text()
    assert "drawn from the model" in page


def test_molecules_are_shown_as_canonical_smiles_and_keep_their_strings(
    folder, monkeypatch, capsys
):
    # OCC is CCO, and what the model makes up is no molecule
    canonical = {s: "CCO" if s == "OCC" else s for s in SMILES}
    monkeypatch.setattr(chemistry, "canonical", canonical.get)
    place = folder / "run"
    seen = asked(capsys, "reconstruct", place, "--count", 6, "--split", "train")
    written, shown = seen["strings"], seen["reconstructions"]
    assert sorted(before for before, _ in written) == sorted(SMILES)
    for strings, smiles in zip(written, shown, strict=True):
        assert smiles == [canonical.get(s, s) for s in strings]
    assert seen["same_molecule"] == sum(a == b for a, b in shown) / 6
    way = asked(capsys, "interpolate", place, "--pairs", 2, "--steps", 3, "--split", "train")
    assert [len(w) for w in way["strings"]] == [len(w) for w in way["interpolations"]] == [3, 3]
    # a string of SELFIES that means nothing stays, so that the line says what came
    monkeypatch.setattr(
        chemistry, "smiles_of_selfies", lambda s: "" if "<unk>" in s else s.replace("[O]", "O")
    )
    found, known = molecules.as_smiles(["C[O]", "[O]<unk>"], {"notation": "selfies"})
    assert (found, known) == (["CO", "[O]<unk>"], True)


def test_without_rdkit_samples_are_shown_as_they_are(folder, monkeypatch, capsys):
    def absent(*_):
        raise ModuleNotFoundError("rdkit is not installed: pip install ppgen-suite[chem]")

    monkeypatch.setattr(chemistry, "canonical", absent)
    assert run(["sample", str(folder / "run"), "--count", "3"]) == exits.DONE
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    assert "ppgen-suite[chem]" in printed.err
    command = ["reconstruct", str(folder / "run"), "--count", "1", "--split", "validation"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chemistry, "read_smiles", lambda *_: SMILES)
        assert run(command) == exits.DONE
    assert "the same molecule" not in capsys.readouterr().out
    command = ["train", "molecules", "--data", str(folder / "few.smi"), "--quiet"]
    assert run(command) == exits.MISSING
    assert "pip install ppgen-suite[chem]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["train", "molecules", "--data", "digits"], exits.BAD_DATA, "from a .smi file"),
        (["train", "molecules", "--data", "no.smi"], exits.MISSING, "no such file"),
        (["train", "molecules", "--data", "one.smi"], exits.BAD_DATA, "one molecule"),
        (
            ["train", "molecules", "--data", "bad.smi"],
            exits.BAD_DATA,
            "row 3: 'CX1' is not",
        ),
        (["train", "molecules", "--data", "few.smi", "--warm-up", "9"], exits.USAGE, "--beta 1"),
        (["evaluate", "run", "--data", "few.smi"], exits.BAD_DATA, "--split validation"),
        (
            ["evaluate", "run", "--data", "new.smi", "--split", "train"],
            exits.BAD_DATA,
            "row 1: 'r'",
        ),
    ],
)
def test_errors_are_one_line(folder, chem, capsys, monkeypatch, command, code, says):
    monkeypatch.chdir(folder)
    (folder / "one.smi").write_text("CCO\n")
    (folder / "bad.smi").write_text("CCO\n\nCX1 a name\n")
    (folder / "new.smi").write_text("CCO\nCr\n")
    notation = ["--notation", "smiles"] if command[0] == "train" else []
    assert run([*command, *notation, "--quiet"]) == code
    printed = capsys.readouterr().err.strip()
    assert says in printed
    assert len(printed.splitlines()) == 1
