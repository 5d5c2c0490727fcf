"""What a VAE's training step costs: bare PyTorch, ppgen's ELBO, Pyro's two ELBOs.

One step is forward, backward and fused Adam on a 784-400-20 VAE with a batch of 128; all arms
have the same networks. The arms take turns, so that a busy machine slows all of them alike, in
blocks of ten steps, because training repeats one step (turns of single steps, a block of 1,
measure how each arm fares when the four others have emptied the processor's caches); the ratio
is the median over rounds of arm over bare in the same round. The second bare arm shows the
noise.

Run: OMP_NUM_THREADS=2 python benchmarks/vae_step.py [rounds [block]]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.nn.functional import binary_cross_entropy_with_logits

from ppgen.inference.elbo import ELBO
from ppgen.models.vae import VAE


def bare(x: torch.Tensor) -> Callable[[], float]:
    vae = VAE(784, 20, (400,))
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3, fused=True)
    hidden, head, decoder = vae.encoder, vae.posterior.head, vae.decoder

    def step() -> float:
        optimizer.zero_grad()
        loc, raw = head(hidden(x)).chunk(2, -1)
        scale = torch.exp(5 * torch.tanh(raw / 10))
        z = loc + scale * torch.randn_like(loc)
        divergence = (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum()
        loss = binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") + divergence
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def pair(x: torch.Tensor, loss: Trace_ELBO) -> Callable[[], float]:
    vae = VAE(784, 20, (400,))
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3, fused=True)
    scope: dict = {}

    def step() -> float:
        optimizer.zero_grad()
        value = loss.loss_and_grads(vae.model, vae.guide, x)
        optimizer.step()
        return value

    def scoped() -> float:
        with pyro.get_param_store().scope(scope.get("store")) as scope["store"]:
            return step()

    return scoped if not isinstance(loss, ELBO) else step


def main(rounds: int = 100, block: int = 10) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    x = torch.bernoulli(torch.rand(128, 784))
    arms = {
        "bare PyTorch": bare(x),
        "bare PyTorch again": bare(x),
        "ppgen ELBO": pair(x, ELBO()),
        "Pyro Trace_ELBO": pair(x, Trace_ELBO()),
        "Pyro TraceMeanField_ELBO": pair(x, TraceMeanField_ELBO()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 5):
        for name, step in arms.items():
            start = time.perf_counter()
            for _ in range(block):
                step()
            if turn >= 5:  # the first rounds warm up
                seconds[name].append((time.perf_counter() - start) / block)
    base = seconds["bare PyTorch"]
    quick = statistics.quantiles(base, n=10)[0]
    print(f"{'arm':26s} {'median ms':>10s} {'ratio':>7s} {'ratio of fastest tenths':>24s}")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, base, strict=True))
        tenth = statistics.quantiles(times, n=10)[0] / quick
        print(f"{name:26s} {1e3 * statistics.median(times):10.2f} {ratio:7.3f} {tenth:24.3f}")


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
