"""Where data are looked for, and how the files found there are known to be the right ones."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ppgen.data.earth import EARTHQUAKES, earthquakes
from ppgen.data.errors import DataError
from ppgen.data.idx import read_idx
from ppgen.data.molecule_strings import MOLECULES
from ppgen.data.numpy_files import read_npz

DIGITS = Path(__file__).parent / "files" / "digits.npz"
SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class Raw:
    """Data as a file holds them."""

    values: np.ndarray  # (N, ...)
    name: str
    format: str  # "npy", "npz", "csv" or "idx"
    split: str = "all"
    labels: np.ndarray | None = None  # (N,)
    words: tuple[str, ...] | None = None  # that the labels are places among, where they are texts
    white: float | None = None  # grey level of white, where the format or the set defines it
    columns: tuple[str, ...] | None = None
    lines: np.ndarray | None = None  # (N,) line numbers of a CSV file
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageSet:
    """A published set of four IDX files."""

    name: str
    description: str
    licence: str
    layout: str  # torchvision's folder
    sizes: dict[str, int]
    shape: tuple[int, int] = (28, 28)
    unpacked: dict[str, str] = field(default_factory=dict)  # file's stem -> md5 of the IDX data
    packed: dict[str, str] = field(
        default_factory=dict
    )  # file's stem -> md5 of the .gz as published
    system: tuple[str, ...] = ()  # folders of the operating system's packages


SETS = {
    "mnist": ImageSet(
        "mnist",
        "handwritten digits, 28x28, grey levels (LeCun, Cortes and Burges)",
        "CC BY-SA 3.0",
        "MNIST/raw",
        {"train": 60_000, "test": 10_000},
        unpacked={
            "train-images": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels": "a25bea736e30d166cdddb491f175f624",
            "t10k-images": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels": "27ae3e4e09519cfbb04c329615203637",
        },
    ),
    "fashion-mnist": ImageSet(
        "fashion-mnist",
        "articles of clothing, 28x28, grey levels (Xiao, Rasul and Vollgraf, 2017)",
        "MIT",
        "FashionMNIST/raw",
        {"train": 60_000, "test": 10_000},
        # as published at github.com/zalandoresearch/fashion-mnist (and its issue 77); a package
        # that has packed the files anew has others
        packed={
            "train-images": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        system=("/usr/share/datasets/fashion-mnist",),
    ),
}


IMAGES = ("digits", *SETS)
NAMES = (*IMAGES, "earthquakes")


@dataclass(frozen=True)
class Available:
    """One line of ``ppgen data list``."""

    name: str
    description: str
    licence: str
    looked_for: tuple[str, ...]
    found: str | None  # where; None when it stands nowhere


def list_available(folder: str | Path | None = None) -> list[Available]:
    """The named data sets, their licences, where they are looked for and where they were found."""
    digits = Available(
        "digits",
        "handwritten digits, 8x8, 17 grey levels (Alpaydin and Kaynak, 1998)",
        "CC BY 4.0 (see LICENCES.md beside it)",
        (str(DIGITS),),
        str(DIGITS) if DIGITS.is_file() else None,
    )
    found = [digits]
    for images in SETS.values():
        folders = list(_folders(images, folder))
        place = next((f for f in folders if _file(f, "train-images") is not None), None)
        found.append(
            Available(
                images.name,
                images.description,
                images.licence,
                tuple(str(f) for f in folders),
                None if place is None else str(place),
            )
        )
    found.append(
        Available(
            "earthquakes",
            "1,707 seismic events of one week of 2018, unit vectors of the globe (USGS)",
            "public domain (see LICENCES.md beside it)",
            (str(EARTHQUAKES),),
            str(EARTHQUAKES) if EARTHQUAKES.is_file() else None,
        )
    )
    found.append(
        Available(
            "molecules",
            "15,000 molecules of MOSES with properties; ppgen.data.molecules reads them",
            "MIT (see LICENCES.md beside it)",
            (str(MOLECULES),),
            str(MOLECULES) if MOLECULES.is_file() else None,
        )
    )
    return found


def read_named(name: str, split: str, folder: str | Path | None) -> Raw:
    """One split of a named data set.

    Raises:
        DataError: when its files stand nowhere, are damaged, or are those of another set.
    """
    if split not in SPLITS:
        raise DataError(f"no split {split!r}; {name} has train and test", name)
    if name == "digits":
        arrays = read_npz(DIGITS)
        rows = arrays["test"] == (split == "test")
        x, labels = arrays["x"][rows], arrays["labels"][rows]
        return Raw(x, name, "npz", split, labels, white=16.0)
    if name == "earthquakes":
        return Raw(earthquakes(split), name, "npz", split, columns=("x", "y", "z"))
    images = SETS[name]
    stem = "train" if split == "train" else "t10k"
    path = _find(images, f"{stem}-images", folder)
    values = read_idx(path)
    if values.shape != (images.sizes[split], *images.shape) or values.dtype != np.uint8:
        raise DataError(
            f"{name} {split} has {images.sizes[split]:,} images of {images.shape}, as bytes; this "
            f"file holds {values.shape}, {values.dtype}; to use it, load it by its path",
            path,
        )
    verified = _verified(images, f"{stem}-images", path, values)
    labels = None
    labels_path = _file(path.parent, f"{stem}-labels")
    if labels_path is not None:
        labels = read_idx(labels_path)
        if labels.shape != values.shape[:1] or labels.dtype != np.uint8 or labels.max() > 9:
            raise DataError(f"expected {len(values):,} labels from 0 to 9", labels_path)
        verified &= _verified(images, f"{stem}-labels", labels_path, labels)
    notes = () if verified else ("checksum unknown",)
    return Raw(values, name, "idx", split, labels, white=255.0, notes=notes)


def _verified(images: ImageSet, stem: str, path: Path, values: np.ndarray) -> bool:
    """Whether the file is known to be the published one; refuses another set's and damaged ones."""
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(values.data)
    for other in SETS.values():
        if other is not images and digest.hexdigest() in other.unpacked.values():
            raise DataError(f"this is a file of {other.name}, not of {images.name}", path)
    expected = images.unpacked.get(stem)
    if expected is not None:
        if digest.hexdigest() != expected:
            raise DataError(
                f"md5 of the unpacked data is {digest.hexdigest()}, expected {expected}: damaged "
                f"or not {images.name}; load it by its path to use it all the same",
                path,
            )
        return True
    if path.suffix != ".gz":
        return False
    packed = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return packed == images.packed.get(stem)


def _find(images: ImageSet, stem: str, folder: str | Path | None) -> Path:
    folders = list(_folders(images, folder))
    for place in folders:
        path = _file(place, stem)
        if path is not None:
            return path
    raise DataError(
        f"no {stem}-idx3-ubyte or .gz found in {', '.join(map(str, folders))}; put the four IDX "
        "files into one of them, name their folder (folder=; --folder in a shell), or set "
        "PPGEN_DATA",
        images.name,
        missing=True,
    )


def _file(folder: Path, stem: str) -> Path | None:
    kind = "idx3" if stem.endswith("images") else "idx1"
    for name in (f"{stem}-{kind}-ubyte", f"{stem}.{kind}-ubyte"):
        for suffix in ("", ".gz"):
            path = folder / (name + suffix)
            if path.is_file():
                return path
    return None


def _folders(images: ImageSet, folder: str | Path | None) -> Iterator[Path]:
    """Where the set is looked for, best first; below each also in torchvision's layout."""
    if folder is not None:
        roots = [Path(folder), Path(folder) / images.name]
    else:
        roots = [Path("data") / images.name, Path("data")]
        if os.environ.get("PPGEN_DATA"):
            root = Path(os.environ["PPGEN_DATA"])
            roots = [root / images.name, root, *roots]
        with contextlib.suppress(RuntimeError):  # no home folder
            roots.append(Path.home() / ".cache" / "ppgen" / images.name)
        roots.extend(Path(place) for place in images.system)
    for root in roots:
        yield root
        yield root / images.layout
