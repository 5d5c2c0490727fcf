"""The molecules that ship: tokens there and back, the stated rule of their choice, errors."""

import gzip
import hashlib
import importlib.util
from types import SimpleNamespace

import pytest
import torch

from ppgen.data import DataError, Tokenizer, molecules, molsets
from ppgen.data.molecule_strings import MOLECULES, PROPERTIES, Vocabulary
from ppgen.data.tokens import EOS, PAD, split_tokens


@pytest.mark.slow
@pytest.mark.parametrize("notation", ["selfies", "smiles"])
def test_tokens_come_back_as_the_very_strings(notation):
    train, test = molecules("train", notation), molecules("test", notation)
    assert train.vocabulary == test.vocabulary
    assert train.x.shape[1] == test.x.shape[1]
    for part in (train, test):
        strings = part.vocabulary.decode(part.x)
        assert torch.equal(part.vocabulary.encode(strings), part.x)
        assert len(set(strings)) == len(part)
        if notation == "smiles":
            assert tuple(strings) == part.smiles
        assert "".join(split_tokens(strings[7])) == strings[7]


@pytest.mark.slow
def test_the_parts_have_the_stated_sizes_properties_and_nothing_in_common():
    train, test = molecules(), molecules("test")
    assert (len(train), len(test)) == (13_500, 1_500)
    assert not set(train.smiles) & set(test.smiles)
    assert test.describe() == "molecules of MOSES, test, 1500 as SELFIES"
    assert train.properties.dtype == torch.get_default_dtype()
    assert train.properties.shape == (13_500, len(PROPERTIES))
    qed, logp, penalised = train.properties.T
    assert ((qed > 0) & (qed < 1)).all()
    assert (penalised < logp).all()  # accessibility is at least 1
    assert MOLECULES.stat().st_size <= 400_000


@pytest.mark.slow
def test_the_chosen_have_the_smallest_hashes():
    # a sample of sixteenths of a uniform law: 13,500 of 1,584,663 lie below their share
    highest = max(hashlib.sha256(s.encode()).digest() for s in molecules().smiles)
    share = int.from_bytes(highest[:8], "big") / 2**64
    # the largest of the smallest 13,500 of n uniform numbers: 13,500 / n, relative sd 1/116
    assert share == pytest.approx(13_500 / 1_584_663, rel=4.3 / 116)


def test_numbers_and_ends():
    vocabulary = Vocabulary.of(["CCBr", "C[nH]"])
    assert vocabulary.tokens == ("C", "Br", "[nH]")
    assert vocabulary.vocabulary == 7
    x = vocabulary.encode(["CCBr", "", "C"])
    assert x.tolist() == [[4, 4, 5, EOS], [EOS, PAD, PAD, PAD], [4, EOS, PAD, PAD]]
    assert vocabulary.decode(torch.tensor([[4, EOS, 5]])) == ["C"]
    assert Tokenizer.from_dict(vocabulary.as_dict()).encode(["CBr"]).tolist() == [[4, 5, EOS, PAD]]


def test_what_cannot_be_written_is_refused_by_row():
    vocabulary = Vocabulary.of(["CO"])
    with pytest.raises(DataError, match="row 1: 'N' is not in the vocabulary"):
        vocabulary.encode(["CO", "CN"])
    with pytest.raises(DataError, match="row 0: 3 tokens, where this vocabulary's rows hold 2"):
        vocabulary.encode(["COC"])
    with pytest.raises(DataError, match="bracket without its other half"):
        split_tokens("C[nH")
    with pytest.raises(DataError, match="no split 'valid'"):
        molecules("valid")
    with pytest.raises(DataError, match="no notation 'inchi'"):
        molecules("test", "inchi")


def test_the_full_set_is_read_where_it_is_installed(monkeypatch, tmp_path):
    def found(name):
        return SimpleNamespace(submodule_search_locations=[str(tmp_path)])

    (tmp_path / "dataset" / "data").mkdir(parents=True)
    path = tmp_path / "dataset" / "data" / "train.csv.gz"
    path.write_bytes(gzip.compress(b"SMILES,SPLIT\nCCO,train\nCCN,train\n"))
    monkeypatch.setattr(importlib.util, "find_spec", found)
    assert molsets() == ["CCO", "CCN"]
    path.write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read"):
        molsets()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps molsets") as error:
        molsets()
    assert error.value.missing
    with pytest.raises(DataError, match="no split 'all'"):
        molsets("all")
