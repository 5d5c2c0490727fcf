""".npy and .npz files, read without pickle and without trusting their headers."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ppgen.data.errors import DataError, refusing
from ppgen.data.idx import BOMB_BYTES, BOMB_RATIO

MAGIC = b"\x93NUMPY"


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file.

    Raises:
        DataError: when it holds objects or records, or other than its header says.
    """
    with refusing(path, ".npy data"), path.open("rb") as stream:
        return _array(stream, path.stat().st_size, path)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name.

    Raises:
        DataError: as `read_npy`; for a member with a folder in its name, or a zip bomb.
    """
    with refusing(path, ".npz data"), zipfile.ZipFile(path) as archive:
        arrays = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if "/" in name or "\\" in name or ".." in name:
                raise DataError(f"member {member.filename!r} has a folder in its name", path)
            if member.file_size > max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size):
                raise DataError(
                    f"member {name!r} promises {member.file_size:,} bytes from a file of "
                    f"{path.stat().st_size:,}: not unpacked",
                    path,
                )
            with archive.open(member) as stream:
                arrays[name] = _array(cast(BinaryIO, stream), member.file_size, path)
        return arrays


def _array(stream: BinaryIO, size: int, path: Path) -> np.ndarray:
    """One array whose header and data take `size` bytes of `stream`."""
    if size == 0:
        raise DataError("the file is empty", path)
    shape, fortran, dtype, header = _header(stream, path)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        kind = "Python objects (pickle)" if dtype.hasobject else f"dtype {dtype}"
        raise DataError(
            f"the array holds {kind}; expected bool, integers or floats: save it with "
            "np.save(path, np.asarray(x, dtype=float))",
            path,
        )
    promised = math.prod(shape) * dtype.itemsize  # Python's integers: no overflow
    if any(length < 0 for length in shape) or promised != size - header:
        raise DataError(
            f"the header promises {promised:,} bytes, shape {shape}; {size - header:,} follow it",
            path,
        )
    data = stream.read(promised)
    if len(data) < promised or stream.read(1):  # the second read verifies the zip's checksum
        raise DataError(f"truncated: {promised:,} bytes expected, {len(data):,} came", path)
    array = np.frombuffer(bytearray(data), dtype)
    array = array.reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False)).reshape(shape)


def _header(stream: BinaryIO, path: Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether in Fortran's order, dtype, and the header's length in bytes."""
    start = stream.read(10)
    if start[:6] != MAGIC:
        raise DataError(f"not numpy data: it starts with {start[:6].hex(' ')}", path)
    if start[6:8] not in (b"\1\0", b"\2\0"):
        raise DataError("numpy format 3 or newer: records with non-ASCII names", path)
    wide = start[6] == 2  # version 2 counts the header's length in four bytes
    start += stream.read(2 if wide else 0)
    length = int.from_bytes(start[8:], "little")
    if length > 10_000:
        raise DataError(f"a numpy header of {length:,} bytes", path)
    text = io.BytesIO(start[8:] + stream.read(length))
    read = np.lib.format.read_array_header_2_0 if wide else np.lib.format.read_array_header_1_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of headers that Python 2 wrote
        shape, fortran, dtype = read(text)
    return shape, fortran, dtype, len(start) + length
