"""Samplers side by side: min-ESS per second of the whole call, on posteriors whose answer is known.

ppgen's HMC and NUTS beside Pyro's NUTS, NumPyro (four chains in parallel; sixteen vectorised) and
nutpie, on the twelve posteriors of `ppgen.models.posteriordb` and a 1000 x 25 logistic regression.
Every run has a process of its own, one after the other, the engines interleaved over the seeds;
recording or compilation, adaptation and sampling count, imports do not. All compute in float64.

Time is that of the cores (`--clock core`: all threads of the process together), which the load of a
shared machine hardly changes, or that of the wall. NumPyro's parallel chains and nutpie use two
cores where they are free: there their wall time can be half of their core time, ours is the same.

Each engine draws as much as the smallest bulk or tail ESS needs to reach `--ess`: a run that falls
short is repeated with more draws, and the last one counts. A run that takes longer than `--cap`
core seconds counts with what it has (Pyro's), or half as long again and then not at all. Effective
sizes, R-hat and errors against the reference are those of `ppgen.accuracy` for everybody, over
posteriordb's parameters.

    python benchmarks/samplers.py --posteriordb DIR --peers PEERS/bin/python --out runs/samplers

Results are kept after every run and never measured twice, so that a table can be made in pieces
(`--posteriors`, `--engines`, `--seeds`). `--check` compares the peers' stories with ours by the
differences of their log densities between reference draws; `--table` prints what there is.
"""

from __future__ import annotations

import json
import math
import signal
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppgen.accuracy import accuracy
from ppgen.data import posteriordb
from ppgen.models.posteriordb import POSTERIORS
from ppgen.posterior import Posterior
from ppgen.run_folder import surroundings

HERE = Path(__file__).parent / "peers"
LOGISTIC = "logistic-1000x25"
OURS, NUMPYRO, NUTPIE = "ours.py", "numpyro_stories.py", "pymc_stories.py"
# The script that runs an engine, and the draws of a chain it begins with at 1,000 and at 40,000.
ENGINES = {
    "HMC": (OURS, 200, 1000),
    "HMC, 256 chains": (OURS, 50, 200),
    "NUTS": (OURS, 200, 1000),
    "Pyro": (OURS, 1000, 40_000),
    "NumPyro, parallel": (NUMPYRO, 500, 15_000),
    "NumPyro, vectorised": (NUMPYRO, 200, 4000),
    "nutpie": (NUTPIE, 1000, 15_000),
}
PEERS = ("NumPyro, parallel", "NumPyro, vectorised", "nutpie")
ATTEMPTS = 3  # runs until the ESS is there
Row = dict[str, Any]


def logistic_data() -> dict[str, Any]:
    """1,000 rows, 25 predictors with correlation .5^|i-j|, slopes of sd .5."""
    generator = torch.Generator().manual_seed(25)
    index = torch.arange(25, dtype=torch.float64)
    factor = torch.linalg.cholesky(0.5 ** (index[:, None] - index).abs())
    x = torch.randn(1000, 25, dtype=torch.float64, generator=generator) @ factor.mT
    slope = 0.5 * torch.randn(25, dtype=torch.float64, generator=generator)
    logits = 0.3 + x @ slope
    uniform = torch.rand(1000, dtype=torch.float64, generator=generator)
    return {"x": x, "y": (uniform < torch.sigmoid(logits)).double()}


def arguments(name: str, clone: Path) -> dict[str, Any]:
    if name == LOGISTIC:
        return logistic_data()
    return POSTERIORS[name].arguments(posteriordb.read_data(name, clone))


def plain(data: dict[str, Any]) -> dict[str, Any]:
    return {n: v.tolist() if isinstance(v, torch.Tensor) else v for n, v in data.items()}


class Bench:
    """Runs, and what is kept of them."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.out = Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.path = self.out / "results.json"
        self.rows: list[Row] = []
        self.versions: dict[str, str] = {}
        if self.path.is_file():
            kept = json.loads(self.path.read_text())
            self.rows, self.versions = kept["rows"], kept["versions"]

    def save(self) -> None:
        around = surroundings()
        self.versions = around["versions"] | self.versions
        document = {
            "machine": around["machine"],
            "versions": self.versions,
            "git": around["git"],
            "date": time.strftime("%Y-%m-%d"),
            "rows": self.rows,
        }
        self.path.write_text(json.dumps(document, indent=1) + "\n")

    def ask(self, script: str, request: Row) -> Row:
        """The answer of a worker, or what went wrong under "error"."""
        python = sys.executable if script == OURS else self.options.peers
        done = subprocess.run(
            [python, str(HERE / script)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return {"error": f"not done after {1.5 * request['cap']:.0f} s"}
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["died"])[-1][:200]}
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        self.versions |= {n: v for n, v in answer["versions"].items() if v != "unknown"}
        return answer

    def reference(self, name: str) -> dict[str, np.ndarray]:
        """Posteriordb's draws; of the logistic regression those of a long run of NumPyro's."""
        if name != LOGISTIC:
            return posteriordb.read_reference(name, self.options.posteriordb)
        path = self.out / "logistic_reference.npz"
        if not path.is_file():
            request = self.request(name, "NumPyro, vectorised", 1000, 99) | {"out": str(path)}
            answer = self.ask(NUMPYRO, request)
            if "error" in answer:
                raise SystemExit(f"no reference for {name}: {answer['error']}")
        return dict(np.load(path))

    def request(self, name: str, engine: str, draws: int, seed: int) -> Row:
        return {
            "task": "sample",
            "engine": engine,
            "posterior": name,
            "data": plain(arguments(name, self.options.posteriordb)),
            "draws": draws,
            "seed": seed,
            "cap": self.options.cap,
            "out": str(self.out / "draws.npz"),
        }

    def measure(self, name: str, engine: str, seed: int) -> Row:
        """The run whose ESS is enough, or the last that there was time for."""
        script, *first = ENGINES[engine]
        draws, row = first[self.options.ess >= 10_000], {}
        if self.options.ess >= 10_000:
            draws = self.projected(name, engine) or draws
        for _ in range(ATTEMPTS):
            request = self.request(name, engine, draws, seed)
            answer = self.ask(script, request)
            if "error" in answer:
                return row or {"error": answer["error"], "draws": draws}
            row = self.judge(name, request["out"]) | {"draws": draws}
            row |= {n: answer[n] for n in ("seconds", "core_seconds")}
            need = self.options.ess / max(row["ess"], 1.0)
            if not 1 < need <= self.options.cap / row["core_seconds"]:
                break
            draws = math.ceil(draws * 1.2 * need)
        return row

    def projected(self, name: str, engine: str) -> int | None:
        """Draws for the larger ESS, from a run for the smaller."""
        for row in self.rows:
            if (row["posterior"], row["engine"]) == (name, engine) and row.get("ess", 0) > 0:
                return math.ceil(1.1 * row["draws"] * self.options.ess / row["ess"])
        return None

    def judge(self, name: str, path: str) -> Row:
        reference = self.reference(name)
        draws = {n: torch.from_numpy(x) for n, x in np.load(path).items() if n in reference}
        found = accuracy(Posterior(draws, "", "chains"), reference)
        # what an exact sampler of this many effective draws would exceed once in thousands
        noise = 4.5 * math.hypot(found.mcse, 0.01)
        return {
            "ess": found.ess,
            "rhat": found.rhat,
            "shift": found.shift,
            "low_ratio": found.low_ratio,
            "high_ratio": found.high_ratio,
            "mcse": found.mcse,
            "correct": bool(found.rhat <= 1.01 and found.shift <= noise),
        }

    def run(self) -> None:
        opts = self.options
        for seed in range(opts.seeds):
            for name in opts.posteriors:
                for engine in opts.engines:
                    key = {
                        "posterior": name,
                        "engine": engine,
                        "seed": seed,
                        "ess_wanted": opts.ess,
                    }
                    if any(key.items() <= row.items() for row in self.rows):
                        continue
                    row = key | {"cap": opts.cap} | self.measure(name, engine, seed)
                    self.rows.append(row)
                    self.save()
                    print({n: v for n, v in row.items() if n != "cap"}, file=sys.stderr, flush=True)

    def check(self) -> None:
        """Differences of log densities between points must be ours, whatever the language."""
        cases = []
        for name in self.options.posteriors:
            data = arguments(name, self.options.posteriordb)
            points = _points(name, self.reference(name), data)
            cases.append({"posterior": name, "data": plain(data), "points": points})
        request = {"task": "density", "cases": cases}
        found = {script: self.ask(script, request) for script in (OURS, NUMPYRO, NUTPIE)}
        for script, answer in found.items():
            if "error" in answer:
                print(f"{script}: {answer['error']}")
                continue
            for name, densities in answer["densities"].items():
                gap = float(np.ptp(np.subtract(densities, found[OURS]["densities"][name])))
                print(f"{name:42}{script:22}{gap:.1e} {'same' if gap < 1e-5 else 'DIFFERS'}")


def _points(name: str, reference: dict[str, np.ndarray], data: dict[str, Any]) -> list[Row]:
    """Five reference draws in the coordinates of the story's latent sites."""
    some = {n: torch.from_numpy(x[0, :50:10]) for n, x in reference.items()}
    latent = POSTERIORS[name].latent(some, data) if name in POSTERIORS else some
    return [{n: x[i].tolist() for n, x in latent.items()} for i in range(5)]


def table(rows: list[Row], ess: int, clock: str) -> str:
    """Medians over the seeds; what failed is named."""
    rows = [row | {"seconds": row.get(_CLOCKS[clock])} for row in rows]
    rows = [row for row in rows if row["ess_wanted"] == ess]
    names = list(dict.fromkeys(row["posterior"] for row in rows))
    engines = [e for e in ENGINES if any(row["engine"] == e for row in rows)]
    lines = [
        f"| min-ESS/s (seconds) at {ess:,} | {' | '.join(engines)} | HMC / Pyro | HMC / best |"
    ]
    lines.append("|---" * (len(engines) + 3) + "|")
    gains: dict[str, list[float]] = {"Pyro": [], "bound": [], "best": [], "seconds": []}
    for name in names:
        cells = {
            e: _median([r for r in rows if (r["posterior"], r["engine"]) == (name, e)])
            for e in engines
        }
        ours = max(
            (c for e, c in cells.items() if e.startswith("HMC") and c.get("correct")),
            key=lambda c: c["rate"],
            default=None,
        )
        peers = [cells[e] for e in PEERS if e in cells and cells[e].get("correct")]
        ratios = ["–", "–"]
        if ours and (pyro := cells.get("Pyro")):
            # without a draw: the ESS that was asked for takes longer than the cap
            known = "rate" in pyro
            slow = pyro["rate"] if known else ess / pyro["cap"]
            gains["Pyro" if known else "bound"].append(ours["rate"] / slow)
            ratios[0] = f"{'' if known else '> '}{ours['rate'] / slow:.3g}"
        if ours and peers:
            gains["best"].append(ours["rate"] / max(c["rate"] for c in peers))
            gains["seconds"].append(min(c["seconds"] for c in peers) / ours["seconds"])
            ratios[1] = f"{gains['best'][-1]:.3g}"
        written = [_written(cells[e], ess) for e in engines]
        lines.append(f"| {name.partition('-')[2]} | {' | '.join(written + ratios)} |")
    for what, values in gains.items():
        if values:
            mean = math.exp(statistics.fmean(map(math.log, values)))
            lines.append(
                f"\nGeometric mean over {len(values)}, {_GAINS[what]}: {mean:.3g} "
                f"(smallest {min(values):.3g})."
            )
    lines.append(f"\n{_LEGEND}")
    return "\n".join(lines)


_CLOCKS = {"core": "core_seconds", "wall": "seconds"}
_GAINS = {
    "Pyro": "min-ESS/s of HMC over that of Pyro's NUTS",
    "bound": "the same where Pyro had no draw within the cap, lower bounds",
    "best": "min-ESS/s of HMC over the best of NumPyro and nutpie",
    "seconds": "seconds of the fastest of NumPyro and nutpie over those of HMC",
}
_LEGEND = (
    "R: R-hat above 1.01. M: a mean further from the reference than 4.5 standard errors. <: the "
    "ESS that was asked for was not reached within the cap; what was reached counts. >: over the "
    "ESS that was asked for by the cap, within which there was not one draw."
)


def _median(rows: list[Row]) -> Row:
    """The medians of the runs that ended; correct where most are."""
    ended = [row for row in rows if "error" not in row]
    if not ended:
        return {n: rows[0][n] for n in ("error", "cap")} if rows else {}
    middle = {n: statistics.median(row[n] for row in ended) for n in ("ess", "seconds", "rhat")}
    middle["rate"] = statistics.median(row["ess"] / row["seconds"] for row in ended)
    middle["correct"] = sum(row["correct"] for row in ended) * 2 > len(ended)
    return middle


def _written(cell: Row, ess: int) -> str:
    if not cell:
        return "not run"
    if "error" in cell:
        return cell["error"]
    marks = "" if cell["correct"] else " R" if cell["rhat"] > 1.01 else " M"
    return f"{cell['rate']:.3g}{marks}{' <' if cell['ess'] < ess else ''} ({cell['seconds']:.1f})"


def parser(what: str, engines: Iterable[str], *, seeds: int, cap: float) -> ArgumentParser:
    """The options that the benchmarks against peers share; to be read by `choices`."""
    made = ArgumentParser(description=what)
    made.add_argument("--posteriordb", type=Path, help="a local clone")
    made.add_argument("--peers", default=sys.executable, help="Python that has the peers")
    made.add_argument("--out", default="runs/peers", help="folder of the results")
    made.add_argument("--posteriors", default="", help="parts of names, between commas; else all")
    made.add_argument("--engines", default=";".join(engines), help="between semicolons; else all")
    made.add_argument("--seeds", type=int, default=seeds)
    made.add_argument("--cap", type=float, default=cap, help="core seconds of a run")
    made.add_argument("--table", action="store_true", help="print what there is, and end")
    return made


def choices(made: ArgumentParser) -> Namespace:
    """The options, with names in the place of parts of names."""
    options = made.parse_args()
    parts = options.posteriors.split(",")
    options.posteriors = [n for n in (*POSTERIORS, LOGISTIC) if any(p in n for p in parts)]
    options.engines = options.engines.split(";")
    known = made.get_default("engines").split(";")
    if unknown := set(options.engines) - set(known):
        made.error(f"no engine {', '.join(unknown)}; there are {', '.join(known)}")
    if not options.posteriors:
        made.error(f"no posterior has {' or '.join(parts)} in its name")
    options.posteriordb = posteriordb.find(options.posteriordb)
    return options


def main() -> None:
    made = parser("Samplers side by side.", ENGINES, seeds=3, cap=600.0)
    made.add_argument("--ess", type=int, default=1000, help="smallest bulk or tail ESS")
    made.add_argument("--clock", choices=list(_CLOCKS), default="core")
    made.add_argument("--check", action="store_true", help="compare the stories, and end")
    options = choices(made)
    bench = Bench(options)
    if options.check:
        bench.check()
        return
    if not options.table:
        bench.run()
    print(table(bench.rows, options.ess, options.clock))


if __name__ == "__main__":
    main()
