"""The directive ``gallery``: every tutorial with its picture, its title and its first sentence.

The picture is the last one of the notebook, or the one whose cell carries the tag ``thumbnail``;
the sentence is the first of the notebook's first cell without a formula.
"""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Gallery(SphinxDirective):
    """``.. gallery:: FOLDER``, relative to the sources: a card for each numbered notebook."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        folder = Path(self.env.srcdir) / self.arguments[0]
        pictures = Path(self.env.app.outdir) / "_static" / "gallery"
        pictures.mkdir(parents=True, exist_ok=True)
        cards = []
        for path in sorted(folder.glob("[0-9]*.ipynb")):
            self.env.note_dependency(str(path))
            cards.append(_card(path, self.arguments[0], pictures, self._up()))
        return [nodes.raw("", f'<div class="gallery">{"".join(cards)}</div>', format="html")]

    def _up(self) -> str:
        return "../" * self.env.docname.count("/")


def _card(path: Path, folder: str, pictures: Path, up: str) -> str:
    notebook = nbformat.read(path, as_version=4)
    title, sentence = introduction(notebook)
    picture = thumbnail(notebook)
    image = ""
    if picture is not None:
        (pictures / f"{path.stem}.png").write_bytes(picture)
        image = f'<img src="{up}_static/gallery/{path.stem}.png" alt="" loading="lazy">'
    link = f"{up}{folder}/{path.stem}.html"
    text = f"<strong>{html.escape(title)}</strong><p>{html.escape(sentence)}</p>"
    return f'<a href="{link}">{image}{text}</a>'


def introduction(notebook: Any) -> tuple[str, str]:
    """Title and first sentence of a notebook, as plain text."""
    source = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading, _, rest = source.partition("\n")
    rest = re.sub(r":\n\n", ".\n\n", re.sub(r"\*\*Result first\.\*\*|^\|.*$", "", rest, flags=re.M))
    text = re.sub(r"\s+", " ", rest)
    sentences = re.findall(r"[^.!?]*(?:[.!?](?!\s|$)[^.!?]*)*[.!?](?=\s|$)", text)
    # one with a formula in it would be unreadable as plain text
    plain = next((s for s in sentences if "$" not in s and "#" not in s), "")
    return heading.lstrip("# ").replace("`", ""), re.sub(r"[*`]", "", plain).strip()


def thumbnail(notebook: Any) -> bytes | None:
    """The tagged picture of a notebook, else its last one."""
    found = None
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png is not None:
                found = base64.b64decode(png)
                if "thumbnail" in cell.metadata.get("tags", []):
                    return found
    return found


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.add_directive("gallery", Gallery)
    return {"version": "1", "parallel_read_safe": True}
