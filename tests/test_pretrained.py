"""Shipped weights load, widened from half precision, and make images like those of their data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ppgen import checkpoint
from ppgen.cli import exits, run
from ppgen.cli.runs import draw_examples, read_settings, restored
from ppgen.data import Dataset, molecules

FOLDER = Path(__file__).parents[1] / "pretrained"
MACHINES = sorted(folder.name for folder in FOLDER.glob("[rd]b*-mnist-*"))


@pytest.mark.parametrize("name", MACHINES)
def test_the_machines_of_mnist_stay_where_their_data_are(name):
    folder = FOLDER / name
    x = checkpoint.load(folder / "ckpt")[0]["examples"][:20].to(torch.get_default_dtype())
    examples = Dataset(x, name="shipped examples")
    story = restored(read_settings(folder), examples, folder)
    assert all(p.dtype == torch.get_default_dtype() for p in story.parameters())
    # 13 % of MNIST's pixels are white, next to none in the corners
    drawn = torch.from_numpy(draw_examples(story, examples, 20, 50, seed=0)).reshape(-1, 28, 28)
    assert 0.09 < drawn.mean() < 0.17
    assert drawn[:, :3, :3].mean() < 0.01


@pytest.mark.parametrize("name", MACHINES)
def test_shipped_machines_make_samples_without_their_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PPGEN_DATA", raising=False)
    options = ["--count", "4", "--gibbs-steps", "2", "--out", "x.png", "--quiet"]
    assert run(["sample", str(FOLDER / name), *options]) == exits.DONE
    assert (tmp_path / "x.png").is_file()
    examples = checkpoint.load(FOLDER / name / "ckpt")[0]["examples"]
    assert 0.09 < examples.float().mean() < 0.17


@pytest.mark.slow
def test_the_vae_of_molecules_gives_back_most_of_what_was_held_out():
    folder, test = FOLDER / "molecules-selfies", molecules("test")
    settings = read_settings(folder)
    assert settings["tokenizer"] == test.vocabulary.as_dict()  # the one that comes with the data
    x = test.x[::15]
    story = restored(settings, Dataset(x), folder)
    # 0.948 of all 1,500 do; the share of 100 has a standard error of 0.022, 4.3 of them below
    assert (story.reconstruct(x) == x).all(1).double().mean() > 0.85
    assert story.decode(story.encode(x).sample()).log_prob(x).exp().mean() > 0.6  # 0.749 of all


def test_the_vae_of_mnist_is_opened_drawn_from_and_walked_through_without_its_data(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # where no data are
    monkeypatch.delenv("PPGEN_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run_folder, place = str(FOLDER / "vae-mnist-conv"), str(tmp_path / "x.npy")
    assert run(["sample", run_folder, "--count", "40", "--out", place, "--quiet"]) == exits.DONE
    images = np.load(place).reshape(-1, 28, 28)
    assert 0.10 < images.mean() < 0.16
    assert images[:, :2, :2].mean() < 0.02
    command = ["reconstruct", run_folder, "--count", "20", "--out", place, "--json", "--quiet"]
    assert run(command) == exits.DONE
    printed = capsys.readouterr()
    assert "the examples that came with the weights are used" in printed.err
    # a constant image of the mean would be off by 0.22 a pixel
    assert json.loads(printed.out.splitlines()[-1])["mean_absolute_error"] < 0.12
    assert run(["interpolate", run_folder, "--pairs", "2", "--out", place, "--quiet"]) == exits.DONE
    assert np.load(place).shape == (2, 9, 784)


def test_no_folder_of_weights_names_a_machine_and_all_are_small():
    for config in FOLDER.glob("*/config.json"):
        command = json.loads(config.read_text())["command"]
        assert command["folder"] is None
        assert "/" not in (command.get("start_from") or "")
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 10e6
