"""How long a trajectory should be: gradients that an effective draw costs, by criterion.

`HMC`'s warm-up with the ChEES criterion, with SNAPER's (Sountsov and Hoffman 2021), and with none,
that is a quarter period of the widest direction; and MEADS (Hoffman and Sountsov 2022), generalised
HMC of one leapfrog a transition without a warm-up. All begin at the same starts, on the same
recorded density. An effective draw is the smallest ESS of the unconstrained coordinates and of
their squares; gradients are those of the draws kept, and in brackets of the whole run. MEADS has a
diagonal metric; `--metric diag` gives the others no other either.

    python benchmarks/trajectories.py --posteriordb DIR --seeds 2
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import torch
from samplers import arguments, choices, parser
from torch import Tensor

from ppgen import diagnostics
from ppgen.inference import chees
from ppgen.inference.hmc import Info, Metric
from ppgen.inference.hmc_engine import HMC
from ppgen.inference.hmc_warmup import MetricName, starts
from ppgen.inference.target import Target
from ppgen.models import logistic_regression
from ppgen.models.posteriordb import POSTERIORS
from ppgen.program import Program
from ppgen.progress import quiet

CHAINS, DRAWS = 64, 200
FOLDS = 4  # of MEADS
SETTLE, STEPS, THIN = 1000, 4000, 5  # of MEADS: iterations discarded, kept, and to a draw


@dataclass
class Snaper:
    """The criterion ``D^2 / T`` along the widest direction of the whitened ensemble.

    Source: Focusing on difficult directions for learning HMC trajectory lengths (2021),
    arXiv:2110.11576.
    """

    duration: float = 1.0  # T of the last trajectory
    direction: Tensor | None = None

    def leapfrogs(
        self, iteration: int, trajectory: float, step_size: float, *, jitter: float
    ) -> int:
        count = _LEAPFROGS(iteration, trajectory, step_size, jitter=jitter)
        self.duration = count * step_size
        return count

    def gradient(self, z: Tensor, info: Info, metric: Metric, share: float) -> float:
        usable = torch.isfinite(info.proposal).all(-1) & torch.isfinite(info.momentum).all(-1)
        usable = usable & (info.acceptance > 1e-4)
        if not bool(usable.any()):
            return 0.0
        centre = z.mean(0)
        start = metric.whiten(z - centre)
        axis = self.direction if self.direction is not None else start.square().mean(0).sqrt()
        axis = 0.7 * axis / axis.norm() + 0.3 * _unit((start @ axis) @ start)
        self.direction = axis = _unit(axis)
        before = start[usable] @ axis
        after = metric.whiten(info.proposal[usable] - centre) @ axis
        change = after.square() - before.square()
        speed = info.momentum[usable] @ axis
        slope = share * (4 * change * after * speed - change.square() / self.duration)
        weight = info.acceptance[usable]
        return float((weight * slope).sum() / (weight.sum() * self.duration + 1e-20))


_LEAPFROGS = chees.leapfrogs


def _unit(x: Tensor) -> Tensor:
    return x / x.norm()


def whole(criterion: str) -> Callable[[Program, MetricName], tuple[Tensor, int, int]]:
    """Draws of HMC with another criterion, ``(C, N, D)``, gradients of them and of the run."""

    def run(program: Program, metric: MetricName) -> tuple[Tensor, int, int]:
        snaper = Snaper()
        changes = {
            "ChEES": {"leapfrogs": _LEAPFROGS},
            "SNAPER": {"criterion_gradient": snaper.gradient, "leapfrogs": snaper.leapfrogs},
            "none": {"criterion_gradient": lambda *_: 0.0},
        }
        with patch.multiple(chees, **changes[criterion]):
            posterior = HMC(CHAINS, DRAWS, metric=metric, max_draws=DRAWS).run(program)
        z = posterior.unconstrained
        assert z is not None
        return z, int(posterior.stats["n_steps"].sum()), posterior.cost.gradients

    return run


def meads(program: Program, _: MetricName) -> tuple[Tensor, int, int]:
    """Adaptive generalised HMC: four folds, each tuned by its neighbour.

    Source: Tuning-free generalized Hamiltonian Monte Carlo (2022), AISTATS.
    """
    target = Target(program)
    state, _, _ = starts(program.initial(2 * CHAINS), target, "diag")
    z, value, gradient = state
    momentum, slice_ = torch.randn_like(z), torch.rand(len(z)).to(z) * 2 - 1
    begun, kept = 0, []
    for t in range(1, SETTLE + STEPS + 1):
        if t == SETTLE + 1:
            begun = target.gradients
        if (t - 1) % FOLDS == 0:
            folds = torch.randperm(len(z)).chunk(FOLDS)
        for k in range(FOLDS):
            if k == t % FOLDS:
                continue
            own, other = folds[k], folds[k - 1]
            scale = z[other].std(0)
            epsilon = min(1.0, 0.5 / _largest(scale * gradient[other]) ** 0.5)
            white = (z[own] - z[own].mean(0)) / z[own].std(0)
            damping = max(1.0 / t, epsilon / _largest(white) ** 0.5)
            alpha = 1 - float(torch.exp(torch.tensor(-2 * damping)))
            fresh = torch.randn_like(momentum[own])
            p = (1 - alpha) ** 0.5 * momentum[own] + alpha**0.5 * fresh
            u = torch.remainder(slice_[own] + 1 + alpha / 2, 2) - 1
            half = p + 0.5 * epsilon * scale * gradient[own]
            trial = z[own] + epsilon * scale * half
            trial_value, trial_gradient = target(trial)
            end = half + 0.5 * epsilon * scale * trial_gradient
            error = value[own] - trial_value + 0.5 * (end.square() - p.square()).sum(-1)
            taken = torch.log(u.abs()) < -error.nan_to_num(nan=torch.inf)
            z[own] = torch.where(taken[:, None], trial, z[own])
            value[own] = torch.where(taken, trial_value, value[own])
            gradient[own] = torch.where(taken[:, None], trial_gradient, gradient[own])
            momentum[own] = torch.where(taken[:, None], end, -p)
            slice_[own] = torch.where(taken, u * error.exp(), u)
        if t > SETTLE and t % THIN == 0:
            kept.append(z.clone())
    return torch.stack(kept, 1), target.gradients - begun, target.gradients


def _largest(x: Tensor) -> float:
    """An estimate of the largest eigenvalue of the second moments of ``(N, D)``."""
    square = float((x @ x.mT).square().sum()) / len(x) ** 2
    return square / (float(x.square().sum()) / len(x))


ENGINES = {
    "ChEES": whole("ChEES"),
    "SNAPER": whole("SNAPER"),
    "none": whole("none"),
    "MEADS": meads,
}


def measure(name: str, engine: str, seed: int, options: Namespace) -> tuple[float, float, float]:
    """Gradients an effective draw, of draws and of the run, and the largest R-hat."""
    story = POSTERIORS[name].story if name in POSTERIORS else logistic_regression
    program = Program(story, **arguments(name, options.posteriordb))
    torch.manual_seed(seed)
    with quiet():
        z, kept, total = ENGINES[engine](program, options.metric)
    squares = (z - z.mean((0, 1))).square()
    ess = min(float(diagnostics.ess_mean(x.numpy()).min()) for x in (z, squares))
    return kept / ess, total / ess, float(diagnostics.rhat(z.numpy()).max())


def main() -> None:
    made = parser(__doc__ or "", ENGINES, seeds=2, cap=0.0)
    made.add_argument("--metric", choices=["auto", "diag"], default="auto")
    options = choices(made)
    print(f"| gradients an effective draw | {' | '.join(options.engines)} |")
    print("|---" * (len(options.engines) + 1) + "|")
    for name in options.posteriors:
        cells = []
        for engine in options.engines:
            runs = [measure(name, engine, seed, options) for seed in range(options.seeds)]
            kept, total, rhat = (statistics.median(x) for x in zip(*runs, strict=True))
            cells.append(f"{kept:.3g} ({total:.3g}){' R' if rhat > 1.01 else ''}")
        print(f"| {name.partition('-')[2]} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
