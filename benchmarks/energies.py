"""How near flows come to the four energies of Rezende and Mohamed: exact KL, in nats.

Every flow is fitted by reverse KL, from draws of the flow and the energy alone, in single
precision; the energies are plus the wall ``sum_i relu(|z_i| - 6)^2``. The normalising constants are
known, so the table is KL(flow || target) itself, not a bound up to a constant: its mean over
200,000 draws that training never saw, in double precision, for each seed, with the largest standard
error. All targets and seeds of a flow train at once, as one batch of tensors; base noise is
standard normal, spread evenly over each batch, a learned shift and scale come last, the energy is
tempered at first (else U1 loses one of its moons and the long waves their ends), and Adam's rate
falls to zero as a cosine. One recipe serves all four energies. The bounds tell the best seed
without the constant, as `fit_energy` does among several flows.

Run: python benchmarks/energies.py [--seeds 3] [--flows planar-32 ...] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ppgen import checkpoint
from ppgen.distributions import RezendeMohamed, even_normal
from ppgen.plots import canvas, label
from ppgen.transforms.coupling import Coupling
from ppgen.transforms.planar import Planar
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.scalar import Affine, Chain, ScalarMap
from ppgen.transforms.sylvester import Sylvester
from ppgen.transforms.vector import VectorTransform

ENERGIES = (1, 2, 3, 4)


def couplings(scalar_map: ScalarMap, layers: int, hidden: Sequence[int]) -> list[nn.Module]:
    """In turns; the last moves z2, of which the energies are bumps given z1."""
    return [Coupling(2, scalar_map, hidden, fixed=[(layers - 1 - i) % 2]) for i in range(layers)]


class Flow(NamedTuple):
    """Layers, and the recipe that suits them."""

    build: Callable[[], list[nn.Module]]
    rate: float  # Adam's first
    share: float  # the part of the energy that counts at the start
    warm: float  # the share of the steps after which all of it counts
    scale: tuple[float, float]  # of the first draws
    steps: int = 4000


TEMPERED_LONG: dict[str, Any] = {"share": 0.01, "warm": 0.6, "scale": (4.0, 1.0)}
TEMPERED_BRIEFLY: dict[str, Any] = {"share": 0.1, "warm": 1 / 3, "scale": (2.0, 2.0)}
FLOWS = {
    "planar-32": Flow(
        lambda: [VectorTransform(Planar(2)) for _ in range(32)], 0.03, **TEMPERED_LONG
    ),
    "Sylvester-16": Flow(
        lambda: [VectorTransform(Sylvester(2)) for _ in range(16)], 0.04, **TEMPERED_LONG
    ),
    "affine coupling-8": Flow(
        lambda: couplings(Affine(3.0), 8, (64, 64)), 0.005, **TEMPERED_BRIEFLY
    ),
    "spline coupling-4": Flow(
        lambda: couplings(Chain([RationalQuadratic(16, 5.0), Affine(3.0)]), 4, (64, 64)),
        0.005,
        share=0.01,
        warm=0.5,
        scale=(4.0, 1.0),
        steps=3000,
    ),
}


class Stack(nn.Module):
    """Layers, then a learned shift and scale, from noise to draws and their log density."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.layers = nn.ModuleList(flow.build())
        self.loc = nn.Parameter(torch.zeros(2))
        self.log_scale = nn.Parameter(torch.tensor(flow.scale).log())

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        log_q = -0.5 * noise.square().sum(-1) - math.log(2 * math.pi) - self.log_scale.sum()
        for layer in self.layers:
            noise, log_det = layer.forward_with_log_det(noise)  # type: ignore[operator]
            log_q = log_q - log_det
        return self.loc + self.log_scale.exp() * noise, log_q

    def log_prob(self, z: Tensor) -> Tensor:
        x = (z - self.loc) * (-self.log_scale).exp()
        log_q = -math.log(2 * math.pi) - self.log_scale.sum()
        for layer in reversed(self.layers):
            x, log_det = layer.inverse_with_log_det(x)  # type: ignore[operator]
            log_q = log_q + log_det
        return log_q - 0.5 * x.square().sum(-1)


def fit(flow: Flow, numbers: Sequence[int], seeds: int, batch: int) -> list[Stack]:
    """One flow for each energy and seed, all at once; the seeds of an energy side by side."""
    flows, targets = [], []
    for number in numbers:
        for seed in range(seeds):
            torch.manual_seed(10 * seed + number)
            flows.append(Stack(flow))
            targets.append(RezendeMohamed(number))
    parameters, buffers = torch.func.stack_module_state(flows)  # type: ignore[arg-type]
    skeleton = copy.deepcopy(flows[0])
    run = torch.vmap(
        lambda p, b, noise: torch.func.functional_call(skeleton, (p, b), (noise,)),
        in_dims=(0, 0, 0),
    )
    optimizer = torch.optim.Adam(parameters.values(), lr=flow.rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, flow.steps)
    even = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(batch)
    for step in range(flow.steps):
        z, log_q = run(parameters, buffers, even_normal(even, [len(flows)]))
        share = min(1.0, flow.share + step / (flow.warm * flow.steps))
        u = torch.stack([t.energy(drawn) for t, drawn in zip(targets, z, strict=True)])
        optimizer.zero_grad()
        (log_q + share * u).mean(1).sum().backward()
        for values in parameters.values():  # each flow by its own gradient norm
            if values.grad is not None:
                norm = values.grad.flatten(1).norm(dim=1).clamp(min=10.0)
                values.grad *= (10.0 / norm).reshape(-1, *[1] * (values.ndim - 1))
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        for i, fitted in enumerate(flows):
            for name, values in fitted.named_parameters():
                values.copy_(parameters[name][i])
    return [fitted.double() for fitted in flows]


@torch.no_grad()
def divergence(flow: Stack, number: int, draws: int = 200_000) -> tuple[float, float]:
    """KL(flow || target) and its standard error, nats."""
    z, log_q = flow(torch.randn(draws, 2, dtype=torch.float64))
    gaps = log_q - RezendeMohamed(number).log_prob(z)
    return float(gaps.mean()), float(gaps.std()) / draws**0.5


class Row(NamedTuple):
    """One kind of flow, fitted to the four energies."""

    flows: list[list[Stack]]  # by energy and seed
    kl: list[list[float]]  # likewise, nats
    error: float  # the largest standard error, nats
    steps: int
    seconds: float  # of CPU, for all

    def best(self, energy: int) -> int:
        """The seed whose divergence is the least."""
        return min(range(len(self.kl[energy])), key=self.kl[energy].__getitem__)


def row(name: str, seeds: int, batch: int, steps: int | None, out: Path) -> Row:
    """Fitted now, or read where an earlier run has left it."""
    folder = out / name.replace(" ", "-")
    if not checkpoint.exists(folder):
        start = time.process_time()
        recipe = FLOWS[name]._replace(steps=steps or FLOWS[name].steps)
        flows = fit(recipe, ENERGIES, seeds, batch)
        seconds = time.process_time() - start
        torch.manual_seed(12345)
        numbers = [k for k in ENERGIES for _ in range(seeds)]
        found = [divergence(flow, k) for flow, k in zip(flows, numbers, strict=True)]
        meta = {
            "seeds": seeds,
            "steps": recipe.steps,
            "kl": [kl for kl, _ in found],
            "error": max(error for _, error in found),
            "seconds": seconds,
        }
        checkpoint.save(folder, nn.ModuleList(flows).state_dict(), meta)
    tensors, meta = checkpoint.load(folder)
    seeds = meta["seeds"]
    flows = nn.ModuleList(Stack(FLOWS[name]).double() for _ in range(len(ENERGIES) * seeds))
    flows.load_state_dict(tensors)
    kl = _by_energy(meta["kl"], seeds)
    return Row(_by_energy(list(flows), seeds), kl, meta["error"], meta["steps"], meta["seconds"])


def _by_energy(values: list[Any], seeds: int) -> list[list[Any]]:
    return [values[i : i + seeds] for i in range(0, len(values), seeds)]


@torch.no_grad()
def picture(rows: dict[str, Row]) -> Figure:
    """The targets above the best flow of each kind, each density on the same grid."""
    side = torch.linspace(-8.0, 8.0, 161, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    names = ["target", *rows]
    figure, axes = canvas(
        1.75 * len(names),
        "Flows fitted to energies by reverse KL",
        "Densities; in each panel the divergence from the target above it, KL(flow || target)",
        rows=len(names),
        columns=len(ENERGIES),
        sharex=True,
        sharey=True,
    )
    panels = iter(axes)
    for name in names:
        for i, number in enumerate(ENERGIES):
            ax, target, text = next(panels), RezendeMohamed(number), f"U{number}"
            log_density = target.log_prob
            if name != "target":
                seed = rows[name].best(i)
                log_density = rows[name].flows[i][seed].log_prob
                text = f"{rows[name].kl[i][seed]:.3f} nats"
            peak = float(target.log_prob(grid).exp().max())
            ax.pcolormesh(side, side, log_density(grid).exp(), cmap="viridis", vmin=0, vmax=peak)
            ax.grid(visible=False)
            ax.set_aspect("equal")
            bottom, left = name == names[-1], i == 0
            label(ax, "z1" if bottom else "", f"{name}\nz2" if left else "", title=text)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, help="in place of each recipe's own number")
    parser.add_argument("--flows", nargs="+", choices=list(FLOWS), default=list(FLOWS))
    parser.add_argument(
        "--out", type=Path, default=Path("runs/energies"), help="rows that are there are kept"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    width = 7 * options.seeds + 2
    print(f"{'flow':18s}" + "".join(f"{f'U{k}':>{width}s}" for k in ENERGIES), flush=True)
    rows = {}
    for name in options.flows:
        rows[name] = row(name, options.seeds, options.batch, options.steps, options.out)
        columns = [" ".join(f"{kl:6.4f}" for kl in of_energy) for of_energy in rows[name].kl]
        cells = "".join(f"  {column:>{width - 2}s}" for column in columns)
        print(f"{name:18s}{cells}  +- {rows[name].error:.4f}, {rows[name].seconds:.0f} s of CPU")
        table = {
            name: {
                "kl": dict(zip([f"U{k}" for k in ENERGIES], found.kl, strict=True)),
                "largest_error": found.error,
                "steps": found.steps,
                "cpu_seconds": round(found.seconds),
            }
            for name, found in rows.items()
        }
        (options.out / "energies.json").write_text(json.dumps(table, indent=1) + "\n")
    picture(rows).savefig(options.out / "energies.png")


if __name__ == "__main__":
    main()
