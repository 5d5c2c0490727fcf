"""From a path to arrays: which kind of file it is, and what in it are examples and labels."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppgen.data.csv_files import codes_of, parse_csv
from ppgen.data.errors import DataError, refuse_where
from ppgen.data.idx import read_idx
from ppgen.data.numpy_files import MAGIC, read_npy, read_npz
from ppgen.data.sources import NAMES, Raw

_LABELS = ("labels", "label", "y")
_SUFFIXES = (".npy", ".npz", ".csv", ".tsv", ".txt", ".gz", "ubyte")


def read_file(source: str | Path, split: str = "train") -> Raw:
    """The data in a file, whose kind its first bytes tell.

    Raises:
        DataError: when there is no such file, or it is not of a known kind.
    """
    path = Path(source)
    if not path.exists():
        raise DataError(_unknown(str(source)), path, missing=True)
    if not path.is_file():
        raise DataError("not a file: name one, or pass folder= with mnist or fashion-mnist", path)
    try:
        with path.open("rb") as stream:
            start = stream.read(6)
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", path) from error
    if start == MAGIC:
        return _without_test(Raw(read_npy(path), str(path), "npy"), split)
    if start[:4] in (b"PK\3\4", b"PK\5\6"):
        return _from_npz(path, split)
    if start[:2] == b"\x1f\x8b" and path.stem.lower().endswith((".csv", ".tsv", ".txt", ".npy")):
        raise DataError("only IDX files are read gzipped: gunzip this one first", path)
    if start[:2] in (b"\x1f\x8b", b"\0\0"):
        values = read_idx(path)
        white = 255.0 if values.dtype == np.uint8 and values.ndim > 1 else None
        return _without_test(Raw(values, str(path), "idx", white=white), split)
    if start[:1] == b"\x80" or start[:2] == b"PK":
        raise DataError("a pickle or archive, which is never opened: np.save the array", path)
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise DataError(f"not .npy, .npz, .csv or IDX: it starts with {start.hex(' ')!r}", path)
    return _without_test(_from_csv(path), split)


def _unknown(source: str) -> str:
    names = ", ".join(NAMES)
    if source.endswith(_SUFFIXES) or "/" in source or "\\" in source:
        return "there is no such file"
    near = difflib.get_close_matches(source, NAMES, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"neither the name of a data set ({names}) nor a file{hint}"


def _without_test(raw: Raw, split: str) -> Raw:
    if split not in ("train", "all"):
        raise DataError(
            f"no {split} split: this file has no splits; load the held-out file by its own path "
            "(in a shell --data FILE --split train, or --split validation of a run's own data)",
            raw.name,
        )
    if raw.values.ndim == 0 or raw.values.size == 0:
        raise DataError(f"no rows: the shape is {raw.values.shape}", raw.name)
    return raw


def _from_npz(path: Path, split: str) -> Raw:
    arrays = read_npz(path)
    if f"x_{split}" in arrays:
        values, suffix, name = arrays[f"x_{split}"], f"_{split}", split
    else:
        key = "x" if "x" in arrays else next(iter(arrays), "")
        if key not in arrays or (key != "x" and len(arrays) > 1):
            held = ", ".join(f"{k} {v.shape}" for k, v in arrays.items()) or "nothing"
            raise DataError(
                f"expected one array, or x (and labels), or x_train and x_test; it holds {held}",
                path,
            )
        values, suffix, name = arrays[key], "", "all"
    labels = next((arrays[k + suffix] for k in _LABELS if k + suffix in arrays), None)
    if labels is not None and (labels.shape != values.shape[:1] or labels.dtype.kind not in "iub"):
        raise DataError(
            f"labels {labels.shape}, {labels.dtype}: expected integers, one for each of the "
            f"{len(values) if values.ndim else 0} rows",
            path,
        )
    raw = Raw(values, str(path), "npz", name, labels)
    return _without_test(raw, "all" if suffix else split)


def _from_csv(path: Path) -> Raw:
    parsed = parse_csv(path)
    names = parsed.columns
    label = next((c for c, n in enumerate(names or ()) if n.lower() in _LABELS[:2]), None)
    labels, words = None, None
    if label is not None and label in parsed.numbers:
        numbers = parsed.numbers.pop(label)
        bad = ~np.isfinite(numbers) | (numbers != np.round(numbers)) | (np.abs(numbers) > 2**53)
        refuse_where(
            torch.from_numpy(bad[:, None]),
            "labels are integers",
            path,
            [(names or ())[label]],
            parsed.lines.tolist(),
        )
        labels = numbers.astype(np.int64)
    elif label is not None:
        labels, words = codes_of(parsed, label, path)
        del parsed.texts[label]
    for c in parsed.texts:
        raise DataError(
            "text: expected numbers (only a column called label may hold text; read_table reads "
            "text columns for models that take columns by name)",
            path,
            column=names[c] if names else c,
        )
    if not parsed.numbers:
        raise DataError("no column of numbers", path)
    kept = sorted(parsed.numbers)
    values = np.stack([parsed.numbers[c] for c in kept], -1)
    columns = None if names is None else tuple(names[c] for c in kept)
    return Raw(values, str(path), "csv", "all", labels, words, columns=columns, lines=parsed.lines)


def tensor_of(raw: Raw) -> Tensor:
    """The values as a tensor that torch computes with: bytes, or float64."""
    if raw.values.dtype == np.uint8:
        return torch.from_numpy(raw.values)
    return torch.from_numpy(raw.values.astype(np.float64))
