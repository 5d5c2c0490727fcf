"""The folder of one run: ``config.json``, ``metrics.jsonl`` and ``.csv``, ``ckpt/``, a lock."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ppgen import checkpoint
from ppgen._version import __version__

try:
    import fcntl
except ImportError:  # no such locks on Windows: there the folder is not guarded
    fcntl = None

FORMAT = "ppgen run"
SCHEMA = 1

_FILES = ("metrics.jsonl", "metrics.csv", "likelihood.jsonl", "config.json")
_OWN = (*_FILES, "ckpt", "lock")


class RunFolderError(ValueError):
    """A run folder that cannot be used as asked, and what to do."""


class CannotWriteError(OSError):
    """What could not be written, and why; also where a folder of its path is not there."""


class ConfigError(RunFolderError):
    """A ``config.json`` that tells nothing: it is not there, damaged, or another program's.

    Args:
        message: which file, and what is wrong with it.
        missing: whether there is no such file.
    """

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class RunFolder:
    """Claim a folder for one run; a context manager that releases it.

    Args:
        path: the folder; its parents are made.
        resume: continue the run that is there.
        overwrite: remove the run that is there (its own files only) and start anew.

    Raises:
        RunFolderError: if the folder holds something and neither option is given, if there is
            nothing to resume, or if another process is writing there.
        OSError: in one line, if it cannot be made or written.

    Example:
        >>> import tempfile
        >>> with RunFolder(tempfile.mkdtemp()) as run:
        ...     run.write_config({"seed": 0})
        ...     run.append({"epoch": 1, "loss": 2.5})
        ...     print((run.path / "metrics.csv").read_text().split())
        ['epoch,loss', '1,2.5']
    """

    def __init__(self, path: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._made = not self.path.exists()
        if resume and overwrite:
            raise RunFolderError("resume and overwrite exclude each other: give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file: a run needs a folder")
        if resume and not self.path.is_dir():
            raise RunFolderError(f"{self.path}: nothing to resume: there is no such folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _Lock(self.path / "lock")
        except OSError as error:
            raise _one_line(error, f"cannot write a run in {self.path}") from error
        try:
            self._claim(resume, overwrite)
        except BaseException:
            self._lock.release()
            raise

    @property
    def checkpoints(self) -> Path:
        """Where `ppgen.checkpoint` saves and loads."""
        return self.path / "ckpt"

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()
        if kind is not None and self._made:  # what ended before anything was written
            with suppress(OSError):
                self.path.rmdir()  # it stays where something is in it

    def _claim(self, resume: bool, overwrite: bool) -> None:
        names = {n for n in os.listdir(self.path) if not checkpoint.is_temporary(n)}
        foreign = sorted(names - {"lock"})
        ours = (self.path / "config.json").is_file() or not set(foreign) - set(_OWN)
        if resume:
            if not ours:
                raise RunFolderError(f"{self.path}: nothing to resume: it holds no config.json")
            return
        if not foreign:
            return
        if not overwrite:
            raise RunFolderError(
                f"{self.path} exists and holds {foreign[0]}: name another folder, go on with the "
                f"run (resume=True; in a shell `ppgen resume {self.path}`), or replace it "
                "(overwrite=True; --overwrite)"
            )
        if not ours:
            raise RunFolderError(
                f"{self.path} holds {foreign[0]} and no config.json: it is no run folder, and is "
                "not overwritten"
            )
        # config.json goes last: a removal that is cut short can be repeated.
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.json``: `config` as it is, with versions and machine beside it."""
        whole = {"format": FORMAT, "schema": SCHEMA, **surroundings(), **config}
        text = json.dumps(checkpoint.encode(whole, "config"), indent=2, allow_nan=False) + "\n"
        self._write("config.json", text)

    def append(self, row: Mapping[str, float | int | str | None]) -> None:
        """Add one line to ``metrics.jsonl`` and ``metrics.csv``; every row has the same keys."""
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(_json_line(row))
            with (self.path / "metrics.csv").open("a", newline="") as file:
                file.write(_csv_lines([row], header=file.tell() == 0))
        except OSError as error:
            raise _one_line(error, f"cannot write the metrics in {self.path}") from error

    def rewrite(self, rows: Sequence[Mapping[str, float | int | str | None]]) -> None:
        """Make the metrics those of `rows`: a resumed run drops what its checkpoint lacks."""
        lines = "".join(map(_json_line, rows))
        table = _csv_lines(rows, header=True) if rows else ""
        self._write("metrics.jsonl", lines)
        self._write("metrics.csv", table)

    def clean(self) -> None:
        """Remove the temporary files of a run that was killed."""
        for folder in (self.path, self.checkpoints):
            if folder.is_dir():
                checkpoint.remove_temporaries(folder)
        if checkpoint.exists(self.checkpoints):
            checkpoint.clean(self.checkpoints)

    def _write(self, name: str, text: str) -> None:
        try:
            checkpoint.write_atomically(self.path / name, text.encode())
        except OSError as error:
            raise _one_line(error, f"cannot write {self.path / name}") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a run folder.

    Raises:
        ConfigError: if there is none, or it is not one of a run, in one line.
    """
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: not a run folder: it holds no config.json", missing=True
        ) from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not JSON, or damaged") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ConfigError(f"{file}: not the config.json of a run")
    if not isinstance(config.get("schema"), int) or config["schema"] > SCHEMA:
        raise ConfigError(
            f"{file}: schema {config.get('schema')!r}; this ppgen reads {SCHEMA}: upgrade"
        )
    if not isinstance(config.get("options", {}), dict):
        raise ConfigError(f"{file}: 'options' is not an object")
    return checkpoint.decode(config)


def surroundings() -> dict[str, Any]:
    """What a result may depend on beside its options: versions, commit, machine."""
    versions = {"ppgen": __version__, "python": platform.python_version()}
    for name in ("torch", "pyro-ppl", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    machine = {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    return {"versions": versions, "git": _commit(), "machine": machine}


def _commit() -> str | None:
    """The commit of the working directory, where the user's stories are; None without git."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


class _Lock:
    """An exclusive lock that the system drops when its process dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if fcntl is not None:
                    fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The file may have been removed by its holder between open and flock.
                if path.exists() and os.path.samestat(path.stat(), os.fstat(self.descriptor)):
                    break
            except BlockingIOError:
                holder = os.read(self.descriptor, 20).decode(errors="replace").strip()
                os.close(self.descriptor)
                raise RunFolderError(
                    f"{path.parent} is being written by process {holder or 'unknown'}: wait for "
                    "it to end, or name another folder"
                ) from None
            except OSError:
                os.close(self.descriptor)
                raise
            os.close(self.descriptor)
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self.descriptor >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = -1


def _json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(checkpoint.encode(row, "metrics"), allow_nan=False) + "\n"


def _csv_lines(rows: Sequence[Mapping[str, Any]], header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _one_line(error: OSError, what: str) -> OSError:
    return CannotWriteError(error.errno or 0, f"{what}: {error.strerror or error}")
