"""Molecules as strings of tokens: SMILES and SELFIES, with properties computed beforehand."""

from __future__ import annotations

import gzip
import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ppgen.data.errors import DataError, refusing

MOLECULES = Path(__file__).parent / "files" / "molecules.tsv.gz"
PROPERTIES = ("qed", "logp", "penalised_logp")
END = 0  # the number that ends a string, and fills the places after it

Notation = Literal["smiles", "selfies"]

# a bracket is one symbol, [nH] or [=Branch1], and so are the elements of two letters
_TOKEN = re.compile(r"\[[^\[\]]*\]|Br|Cl|[^\[\]]")


def split_tokens(string: str) -> list[str]:
    """The tokens of a SMILES or SELFIES string, whose concatenation it is.

    Example:
        >>> split_tokens("BrC1=C[nH]C=C1"), split_tokens("[C][=O]")
        (['Br', 'C', '1', '=', 'C', '[nH]', 'C', '=', 'C', '1'], ['[C]', '[=O]'])
    """
    tokens = _TOKEN.findall(string)
    if sum(map(len, tokens)) != len(string):
        raise DataError(f"{string!r} has a bracket without its other half", "molecules")
    return tokens


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by number: 0 ends a string and fills what is left, the first token has number 1."""

    tokens: tuple[str, ...]

    @classmethod
    def of(cls, strings: Iterable[str]) -> Vocabulary:
        """The tokens that occur in `strings`, sorted."""
        return cls(tuple(sorted({token for s in strings for token in split_tokens(s)})))

    def __len__(self) -> int:
        """How many numbers there are, the end included."""
        return len(self.tokens) + 1

    def encode(self, strings: Sequence[str], length: int | None = None) -> Tensor:
        """Strings as numbers, ``(N, length)``, int64.

        Args:
            strings: N of them.
            length: of a row; None: that of the longest string. A string of just that length has
                no end.

        Raises:
            DataError: for an unknown token or a longer string, by its row.
        """
        number = {token: i for i, token in enumerate(self.tokens, 1)}
        split = [split_tokens(s) for s in strings]
        width = max(map(len, split), default=0) if length is None else length
        rows = np.full((len(split), width), END, np.int64)
        for row, tokens in enumerate(split):
            unknown = next((t for t in tokens if t not in number), None)
            if unknown is not None:
                raise DataError(f"token {unknown!r} is not in the vocabulary", "strings", row=row)
            if len(tokens) > width:
                raise DataError(
                    f"{len(tokens)} tokens, but at most {width} fit", "strings", row=row
                )
            rows[row, : len(tokens)] = [number[t] for t in tokens]
        return torch.from_numpy(rows)

    def decode(self, x: Tensor) -> list[str]:
        """Numbers ``(N, T)`` as strings; what follows an end is not looked at."""
        words = ("", *self.tokens)
        strings = []
        for row in x.tolist():
            end = row.index(END) if END in row else len(row)
            strings.append("".join(words[i] for i in row[:end]))
        return strings


@dataclass(frozen=True, eq=False, repr=False)
class Molecules:
    """One part of the molecules that ship with the package.

    Args:
        x: the strings as numbers, ``(N, T)``, int64; both parts have the same T.
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
