"""From a name or a file to a data set."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from ppgen.data.binarisation import Binarisation, threshold
from ppgen.data.dataset import Dataset, draw
from ppgen.data.errors import DataError, check_finite, refuse_where
from ppgen.data.reading import read_file, tensor_of
from ppgen.data.sources import IMAGES, NAMES, SETS, Raw, read_named


def load(
    source: str | Path,
    split: str = "train",
    *,
    binarisation: Binarisation | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    flatten: bool = True,
    white: float | None = None,
) -> Dataset:
    """A data set by name, or from a file.

    Args:
        source: ``"digits"`` and ``"earthquakes"`` (shipped), ``"mnist"``, ``"fashion-mnist"``, or
            the path of a .npy, .npz, .csv or IDX file (the latter also gzipped). Earthquakes are
            unit vectors, ``(N, 3)``. A .npz holds ``x`` and perhaps
            ``labels``, or ``x_train``, ``x_test``, ``labels_train``, ``labels_test``. A column
            ``label`` or ``labels`` of a CSV file becomes the labels, numbers or words.
        split: ``"train"`` or ``"test"``; a file without splits is all train.
        binarisation: see `Dataset`; None: static for the named images, else none.
        seed: of the static or dynamic draw; train and test have streams of their own.
        folder: where the IDX files of MNIST or Fashion-MNIST stand; None: the usual places.
        flatten: ``x`` as ``(N, D)``; False keeps ``(N, H, W)``.
        white: grey level of white, by which the values are divided; None where the file tells.

    Raises:
        DataError: by row and column, for anything that cannot be used.
        ValueError: for an unknown binarisation, and a folder of what lies in none.

    Example:
        >>> load("digits", "test").describe()
        'digits, test, 360 examples, static binarisation (seed 0)'
    """
    named = str(source) in NAMES
    if binarisation is None:
        binarisation = "static" if str(source) in IMAGES else "none"
    if binarisation not in get_args(Binarisation):
        expected = ", ".join(get_args(Binarisation))
        raise ValueError(f"binarisation {binarisation!r}: expected one of {expected}")
    if folder is not None and str(source) not in SETS:
        raise ValueError(
            f"folder={str(folder)!r}: it is for {' and '.join(SETS)}; {source} is found without"
        )
    raw = read_named(str(source), split, folder) if named else read_file(source, split)
    if split != "test" and len(raw.values) < 2:
        raise DataError(f"{len(raw.values)} row: at least two are needed to train on", raw.name)
    values = tensor_of(raw)
    grey, level, notes = _scaled(values, raw, binarisation, white)
    grey = grey.to(torch.get_default_dtype())
    if binarisation == "none":  # the margins of images are constant as a rule
        _warn_of_constants(grey, raw)
    image_shape = (raw.values.shape[1], raw.values.shape[2]) if raw.values.ndim == 3 else None
    if flatten or grey.ndim == 1:
        grey = grey.reshape(len(grey), -1)
    x = grey
    if binarisation == "threshold":
        x = threshold(grey)
    elif binarisation in ("static", "dynamic"):
        x = draw(grey, seed, raw.split)
    return Dataset(
        x=x,
        labels=None if raw.labels is None else torch.from_numpy(raw.labels.astype(np.int64)),
        name=raw.name,
        split=raw.split,
        binarisation=binarisation,
        image_shape=image_shape,
        columns=raw.columns,
        seed=seed,
        grey=grey if binarisation == "dynamic" else None,
        white=level,
        notes=raw.notes + notes,
        words=raw.words,
    )


def _scaled(
    values: Tensor, raw: Raw, binarisation: Binarisation, white: float | None
) -> tuple[Tensor, float, tuple[str, ...]]:
    """Values divided by the grey level of white, checked; that level; and what to say of it."""
    lines = None if raw.lines is None else raw.lines.tolist()
    check_finite(values, raw.name, columns=raw.columns, lines=lines)
    if white is not None and not 0 < white < float("inf"):
        raise ValueError(f"white {white}: expected a grey level above 0")
    level, notes = white or raw.white, ()
    if level is None:
        level = 1.0 if binarisation == "none" else white_of(values, raw.name)
    if level != raw.white and level != 1:
        notes = (f"divided by {level:g}",)
    grey = values if level == 1 else values.to(torch.get_default_dtype()) / level
    if binarisation != "none" or raw.white or white:
        expected = f"grey levels from 0 to {level:g} are expected"
        refuse_where((grey < 0) | (grey > 1), expected, raw.name, raw.columns, lines)
    return grey, level, notes


def white_of(values: Tensor, name: str) -> float:
    """The grey level of white: 1, or 255 where nothing else can be meant; else it must be said."""
    low, high = float(values.min()), float(values.max())
    if low < 0 or high <= 1 or high > 255 or not bool((values == values.round()).all()):
        return 1.0  # grey levels in [0, 1], or nothing of the kind: the range check will tell
    if high > 127:
        return 255.0
    raise DataError(
        f"integers from {low:g} to {high:g}: say white={high:g} or white=255, the level of white",
        name,
    )


def _warn_of_constants(x: Tensor, raw: Raw) -> None:
    if raw.values.ndim != 2 or raw.white is not None or len(x) < 2:
        return
    constant = [str(name) for name in constant_columns(x, raw.columns)]
    if constant:
        more = f" and {len(constant) - 5} more" if len(constant) > 5 else ""
        warnings.warn(
            f"{raw.name}: constant column {', '.join(constant[:5])}{more}: no density can be "
            "learnt of it; consider removing it",
            stacklevel=3,
        )


def constant_columns(x: Tensor, columns: tuple[str, ...] | None) -> list[int | str]:
    """Names or indices of the columns of ``(N, D)`` that hold one value only."""
    constant = (x == x[:1]).all(0).nonzero().flatten().tolist()
    return [c if columns is None else columns[c] for c in constant]
