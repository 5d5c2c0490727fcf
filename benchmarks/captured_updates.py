"""A PCD-1 update of an RBM on a GPU, launched piece by piece and as one CUDA graph.

    python benchmarks/captured_updates.py [--device cuda] [--epochs 20]

RBM 784-500, 100 chains, batch 100, float32, all of it through ``ppgen.inference.train``: plain, and
with ``compile=True``. For each: milliseconds an update (median over epochs of 500), launches an
update by the profiler, and the share of the time for which the device was busy. An update is not
bound by its launches where that share is near 1. The five matrix products of an update stand
beside, as one graph too. ``--device cpu`` tries the script: there are no graphs, and both rows are
alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from contrastive_divergence import BATCH, HIDDEN, VISIBLE, matrix_products
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ppgen.inference.contrastive_divergence import ContrastiveDivergence
from ppgen.inference.train import train
from ppgen.inference.training.captured import captured
from ppgen.models.rbm import RBM
from ppgen.progress import quiet

UPDATES = 500  # an epoch
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")


class Watch:
    """Callback of `train`: seconds of each epoch; the last one is profiled and not timed."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.seconds, self.since = epochs, list[float](), time.perf_counter()
        self.profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def __call__(self, story: object, row: dict[str, float]) -> None:
        if row["epoch"] < self.epochs:
            self.seconds.append(time.perf_counter() - self.since)
        if row["epoch"] == self.epochs - 1:
            self.profiler.start()
        if row["epoch"] == self.epochs:
            self.profiler.stop()
        self.since = time.perf_counter()

    def summary(self) -> tuple[float, float, float]:
        """Seconds, launches and seconds of the device an update."""
        events = self.profiler.key_averages()
        launches = sum(e.count for e in events if e.key.startswith(_LAUNCHES))
        busy = sum(
            e.self_device_time_total
            for e in events
            if e.device_type.name == "CUDA" and not e.is_user_annotation
        )
        second_half = self.seconds[len(self.seconds) // 2 :]
        return statistics.median(second_half) / UPDATES, launches / UPDATES, busy / 1e6 / UPDATES


def updates(x: Tensor, device: str, epochs: int, *, compile: bool) -> tuple[float, float, float]:
    torch.manual_seed(0)
    watch = Watch(epochs)
    train(
        RBM.from_data(x[:BATCH], HIDDEN),
        x,
        loss=ContrastiveDivergence(persistent=True),
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=0.01,
        optimizer=partial(torch.optim.SGD, momentum=0.5, fused=True),
        device=device,
        compile=compile,
        callbacks=[watch],
    )
    return watch.summary()


def products(x: Tensor, device: torch.device) -> float:
    """Seconds of the five matrix products, one graph on a GPU."""
    with torch.device(device):
        run: Callable[[], None] = matrix_products(x[:BATCH].to(device))
    run()
    if device.type == "cuda":
        run = captured(run, device)
    seconds = []
    for _ in range(10):
        since = time.perf_counter()
        for _ in range(UPDATES):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - since)
    return statistics.median(seconds) / UPDATES


def main() -> None:
    parser = argparse.ArgumentParser(description="A PCD-1 update on a GPU, plain and captured.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    torch.manual_seed(0)
    x = (torch.rand(UPDATES * BATCH, VISIBLE) < 0.2).float()
    print(f"PCD-1, RBM {VISIBLE}-{HIDDEN}, batch and chains {BATCH}, float32, {name}")
    print(f"{'':24}{'ms':>9}{'updates/s':>12}{'launches':>10}{'device busy':>13}")
    with quiet():
        for compile in (False, True):
            row = "train(compile=True)" if compile else "train"
            wall, launches, busy = updates(x, arguments.device, arguments.epochs, compile=compile)
            share = f"{busy / wall:13.0%}" if busy else f"{'-':>13}"
            print(f"{row:24}{1e3 * wall:9.3f}{1 / wall:12.0f}{launches:10.1f}{share}")
    wall = products(x, device)
    print(f"{'five matrix products':24}{1e3 * wall:9.3f}{1 / wall:12.0f}")


if __name__ == "__main__":
    main()
