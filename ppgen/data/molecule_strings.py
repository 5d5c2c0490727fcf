"""Molecules as strings of tokens: SMILES and SELFIES, with properties computed beforehand."""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ppgen.data.errors import DataError, refusing
from ppgen.data.tokens import Level, Tokenizer

MOLECULES = Path(__file__).parent / "files" / "molecules.tsv.gz"
PROPERTIES = ("qed", "logp", "penalised_logp")

Notation = Literal["smiles", "selfies"]


@dataclass(frozen=True)
class Vocabulary(Tokenizer):
    """The tokenizer of molecules: its tokens are symbols of SMILES or SELFIES.

    Example:
        >>> vocabulary = Vocabulary.of(["CCBr", "C[nH]"])
        >>> vocabulary.tokens
        ('C', 'Br', '[nH]')
        >>> vocabulary.decode(vocabulary.encode(["BrC"]))
        ['BrC']
    """

    level: Level = "symbol"


@dataclass(frozen=True, eq=False, repr=False)
class Molecules:
    """One part of the molecules that ship with the package.

    Args:
        x: the strings as rows of `vocabulary`, ``(N, T)``, int64; both parts have the same T.
        vocabulary: what the numbers mean, the same for both parts.
        notation: ``"smiles"`` or ``"selfies"``.
        smiles: each molecule as SMILES, whatever the notation of `x`.
        properties: ``(N, 3)``, columns `PROPERTIES`: the quantitative estimate of drug-likeness
            in [0, 1], the octanol-water log P of Crippen, and log P less the synthetic
            accessibility score less the atoms beyond six in the largest ring (not standardised).
        split: ``"train"`` or ``"test"``.
    """

    x: Tensor
    vocabulary: Vocabulary
    notation: Notation
    smiles: tuple[str, ...]
    properties: Tensor
    split: str

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"<Molecules {self.describe()}; x {tuple(self.x.shape)}>"

    def describe(self) -> str:
        """What must stand beside every result.

        Example:
            >>> molecules("test").describe()
            'molecules of MOSES, test, 1500 as SELFIES'
        """
        return f"molecules of MOSES, {self.split}, {len(self)} as {self.notation.upper()}"


def molecules(split: str = "train", notation: Notation = "selfies") -> Molecules:
    """13,500 molecules to train on or 1,500 to test with, of the MOSES benchmark.

    Nothing but this package is needed: strings and properties were computed beforehand. The rows
    are sorted; ``LICENCES.md`` beside the file says how they were chosen.

    Args:
        split: ``"train"`` or ``"test"``.
        notation: ``"selfies"``, of which every string is a molecule, or ``"smiles"``.

    Raises:
        DataError: for a split that there is not, or a damaged file.

    References:
        | Molecular Sets (Polykovskiy et al., 2020) | https://arxiv.org/abs/1811.12823
        | SELFIES (Krenn et al., 2020) | https://arxiv.org/abs/1905.13741
    """
    if split not in ("train", "test"):
        raise DataError(f"no split {split!r}; molecules has train and test", "molecules")
    if notation not in ("smiles", "selfies"):
        raise DataError(f"no notation {notation!r}; there is smiles and selfies", "molecules")
    table = _table()
    strings = table[notation]
    vocabulary = Vocabulary.of(strings)
    x = vocabulary.encode(strings)
    rows = [i for i, part in enumerate(table["split"]) if part == split]
    numbers = np.array([table[name] for name in PROPERTIES], np.float64).T
    return Molecules(
        x[rows],
        vocabulary,
        notation,
        tuple(table["smiles"][i] for i in rows),
        torch.from_numpy(numbers[rows]).to(torch.get_default_dtype()),
        split,
    )


@cache
def _table() -> dict[str, tuple[str, ...]]:
    """The columns of the file by name, its letters written out as SELFIES tokens."""
    with refusing(MOLECULES, "molecules"):
        legend, header, *lines = gzip.decompress(MOLECULES.read_bytes()).decode().splitlines()
        letters = dict(entry.split("=", 1) for entry in legend.removeprefix("# ").split())
        columns = zip(*(line.split("\t") for line in lines), strict=True)
        table = dict(zip(header.split("\t"), columns, strict=True))
        table["selfies"] = tuple("".join(letters[c] for c in word) for word in table["selfies"])
    return table


def molsets(split: str = "train") -> list[str]:
    """All SMILES of the MOSES benchmark, from the installed package `molsets`.

    Nothing of that package is run, only its file is read: 1,584,663 molecules to train on,
    176,074 to test with. ``pip install --no-deps molsets``; its other requirements no longer build.

    Args:
        split: ``"train"``, ``"test"`` or ``"test_scaffolds"``.

    Raises:
        DataError: when it is not installed, with what to do; for a split that there is not.
    """
    if split not in ("train", "test", "test_scaffolds"):
        raise DataError(f"no split {split!r}; there is train, test, test_scaffolds", "molsets")
    spec = importlib.util.find_spec("moses")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "not installed: pip install --no-deps molsets; or use ppgen.data.molecules, 15,000 of "
            "its molecules that ship with ppgen",
            "molsets",
            missing=True,
        )
    path = Path(spec.submodule_search_locations[0]) / "dataset" / "data" / f"{split}.csv.gz"
    with refusing(path, "SMILES"):
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        column = lines[0].split(",").index("SMILES")
        return [line.split(",")[column] for line in lines[1:]]
