"""Simulation-based calibration of HMC and NUTS on five stories, 500 data sets each.

Ranks of true parameters must be uniform: each quantity's distribution function has to stay inside
its band, the 99.9 % one for all quantities of a story together. The data sets are fitted in
blocks, each with a seed of its own, which are kept in a folder: an interrupted run goes on there.

    python benchmarks/calibration.py [folder] [simulations]
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ppgen
from ppgen.inference import HMC, NUTS, Calibration
from ppgen.models import GammaPoisson, NormalGamma, eight_schools, logistic_regression
from ppgen.models.eight_schools import data as schools
from ppgen.models.linear_regression import linear_regression
from ppgen.progress import quiet

BLOCK = 50  # data sets
LEVEL = 0.001  # of a story
X = torch.linspace(-1.0, 1.0, 15, dtype=torch.float64)[:, None]

# short runs: calibration is of the draws, whose number of independent ones is measured
ENGINES = {
    "HMC": HMC(chains=16, draws=60, warmup=100),
    "NUTS": NUTS(chains=32, draws=30, warmup=100, target_accept=0.8, max_draws=30),
}
STORIES: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "normal, unknown mean and precision": (
        NormalGamma(0.0, 0.5, 3.0, 2.0).model, {"x": torch.zeros(6, dtype=torch.float64)},
    ),
    "Poisson rate": (GammaPoisson(2.0, 1.0).model, {"x": torch.zeros(5, dtype=torch.float64)}),
    "logistic regression": (logistic_regression, {"x": X, "y": (X[:, 0] > 0).double()}),
    "linear regression": (linear_regression, {"x": X, "y": X[:, 0], "scale": 2.0}),
    "eight schools": (eight_schools, schools()),
}  # fmt: skip


def blocks(folder: Path, story: str, engine: str, simulations: int) -> Calibration:
    """All blocks of one story and engine, fitted where they are not there yet, as one."""
    model, data = STORIES[story]
    found: list[Calibration] = []
    for seed in range(simulations // BLOCK):
        path = folder / f"{story.replace(',', '').replace(' ', '-')}-{engine}-{seed}.json"
        if not path.exists():
            with quiet():
                block = ppgen.calibrate(
                    model, ENGINES[engine], simulations=BLOCK, seed=seed, level=LEVEL, **data
                )
            path.write_text(json.dumps(block.to_json()))
        found.append(_read(json.loads(path.read_text())))
    return dataclasses.replace(
        found[0],
        pit={name: np.concatenate([c.pit[name] for c in found]) for name in found[0].pit},
        independent=np.concatenate([c.independent for c in found]),
        seconds=sum(c.seconds for c in found),
        unconverged=sum(c.unconverged for c in found),
        failures=tuple(message for c in found for message in c.failures),
    )


def _read(kept: dict[str, Any]) -> Calibration:
    plain = ("story", "engine", "level", "seconds", "kind", "unconverged", "around")
    return Calibration(
        **{name: kept[name] for name in plain},
        pit={name: np.array(row["pit"]) for name, row in kept["quantities"].items()},
        independent=np.array(kept["independent"]),
        failures=tuple(kept["failures"]),
    )


def row(story: str, engine: str, found: Calibration) -> str:
    """One line of the table."""
    worst = min(found.p, key=lambda name: found.p[name])
    ranked = f"{found.independent.min()}-{found.independent.max()}"
    cells = (
        engine, story, found.simulations, len(found.p), ranked, worst, f"{found.p[worst]:.2g}",
        f"{LEVEL / len(found.p):.1g}", "inside" if found.passed else "OUTSIDE",
        f"{found.seconds:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/calibration")
    simulations = int(sys.argv[2]) if len(sys.argv) > 2 else 500
    folder.mkdir(parents=True, exist_ok=True)
    print("| engine | story | data sets | quantities | draws | worst | p | limit | band | s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for engine in ENGINES:
        for story in STORIES:
            print(row(story, engine, blocks(folder, story, engine, simulations)), flush=True)


if __name__ == "__main__":
    main()
