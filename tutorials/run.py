"""Run the tutorials, check that each notebook agrees with its script, or build them anew.

    python tutorials/run.py --fast     every script with PPGEN_FAST=1, and the agreement (CI)
    python tutorials/run.py --full     the same at full length
    python tutorials/run.py --build    execute the scripts as notebooks and write the .ipynb

A tutorial is a percent script, `NN_name.py`, which is its source, and a notebook of the same name
with the outputs that a reader sees.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parent
LARGEST = 1_000_000  # bytes of a notebook
LONGEST = {"fast": 60, "full": 180}  # seconds; twice or more of the aim, for noisy machines


def main() -> int:
    """Do what the command line asks for; the exit code is the number of tutorials that fail."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--fast", action="store_true", help="shortened, as in CI")
    what.add_argument("--full", action="store_true", help="at full length")
    what.add_argument("--build", action="store_true", help="write the notebooks anew")
    parser.add_argument("names", nargs="*", help="only these, such as 01")
    options = parser.parse_args()
    scripts = [
        path
        for path in sorted(HERE.glob("[0-9]*.py"))
        if not options.names or any(path.name.startswith(n) for n in options.names)
    ]
    if not scripts:
        print("tutorials: none found", file=sys.stderr)
        return 1
    failed = 0
    for script in scripts:
        start = time.perf_counter()
        complaint = build(script) if options.build else check(script, fast=options.fast)
        seconds = time.perf_counter() - start
        print(f"{script.stem}: {complaint or 'ok'} ({seconds:.0f} s)", flush=True)
        failed += complaint is not None
    print(f"{len(scripts) - failed} passed, {failed} failed")
    return failed


def check(script: Path, *, fast: bool) -> str | None:
    """Run the script in a process of its own; say what is wrong, if anything is."""
    environment = os.environ | {"MPLBACKEND": "Agg"} | ({"PPGEN_FAST": "1"} if fast else {})
    limit = LONGEST["fast" if fast else "full"]
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", script.name],
            cwd=HERE,
            env=environment,
            timeout=limit,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {limit} s"
    if done.returncode:
        return f"failed\n{done.stderr[-3000:]}"
    return disagreement(script)


def disagreement(script: Path) -> str | None:
    """What keeps the notebook from being the script's, with outputs, and small."""
    path = script.with_suffix(".ipynb")
    if not path.is_file():
        return "has no notebook: python tutorials/run.py --build"
    if path.stat().st_size > LARGEST:
        return f"its notebook has {path.stat().st_size:,} bytes, more than {LARGEST:,}"
    notebook = nbformat.read(path, as_version=4)
    source = jupytext.read(script)
    ours, theirs = ([(c.cell_type, c.source) for c in n.cells] for n in (source, notebook))
    if ours != theirs:
        return "the script was changed after its notebook: python tutorials/run.py --build"
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    if any(o.output_type == "error" for o in outputs):
        return "its notebook holds an error"
    if not any("image/png" in o.get("data", {}) for o in outputs):
        return "its notebook shows no picture"
    return None


def build(script: Path) -> str | None:
    """Execute the script as a notebook and write it beside."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = jupytext.read(script)
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook.metadata.pop("jupytext", None)
    # for want of a widget library; the warning would put a path of this machine on the page
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    try:
        NotebookClient(
            notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": HERE}}
        ).execute()
    except CellExecutionError as error:
        return f"failed\n{str(error)[-3000:]}"
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)  # times of day
    nbformat.write(notebook, script.with_suffix(".ipynb"))
    return disagreement(script)


if __name__ == "__main__":
    sys.exit(main())
