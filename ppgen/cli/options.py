"""What several commands share: their options, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ppgen.cli.exits import DONE, NOT_PASSED

Story = Annotated[str, Parameter(help="A bundled story (see `ppgen models`) or file.py:function.")]
DataFile = Annotated[
    str | None,
    Parameter(name="--data", help="CSV whose columns are the story's arguments, by name."),
]

Run = Annotated[Path, Parameter(help="A run folder that `ppgen train` wrote.")]
Binarisation = Literal["static", "dynamic", "threshold", "none"]
Split = Literal["train", "validation", "test"]  # validation: the tenth of train that is held out


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options of every command that computes."""

    seed: int = 0
    "Same seed, same machine, same number of threads: same result."

    json: Annotated[bool, Parameter(negative="")] = False
    "Print one JSON object instead of text."

    quiet: Annotated[bool, Parameter(negative="")] = False
    "No progress on stderr."

    strict: Annotated[bool, Parameter(negative="")] = False
    "Exit with 1 where a diagnosis fails."

    device: str = "cpu"
    "Where to compute: cpu, cuda, cuda:1, mps."

    @contextmanager
    def active(self) -> Iterator[None]:
        """Progress as asked for; a device that is there, a seed that generators take."""
        import torch

        from ppgen.progress import quiet

        if not 0 <= self.seed < 2**64:
            raise ValueError(f"--seed {self.seed}: expected a whole number from 0 to 2**64 - 1")
        try:
            torch.zeros(1, device=self.device).item()  # there is a device without any numbers
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {self.device} is not available: {error}") from error
        with quiet(self.quiet):
            yield

    def print(self, text: str, data: dict[str, Any]) -> None:
        """The result, on stdout; JSON has no infinity and no NaN, which become null."""
        if self.json:
            from ppgen.report.plain import plain

            text = json.dumps(plain(data), default=str, allow_nan=False)
        print(text)

    def code(self, passed: bool) -> int:
        """The exit code."""
        return NOT_PASSED if self.strict and not passed else DONE


def a(model: str) -> str:
    """The model with its article."""
    return f"an {model}" if model == "rbm" else f"a {model}"


def new_folder(path: Path, overwrite: bool) -> Path:
    """A folder for results; one with something in it is refused unless `overwrite`."""
    from ppgen.run_folder import CannotWriteError, RunFolderError

    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file: name a folder with --out")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise RunFolderError(f"{path} is not empty: name another folder with --out, or --overwrite")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWriteError(f"the folder {path} cannot be made: {error.strerror}") from error
    return path


def note(text: str) -> None:
    """A remark, on stderr."""
    print(text, file=sys.stderr)
