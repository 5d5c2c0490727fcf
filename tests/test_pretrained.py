"""Shipped weights load, widened from half precision, and make images like those of their data."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ppgen.inference.train import restore_story
from ppgen.models import RBM

FOLDER = Path(__file__).parents[1] / "pretrained"


def test_the_rbm_of_mnist_stays_where_its_data_are():
    rbm = RBM(784, 500).float()
    restore_story(rbm, FOLDER / "rbm-mnist-500")
    assert rbm.weight.dtype == torch.float32
    # 13 % of MNIST's pixels are white, next to none in the corners; chains from noise find that
    side = torch.bernoulli(torch.full((100, 784), 0.5)).float()
    for _ in range(200):
        side = rbm.sweep(side)
    images = side.reshape(-1, 28, 28)
    assert 0.10 < images.mean() < 0.16
    assert images[:, :3, :3].mean() < 0.01


def test_no_folder_of_weights_names_a_machine():
    for config in FOLDER.glob("*/config.json"):
        assert json.loads(config.read_text())["command"]["folder"] is None
