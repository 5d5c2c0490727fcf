"""Tables: CSV files with a header, and the columns as arguments of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.data.csv_files import codes_of, parse_csv
from ppgen.data.errors import DataError, check_finite


class Table(dict[str, Tensor]):
    """Columns by name, each ``(N,)``: numbers as floats, text as integer codes.

    Args:
        columns: the columns.
        categories: for each text column its texts, sorted; a code is an index into them.
        path: the file, for messages.
    """

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        categories: Mapping[str, tuple[str, ...]] | None = None,
        path: str | Path = "",
    ) -> None:
        super().__init__(columns)
        self.categories = dict(categories or {})
        self.path = str(path)

    def matrix(self) -> Tensor:
        """All columns side by side, ``(N, D)``; refuses text, whose codes have no order."""
        if self.categories:
            names = ", ".join(self.categories)
            raise DataError(
                f"a matrix of numbers is wanted, but {names} holds text: give the model parameters "
                "with the columns' names instead, or remove the column",
                self.path,
            )
        return torch.stack(list(self.values()), -1)


def read_table(path: str | Path) -> Table:
    """Columns of a CSV file with a header, separated by commas, semicolons or tabs.

    A column is numeric when its first value is a number or missing, and text otherwise.

    Args:
        path: a UTF-8 text file.

    Raises:
        DataError: at the first missing, infinite or malformed value, by line and column's name.
    """
    path = Path(path)
    parsed = parse_csv(path)
    if parsed.columns is None:
        raise DataError(
            "the first line holds numbers: column names are expected there", path, row=1
        )
    columns: dict[str, Tensor] = {}
    categories: dict[str, tuple[str, ...]] = {}
    numbers = [column for _, column in sorted(parsed.numbers.items())]
    if numbers:
        names = [parsed.columns[c] for c in sorted(parsed.numbers)]
        check_finite(
            torch.from_numpy(np.stack(numbers, -1)),
            path,
            columns=names,
            lines=parsed.lines.tolist(),
        )
    for position, name in enumerate(parsed.columns):
        if position in parsed.numbers:
            columns[name] = torch.tensor(parsed.numbers[position], dtype=torch.get_default_dtype())
        else:
            codes, categories[name] = codes_of(parsed, position, path)
            columns[name] = torch.from_numpy(codes)
    return Table(columns, categories, path)


def arguments_for(model: Callable[..., Any], table: Table) -> dict[str, Tensor]:
    """Keyword arguments for `model` from the columns of `table`, by the parameters' names.

    A parameter called ``data``, or the only required one, gets all columns as a matrix when no
    column has its name. Parameters with a default keep it when no column has their name; columns
    that no parameter asks for are left out.

    Args:
        model: a story.
        table: from `read_table`.

    Raises:
        DataError: when a required parameter has no column, or nothing matches at all.

    Example:
        >>> table = Table({"dose": torch.zeros(3), "died": torch.ones(3), "site": torch.ones(3)})
        >>> sorted(arguments_for(lambda dose, died=None: None, table))
        ['died', 'dose']
    """
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the parameters of {model!r} are not known: {error}", table.path
        ) from error
    names = [p.name for p in parameters if p.kind in named]
    required = [p.name for p in parameters if p.kind in named and p.default is p.empty]
    arguments = {name: table[name] for name in names if name in table}
    unmatched = [name for name in required if name not in table]
    if "data" in names and "data" not in table:
        arguments["data"] = table.matrix()
    elif unmatched and len(required) == 1:
        arguments[required[0]] = table.matrix()
    missing = [name for name in unmatched if name not in arguments]
    if missing or (names and not arguments):
        what = (
            f"no column for {', '.join(missing)}" if missing else "no column has a parameter's name"
        )
        raise DataError(
            f"{what}; columns: {', '.join(table)}; the model's parameters: {', '.join(names)}. "
            "Name the columns as the parameters, or call one parameter 'data' to get them all",
            table.path,
        )
    return arguments
