"""The ``ppgen`` command: the only part of the package above models and inference."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ppgen.cli.exits import BAD_DATA, CANNOT_WRITE, INTERNAL, INTERRUPTED, MISSING, USAGE


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with a code of :mod:`ppgen.cli.exits`."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; errors become one line on stderr and an exit code.

    ``--debug`` anywhere shows the traceback instead.
    """
    from cyclopts import CycloptsError

    from ppgen.cli.app import app

    arguments = list(arguments)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        return app(arguments, exit_on_error=False, print_error=False) or 0
    except CycloptsError as error:
        return _complain(str(error), USAGE)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `ppgen models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        return _complain(_one_line(error), _code(error))


def _code(error: Exception) -> int:
    from ppgen.checkpoint import CheckpointError
    from ppgen.data import DataError
    from ppgen.run_folder import RunFolderError

    absent = FileNotFoundError, ModuleNotFoundError
    if isinstance(error, absent) or getattr(error, "missing", False):
        return MISSING
    if isinstance(error, (DataError, CheckpointError)):
        return BAD_DATA
    if isinstance(error, (OSError, RunFolderError)):
        return CANNOT_WRITE
    return USAGE if isinstance(error, (ValueError, TypeError)) else INTERNAL


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    known = isinstance(error, (ValueError, OSError, ModuleNotFoundError))
    return text if known and text else f"{type(error).__name__}: {text} (--debug shows where)"


def _complain(text: str, code: int) -> int:
    print(f"ppgen: {text}", file=sys.stderr)
    return code
