"""What a VAE's initial weights are worth: those of the package against torch's own.

VAEs of the 8x8 digits (static binarisation, seed 0) with two and with three hidden layers of 200
units each side, and with convolutions of 32 and 64 channels; epochs of Adam at 0.001, batches of
100. On the 360 test digits: the ELBO, the importance-sampled bound of 500 draws, and the units of
the code in use; the mean over seeds and its standard error. With `--mnist`, a folder of MNIST, one
of two layers instead, on pixels drawn anew each epoch, 1,000 static test images, 200 draws.

Run: python benchmarks/initial_weights.py [--seeds 3] [--epochs 100] [--mnist FOLDER --epochs 20]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import ppgen
from ppgen import data
from ppgen.models import VAE
from ppgen.networks.convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from ppgen.progress import quiet

SHAPE = (1, 8, 8)
DIGITS: dict[str, Callable[[], VAE]] = {
    "200-200, code of 50": lambda: VAE(64, 50, (200, 200)),
    "200-200-200, code of 20": lambda: VAE(64, 20, (200, 200, 200)),
    "convolutions, code of 12": lambda: VAE(
        64,
        12,
        (100,),
        encoder=ConvolutionalEncoder(SHAPE, 100),
        decoder=ConvolutionalDecoder(SHAPE, 12),
    ),
}
MNIST: dict[str, Callable[[], VAE]] = {"200-200, code of 50": lambda: VAE(784, 50, (200, 200))}


def initial(build: Callable[[], VAE], seed: int, torchs: bool) -> VAE:
    """A VAE before its training; every layer drawn anew by torch if `torchs`."""
    torch.manual_seed(seed)
    vae = build()
    for module in vae.modules() if torchs else ():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    return vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--mnist", metavar="FOLDER")
    options = parser.parse_args()
    if options.mnist:
        train = data.load("mnist", folder=options.mnist, binarisation="dynamic")
        test, draws = data.load("mnist", "test", folder=options.mnist).x[:1000], 200
    else:
        train, test, draws = data.load("digits"), data.load("digits", "test").x, 500
    for name, build in (MNIST if options.mnist else DIGITS).items():
        for torchs in (True, False):
            rows, before = [], time.process_time()
            for seed in range(options.seeds):
                vae = initial(build, seed, torchs)
                with quiet():
                    ppgen.train(vae, train, epochs=options.epochs, learning_rate=1e-3, seed=seed)
                found = ppgen.log_likelihood(vae, test, samples=draws, seed=0)
                used = float(vae.latent_use(test).active.sum())
                rows.append([found.details["elbo"], found.lower, used])
            seconds = (time.process_time() - before) / options.seeds
            each = torch.tensor(rows)
            mean, error = each.mean(0).tolist(), (each.std(0) / options.seeds**0.5).tolist()
            print(
                f"{name}, {'torch' if torchs else 'ppgen'}'s weights: "
                f"ELBO {mean[0]:.2f} +- {error[0]:.2f}   importance-sampled {mean[1]:.2f} +- "
                f"{error[1]:.2f}   {mean[2]:.1f} units in use   {seconds:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
