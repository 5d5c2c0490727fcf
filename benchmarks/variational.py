"""Mean-field VI side by side: core seconds until the ELBO is within 0.05 nats of the best.

ppgen's `VI()` runs until it stops by itself; its whole call counts. Pyro's SVI and NumPyro's
(AutoNormal, Adam, one draw a step) run for `--cap` core seconds at each of several learning rates;
the first hundredth step at which the guide was good enough counts, of the rate that was fastest.
The family is the same for all: independent normals on the unconstrained scale. Every ELBO is
estimated anew from 10,000 draws, the same noise for all, under ppgen's log density; the best is
that of any run of anyone. Recording and compilation count, imports and these estimates do not.

    python benchmarks/variational.py --posteriordb DIR --peers PEERS/bin/python --out runs/vi
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from samplers import NUMPYRO, OURS, Bench, Row, arguments, choices, parser

from ppgen.models import logistic_regression
from ppgen.models.posteriordb import POSTERIORS
from ppgen.program import Program

ENGINES = {"VI": OURS, "Pyro's SVI": OURS, "NumPyro's SVI": NUMPYRO}
RATES = (0.1, 0.03, 0.01)
NEAR = 0.05  # nats
DRAWS = 10_000
PART = 250  # of them at a time: all at once overflow the cache


class Family:
    """Independent normals on the unconstrained scale of one posterior."""

    def __init__(self, name: str, clone: Path) -> None:
        story = POSTERIORS[name].story if name in POSTERIORS else logistic_regression
        self.program = Program(story, **arguments(name, clone))
        generator = torch.Generator().manual_seed(10_000)
        half = torch.randn(
            DRAWS // 2, self.program.dim, generator=generator, dtype=self.program.dtype
        )
        self.noise = torch.cat([half, -half])

    def elbo(self, loc: torch.Tensor, scale: torch.Tensor) -> float:
        """Nats, of normals ``(D,)``."""
        z = loc + scale * self.noise
        entropy = scale.log().sum() + 0.5 * len(loc) * (1 + np.log(2 * np.pi))
        values = torch.cat([self.program.log_density(part) for part in z.split(PART)])
        value = (values.mean() + entropy).item()
        return value if np.isfinite(value) else -np.inf

    def flat(self, path: dict[str, np.ndarray], what: str, step: int) -> torch.Tensor:
        if what in path:  # ours has them flat
            return torch.from_numpy(path[what][step]).to(self.program.dtype)
        parts = [path[f"{what}/{site}"][step].reshape(-1) for site in self.program.sites]
        return torch.from_numpy(np.concatenate(parts)).to(self.program.dtype)

    def along(self, path: dict[str, np.ndarray]) -> Row:
        """Times and ELBOs at some 60 looks of a path, denser where it begins."""
        count = len(path["times"])
        steps = sorted({int(s) for s in np.geomspace(1, count, 60)})
        elbos = [
            self.elbo(self.flat(path, "loc", s - 1), self.flat(path, "scale", s - 1)) for s in steps
        ]
        return {"times": [float(path["times"][s - 1]) for s in steps], "elbos": elbos}


def run(bench: Bench) -> None:
    opts = bench.options
    for seed in range(opts.seeds):
        for name in opts.posteriors:
            family = Family(name, opts.posteriordb)
            for engine in opts.engines:
                for rate in RATES if engine != "VI" else (None,):
                    key = {"posterior": name, "engine": engine, "seed": seed, "rate": rate}
                    if any(key.items() <= row.items() for row in bench.rows):
                        continue
                    request = bench.request(name, engine, DRAWS, seed) | {"rate": rate}
                    row = key | bench.ask(ENGINES[engine], request)
                    if "error" not in row:
                        path = dict(np.load(request["out"]))
                        row |= family.along(path)
                        if engine == "VI":
                            row["settled"] = bool(path["settled"][0])
                    row.pop("versions", None)
                    bench.rows.append(row)
                    bench.save()
                    print(key | {"best": max(row.get("elbos", [0]))}, file=sys.stderr, flush=True)


def until(row: Row, bar: float) -> float:
    """Core seconds until the ELBO is there, infinite where it never is."""
    pairs = zip(row.get("times", []), row.get("elbos", []), strict=True)
    return next((time for time, elbo in pairs if elbo >= bar), float("inf"))


def table(rows: list[Row]) -> str:
    names = list(dict.fromkeys(row["posterior"] for row in rows))
    lines = [
        f"| core seconds | best ELBO | {' | '.join(ENGINES)} | Pyro / VI | NumPyro / VI |",
        "|---" * (len(ENGINES) + 4) + "|",
    ]
    for name in names:
        mine = [row for row in rows if row["posterior"] == name]
        best = max(max(row.get("elbos", [-np.inf])) for row in mine)
        seconds: dict[str, float] = {}
        for engine in ENGINES:
            by_rate: dict[Any, list[float]] = {}
            for row in mine:
                if row["engine"] == engine:
                    by_rate.setdefault(row["rate"], []).append(until(row, best - NEAR))
            if by_rate:
                seconds[engine] = min(statistics.median(times) for times in by_rate.values())
        cells = [_cell(seconds.get(engine), mine, engine, best) for engine in ENGINES]
        ours = seconds.get("VI", float("inf"))
        ratios = [_ratio(seconds.get(e), ours, _last(mine, e)) for e in list(ENGINES)[1:]]
        short = name.partition("-")[2]
        lines.append(f"| {short} | {best:.2f} | {' | '.join(cells)} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def _cell(seconds: float | None, rows: list[Row], engine: str, best: float) -> str:
    if seconds is None:
        return "not run"
    if np.isfinite(seconds):
        return f"{seconds:.1f}"
    mine = [row for row in rows if row["engine"] == engine]
    short = best - max(max(row.get("elbos", [-np.inf])) for row in mine)
    return f"> {_last(rows, engine):.0f} ({short:.2g} nats short)"


def _last(rows: list[Row], engine: str) -> float:
    """Core seconds of the last look at an engine, on the way to nowhere perhaps."""
    return max((row.get("times", [0.0])[-1] for row in rows if row["engine"] == engine), default=0)


def _ratio(peer: float | None, ours: float, last: float) -> str:
    if peer is None or not np.isfinite(ours):
        return "–"
    return f"{peer / ours:.2g}" if np.isfinite(peer) else f"> {last / ours:.2g}"


def main() -> None:
    options = choices(parser("Mean-field VI side by side.", ENGINES, seeds=3, cap=60.0))
    bench = Bench(options)
    if not options.table:
        run(bench)
    print(table(bench.rows))


if __name__ == "__main__":
    main()
