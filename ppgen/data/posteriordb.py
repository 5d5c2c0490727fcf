"""A local clone of posteriordb: data and reference draws of posteriors, from zipped JSON.

posteriordb keeps for each posterior a Stan program, data, and 10,000 nearly independent draws of a
long run of NUTS. Nothing is downloaded and no code of the clone is run: clone
https://github.com/stan-dev/posteriordb (3-clause BSD) and say where it is.

References:
    | posteriordb: testing, benchmarking and developing Bayesian inference algorithms
      (Magnusson et al., 2024) | https://arxiv.org/abs/2407.04967
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppgen.data.errors import DataError, refusing

VARIABLE = "PPGEN_POSTERIORDB"
MOMENTS = Path(__file__).parent / "files" / "posteriordb.json"

_LARGEST = 2**29  # bytes of JSON in one archive
_SCALAR = re.compile(r"([A-Za-z]\w*)(?:\[(\d+(?:,\d+)*)\])?")
_PLAIN = re.compile(r"[\w.-]+")


def find(folder: str | Path | None = None) -> Path:
    """The folder ``posterior_database`` of a clone.

    Args:
        folder: the clone or that folder in it; the environment variable PPGEN_POSTERIORDB if None.

    Raises:
        DataError: where none is named, or it is no clone.
    """
    given = folder or os.environ.get(VARIABLE)
    if not given:
        raise DataError(
            f"no clone of posteriordb: name its folder with --posteriordb DIR or {VARIABLE} (git "
            "clone https://github.com/stan-dev/posteriordb)",
            missing=True,
        )
    for place in (Path(given), Path(given) / "posterior_database"):
        if (place / "posteriors").is_dir():
            return place
    raise DataError("not a clone of posteriordb: it has no posteriors/", given, missing=True)


def names(folder: str | Path | None = None) -> list[str]:
    """The posteriors that the clone describes."""
    return sorted(path.stem for path in (find(folder) / "posteriors").glob("*.json"))


def read_data(posterior: str, folder: str | Path | None = None) -> dict[str, Any]:
    """The data of a posterior, as Stan names them: numbers and nested lists of numbers.

    Raises:
        DataError: for a posterior that the clone lacks, or a file that is damaged.
    """
    root = find(folder)
    path = root / "data" / "data" / f"{_link(root, posterior, 'data_name')}.json.zip"
    found = _unzip(path)
    if not isinstance(found, dict):
        raise DataError(f"data are expected by name, got a {type(found).__name__}", path)
    return found


def read_reference(posterior: str, folder: str | Path | None = None) -> dict[str, np.ndarray]:
    """The reference draws of a posterior, constrained scale: ``(chains, draws, *shape)`` each.

    Raises:
        DataError: for a posterior that the clone lacks, one without draws, or a damaged file.
    """
    root = find(folder)
    name = _link(root, posterior, "reference_posterior_name")
    path = root / "reference_posteriors" / "draws" / "draws" / f"{name}.json.zip"
    chains = _unzip(path)
    if not isinstance(chains, list) or not chains or not isinstance(chains[0], dict):
        raise DataError("a list of chains is expected, each with its draws by name", path)
    with refusing(path, "reference draws"):
        if any(chain.keys() != chains[0].keys() for chain in chains):
            raise DataError("the chains have draws of different parameters", path)
        scalars = {
            name: np.array([chain[name] for chain in chains], dtype=np.float64)
            for name in chains[0]
        }
        shape = next(iter(scalars.values())).shape
        for name, values in scalars.items():
            if values.ndim != 2 or values.shape != shape or not np.isfinite(values).all():
                raise DataError(
                    f"draws of {name} have shape {values.shape} or are not finite; expected "
                    f"{shape}",
                    path,
                )
        return _stacked(scalars, path)


class Moments(NamedTuple):
    """Of one scalar under the reference draws, with the Monte Carlo errors of both."""

    mean: float
    sd: float
    mcse_mean: float
    mcse_sd: float


def moments(posterior: str) -> dict[str, Moments]:
    """Reference means and standard deviations that ship with ppgen, by scalar: ``theta[0]``.

    Raises:
        DataError: for a posterior that they do not cover.
    """
    shipped = json.loads(MOMENTS.read_bytes())["posteriors"]
    if posterior not in shipped:
        raise DataError(f"no posterior {posterior!r}{_among(list(shipped))}", MOMENTS, missing=True)
    return {name: Moments(*row) for name, row in shipped[posterior].items()}


def _stacked(scalars: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """``beta[1]``, ``beta[2]``, ... as one array; Stan counts from 1."""
    places: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for name, values in scalars.items():
        match = _SCALAR.fullmatch(name)
        if match is None:
            raise DataError(f"{name!r} is no name of a scalar, such as mu or beta[1]", path)
        index = tuple(int(i) - 1 for i in match[2].split(",")) if match[2] else ()
        places.setdefault(match[1], {})[index] = values
    sites = {}
    for name, entries in places.items():
        shape = tuple(max(axis) + 1 for axis in zip(*entries, strict=True))
        if set(entries) != set(np.ndindex(*shape)):
            raise DataError(f"draws of {name} have gaps in their indices", path)
        flat = np.stack([entries[index] for index in np.ndindex(*shape)], -1)
        sites[name] = flat.reshape(*flat.shape[:2], *shape)
    return sites


def _link(root: Path, posterior: str, key: str) -> str:
    """A name out of the description of a posterior; one that stays inside the clone."""
    path = root / "posteriors" / f"{posterior}.json"
    if not _PLAIN.fullmatch(posterior) or not path.is_file():
        raise DataError(
            f"no posterior {posterior!r} in this clone{_among(names(root))}", root, missing=True
        )
    with refusing(path, "the description of a posterior"):
        found = json.loads(path.read_bytes()).get(key)
    if not isinstance(found, str) or not _PLAIN.fullmatch(found) or set(found) == {"."}:
        raise DataError(f"{key} is {found!r}: a name is expected", path)
    return found


def _among(known: Sequence[str]) -> str:
    return f": there are {', '.join(known)}" if len(known) <= 20 else f", which has {len(known)}"


def _unzip(path: Path) -> Any:
    """The one JSON file of an archive."""
    if not path.is_file():
        raise DataError("the clone lacks this file", path, missing=True)
    with refusing(path, "zipped JSON"), zipfile.ZipFile(path) as archive:
        inside = [entry for entry in archive.infolist() if entry.filename.endswith(".json")]
        if len(inside) != 1:
            raise DataError(f"one JSON file is expected inside, got {len(inside)}", path)
        if inside[0].file_size > _LARGEST:
            raise DataError(f"{inside[0].file_size:,} bytes of JSON are too many", path)
        return json.loads(archive.read(inside[0]))
