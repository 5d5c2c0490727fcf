"""What is said of data that cannot be used, and the checks that say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

LARGEST = 1e18  # the square of anything much larger overflows float32 (3.4e38)


class DataError(ValueError):
    """Data that cannot be used, and where: ``path:row R, column C: what to do``.

    Args:
        message: what was expected, what came, what to do.
        where: the file, or the name of the tensor.
        row: in a CSV file the number of its line, from 1; in an array its first index, from 0.
        column: in a table its name; else the index within the row, from 0.
        missing: whether there is no such file at all (as opposed to a bad one).
    """

    def __init__(
        self,
        message: str,
        where: str | Path = "",
        *,
        row: int | None = None,
        column: int | str | tuple[int, ...] | None = None,
        missing: bool = False,
    ) -> None:
        self.where, self.row, self.column, self.missing = str(where), row, column, missing
        place = ", ".join(
            f"{kind} {value}"
            for kind, value in (("row", row), ("column", column))
            if value is not None
        )
        prefix = ":".join(part for part in (self.where, place) if part)
        super().__init__(f"{prefix}: {message}" if prefix else message)


@contextmanager
def refusing(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a parser raises on damaged bytes into a DataError.

    zipfile, gzip and numpy's header reader raise a dozen kinds between them.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError("there is no such file", path, missing=True) from error
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8: save the file as UTF-8", path) from error
    except Exception as error:
        raise DataError(f"{what} cannot be read: {error or type(error).__name__}", path) from error


def _name_of(position: Sequence[int], columns: Sequence[str] | None) -> int | str | tuple | None:
    if not position:
        return None
    if len(position) > 1:
        return tuple(position)
    return position[0] if columns is None else columns[position[0]]


def refuse_where(
    bad: Tensor,
    message: str,
    name: str | Path,
    columns: Sequence[str] | None = None,
    lines: Sequence[int] | None = None,
) -> None:
    """Raise a DataError at the first True of `bad`, in the order of rows; return if there is none.

    Args:
        bad: ``(N, ...)``, bool.
        message: what was expected and what to do.
        name: the file or the tensor.
        columns: the names of the columns, when ``bad`` is ``(N, D)``.
        lines: the number of the file's line for each row; None: the index is the number.
    """
    if not bool(bad.any()):
        return
    flat = bad.reshape(-1)
    position = int(flat.to(torch.uint8).argmax())
    count = int(flat.sum())
    index = [int(i) for i in torch.unravel_index(torch.tensor(position), bad.shape)] or [0]
    more = f" ({count} such values)" if count > 1 else ""
    raise DataError(
        message + more,
        name,
        row=index[0] if lines is None else int(lines[index[0]]),
        column=_name_of(index[1:], columns),
    )


def check_finite(
    x: Tensor,
    name: str | Path = "x",
    *,
    columns: Sequence[str] | None = None,
    lines: Sequence[int] | None = None,
) -> Tensor:
    """Refuse NaN, infinities and values too large to be squared; return `x`.

    Args:
        x: ``(N, ...)``.
        name: how the caller knows `x`: a file or an argument.
        columns: names of the columns.
        lines: the file's line of each row.

    Raises:
        DataError: at the first such value, by row and column; when `x` holds nothing.

    Example:
        >>> check_finite(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]), "survey.csv")
        Traceback (most recent call last):
        ...
        ppgen.data.errors.DataError: survey.csv:row 1, column 0: NaN: remove or fill missing values
    """
    if x.numel() == 0:
        raise DataError(f"no values: the shape is {tuple(x.shape)}", name)
    if not x.is_floating_point():
        return x
    low, high = x.aminmax()  # NaN if any is; one pass over good data, and no copy of them
    if low >= -LARGEST and high <= LARGEST:
        return x
    refuse_where(x.isnan(), "NaN: remove or fill missing values", name, columns, lines)
    refuse_where(x.isinf(), "infinite value", name, columns, lines)
    refuse_where(
        x.abs() > LARGEST,
        f"a value beyond {LARGEST:g}, whose square overflows float32: rescale the column",
        name,
        columns,
        lines,
    )
    return x


def check_rows(x: Tensor, name: str | Path = "x") -> Tensor:
    """`x` itself, where it is one example a row, and one at least.

    Raises:
        ValueError: for another shape; a plate would take one example alone for as many as it has
            numbers, without a word, and none at all for a division by zero.
    """
    if x.ndim != 2:
        raise ValueError(
            f"{name}: expected one example a row, (N, D); got {tuple(x.shape)}"
            + (f"; one alone is {name}[None]" if x.ndim == 1 else "")
        )
    if not len(x):
        raise ValueError(f"{name}: no examples, the shape is {tuple(x.shape)}; leave the batch out")
    return x


def check_binary(x: Tensor, name: str | Path = "x") -> Tensor:
    """Refuse anything but 0 and 1, and say which binarisation would help; return `x`.

    Args:
        x: ``(N, ...)``.
        name: how the caller knows `x`: a file or an argument.

    Raises:
        DataError: at the first value that is neither 0 nor 1, by row and column.
    """
    if x.dtype == torch.bool:
        return x
    check_finite(x, name)
    bad = (x != 0) & (x != 1)
    if not bool(bad.any()):
        return x
    low, high = float(x.min()), float(x.max())
    if low >= 0 and high <= 1:
        advice = 'grey levels: load them with binarisation="static", "dynamic" or "threshold"'
    elif low >= 0 and high <= 255:
        advice = (
            f"the values lie between {low:g} and {high:g}: divide by {_white(high)} and name "
            'binarisation="static", "dynamic" or "threshold"'
        )
    else:
        advice = f"the values lie between {low:g} and {high:g}: binary data are expected"
    first = x.reshape(-1)[bad.reshape(-1).to(torch.uint8).argmax()].item()
    refuse_where(bad, f"{first:g} is neither 0 nor 1; {advice}", name)
    return x


def _white(high: float) -> str:
    return "255" if high > 16 else f"{high:g} (the level of white)"
