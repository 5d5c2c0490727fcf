r"""A VAE of molecules in SELFIES and in SMILES: generation, reconstruction, latent search.

One model for each notation, trained on the 13,500 molecules that ship, with the weight BETA on its
divergence. On what was held out:

1. Validity, uniqueness and novelty of strings drawn from the prior.
2. Exact reconstruction by the published protocol: 10 encodings x 100 decodings of each string.
3. Improvement of QED and of penalised log P, computed by rdkit, of what a search around
   held-out ones finds at Tanimoto similarity >= 0.4: along the gradient of the property head inside
   a trust region, against random steps of the same lengths; as many strings each.

The environment needs rdkit and selfies (the extra `chem`).

    python benchmarks/molecules.py [--notation selfies|smiles] [--seconds S] [--held-out N] ...
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppgen import chemistry, latent
from ppgen.data import Molecules, molecules
from ppgen.inference.elbo import ELBO
from ppgen.models.molecule_vae import MoleculeVAE

BETA = 0.02
RATE, BATCH = 3e-3, 64
SAMPLES = 1_000  # strings from the prior
STEPS, DRAWS = 20, 5  # places on the way of a search, and strings at each
RADIUS = 0.3  # of a step


def trained(part: Molecules, seconds: float) -> tuple[MoleculeVAE, int]:
    """A model after so many seconds of processor time, its rate lowered by a cosine; and epochs."""
    x, y = part.x, part.properties
    vae = MoleculeVAE(len(part.vocabulary), x.shape[1], 64, 192, properties=(y.mean(0), y.std(0)))
    optimizer = torch.optim.Adam(vae.parameters(), RATE)
    loss, start, steps = ELBO(beta=BETA), time.thread_time(), 0
    while (share := (time.thread_time() - start) / seconds) < 1:
        for rows in torch.randperm(len(x)).split(BATCH):
            share = min(1.0, (time.thread_time() - start) / seconds)
            for group in optimizer.param_groups:
                group["lr"] = RATE * (0.5 + 0.5 * math.cos(math.pi * share))
            optimizer.zero_grad()
            loss.loss_and_grads(vae.model, vae.guide, x[rows], y[rows])
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 5.0 * BATCH)
            optimizer.step()
            steps += 1
    return vae, steps * BATCH // len(x)


def smiles_of(part: Molecules, x: Tensor) -> list[str]:
    strings = part.vocabulary.decode(x)
    return (
        [chemistry.smiles_of_selfies(s) for s in strings] if part.notation == "selfies" else strings
    )


def candidates(vae: MoleculeVAE, part: Molecules, path: Tensor) -> list[list[str]]:
    """Strings decoded at the places ``(S, N, L)`` of a search, N lists of S x DRAWS."""
    law = vae.decode(path)
    x = torch.cat([law.greedy()[None], law.sample(torch.Size([DRAWS - 1]))])
    return [smiles_of(part, x[:, :, n].flatten(0, 1)) for n in range(path.shape[1])]


def searches(vae: MoleculeVAE, z: Tensor, column: int) -> dict[str, Tensor]:
    """Codes, ``(STEPS, N, L)`` each: along the gradient, and at random as far from the start."""

    def predict(z: Tensor) -> Tensor:
        return vae.properties_given_code(z).mean[:, column]

    path = latent.ascend(z, predict, vae.prior(), steps=STEPS, radius=RADIUS).path[1:]
    path = torch.cat([path, path[-1:].expand(STEPS - len(path), -1, -1)])
    direction = torch.randn(path.shape)
    away = (path - z).norm(dim=-1, keepdim=True) * direction / direction.norm(dim=-1, keepdim=True)
    return {"gradient": path, "random": z + away}


def report(notation: str, seconds: float, held_out: int, starting: int) -> None:
    torch.manual_seed(0)
    train, test = molecules("train", notation), molecules("test", notation)
    vae, epochs = trained(train, seconds)
    rows = torch.arange(0, len(test), len(test) // held_out)[:held_out]
    x = test.x[rows]
    with torch.no_grad():
        code = vae.encode(test.x)
        bits = torch.distributions.kl_divergence(
            code.base_dist, torch.distributions.Normal(torch.zeros(()), torch.ones(()))
        )
        conditional = vae.decode(code.sample()).log_prob(test.x)
        predicted = vae.properties_given_code(code.mean).mean
        residual = (predicted - test.properties).var(0) / test.properties.var(0)
    print(f"\n{notation.upper()}, beta {BETA}, {epochs} epochs in {seconds:.0f} s of one thread")
    print(
        f"held out: log p(x | z) {conditional.mean():.2f}, KL {bits.sum(-1).mean():.1f} nats; "
        f"R^2 of QED {1 - residual[0]:.2f}, log P {1 - residual[1]:.2f}, penalised log P "
        f"{1 - residual[2]:.2f}"
    )
    print("prior     ", chemistry.quality(smiles_of(train, vae.sample(SAMPLES)), train.smiles))
    likeliest = (vae.reconstruct(test.x) == test.x).all(-1).double().mean()
    print(f"rebuilt    {chemistry.reconstruction(vae, x)}; likeliest string {likeliest:.3f}")
    starts, z = [test.smiles[i] for i in rows[:starting]], latent.codes(vae, x[:starting])
    scores: Sequence[tuple[str, int, Callable[[str], float]]] = (
        ("QED", 0, chemistry.qed), ("penalised log P", 2, chemistry.penalised_logp)
    )  # fmt: skip
    for name, column, score in scores:
        for how, path in searches(vae, z, column).items():
            found = chemistry.improvement(starts, candidates(vae, test, path), score, alike=0.4)
            print(f"{name:16} {how:9} {found}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--held-out", type=int, default=200, help="strings that are reconstructed")
    parser.add_argument("--starts", type=int, default=50, help="of each search")
    parser.add_argument("--notation", choices=("selfies", "smiles"))
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, each notation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for notation in [options.notation] if options.notation else ["selfies", "smiles"]:
        report(notation, options.seconds, options.held_out, options.starts)
