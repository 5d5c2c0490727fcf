"""One CD-1 update of an RBM against the five matrix products that it cannot avoid.

    python benchmarks/contrastive_divergence.py [--threads 2] [--repeats 100]

RBM 784-500, batch 100, float32. The rows take turns, five updates each (so that each finds its
own parameters in the cache, as in training), and the ratio is taken within each turn, so that a
busy machine slows all rows alike. The bar: a median of at most 1.5.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ppgen.inference.contrastive_divergence import ContrastiveDivergence
from ppgen.models.rbm import RBM

VISIBLE, HIDDEN, BATCH = 784, 500, 100
BAR = 1.5
UPDATES = 5  # in a row, each turn


def matrix_products(x: Tensor) -> Callable[[], None]:
    """The floor: x W, h W^T, v W and two outer products, into memory that is kept."""
    weight = 0.01 * torch.randn(VISIBLE, HIDDEN)
    hidden, visible = torch.rand(BATCH, HIDDEN).round(), x.clone()
    hidden_out, visible_out = torch.empty(BATCH, HIDDEN), torch.empty(BATCH, VISIBLE)
    outer = torch.empty(VISIBLE, HIDDEN)

    def run() -> None:
        torch.mm(x, weight, out=hidden_out)
        torch.mm(hidden, weight.T, out=visible_out)
        torch.mm(visible, weight, out=hidden_out)
        torch.mm(x.T, hidden, out=outer)
        torch.mm(visible.T, hidden, out=outer)

    return run


def ours(x: Tensor, **options: object) -> Callable[[], None]:
    rbm = RBM.from_data(x, HIDDEN)
    loss = ContrastiveDivergence(**options)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.01, momentum=0.5, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        loss.loss_and_grads(rbm.model, rbm.guide, x)
        optimizer.step()

    return run


def ours_under_svi(x: Tensor) -> Callable[[], None]:
    rbm = RBM.from_data(x, HIDDEN)
    optimizer = pyro.optim.SGD({"lr": 0.01, "momentum": 0.5})
    svi = pyro.infer.SVI(rbm.model, rbm.guide, optimizer, loss=ContrastiveDivergence())
    return lambda: svi.step(x)


def by_hand(x: Tensor) -> Callable[[], None]:
    """The loop that a practised user writes: statistics, momentum, no monitoring, no centring."""
    weight = 0.01 * torch.randn(VISIBLE, HIDDEN)
    a, b = torch.zeros(VISIBLE), torch.zeros(HIDDEN)
    momenta = [torch.zeros_like(p) for p in (weight, a, b)]

    def run() -> None:
        p = torch.sigmoid(x @ weight + b)
        h = torch.bernoulli(p)
        v = torch.bernoulli(torch.sigmoid(h @ weight.T + a))
        q = torch.sigmoid(v @ weight + b)
        gradients = (x.T @ p - v.T @ q) / BATCH, (x - v).mean(0), (p - q).mean(0)
        for parameter, momentum, gradient in zip((weight, a, b), momenta, gradients, strict=True):
            momentum.mul_(0.5).add_(gradient)
            parameter.add_(momentum, alpha=0.01)

    return run


def by_autograd(x: Tensor) -> Callable[[], None]:
    """Two free energies under autograd, as most libraries do."""
    weight = torch.nn.Parameter(0.01 * torch.randn(VISIBLE, HIDDEN))
    a = torch.nn.Parameter(torch.zeros(VISIBLE))
    b = torch.nn.Parameter(torch.zeros(HIDDEN))
    optimizer = torch.optim.SGD([weight, a, b], lr=0.01, momentum=0.5, fused=True)

    def free_energy(v: Tensor) -> Tensor:
        return -(v @ a) - softplus(v @ weight + b).sum(-1)

    def run() -> None:
        with torch.no_grad():
            h = torch.bernoulli(torch.sigmoid(x @ weight + b))
            v = torch.bernoulli(torch.sigmoid(h @ weight.T + a))
        optimizer.zero_grad()
        (free_energy(x).mean() - free_energy(v).mean()).backward()
        optimizer.step()

    return run


def measure(rows: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds an update of each row in each repeat, after a tenth of the repeats to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for repeat in range(-(repeats // 10), repeats):
        for name, run in rows.items():
            start = time.perf_counter()
            for _ in range(UPDATES):
                run()
            if repeat >= 0:
                seconds[name].append((time.perf_counter() - start) / UPDATES)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    x = (torch.rand(BATCH, VISIBLE) < 0.2).float()
    floor = "five matrix products"
    rows = {
        floor: matrix_products(x),
        "ContrastiveDivergence()": ours(x),
        "  centred=False": ours(x, centred=False),
        "  persistent=True": ours(x, persistent=True),
        "  in SVI": ours_under_svi(x),
        "by hand": by_hand(x),
        "autograd of free energies": by_autograd(x),
    }
    with pyro.get_param_store().scope():
        seconds = measure(rows, arguments.repeats)
    print(f"RBM {VISIBLE}-{HIDDEN}, batch {BATCH}, float32, {arguments.threads} threads")
    print(f"{'an update':28}{'median ms':>10}{'least ms':>10}{'ratio':>8}{'of least':>10}")
    ratios = {}
    for name, times in seconds.items():
        pairs = zip(times, seconds[floor], strict=True)
        ratios[name] = statistics.median(t / f for t, f in pairs)
        print(
            f"{name:28}{1e3 * statistics.median(times):10.2f}{1e3 * min(times):10.2f}"
            f"{ratios[name]:8.2f}{min(times) / min(seconds[floor]):10.2f}"
        )
    ratio = ratios["ContrastiveDivergence()"]
    print(f"bar {BAR}: {'holds' if ratio <= BAR else 'MISSED'} at {ratio:.2f}")


if __name__ == "__main__":
    main()
