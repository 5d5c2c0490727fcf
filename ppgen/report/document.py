"""A report: headings, paragraphs, tables and pictures, as plain data, saved as one HTML file.

The file stands alone: pictures and style are inside, it runs no script and asks for no address. It
is readable in light and dark, on a telephone and on paper. All text is escaped.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ppgen.report.cells import Cell, numeric, show, show_column
from ppgen.report.png import compressed, data_address, dimensions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mark = Literal["ok", "warn", "bad"]


class _Shown(NamedTuple):
    text: str
    style: str  # classes of the cell
    mark: str
    padded: bool  # room is left for a sign


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Args:
        columns: names, with their units.
        rows: as many cells each as there are columns; the numbers of a column share
            their decimals, NaN reads "unknown", None is left open.
        caption: what the table says; it stands above.
        marks: (row, column) -> verdict on that cell, shown by colour and by sign.

    Raises:
        ValueError: when a row has another length, or a mark has no cell.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    marks: Mapping[tuple[int, int], Mark] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for k, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {k} has {len(row)} cells for {len(self.columns)} columns")
        for (row, column), mark in self.marks.items():
            if not (0 <= row < len(self.rows) and 0 <= column < len(self.columns)):
                raise ValueError(f"mark at ({row}, {column}): the table has no such cell")
            if mark not in _SIGNS:
                raise ValueError(f"mark {mark!r}: expected one of {', '.join(_SIGNS)}")

    def cells(self) -> list[list[_Shown]]:
        """The rows as they are shown."""
        texts = [show_column([row[j] for row in self.rows]) for j in range(len(self.columns))]
        marked = {column for _, column in self.marks}
        shown = []
        for i, row in enumerate(self.rows):
            shown.append([])
            for j, cell in enumerate(row):
                mark = self.marks.get((i, j), "")
                style = "number" if numeric(cell) else "text"
                padded = j in marked and numeric(cell)  # digits stay below digits
                shown[-1].append(_Shown(texts[j][i], f"{style} {mark}".strip(), mark, padded))
        return shown

    def numeric(self, column: int) -> bool:
        """Whether the column's head stands above numbers."""
        return any(numeric(row[column]) for row in self.rows)


@dataclass(frozen=True)
class Picture:
    """A figure or a finished PNG.

    Args:
        image: a matplotlib `Figure`, or the bytes of a PNG.
        caption: what to see in it; it stands below.
        alt: the same for those who cannot see it; the caption when empty.
    """

    image: Figure | bytes
    caption: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, tables and pictures, in this order."""

    heading: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Verdict:
    """The one sentence to remember, and whether it is good news."""

    level: Literal["pass", "warn", "fail"]
    text: str


@dataclass(frozen=True)
class Report:
    """One page.

    Args:
        title: of the page.
        sections: in order; the navigation lists their headings.
        subtitle: under the title.
        verdict: shown on top, as a badge.
        facts: name -> value, at the foot: versions, seed, machine.
        lang: language of the text.

    Raises:
        ValueError: when the verdict's level is unknown.
    """

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    verdict: Verdict | None = None
    facts: Mapping[str, Cell] = field(default_factory=dict)
    lang: str = "en"

    def __post_init__(self) -> None:
        if self.verdict is not None and self.verdict.level not in _BADGES:
            raise ValueError(
                f"verdict {self.verdict.level!r}: expected one of {', '.join(_BADGES)}"
            )

    def html(self) -> str:
        """The page as text."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["show"] = show
        template = environment.get_template("report.html.jinja")
        return template.render(report=self, signs=_SIGNS, badges=_BADGES, embed=_embed)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page whole or not at all; the folder is made if need be."""
        path = Path(path)
        page = self.html().encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's own mode shuts other readers out
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return path


_SIGNS = {"ok": ("✓", "passes"), "warn": ("!", "doubtful"), "bad": ("✗", "fails")}
_BADGES = {"pass": ("✓", "Pass"), "warn": ("!", "Warning"), "fail": ("✗", "Fail")}


def _embed(picture: Picture) -> dict[str, str | int]:
    image = compressed(picture.image)
    width, height = dimensions(image)
    return {"address": data_address(image), "width": width, "height": height}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
