"""One table of Boltzmann machines on 8x8 digits: base rates, RBM, DBM, DBN, Gaussian RBM.

    python benchmarks/boltzmann_digits.py [--seed 0]

Minutes on two cores. The first four are of binary pixels (static binarisation) and comparable with
each other. The last two are densities of grey levels, dequantised by uniform noise and standardised
by pixel: comparable with each other alone.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

import ppgen
from ppgen.cli.demo import Entry, train_digits
from ppgen.data import load
from ppgen.models import GaussianRBM
from ppgen.progress import interruptible
from ppgen.summary import columns

MACHINES = ("rbm", "dbm", "dbn")


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description="Boltzmann machines on 8x8 digits.")
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    torch.set_num_threads(1)
    with interruptible() as interrupt:
        binary = train_digits(seed, interrupt, MACHINES)
    head = ["model", "data", "at least", "at most", "+-", "seconds to train"]
    rows = [_row(entry, "binary") for entry in binary]
    rows += [_row(entry, "grey") for entry in grey_digits(seed)]
    print("8x8 digits, 360 held-out images, nats per image; grey levels are another scale")
    print(columns([head, *rows]))


def grey_digits(seed: int) -> list[Entry]:
    """Independent Gaussians and the Gaussian RBM."""
    torch.manual_seed(seed)
    x, held_out = standardised_digits()
    rbm = GaussianRBM.from_data(x, 100)
    base = rbm.units.law(rbm.units.fitted(x)).log_prob(held_out).mean().item()
    count = len(held_out)
    independent = ppgen.Likelihood("exact", base, base, 0.0, 0.0, "formula", count)
    start = time.perf_counter()
    ppgen.train(rbm, x, epochs=60, batch_size=100, learning_rate=3e-3, averaging=0.99, seed=seed)
    seconds = time.perf_counter() - start
    found = ppgen.log_likelihood(rbm, held_out, temperatures=2000, burn_in=500, seed=seed)
    return [
        Entry("independent Gaussians", independent, 0.0, rbm),
        Entry("gaussian rbm", found, seconds, rbm),
    ]


def standardised_digits() -> list[Tensor]:
    """Training and held-out rows: uniform noise makes the 17 grey levels a density."""
    parts = [load("digits", split, binarisation="none").x for split in ("train", "test")]
    noisy = [(16 * x + torch.rand(x.shape)) / 17 for x in parts]
    mean, sd = noisy[0].mean(0), noisy[0].std(0)
    return [(x - mean) / sd for x in noisy]


def _row(entry: Entry, data: str) -> list[str]:
    found = entry.likelihood
    upper = "-" if found.upper is None else f"{found.upper:.2f}"
    numbers = [f"{found.lower:.2f}", upper, f"{found.lower_error:.2f}"]
    return [entry.name, data, *numbers, f"{entry.seconds:.0f}"]


if __name__ == "__main__":
    main()
