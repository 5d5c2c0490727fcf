"""Checkpoints: tensors in safetensors, the rest in a JSON manifest, committed by one rename.

A folder holds one *generation*: ``tensors-<n>.safetensors`` and ``manifest.json``, which names
that file with its size and sha256 and seals itself with a sha256 of its own. Whoever reads the
folder at any moment finds the last generation that was committed; nothing that is read can run
code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

FORMAT = "ppgen checkpoint"
SCHEMA = 1
MANIFEST = "manifest.json"

_LARGEST_MANIFEST = 64 << 20  # bytes; both are read whole before anything in them is believed
_LARGEST_HEADER = 16 << 20
_TENSORS = re.compile(r"tensors-(\d{8})\.safetensors")
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written: which file, and why, in one line."""


def save(folder: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write one generation, commit it, and remove the one before.

    Killed at any moment, the folder holds either the previous generation or this one; what a
    killed save left behind is removed by the next. On the disk when this returns.

    Args:
        folder: made if it is missing.
        tensors: name -> tensor of any shape and dtype; shared and strided ones are copied.
        meta: plain JSON: str, int, float (also nan and inf), bool, None, lists, mappings.

    Returns:
        The manifest's path.

    Raises:
        OSError: in one line, when the disk is full or the folder cannot be written; the
            previous generation is then intact.
        CheckpointError: for values that have no place in a checkpoint.
    """
    folder = Path(folder)
    content = pack(tensors)
    plain = encode(meta)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        generations = [int(m[1]) for name in os.listdir(folder) if (m := _TENSORS.fullmatch(name))]
        generation = max(generations, default=0) + 1
        name = f"tensors-{generation:08d}.safetensors"
        manifest = {
            "format": FORMAT,
            "schema": SCHEMA,
            "tensors": {
                "file": name,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            },
            "meta": plain,
        }
        write_atomically(folder / name, content)
        write_atomically(folder / MANIFEST, _sealed(manifest))  # the commit
    except OSError as error:
        with suppress(OSError, CheckpointError):
            clean(folder)  # gives the space of the half-written generation back
        raise _one_line(error, f"cannot save the checkpoint in {folder}") from error
    clean(folder, keep=name)
    return folder / MANIFEST


def load(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The committed generation of `folder`: its tensors (on the CPU) and its meta.

    Raises:
        CheckpointError: if there is none, or if any byte is not what was written: damaged,
            truncated, of another format, of a newer schema.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    manifest = _manifest(path, _read(path, _LARGEST_MANIFEST))
    entry = manifest["tensors"]
    name = entry["file"]
    if not _TENSORS.fullmatch(name):
        raise CheckpointError(f"{path}: {name!r} is no name of a tensor file in this folder")
    content = _read(folder / name, int(entry["bytes"]), exactly=True)
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{folder / name}: damaged: its sha256 is not the manifest's")
    return unpack(content, folder / name), manifest["meta"]


def exists(folder: str | Path) -> bool:
    """Whether a generation has been committed in `folder`."""
    return (Path(folder) / MANIFEST).is_file()


def clean(folder: str | Path, keep: str | None = None) -> None:
    """Remove what killed saves left in `folder`, and every generation but the committed one.

    Args:
        folder: a checkpoint's folder.
        keep: the committed tensor file; None: as the manifest says.
    """
    folder = Path(folder)
    if keep is None and exists(folder):
        path = folder / MANIFEST
        keep = str(_manifest(path, _read(path, _LARGEST_MANIFEST))["tensors"]["file"])
    for name in os.listdir(folder):
        if name != keep and _TENSORS.fullmatch(name):
            (folder / name).unlink(missing_ok=True)
    remove_temporaries(folder)


def remove_temporaries(folder: str | Path) -> None:
    """Remove the files that `write_atomically` left in `folder` when it was killed."""
    for name in os.listdir(folder):
        if is_temporary(name):
            (Path(folder) / name).unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that `write_atomically` had not finished."""
    return _TEMPORARY.fullmatch(name) is not None


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as safetensors bytes."""
    plain = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{name}: a tensor was expected, not {type(tensor).__name__}")
        if tensor.layout is not torch.strided:
            raise CheckpointError(f"{name}: {tensor.layout} cannot be saved: use .to_dense()")
        plain[name] = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().clone()
    try:
        return safetensors.torch.save(plain)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"a tensor cannot be saved: {error}") from error


def unpack(content: bytes, where: str | Path) -> dict[str, Tensor]:
    """Safetensors bytes as tensors; `where` names them in errors."""
    header = int.from_bytes(content[:8], "little")
    if len(content) < 8 or header > min(len(content) - 8, _LARGEST_HEADER):
        raise CheckpointError(f"{where}: not a safetensors file, or a truncated one")
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # a parser of untrusted bytes: whatever it says, refuse
        raise CheckpointError(f"{where}: not a safetensors file: {_first_line(error)}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all, and on the disk when this returns."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def encode(value: Any, where: str = "meta") -> Any:
    """Plain values as strict JSON: nan and the infinities become ``{"$float": "nan"}``."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, (list, tuple)):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key.startswith("$"):
                raise CheckpointError(
                    f"{where}: the key {key!r}: expected a string that does not start with '$'"
                )
        return {key: encode(item, f"{where}.{key}") for key, item in value.items()}
    raise CheckpointError(
        f"{where}: {type(value).__name__} is no JSON: use numbers, strings, lists and mappings, "
        "and put tensors among the tensors"
    )


def decode(value: Any) -> Any:
    """The inverse of `encode`; tuples come back as lists."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"$float"}:
            return float(value["$float"])
        return {key: decode(item) for key, item in value.items()}
    return value


def _text(value: Any) -> bytes:
    return (json.dumps(value, allow_nan=False) + "\n").encode()


def _sealed(manifest: dict[str, Any]) -> bytes:
    return _text({**manifest, "sha256": hashlib.sha256(_text(manifest)).hexdigest()})


def _manifest(path: Path, content: bytes) -> dict[str, Any]:
    """The manifest, checked whole, its meta decoded."""
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one: no JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of ppgen, or a damaged one")
    schema = manifest.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckpointError(
            f"{path}: written with checkpoint schema {schema}; this ppgen reads {SCHEMA}: upgrade"
        )
    try:
        seal = manifest.pop("sha256")
        # Compared as bytes: a flip anywhere, be it in white space, shows.
        whole = _sealed(manifest) == content and isinstance(seal, str) and schema == SCHEMA
        tensors = manifest["tensors"]
        known = isinstance(tensors["file"], str) and isinstance(tensors["sha256"], str)
        size = int(tensors["bytes"])
        manifest["meta"] = decode(dict(manifest["meta"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        raise CheckpointError(f"{path}: damaged: not as a manifest is written") from None
    if not whole or not known or size < 0:
        raise CheckpointError(f"{path}: damaged: its seal does not fit its content")
    return manifest


def _read(path: Path, limit: int, exactly: bool = False) -> bytes:
    """The file's bytes; its size is checked before it is read, and links are not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            size = status.st_size
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path}: not a regular file")
            if size > limit or (exactly and size != limit):
                wanted = f"{limit} bytes" if exactly else f"at most {limit} bytes"
                raise CheckpointError(f"{path}: {size} bytes, where {wanted} were expected")
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file: no checkpoint was committed here") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) != size:
        raise CheckpointError(f"{path}: changed while it was read")
    return content


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _one_line(error: OSError, what: str) -> OSError:
    reason = error.strerror or _first_line(error)
    return OSError(error.errno or 0, f"{what}: {reason}; the last one is intact")
