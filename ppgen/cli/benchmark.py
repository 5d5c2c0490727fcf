"""``ppgen benchmark``: every engine on posteriors whose answer is known."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from ppgen.cli.bayes import Overwrite
from ppgen.cli.options import Common, new_folder, note
from ppgen.summary import json_ready

if TYPE_CHECKING:
    from ppgen.types import Engine

Resume = Annotated[bool, Parameter(negative="", help="Keep the results that --out holds.")]
Result = dict[str, Any]

_FILE = "results.json"
_FORMAT = "ppgen benchmark"

_EVERY = (
    "HMC, NUTS, mean-field=VI, low-rank=VI(guide='low-rank'), full-rank=VI(guide='full-rank'), "
    "flow=VI(guide='flow'), DADVI, Pathfinder, Laplace, ForwardKL"
)

benchmark = App(name="benchmark", help="Every engine on posteriors whose answer is known.")


@benchmark.command
def posteriordb(
    *,
    engines: str = _EVERY,
    posteriors: str = "",
    posteriordb: Path | None = None,
    out: Path = Path("runs/posteriordb"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    common: Common | None = None,
) -> int:
    """Compare engines with the reference draws of posteriordb, from a local clone.

    results.json and table.md are written after each run, table.png after the last. A run that was
    stopped goes on with --resume, which also adds engines and posteriors to earlier ones. Try:

        ppgen benchmark posteriordb --posteriordb ../posteriordb --engines HMC,VI
        ppgen benchmark posteriordb --posteriors arma,blr --engines "NUTS, flow=VI(guide='flow')"

    Args:
        engines: engines between commas, each with an optional label in front: label=engine. By
            default all that take any story, which is some fifteen minutes of one core.
        posteriors: parts of names between commas; all twelve when empty.
        posteriordb: the clone; the environment variable PPGEN_POSTERIORDB when not given.
        out: the folder for the results.
    """
    from ppgen.cli.benchmark_table import markdown
    from ppgen.cli.engines import engines as parse
    from ppgen.cli.engines import written
    from ppgen.data import posteriordb as database
    from ppgen.models.posteriordb import POSTERIORS

    common = common or Common()
    chosen, names = parse(engines), _chosen(posteriors, list(POSTERIORS))
    clone = database.find(posteriordb)
    folder = new_folder(out, overwrite or (resume and (out / _FILE).is_file()))
    results = _earlier(folder / _FILE) if resume and (folder / _FILE).is_file() else []
    with common.active():
        for name, (label, engine) in product(names, chosen.items()):
            settings = {"posterior": name, "label": label, "engine": written(engine)}
            settings |= {"seed": common.seed}
            if any(settings.items() <= row.items() for row in results):
                continue
            note(f"{label} on {name}")
            row = settings | measure(name, engine, clone, common)
            results = [r for r in results if (r["posterior"], r["label"]) != (name, label)]
            results.append(row)
            _write(folder, results)
    _draw(folder, results)
    common.print(f"{markdown(results)}\nresults: {folder}", {"results": results})
    return common.code(all(row.get("passed", False) for row in results))


def measure(name: str, engine: Engine, clone: Path, common: Common) -> Result:
    """One run, compared with the reference; an engine that fails says why.

    Seconds are those of the whole call: recording, compiling, adapting and sampling.
    """
    import ppgen
    from ppgen.accuracy import accuracy
    from ppgen.cli.bayes import on_device
    from ppgen.data import posteriordb as database
    from ppgen.models.posteriordb import POSTERIORS

    port = POSTERIORS[name]
    arguments = on_device(port.arguments(database.read_data(name, clone)), common.device)
    reference = database.read_reference(name, clone)
    begin = time.perf_counter()
    try:
        posterior = ppgen.fit(port.story, using=engine, seed=common.seed, **arguments)
        seconds = time.perf_counter() - begin
        found = accuracy(posterior, reference)
    except Exception as error:  # one engine that cannot must not cost the others' results
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())}
    numbers = asdict(found) | {"seconds": seconds, "ess_per_second": found.ess / seconds}
    return {
        **json_ready(numbers),
        "gradients": posterior.cost.gradients,
        "converged": posterior.converged,
        "messages": list(posterior.messages),
        "passed": found.passed,
    }


def _chosen(text: str, known: Sequence[str]) -> list[str]:
    """Names that contain one of the parts, in the order of the table."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not any(part in name for name in known):
            raise ValueError(f"no posterior {part!r}: there are {', '.join(known)}")
    return [name for name in known if not parts or any(part in name for part in parts)]


def _earlier(path: Path) -> list[Result]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}: use --overwrite") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise ValueError(f"{path} holds no results of a benchmark: name another folder with --out")
    return found["results"]


def _write(folder: Path, results: list[Result]) -> None:
    """What a stopped run goes on from, and the table; each whole or not at all."""
    from ppgen.checkpoint import write_atomically
    from ppgen.cli.benchmark_table import markdown
    from ppgen.run_folder import surroundings

    document = {"format": _FORMAT, "schema": 1, **surroundings(), "results": results}
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / _FILE, text.encode())
    write_atomically(folder / "table.md", markdown(results).encode())


def _draw(folder: Path, results: list[Result]) -> None:
    import io

    from ppgen.checkpoint import write_atomically
    from ppgen.cli.benchmark_table import picture

    image = io.BytesIO()
    picture(results).savefig(image, format="png")
    write_atomically(folder / "table.png", image.getvalue())
