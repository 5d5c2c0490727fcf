"""What a better posterior is worth to a small VAE: every kind that comes with the package.

A VAE of the 8x8 digits (static binarisation, seed 0), one hidden layer of 100 units each side, 100
epochs of Adam at 0.002, batches of 100. Of each kind of posterior, and of codes of 2 and 6
dimensions, on the 360 test digits: the ELBO, the importance-sampled bound of 500 draws, and the
processor time of the training; the mean over seeds and its standard error.

Run: python benchmarks/posteriors.py [--seeds 3] [--epochs 100] [--latent 2 6]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

import ppgen
from ppgen import data
from ppgen.models import VAE
from ppgen.networks.flow_posterior import AutoregressivePosterior, FlowPosterior
from ppgen.networks.posteriors import DiagonalNormal, FullNormal
from ppgen.progress import quiet
from ppgen.transforms.planar import Planar
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.sylvester import Sylvester
from ppgen.transforms.vector import VectorChain

HIDDEN, DRAWS = 100, 500
POSTERIORS: dict[str, Callable[[int], nn.Module]] = {
    "diagonal normal": lambda L: DiagonalNormal(HIDDEN, L),
    "full covariance": lambda L: FullNormal(HIDDEN, L),
    "10 planar layers": lambda L: FlowPosterior(HIDDEN, L, VectorChain([Planar(L)] * 10)),
    "4 Sylvester layers": lambda L: FlowPosterior(HIDDEN, L, VectorChain([Sylvester(L)] * 4)),
    "2 IAF layers": lambda L: AutoregressivePosterior(HIDDEN, L, layers=2, hidden=(64,)),
    "2 spline layers": lambda L: AutoregressivePosterior(
        HIDDEN, L, RationalQuadratic(8, 4.0), layers=2, hidden=(64,)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--latent", type=int, nargs="+", default=[2, 6])
    options = parser.parse_args()
    train, test = data.load("digits").x, data.load("digits", "test").x
    for latent in options.latent:
        for name, build in POSTERIORS.items():
            rows, before = [], time.process_time()
            for seed in range(options.seeds):
                torch.manual_seed(seed)
                vae = VAE(train.shape[1], latent, hidden=(HIDDEN,), posterior=build(latent))
                with quiet():
                    ppgen.train(
                        vae, train, epochs=options.epochs, batch_size=100, learning_rate=2e-3
                    )
                found = ppgen.log_likelihood(vae, test, samples=DRAWS, seed=seed)
                rows.append([found.details["elbo"], found.lower])
            seconds = (time.process_time() - before) / options.seeds
            each = torch.tensor(rows)
            mean, error = each.mean(0).tolist(), (each.std(0) / options.seeds**0.5).tolist()
            print(
                f"code of {latent}, {name:18} ELBO {mean[0]:.2f} +- {error[0]:.2f}   "
                f"importance-sampled {mean[1]:.2f} +- {error[1]:.2f}   {seconds:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
