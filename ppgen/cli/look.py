"""``ppgen models``, ``data`` and ``doctor``: what there is."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from ppgen.cli.engines import ENGINES
from ppgen.cli.exits import BAD_DATA, MISSING
from ppgen.cli.options import Common
from ppgen.summary import columns

Json = Annotated[bool, Parameter(negative="", help="Print one JSON object instead of text.")]


def models(*, json: Json = False) -> int:
    """List the bundled stories and the engines."""
    from ppgen.cli.bundled import BUNDLED

    stories = [[name, b.kind, b.about, b.paper] for name, b in BUNDLED.items()]
    engines = [[name, *about] for name, about in ENGINES.items()]
    text = "\n\n".join(
        [
            columns([["story", "kind", "about", "paper"], *stories]),
            columns([["engine", "about", "paper"], *engines]),
            "bayes: ppgen fit|compare|explain STORY      deep: ppgen train STORY --data digits\n"
            "Your own: ppgen compare mystory.py:model --data my.csv",
        ]
    )
    keys = ("name", "kind", "about", "paper")
    found = {
        "stories": [dict(zip(keys, row, strict=True)) for row in stories],
        "engines": [dict(zip(("name", "about", "paper"), row, strict=True)) for row in engines],
    }
    Common(json=json).print(text, found)
    return 0


data = App(name="data", help="Data sets: what there is, and whether a file is fit for use.")


@data.command(name="list")
def list_data(*, folder: Path | None = None, json: Json = False) -> int:
    """List the data sets with their licences and where they were looked for.

    Try:

        ppgen data list --folder ~/mnist

    Args:
        folder: look only here.
    """
    from ppgen.data import list_available

    found = list_available(folder)
    rows = [[a.name, a.description, a.licence, a.found or "not found"] for a in found]
    looked = [
        f"{a.name} was looked for in: {', '.join(a.looked_for)}" for a in found if not a.found
    ]
    text = "\n".join([columns([["data", "what", "licence", "found in"], *rows]), *looked])
    Common(json=json).print(text, {"data": [asdict(a) for a in found]})
    return 0


@data.command
def check(source: str, /, *, folder: Path | None = None, json: Json = False) -> int:
    """Say what a file holds, what is wrong with it, and how to use it.

    Try:

        ppgen data check my.csv

    Args:
        source: a name from `ppgen data list`, or a file: CSV, NPY, NPZ, or IDX (also gzipped).
        folder: where the named data set lies.
    """
    from ppgen.data import check as inspect

    found = inspect(source, folder=folder)
    Common(json=json).print(str(found), found.as_dict())
    return 0 if found.ok else BAD_DATA if found.found else MISSING


def doctor(*, json: Json = False) -> int:
    """Say which versions, devices and threads there are, and try the parts once."""
    import pyro
    import torch

    import ppgen

    facts: dict[str, Any] = {
        "ppgen": ppgen.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    checks = {name: _attempt(part) for name, part in _PARTS.items()}
    lines = [[k, str(v)] for k, v in facts.items()]
    lines += [[name, "ok" if error is None else f"FAILS: {error}"] for name, error in
              checks.items()]  # fmt: skip
    good = not any(checks.values())
    text = "\n".join(f"{name:<22} {value}" for name, value in lines)
    Common(json=json).print(text, {**facts, "checks": checks})
    return 0 if good else 1


def _attempt(part: Any) -> str | None:
    try:
        part()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _record() -> None:
    import torch

    from ppgen import Program
    from ppgen.models.eight_schools import data, eight_schools

    program = Program(eight_schools, **data())
    program.value_and_grad(torch.zeros(2, program.dim))
    if program.fallback is not None:
        raise RuntimeError(program.fallback)


def _draw_picture() -> None:
    from ppgen import plots

    plots.images([[0.0, 1.0, 1.0, 0.0]], (2, 2))


def _write() -> None:
    import tempfile

    import torch

    from ppgen import checkpoint

    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(folder, {"x": torch.ones(2)}, {})
        checkpoint.load(folder)


def _digits() -> None:
    from ppgen.data import load

    load("digits", "test")


_PARTS = {
    "recording a story": _record,
    "bundled data": _digits,
    "pictures": _draw_picture,
    "checkpoints": _write,
}
