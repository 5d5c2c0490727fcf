"""Pictures small enough to travel inside a page."""

from __future__ import annotations

import base64
import io
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DOTS = 110  # per inch
_LIMIT = 60_000  # bytes
_COLOURS = (256, 64, 32)


def compressed(image: Figure | bytes, limit: int = _LIMIT) -> bytes:
    """A PNG of about `limit` bytes or less: with fewer colours, then with fewer dots.

    Args:
        image: a matplotlib `Figure`, or the bytes of a PNG.
        limit: bytes to aim at; a picture that stays larger at 16 colours is taken as it is then.

    Raises:
        TypeError: when it is neither a figure nor bytes.
        ValueError: when the bytes are no PNG.
    """
    if isinstance(image, bytes):
        if not image.startswith(_SIGNATURE) or len(image) < 33:
            raise ValueError("a picture of bytes must be a PNG, and these do not start as one")
        return _fewer_colours(image, limit, (*_COLOURS, 16))
    if not hasattr(image, "savefig"):
        raise TypeError(
            f"a picture is a matplotlib Figure or the bytes of a PNG, not {type(image).__name__}"
        )
    page = b""
    for dots, colours in [(_DOTS, _COLOURS), (90, _COLOURS), (75, (*_COLOURS, 16))]:
        buffer = io.BytesIO()
        # no version inside: the same figure gives the same bytes
        image.savefig(buffer, format="png", dpi=dots, metadata={"Software": None})
        page = _fewer_colours(buffer.getvalue(), limit, colours)
        if len(page) <= limit:
            break
    return page


def dimensions(png: bytes) -> tuple[int, int]:
    """Width and height in pixels."""
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def data_address(png: bytes) -> str:
    """The picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _fewer_colours(png: bytes, limit: int, steps: tuple[int, ...]) -> bytes:
    from PIL import Image

    if len(png) <= limit:
        return png
    with Image.open(io.BytesIO(png)) as opened:
        flat = Image.new("RGB", opened.size, "white")
        flat.paste(opened, mask=opened.convert("RGBA").getchannel("A"))
    smallest = png
    for colours in steps:
        buffer = io.BytesIO()
        # by coverage, not by count: few pixels are text, and they must stay dark
        reduced = flat.quantize(
            colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
        reduced.save(buffer, format="PNG", compress_level=6)
        smallest = min(smallest, buffer.getvalue(), key=len)
        if len(smallest) <= limit:
            break
    return smallest
