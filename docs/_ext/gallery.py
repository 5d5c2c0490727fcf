"""The directive ``gallery``: every tutorial with its number, a picture, its title and a sentence.

Its body has a line for each notebook: number, point, which of the notebook's pictures, sentence. ::

    ```{gallery} tutorials
    02.1 Potentials over cliques become an energy.
    ```
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Gallery(SphinxDirective):
    """``.. gallery:: FOLDER``, relative to the sources: a card for each numbered notebook."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        folder = Path(self.env.srcdir) / self.arguments[0]
        pictures = Path(self.env.app.outdir) / "_static" / "gallery"
        pictures.mkdir(parents=True, exist_ok=True)
        cards, lines = [], _lines(self.content)
        for path in sorted(folder.glob("[0-9]*.ipynb")):
            self.env.note_dependency(str(path))
            if path.stem[:2] not in lines:
                raise self.error(f"no line for {path.name}")
            picture, sentence = lines.pop(path.stem[:2])
            cards.append(_card(path, self.arguments[0], pictures, self._up(), picture, sentence))
        if lines:
            raise self.error(f"no notebook for {', '.join(lines)}")
        return [nodes.raw("", f'<div class="gallery">{"".join(cards)}</div>', format="html")]

    def _up(self) -> str:
        return "../" * self.env.docname.count("/")


def _lines(content: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Number of a notebook -> which picture, sentence; a line may go on, indented, on the next."""
    whole = re.sub(r"\n +", " ", "\n".join(content))
    found = re.findall(r"^(\d\d)\.(\d+) (.+)$", whole, re.M)
    return {number: (int(picture), sentence) for number, picture, sentence in found}


def _card(path: Path, folder: str, pictures: Path, up: str, picture: int, sentence: str) -> str:
    notebook = nbformat.read(path, as_version=4)
    (pictures / f"{path.stem}.png").write_bytes(pictures_of(notebook)[picture - 1])
    image = f'<img src="{up}_static/gallery/{path.stem}.png" alt="" loading="lazy">'
    title = f"{path.stem[:2]} {html.escape(title_of(notebook))}"
    text = f"<strong>{title}</strong><p>{html.escape(sentence)}</p>"
    return f'<a href="{up}{folder}/{path.stem}.html">{image}{text}</a>'


def title_of(notebook: Any) -> str:
    """The first line of the notebook, without its mark."""
    source = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return source.partition("\n")[0].lstrip("# ").replace("`", "")


def pictures_of(notebook: Any) -> list[bytes]:
    """All PNGs, in order."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    found = (output.get("data", {}).get("image/png") for output in outputs)
    return [base64.b64decode(png) for png in found if png is not None]


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.add_directive("gallery", Gallery)
    return {"version": "1", "parallel_read_safe": True}
