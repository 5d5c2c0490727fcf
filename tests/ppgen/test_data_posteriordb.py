"""The loader of a posteriordb clone: what it reads, and what it says of one that is broken."""

import json
import zipfile

import numpy as np
import pytest

from ppgen.data import DataError, posteriordb


def pack(path, content, name="x.json"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def clone(tmp_path):
    root = tmp_path / "posterior_database"
    (root / "posteriors").mkdir(parents=True)
    description = {"data_name": "d", "reference_posterior_name": "r"}
    (root / "posteriors" / "d-m.json").write_text(json.dumps(description))
    pack(root / "data/data/d.json.zip", {"N": 2, "y": [1.5, 2.5]})
    chain = {f"beta[{i},{j}]": [10.0 * i + j, 0.0] for j in (1, 2, 3) for i in (1, 2)}
    pack(draws(tmp_path), [{"mu": [1, 2], **chain}, {"mu": [3, 4], **chain}])
    return tmp_path


def draws(clone):
    return clone / "posterior_database/reference_posteriors/draws/draws/r.json.zip"


def test_data_and_draws_are_read_from_the_clone_or_the_folder_in_it(clone, monkeypatch):
    for place in (clone, str(clone / "posterior_database")):
        assert posteriordb.names(place) == ["d-m"]
        assert posteriordb.read_data("d-m", place) == {"N": 2, "y": [1.5, 2.5]}
    monkeypatch.setenv("PPGEN_POSTERIORDB", str(clone))
    found = posteriordb.read_reference("d-m")
    assert found["mu"].tolist() == [[1, 2], [3, 4]]
    assert found["beta"].shape == (2, 2, 2, 3)
    assert np.array_equal(found["beta"][1, 0], [[11, 12, 13], [21, 22, 23]])


def test_where_no_clone_is_named_the_error_says_how(monkeypatch, tmp_path):
    monkeypatch.delenv("PPGEN_POSTERIORDB", raising=False)
    with pytest.raises(DataError, match="--posteriordb DIR or PPGEN_POSTERIORDB") as caught:
        posteriordb.find()
    assert caught.value.missing
    with pytest.raises(DataError, match="no posteriors/"):
        posteriordb.find(tmp_path)


@pytest.mark.parametrize("name", ["other", "../posteriors/d-m", ""])
def test_an_unknown_posterior_is_refused_with_those_there_are(clone, name):
    with pytest.raises(DataError, match=r"no posterior .*: there are d-m"):
        posteriordb.read_data(name, clone)


@pytest.mark.parametrize("target", ["../../secret", "..", None, 3])
def test_a_description_cannot_lead_out_of_the_clone(clone, target):
    path = clone / "posterior_database/posteriors/d-m.json"
    path.write_text(json.dumps({"data_name": target}))
    with pytest.raises(DataError, match=r"d-m\.json: data_name is .*: a name is expected"):
        posteriordb.read_data("d-m", clone)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("not json", "cannot be read"),
        ({"mu": [1]}, "a list of chains"),
        ([{"mu": [1]}, {"nu": [1]}], "different parameters"),
        ([{"mu": [1, 2]}, {"mu": [1]}], "cannot be read"),
        ([{"mu": [1, 2], "nu": [1]}], r"draws of nu have shape \(1, 1\)"),
        ('[{"mu": [1, NaN]}]', "not finite"),
        ([{"mu[2]": [1]}], "gaps"),
        ([{"mu.1": [1]}], "no name of a scalar"),
    ],
)
def test_broken_draws_are_named(clone, content, says):
    pack(draws(clone), content)
    with pytest.raises(DataError, match=rf"r\.json\.zip: .*{says}"):
        posteriordb.read_reference("d-m", clone)


def test_a_broken_or_missing_archive_is_named(clone):
    draws(clone).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match="zipped JSON cannot be read"):
        posteriordb.read_reference("d-m", clone)
    pack(draws(clone), "[]", name="x.txt")
    with pytest.raises(DataError, match="one JSON file is expected inside, got 0"):
        posteriordb.read_reference("d-m", clone)
    draws(clone).unlink()
    with pytest.raises(DataError, match="lacks this file"):
        posteriordb.read_reference("d-m", clone)
