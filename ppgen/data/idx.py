"""IDX files (MNIST's format), gzipped or not, read without trusting their headers."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ppgen.data.errors import DataError, refusing

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 24  # bytes read at a time
# Images shrink 5 to 50 times under gzip, zeros 230 to 1030 times. Beyond both, it is a bomb.
BOMB_RATIO, BOMB_BYTES = 128, 1 << 26


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, in the machine's byte order.

    The header's promise is checked against the size of the file before anything is allocated, and
    never more than the promise and one byte is unpacked.

    Raises:
        DataError: when the header is no IDX header, or the file holds less or more than it says.
    """
    with refusing(path, "IDX data"), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            return _read(raw, path, packed)
        with gzip.GzipFile(fileobj=raw) as unpacked:
            return _read(cast(BinaryIO, unpacked), path, packed)


def _read(stream: BinaryIO, path: Path, packed: bool) -> np.ndarray:
    dtype, shape, header = _header(stream, path)
    promised = math.prod(shape) * dtype.itemsize  # Python's integers: no overflow
    size = path.stat().st_size
    if packed and promised > max(BOMB_BYTES, BOMB_RATIO * size):
        raise DataError(
            f"the header promises {promised:,} bytes from a gzip file of {size:,}: not unpacked",
            path,
        )
    if not packed and promised != size - header:
        raise DataError(
            f"the header promises {promised:,} bytes, shape {shape}; {size - header:,} follow it",
            path,
        )
    data = np.empty(promised, np.uint8)
    view, filled = data.data, 0
    while filled < promised:
        got = stream.readinto(view[filled : filled + _CHUNK])  # pyright: ignore[reportAttributeAccessIssue]
        if not got:
            raise DataError(
                f"truncated: the header promises {promised:,} bytes, {filled:,} came", path
            )
        filled += got
    if stream.read(1):  # also makes gzip verify its checksum, which stands at the end
        raise DataError(f"data go on after the {promised:,} bytes that the header promises", path)
    array = data.view(dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _header(stream: BinaryIO, path: Path) -> tuple[np.dtype, tuple[int, ...], int]:
    magic = stream.read(4)
    if len(magic) < 4:
        raise DataError("truncated within the IDX header" if magic else "the file is empty", path)
    if magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 1 <= magic[3] <= 8:
        raise DataError(f"not an IDX file: it starts with {magic.hex(' ')}", path)
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError("truncated within the IDX header", path)
    shape = struct.unpack(f">{magic[3]}I", sizes)
    return np.dtype(_TYPES[magic[2]]), shape, 4 + len(sizes)
