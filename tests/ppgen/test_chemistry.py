"""Chemistry against known molecules and against the values stored with the data."""

import importlib.util
import sys

import pytest
import torch

from ppgen import chemistry
from ppgen.data import molecules


def test_without_the_extra_the_import_works_and_the_message_says_what_to_install(monkeypatch):
    extra = ("rdkit", "selfies")
    for name in {*extra, *(n for n in sys.modules if n.partition(".")[0] in extra)}:
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.find_spec("ppgen.chemistry")
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    for use, package in ((fresh.qed, "rdkit"), (fresh.selfies_of_smiles, "selfies")):
        said = rf"{package} is not installed: pip install ppgen-suite\[chem\]"
        with pytest.raises(ModuleNotFoundError, match=said):
            use("CCO")


class Repeater:
    """Encodes a row to its first number; decodes a code to itself with probability 3/4."""

    def encode(self, x):
        return torch.distributions.Normal(x[:, :1].double(), 1e-9)

    def decode(self, z):
        value = z.round()
        return torch.distributions.Categorical(
            torch.where(torch.arange(3) == value, 0.75, 0.125)
        ).expand(z.shape[:-1])


def test_the_reconstruction_protocol_counts_exact_matches():
    x = torch.tensor([[0], [1], [2], [1]])

    class Rows(Repeater):
        def decode(self, z):
            law = super().decode(z)

            class Law:
                def sample(self, shape):
                    return law.sample(shape)[..., None]

            return Law()

    found = chemistry.reconstruction(Rows(), x, 10, 1000)
    # 40,000 trials with probability 3/4: 4.3 standard errors
    assert found.share == pytest.approx(0.75, abs=4.3 * (0.75 * 0.25 / 40_000) ** 0.5)
    assert (found.strings, found.encodings, found.decodings) == (4, 10, 1000)
    assert "of 4 strings x 10 encodings x 1000 decodings" in str(found)


@pytest.fixture
def chem():
    pytest.importorskip("rdkit")
    pytest.importorskip("selfies")
    return chemistry


@pytest.mark.slow
def test_stored_properties_and_strings_are_those_that_rdkit_computes(chem):
    test = molecules("test")
    names = test.vocabulary.decode(test.x[::300])
    for smiles, selfies, stored in zip(
        test.smiles[::300], names, test.properties[::300], strict=True
    ):
        computed = [chem.qed(smiles), chem.logp(smiles), chem.penalised_logp(smiles)]
        # rounded to 3, 2 and 2 decimals, the last from terms that were rounded to 3
        assert torch.allclose(torch.tensor(computed), stored, rtol=0, atol=5.1e-3 + 1e-3)
        assert abs(computed[0] - float(stored[0])) < 6e-4
        assert chem.canonical(chem.smiles_of_selfies(selfies)) == chem.canonical(smiles)


def test_known_molecules(chem):
    assert chem.canonical("OCC") == chem.canonical("C(C)O") == "CCO"
    assert chem.canonical("C((") is chem.canonical("") is chem.canonical("c1cc") is None
    assert chem.similarity("CCO", "OCC") == 1
    assert 0 <= chem.similarity("CCO", "c1ccccc1") < 0.1
    assert chem.logp("CCCCCC") > chem.logp("CCO")
    # cyclooctane: two atoms beyond six
    accessible = chem.synthetic_accessibility("C1CCCCCCC1")
    assert chem.penalised_logp("C1CCCCCCC1") == pytest.approx(
        chem.logp("C1CCCCCCC1") - accessible - 2
    )
    assert chem.penalised_logp("CCO") == pytest.approx(
        chem.logp("CCO") - chem.synthetic_accessibility("CCO")
    )


def test_quality_of_a_counted_list(chem):
    found = chem.quality(["CCO", "OCC", "CCN", "C((", "CCC"], training=["NCC"])
    assert found == (0.8, 0.75, pytest.approx(2 / 3), 5)
    assert chem.quality(["C(("], []) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="no strings"):
        chem.quality([], ["C"])


def test_improvement_takes_the_best_that_is_alike(chem):
    starts = ["CCCCO", "CCCCO", "CCO"]
    candidates = [["CCCCCCO", "c1ccc2ccccc2c1", "C(("], ["O"], ["OCC"]]
    found = chem.improvement(starts, candidates, chem.logp, alike=0.4)
    assert found.best == ("CCCCCCO", "CCCCO", "CCO")  # naphthalene has more, and is not alike
    assert found.gain[0] == pytest.approx(chem.logp("CCCCCCO") - chem.logp("CCCCO"))
    assert found.gain[1:] == (0, 0)
    assert found.similarity[0] >= 0.4
    assert "1 of 3 improved" in str(found)
    free = chem.improvement(starts[:1], candidates[:1], chem.logp, alike=0.0)
    assert free.best == (chem.canonical("c1ccc2ccccc2c1"),)


def test_what_is_no_molecule_is_said(chem):
    for use in (chem.qed, chem.logp, chem.penalised_logp, chem.selfies_of_smiles):
        with pytest.raises(ValueError, match=r"C\(\("):
            use("C((")
    with pytest.raises(ValueError, match="not a molecule"):
        chem.improvement(["C(("], [[]], chem.qed)
    with pytest.raises(ValueError, match="1 starts and 2 lists"):
        chem.improvement(["C"], [[], []], chem.qed)
