"""CSV files as they stand: columns of numbers and of text, missing values and line numbers."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import isfinite, nan
from pathlib import Path
from typing import TextIO

import numpy as np

from ppgen.data.errors import DataError, refusing

_MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "."}
_LONGEST_LINE = 1 << 20  # characters, about 100,000 columns; a longer line is no table
_DELIMITERS = ",;\t"


@dataclass(frozen=True, eq=False)
class Parsed:
    """A CSV file as it stands, missing values included (as NaN, or an empty text)."""

    columns: tuple[str, ...] | None  # None without a header
    numbers: dict[int, np.ndarray]  # position of a column -> (N,) float64
    texts: dict[int, list[str]]  # position of a column -> N texts
    lines: np.ndarray  # (N,) the line of the file on which a row ends, from 1


def parse_csv(path: Path) -> Parsed:
    """Read a CSV file; a first line without any number is the header.

    Raises:
        DataError: for an empty or binary file, ragged rows, doubled names, text among numbers.
    """
    with refusing(path, "CSV data"), path.open(encoding="utf-8-sig", newline="") as stream:
        first = stream.readline(_LONGEST_LINE)
        stream.seek(0)
        delimiter = max(_DELIMITERS, key=first.count)
        reader = csv.reader(_lines(stream, path), delimiter=delimiter, strict=True)
        rows = ((reader.line_num, [cell.strip() for cell in row]) for row in reader if row)
        start = next(rows, None)
        if start is None:
            raise DataError("the file is empty", path)
        numbers = any(isfinite(nan if n is None else n) for n in map(_number, start[1]))
        header = None if numbers else start[1]
        if header is not None:
            _check_names(header, path)
            start = next(rows, None)
        if start is None:
            raise DataError("a header and no rows", path)
        return _columns(start, rows, None if header is None else tuple(header), path)


def _lines(stream: TextIO, path: Path) -> Iterator[str]:
    while line := stream.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise DataError(f"a line of more than {_LONGEST_LINE:,} characters: not a table", path)
        if "\0" in line:
            raise DataError("a zero byte: not a text file", path)
        yield line


def _check_names(names: list[str], path: Path) -> None:
    for position, name in enumerate(names):
        if not name and len(names) > 1:
            raise DataError("a column without a name", path, row=1, column=position)
        if names.index(name) != position:
            raise DataError(f"the name {name!r} stands twice in the header", path, row=1)


def _columns(
    start: tuple[int, list[str]],
    rows: Iterator[tuple[int, list[str]]],
    names: tuple[str, ...] | None,
    path: Path,
) -> Parsed:
    width = len(start[1]) if names is None else len(names)
    labels = range(width) if names is None else names
    is_number = [is_missing(cell) or _number(cell) is not None for cell in start[1]]
    numeric = [c for c in range(min(width, len(is_number))) if is_number[c]]
    textual = [c for c in range(width) if c not in set(numeric)]
    values, lines = array("d"), array("q")
    texts: dict[int, list[str]] = {c: [] for c in textual}
    for line, row in chain([start], rows):
        if len(row) != width:
            raise DataError(f"{len(row)} values; the first line has {width}", path, row=line)
        cells = [row[c] for c in numeric] if textual else row
        try:
            values.extend(list(map(float, cells)))
        except ValueError:  # rare, and slow enough to keep out of the common path
            values.extend(_number_or_missing(row[c], path, line, labels[c]) for c in numeric)
        for c in textual:
            texts[c].append(row[c])
        lines.append(line)
    table = np.array(values, dtype=float).reshape(len(lines), len(numeric))
    numbers = {c: table[:, i] for i, c in enumerate(numeric)}
    return Parsed(names, numbers, texts, np.array(lines, dtype=np.int64))


def _number_or_missing(cell: str, path: Path, line: int, column: int | str) -> float:
    if is_missing(cell):
        return float("nan")
    number = _number(cell)
    if number is None:
        raise DataError(
            f"{cell[:40]!r} is not a number, as the column's first value is",
            path,
            row=line,
            column=column,
        )
    return number


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def codes_of(parsed: Parsed, position: int, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """A column of texts as places, ``(N,)``, among those that there are, sorted.

    Raises:
        DataError: at the first missing one.
    """
    texts = parsed.texts[position]
    name = parsed.columns[position] if parsed.columns else position
    for line, text in zip(parsed.lines, texts, strict=True):
        if is_missing(text):
            raise DataError("missing value: remove or fill it", path, row=int(line), column=name)
    kinds = sorted(set(texts))
    code = {text: number for number, text in enumerate(kinds)}
    return np.array([code[text] for text in texts]), tuple(kinds)


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value: empty, NA, nan, null, none, ``?``, ``.``."""
    return cell.lower() in _MISSING
