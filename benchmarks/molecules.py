r"""A VAE of molecules in SELFIES and in SMILES: reconstruction, generation, latent search.

One model for each notation, trained on the 13,500 molecules that ship, whole strings of up to 50
symbols, with the weight BETA on its divergence. On the 1,500 that were held out:

1. Exact reconstruction: the likeliest symbol each time from the mean code, of all; and the
   published protocol, 10 encodings x 100 decodings at random, of --held-out of them. What that
   protocol estimates, E_q[p(x | z)], is printed for all, without sampling strings.
2. Validity, uniqueness and novelty of strings drawn from the prior.
3. Latent search: the best improvement of QED and of penalised log P, both computed by rdkit, at
   Tanimoto similarity >= 0.4 to the start, among STRINGS strings. Each is decoded at a place of
   its own: in random directions, or in the same ones turned towards the gradient of the property
   head; the same distances, starts, and number of strings, --seeds seeds. (All the way along the
   gradient the strings are too much alike: the best of them is worse than the best at random.)

The environment needs rdkit and selfies (the extra `chem`). About seven minutes of one core.

    python benchmarks/molecules.py [--notation selfies|smiles] [--epochs E] [--held-out N] ...

Weights like those in pretrained/ are made by ``--save``, and measured again by ``--run``:

    python benchmarks/molecules.py --notation selfies --save pretrained/molecules-selfies
    python benchmarks/molecules.py --notation selfies --run pretrained/molecules-selfies
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn.functional import normalize

from ppgen import checkpoint, chemistry, latent
from ppgen.data import Molecules, molecules
from ppgen.inference.elbo import ELBO
from ppgen.inference.train import restore_story
from ppgen.models.molecule_vae import MoleculeVAE

BETA = 0.02
RATE, BATCH = 2e-3, 64
WARM_UP = 100  # steps until the full rate
SAMPLES = 1_000  # strings from the prior
STRINGS = 100  # of a search from one molecule
NEAREST, FARTHEST = 1.5, 6.5  # from the start: nearer it comes back, farther nothing is alike
TILT = 0.3  # cosine between a guided search and the gradient
ALIKE = 0.4


class Property(NamedTuple):
    """What is improved."""

    name: str
    column: int  # of the data's properties and of the head
    score: Callable[[str], float]


PROPERTIES = (
    Property("QED", 0, chemistry.qed),
    Property("penalised log P", 2, chemistry.penalised_logp),
)


def untrained(part: Molecules) -> MoleculeVAE:
    y = part.properties
    return MoleculeVAE(
        part.vocabulary.vocabulary, part.x.shape[1], properties=(y.mean(0), y.std(0))
    )


def fit(vae: MoleculeVAE, part: Molecules, epochs: int) -> float:
    """Train, the rate lowered to nothing by a cosine; the seconds of processor time."""
    x, y = part.x, part.properties
    optimizer = torch.optim.Adam(vae.parameters(), RATE, betas=(0.9, 0.99), fused=True)
    loss, start = ELBO(beta=BETA), time.thread_time()
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(x)).split(BATCH)]
    for step, rows in enumerate(batches, 1):
        falling = 0.5 + 0.5 * math.cos(math.pi * step / len(batches))
        for group in optimizer.param_groups:
            group["lr"] = RATE * falling * min(1.0, step / WARM_UP)
        optimizer.zero_grad()
        loss.loss_and_grads(vae.model, vae.guide, x[rows], y[rows])
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 5.0 * BATCH)
        optimizer.step()
    return time.thread_time() - start


def save(vae: MoleculeVAE, part: Molecules, out: Path) -> None:
    """As a run folder of `ppgen train`, in half precision."""
    halves = {f"story/{name}": t.half() for name, t in vae.state_dict().items()}
    checkpoint.save(out / "ckpt", halves, {"precision": "half"})
    command = {
        "model": "molecules",
        "data": "molecules",
        "folder": None,
        "binarisation": None,
        "seed": 0,
        "notation": part.notation,
        "hidden": [vae.decoder.first.out_features],
        "latent": vae.latent,
        "beta": BETA,
        "properties": [vae.location.tolist(), vae.scale.tolist()],
        "tokenizer": part.vocabulary.as_dict(),
    }
    config = {"format": "ppgen run", "schema": 1, "command": command}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def smiles_of(part: Molecules, x: Tensor) -> list[str]:
    strings = part.vocabulary.decode(x)
    return (
        [chemistry.smiles_of_selfies(s) for s in strings] if part.notation == "selfies" else strings
    )


@torch.no_grad()
def candidates(vae: MoleculeVAE, part: Molecules, places: Tensor) -> list[list[str]]:
    """The likeliest string at each of the places ``(S, N, L)``, N lists of S."""
    x = torch.stack([vae.decode(z).greedy() for z in places])
    return [smiles_of(part, x[:, n]) for n in range(places.shape[1])]


def places(vae: MoleculeVAE, z: Tensor, column: int) -> dict[str, Tensor]:
    """Codes, ``(STRINGS, N, L)`` each: around the start, guided and at random."""
    leaf = z.clone().requires_grad_()
    predicted = vae.properties_given_code(leaf).mean[:, column]
    uphill = normalize(torch.autograd.grad(predicted.sum(), leaf)[0], dim=-1)
    anywhere = normalize(torch.randn(STRINGS, *z.shape), dim=-1)
    guided = normalize(TILT * uphill + math.sqrt(1 - TILT**2) * anywhere, dim=-1)
    away = torch.linspace(NEAREST, FARTHEST, STRINGS)[:, None, None]
    return {"guided": z + away * guided, "random": z + away * anywhere}


@torch.no_grad()
def reconstruction(vae: MoleculeVAE, test: Molecules, held_out: int) -> None:
    code = vae.encode(test.x)
    nats = kl_divergence(code, vae.prior()).mean()
    exact = torch.stack([vae.decode(code.sample()).log_prob(test.x).exp() for _ in range(10)])
    likeliest = (vae.reconstruct(test.x) == test.x).all(-1).double().mean()
    predicted = vae.properties_given_code(code.mean).mean
    left = (predicted - test.properties).var(0) / test.properties.var(0)
    rows = torch.arange(0, len(test), len(test) // held_out)[:held_out]
    error = exact.mean(0).std() / math.sqrt(len(test))
    print(f"KL {nats:.1f} nats; R^2 of QED {1 - left[0]:.2f}, log P {1 - left[1]:.2f}, "
          f"penalised log P {1 - left[2]:.2f}")  # fmt: skip
    print(f"likeliest string exact: {likeliest:.3f} of {len(test)} held-out strings")
    print(f"E_q[p(x | z)]:          {exact.mean():.3f} +- {error:.3f} of {len(test)}, 10 encodings")
    print(f"published protocol:     {chemistry.reconstruction(vae, test.x[rows])}", flush=True)


def search(vae: MoleculeVAE, test: Molecules, wanted: Property, starting: int, seeds: int) -> None:
    rows = torch.arange(0, len(test), len(test) // starting)[:starting]
    starts, z = [test.smiles[i] for i in rows], latent.codes(vae, test.x[rows])
    gains: dict[str, list[tuple[float, ...]]] = {"guided": [], "random": []}
    for seed in range(seeds):
        torch.manual_seed(seed)
        for how, around in places(vae, z, wanted.column).items():
            strings = candidates(vae, test, around)
            found = chemistry.improvement(starts, strings, wanted.score, alike=ALIKE)
            gains[how].append(found.gain)
    each = {how: torch.tensor(g, dtype=torch.float64) for how, g in gains.items()}
    for how, gain in each.items():
        by_seed = ", ".join(f"{g:.3f}" for g in gain.mean(1))
        print(f"{wanted.name:16} {how:9} gain {gain.mean():.3f} (seeds {by_seed}), "
              f"improved {(gain > 0).double().mean():.2f}")  # fmt: skip
    # a start is one example, however many seeds it was searched with
    difference = (each["guided"] - each["random"]).mean(0)
    error = difference.std() / math.sqrt(starting)
    print(f"{wanted.name:16} guided less random {difference.mean():+.3f} +- {error:.3f} "
          f"({starting} starts)", flush=True)  # fmt: skip


def report(notation: str, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    train, test = molecules("train", notation), molecules("test", notation)
    vae = untrained(train)
    if options.run is None:
        seconds = fit(vae, train, options.epochs)
        how = f"{options.epochs} epochs in {seconds:.0f} s of one core"
    else:
        restore_story(vae, options.run)
        how = f"from {options.run}"
    if options.save is not None:
        save(vae, train, options.save)
    vae.eval()
    count = sum(p.numel() for p in vae.parameters())
    print(f"\n{notation.upper()}, beta {BETA}, {count:,} parameters, {how}", flush=True)
    reconstruction(vae, test, options.held_out)
    new = smiles_of(train, vae.sample(SAMPLES))
    print(f"prior:                  {chemistry.quality(new, train.smiles)}", flush=True)
    for wanted in PROPERTIES:
        search(vae, test, wanted, options.starts, options.seeds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--held-out", type=int, default=50, help="strings of the protocol")
    parser.add_argument("--starts", type=int, default=40, help="of each search")
    parser.add_argument("--seeds", type=int, default=3, help="of each search")
    parser.add_argument("--notation", choices=("selfies", "smiles"))
    parser.add_argument("--epochs", type=int, default=8, help="of training, each notation")
    parser.add_argument("--save", type=Path, help="a folder for the weights, of one notation")
    parser.add_argument("--run", type=Path, help="such a folder, to measure instead of training")
    options = parser.parse_args()
    if options.notation is None and (options.save or options.run):
        parser.error("--save and --run are of one --notation")
    torch.set_num_threads(1)
    for notation in [options.notation] if options.notation else ["selfies", "smiles"]:
        report(notation, options)
