"""Annealed importance sampling of an RBM against the matrix products that it cannot avoid.

    python benchmarks/annealing.py [--threads 2] [--repeats 60]

100 chains of an RBM 784-500, float32: each temperature needs v W and h W^T. Both rows take turns of
20 temperatures in one process, and the ratio is taken within each turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from ppgen.inference.annealed_importance_sampling import forward_pass, reverse_pass
from ppgen.models.rbm import RBM
from ppgen.progress import Progress, quiet

VISIBLE, HIDDEN, CHAINS = 784, 500, 100
TEMPERATURES = 20  # in a row, each turn
BAR = 1.4


def timed(run: Callable[[], object]) -> float:
    """Seconds a temperature."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / TEMPERATURES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rbm = RBM(VISIBLE, HIDDEN, weight_scale=0.05).requires_grad_(False)
    base, weight = torch.zeros(VISIBLE), rbm.weight.detach().clone()
    visible, hidden = torch.rand(CHAINS, VISIBLE).round(), torch.rand(CHAINS, HIDDEN).round()
    hidden_out, visible_out = torch.empty(CHAINS, HIDDEN), torch.empty(CHAINS, VISIBLE)
    betas = [k / 10_000 for k in range(5000, 5001 + TEMPERATURES)]  # of a schedule of 10,000

    def products() -> None:
        for _ in range(TEMPERATURES):
            torch.mm(visible, weight, out=hidden_out)
            torch.mm(hidden, weight.T, out=visible_out)

    floor: list[float] = []
    seconds: dict[str, list[float]] = {"forward": [], "reverse": []}
    with torch.no_grad(), quiet(), Progress("annealing") as progress:
        for repeat in range(-(arguments.repeats // 10), arguments.repeats):
            turn = {
                "products": timed(products),
                "forward": timed(lambda: forward_pass(rbm, base, betas, CHAINS, progress)),
                "reverse": timed(lambda: reverse_pass(rbm, base, betas, visible, progress)),
            }
            if repeat >= 0:
                floor.append(turn["products"])
                for name, times in seconds.items():
                    times.append(turn[name])
    print(f"RBM {VISIBLE}-{HIDDEN}, {CHAINS} chains, float32, {arguments.threads} threads")
    print(f"two matrix products: median {1e3 * statistics.median(floor):.2f} ms")
    for name, times in seconds.items():
        ratio = statistics.median(t / f for t, f in zip(times, floor, strict=True))
        print(
            f"{name} pass, a temperature: median {1e3 * statistics.median(times):.2f} ms, "
            f"{ratio:.2f} times; at most {BAR}: {'holds' if ratio <= BAR else 'MISSED'}"
        )


if __name__ == "__main__":
    main()
