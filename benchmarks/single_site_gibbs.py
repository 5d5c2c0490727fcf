"""Why the restriction pays: a Gibbs sweep and log Z, with and without sides.

    python benchmarks/single_site_gibbs.py [--chains 100] [--repeats 5]

An RBM draws a whole side at once; a fully visible machine with as many units draws one unit after
the other. An RBM sums ``2**H`` states for log Z, H its smaller side; the other all ``2**D``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from ppgen.inference import single_site_gibbs
from ppgen.models import RBM, FullyVisibleBoltzmannMachine

SIZES = ((10, 10), (64, 64), (784, 500))
SUMMED = (10, 15, 20)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The least time of a call, after one to warm up; thread time, which a busy machine spares."""
    run()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        print(f"a sweep of {arguments.chains} chains, ms: RBM by sides, as many units one by one")
        for visible, hidden in SIZES:
            rbm, full = RBM(visible, hidden), FullyVisibleBoltzmannMachine(visible + hidden)
            x = torch.zeros(arguments.chains, visible + hidden)
            block = seconds(lambda: rbm.sweep(x[:, :visible]), arguments.repeats)  # noqa: B023
            one = seconds(
                lambda: single_site_gibbs.step(x, machine=full),  # noqa: B023
                arguments.repeats,
            )
            print(
                f"{visible:4} + {hidden:3} units {1e3 * block:9.2f} {1e3 * one:9.2f}"
                f"   {one / block:6.0f} times"
            )
        print("log Z, ms: RBM with that many units a side, fully visible with that many in all")
        for units in SUMMED:
            rbm, full = RBM(units, units), FullyVisibleBoltzmannMachine(units)
            sides = seconds(rbm.log_partition, arguments.repeats)
            whole = seconds(full.log_partition, arguments.repeats)
            print(f"{units:4} + {units:3} against {units:3} {1e3 * sides:9.2f} {1e3 * whole:9.2f}")


if __name__ == "__main__":
    main()
