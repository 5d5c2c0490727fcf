"""The ``ppgen`` command: the only part of the package above models and inference."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from ppgen.cli.exits import BAD_DATA, CANNOT_WRITE, DONE, INTERNAL, INTERRUPTED, MISSING, USAGE


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with a code of :mod:`ppgen.cli.exits`."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; errors become one line on stderr and an exit code.

    ``--debug`` anywhere shows the traceback instead.
    """
    try:
        return _run([a for a in arguments if a != "--debug"], debug="--debug" in arguments)
    except KeyboardInterrupt as error:
        return _complain(str(error) or "interrupted", INTERRUPTED)
    except BrokenPipeError:  # `ppgen models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _run(arguments: Sequence[str], *, debug: bool) -> int:
    from cyclopts import CycloptsError

    from ppgen.cli.app import app
    from ppgen.progress import noticing

    shown = warnings.catch_warnings() if debug else _warnings_on_one_line()
    try:
        with shown, noticing() as interrupt:
            code = app(arguments, exit_on_error=False, print_error=False) or DONE
        return INTERRUPTED if interrupt else code
    except CycloptsError as error:
        return _complain(str(error), USAGE)
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            raise
        return _complain(_in_shell(_one_line(error), arguments), _code(error))


def _code(error: Exception) -> int:
    from ppgen.checkpoint import CheckpointError
    from ppgen.data import DataError
    from ppgen.run_folder import ConfigError, RunFolderError

    absent = FileNotFoundError, ModuleNotFoundError
    if isinstance(error, absent) or getattr(error, "missing", False):
        return MISSING
    if isinstance(error, (DataError, CheckpointError, ConfigError)):
        return BAD_DATA
    if isinstance(error, (OSError, RunFolderError)):
        return CANNOT_WRITE
    if isinstance(error, (ValueError, TypeError)) or _is_of_memory(error):
        return USAGE
    return INTERNAL


def _is_of_memory(error: Exception) -> bool:
    """Whether more memory was asked for than there is; torch says so by a RuntimeError."""
    said = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return said or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _one_line(error: Exception) -> str:
    text = re.sub(r"^\[Errno \d+\] ", "", " ".join(str(error).split()))
    if _is_of_memory(error):
        return f"not enough memory for options of this size: {text or 'none was left'}"
    known = isinstance(error, (ValueError, OSError, ModuleNotFoundError))
    return text if known and text else f"{type(error).__name__}: {text} (--debug shows where)"


def _in_shell(text: str, arguments: Sequence[str]) -> str:
    """The option that a message names as Python's, as it was given: ``batch_size=0`` and such."""

    def option(found: re.Match[str]) -> str:
        name = f"--{(found[1] or found[2]).replace('_', '-')}"
        given = any(argument.partition("=")[0] == name for argument in arguments)
        return name + (" " if found[2] else "") if given else found[0]

    return re.sub(r"^(?:\w+\((\w+)=\.\.\.\)|(\w+)=)", option, text)


@contextmanager
def _warnings_on_one_line() -> Iterator[None]:
    """Without the line of code that they come from, which says nothing to who types a command."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _complain(f"warning: {message}", 0)
        yield


def _complain(text: str, code: int) -> int:
    print(f"ppgen: {' '.join(text.split())}", file=sys.stderr)
    return code
