"""``ppgen interpolate`` and ``reconstruct``: pictures and numbers from a trained autoencoder."""

import json

import numpy as np
import pytest
import torch

from ppgen.cli import exits, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("latent")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # the tests' own, which a run has to be opened under
    with torch.random.fork_rng():
        for model, data in (("vae", "digits"), ("rbm", "digits")):
            command = ["train", model, "--data", data, "--epochs", "1", "--hidden", "8"]
            assert run([*command, "--out", str(place / model), "--quiet"]) == exits.DONE
    torch.set_default_dtype(dtype)
    return place


@pytest.mark.slow
def test_interpolations_begin_and_end_with_reconstructions(folder, capsys):
    capsys.readouterr()
    place = folder / "x.npy"
    command = ["interpolate", str(folder / "vae"), "--pairs", "3", "--steps", "5", "--seed", "4"]
    assert run([*command, "--out", str(place), "--json", "--quiet"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)
    assert found == {"pairs": 3, "steps": 5, "way": "spherical", "path": str(place)}
    x = np.load(place)
    assert x.shape == (3, 5, 64)
    command = ["reconstruct", str(folder / "vae"), "--count", "6", "--seed", "4"]
    assert run([*command, "--out", str(folder / "y.npy"), "--quiet"]) == exits.DONE
    y = np.load(folder / "y.npy")
    np.testing.assert_allclose(x[:, 0], y[:3], atol=1e-6)
    np.testing.assert_allclose(x[:, -1], y[3:], atol=1e-6)


@pytest.mark.slow
def test_pictures_are_written_into_the_run(folder, capsys):
    assert run(["interpolate", str(folder / "vae"), "--path", "linear", "--quiet"]) == exits.DONE
    assert run(["reconstruct", str(folder / "vae"), "--quiet"]) == exits.DONE
    printed = capsys.readouterr().out
    for name in ("interpolations.png", "reconstructions.png"):
        assert name in printed
        assert (folder / "vae" / name).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["interpolate", "rbm"], "kind rbm, which has no codes"),
        (["reconstruct", "vae", "--count", "9999"], "9999 examples were asked for"),
        (["interpolate", "vae", "--pairs", "0"], "--pairs must be at least 1"),
        (["interpolate", "vae", "--steps", "1"], "steps must be at least 2"),
        (["reconstruct", "nowhere"], "no run folder"),
    ],
)
def test_errors_are_one_line(folder, capsys, monkeypatch, command, says):
    monkeypatch.chdir(folder)
    assert run([*command, "--quiet"]) in (exits.USAGE, exits.MISSING)
    printed = capsys.readouterr().err.strip()
    assert says in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.slow  # it trains once more
def test_a_table_gives_numbers_and_no_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).integers(0, 2, size=(40, 6))
    np.savetxt("bits.csv", rows, "%d", ",", header="a,b,c,d,e,f", comments="")
    train = ["train", "vae", "--data", "bits.csv", "--epochs", "1", "--hidden", "8"]
    assert run([*train, "--out", "table", "--quiet"]) == exits.DONE
    command = ["reconstruct", "table", "--split", "train", "--count", "4", "--quiet"]
    assert run(command) == exits.DONE
    assert np.load("table/reconstructions.npy").shape == (4, 6)
    assert run([*command, "--out", "x.png"]) == exits.USAGE
    assert "name a .npy file" in capsys.readouterr().err
