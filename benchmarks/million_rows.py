"""Logistic regression on a million rows of 100 predictors: VI by minibatches, HMC on a tenth.

Every part has a process of its own, whose peak memory is reported; the rows, float32, are 0.4 GB of
it. Answers are judged by the best normal, independent for VI and with any covariance for HMC, which
Newton's method over all rows finds without a draw. Time is that of the core.

`vi` is the whole call of `VI(batch_size=1000)`. `bare` is a plain PyTorch loop with the same draws
to a step, batches and double precision, and torch's Adam at a rate that falls to zero, for as long.
`steps` compares the steps of the two alone, in turns: rows per second. `hmc` is `HMC` on the first
tenth of the rows, `gradients` a gradient of all its chains beside the same by hand, in turns: two
matrix products and a sigmoid.

    python benchmarks/million_rows.py
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import ppgen
from ppgen.inference import HMC, VI
from ppgen.inference.guides import mean_field_guide
from ppgen.inference.minibatches import Minibatches
from ppgen.inference.stochastic_ascent import Adam
from ppgen.inference.vi_fit import Fit
from ppgen.models import logistic_regression
from ppgen.program import Program
from ppgen.progress import quiet

PREDICTORS = 100
BATCH, PARTICLES = 1000, 8
PRIOR = 2.5  # its sd, the story's default
CHUNK = 10_000
TURNS, BLOCK = 15, 20  # of the comparison of steps
Result = dict[str, Any]


def rows(count: int) -> tuple[Tensor, Tensor]:
    """Predictors with correlation .5 to their neighbours; a third of the outcomes are 1."""
    generator = torch.Generator().manual_seed(100)
    slope = 0.2 * torch.randn(PREDICTORS, generator=generator)
    x, y = torch.empty(count, PREDICTORS), torch.empty(count)
    for start in range(0, count, CHUNK):
        part = x[start : start + CHUNK]
        noise = torch.randn(len(part), PREDICTORS + 1, generator=generator)
        part.copy_((noise[:, 1:] + 0.577 * noise[:, :-1]) / 1.155)
        uniform = torch.rand(len(part), generator=generator)
        y[start : start + CHUNK] = (uniform < torch.sigmoid(part @ slope - 0.9)).float()
    return x, y


def optimum(x: Tensor, y: Tensor, mean_field: bool) -> tuple[Tensor, Tensor]:
    """Mean ``(K + 1,)`` and covariance of the best normal, the intercept first.

    Its mean is where the gradient vanishes on average over the normal. Averages of the sigmoid over
    the logits, whose variance v is small, are by their second derivative.
    """
    mean = torch.zeros(PREDICTORS + 1, dtype=torch.float64)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for iteration in range(9):
        gradient = -mean / PRIOR**2
        precision = torch.eye(len(mean), dtype=mean.dtype) / PRIOR**2
        for some, outcome in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            wide = torch.cat([torch.ones(len(some), 1), some], 1).double()
            v = (wide @ covariance * wide).sum(1)
            p = torch.sigmoid(wide @ mean)
            slope = p * (1 - p)
            second, third = slope * (1 - 2 * p), slope * (1 - 6 * slope)
            gradient = gradient + wide.mT @ (outcome - p - 0.5 * v * second)
            precision = precision + (wide * (slope + 0.5 * v * third)[:, None]).mT @ wide
        mean = mean + torch.linalg.solve(precision, gradient)
        if iteration >= 5:  # near the mode
            independent = precision.diagonal().reciprocal().diag()
            covariance = independent if mean_field else torch.linalg.inv(precision)
    return mean, covariance


def judged(mean: Tensor, sd: Tensor, x: Tensor, y: Tensor, mean_field: bool) -> Result:
    """How far means and sds are from those of the best normal, in its sds."""
    best, covariance = optimum(x, y, mean_field)
    target = covariance.diagonal().sqrt()
    shift, ratio = (mean - best) / target, sd / target
    return {
        "shift": shift.abs().max().item(),
        "shift_rms": shift.square().mean().sqrt().item(),
        "ratio": [ratio.min().item(), ratio.max().item()],
    }


def flat(posterior: ppgen.Posterior) -> Tensor:
    return torch.cat([posterior["intercept"][..., None], posterior["slope"]], -1).flatten(0, 1)


def fitted(engine: Any, count: int, mean_field: bool) -> Result:
    x, y = rows(count)
    before, begin = peak(), time.process_time()
    with quiet():
        posterior = ppgen.fit(logistic_regression, x, y, using=engine)
    seconds, memory = time.process_time() - begin, peak()
    draws = flat(posterior)
    return {
        "seconds": seconds,
        "peak_gb": memory,
        "peak_gb_before": before,
        "said": posterior.headline(),
        "steps": len(posterior.history.get("elbo", ())),
        "gradients": posterior.cost.gradients,
        "diagnosis": posterior.diagnosis(),
        **judged(draws.mean(0), draws.std(0), x, y, mean_field),
    }


class Bare:
    """Mean-field VI as one writes it by hand."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.order = x, y, torch.empty(0, dtype=torch.long)
        options: Any = {"dtype": torch.float64, "requires_grad": True}
        self.loc = torch.zeros(PREDICTORS + 1, **options)
        self.log_scale = torch.full((PREDICTORS + 1,), -5.0, **options)
        self.adam = torch.optim.Adam([self.loc, self.log_scale])

    def step(self, rate: float) -> None:
        self.adam.param_groups[0]["lr"] = rate
        if len(self.order) < BATCH:
            self.order = torch.randperm(len(self.x))
        chosen, self.order = self.order[:BATCH], self.order[BATCH:]
        x, y = self.x[chosen].double(), self.y[chosen].double()
        half = torch.randn(PARTICLES // 2, len(self.loc), dtype=torch.float64)
        z = self.loc + self.log_scale.exp() * torch.cat([half, -half])
        logits = z[:, :1] + z[:, 1:] @ x.mT
        loss = binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="sum")
        prior = 0.5 * z.square().sum() / PRIOR**2
        loss = (loss * len(self.x) / BATCH + prior) / PARTICLES - self.log_scale.sum()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()


def bare(count: int, seconds: float) -> Result:
    torch.manual_seed(0)
    loop = Bare(*rows(count))
    begin, steps = time.process_time(), 0
    while (left := 1 - (time.process_time() - begin) / seconds) > 0:
        loop.step(0.01 * left)
        steps += 1
    memory = peak()
    scale = loop.log_scale.detach().exp()
    found = judged(loop.loc.detach(), scale, loop.x, loop.y, mean_field=True)
    return {"seconds": seconds, "peak_gb": memory, "steps": steps, **found}


def steps(count: int) -> Result:
    """Rows per second of a step of each, in turns."""
    torch.manual_seed(0)
    x, y = rows(count)
    by_hand = Bare(x, y)
    ours = Minibatches(logistic_regression, (x, y), {}, BATCH, PARTICLES)
    guide = mean_field_guide().build(PREDICTORS + 1).double()
    fit = Fit(guide, ours.start(dense=False), ours, True)
    fit.record()
    adam = Adam(fit.parameters)

    def step() -> None:
        adam.step(fit.step(PARTICLES).gradients, 0.01)

    def timed(run: Callable[[], None]) -> float:
        begin = time.process_time()
        for _ in range(BLOCK):
            run()
        return BLOCK * BATCH / (time.process_time() - begin)

    def hand() -> None:
        by_hand.step(0.001)

    timed(step)
    timed(hand)
    pairs = [(timed(step), timed(hand)) for _ in range(TURNS)]
    return {
        "ours": statistics.median(a for a, _ in pairs),
        "bare": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def gradients(count: int, chains: int) -> Result:
    """Rows per second of a gradient of all chains, in turns."""
    x, y = (part.double() for part in rows(count))
    program = Program(logistic_regression, x, y)
    z = 0.1 * torch.randn(chains, PREDICTORS + 1, dtype=torch.float64)

    def by_hand(z: Tensor) -> Tensor:
        left = y - torch.sigmoid(torch.addmm(z[:, :1], z[:, 1:], x.mT))
        return torch.cat([left.sum(1, keepdim=True), left @ x], 1) - z / PRIOR**2

    torch.testing.assert_close(program.gradient(z), by_hand(z))

    def timed(run: Callable[[Tensor], Tensor]) -> float:
        begin = time.process_time()
        run(z)
        return count / (time.process_time() - begin)

    pairs = [(timed(program.gradient), timed(by_hand)) for _ in range(TURNS)]
    return {
        "ours": statistics.median(a for a, _ in pairs),
        "bare": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


PARTS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "vi": lambda o: fitted(VI(batch_size=BATCH), o.rows, True),
    "bare": lambda o: bare(o.rows, o.seconds),
    "steps": lambda o: steps(o.rows),
    "gradients": lambda o: gradients(o.rows // 10, o.chains),
    "hmc": lambda o: fitted(HMC(chains=o.chains, draws=o.draws), o.rows // 10, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--chains", type=int, default=8, help="of HMC")
    parser.add_argument("--draws", type=int, default=100, help="of each chain of HMC")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the bare loop, without vi")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=list(PARTS), action="append")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(PARTS[options.part[0]](options)))
        return
    given = {"rows": options.rows, "chains": options.chains, "draws": options.draws}
    given |= {"threads": options.threads, "seconds": options.seconds}
    for part in options.part or PARTS:
        flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, __file__, "--child", "--part", part, *flags]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(done.stdout.strip().splitlines()[-1])
        if part == "vi":
            given["seconds"] = result["seconds"]  # the bare loop has as much
        print(part, json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
