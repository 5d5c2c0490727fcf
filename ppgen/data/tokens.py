"""Sentences and molecules as rows of numbers, and back: a vocabulary of words or symbols."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from ppgen.data.errors import DataError, refuse_where

Level = Literal["word", "character", "symbol"]

PAD, BOS, EOS, UNK = range(4)  # padding, beginning, end of sentence, unknown token
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")

# a bracket is one symbol, [nH] or [=Branch1], and so are the elements of two letters
_SYMBOL = re.compile(r"\[[^\[\]]*\]|Br|Cl|[^\[\]]")


def split_tokens(string: str) -> list[str]:
    """The symbols of a SMILES or SELFIES string, whose concatenation it is.

    Raises:
        DataError: where a bracket is not closed.

    Example:
        >>> split_tokens("BrC1=C[nH]C=C1"), split_tokens("[C][=O]")
        (['Br', 'C', '1', '=', 'C', '[nH]', 'C', '=', 'C', '1'], ['[C]', '[=O]'])
    """
    tokens = _SYMBOL.findall(string)
    if sum(map(len, tokens)) != len(string):
        raise DataError(f"{string!r} has a bracket without its other half", "molecules")
    return tokens


@dataclass(frozen=True)
class Tokenizer:
    """The vocabulary of a text, and sentences as rows of it.

    A row is the sentence's tokens, one EOS, and PAD to the end. BOS is in no row: it is what a
    decoder reads before the first token.

    Args:
        tokens: of the text, without the four special ones; token k has number ``4 + k``.
        length: T, numbers in a row: those of the longest sentence, and EOS.
        level: what a token is: a "word" between blanks, a "character", or a "symbol" of SMILES or
            SELFIES.

    Raises:
        DataError: for tokens that occur twice or cannot be written.

    Example:
        >>> tokenizer = Tokenizer.of(["the cat sleeps", "the dog"])
        >>> tokenizer.encode(["the dog", "the cow"])
        tensor([[4, 6, 2, 0],
                [4, 3, 2, 0]])
        >>> tokenizer.decode(tokenizer.encode(["the cow"]))
        ['the <unk>']
    """

    tokens: tuple[str, ...]
    length: int
    level: Level = "word"

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise DataError(f"expected one of {get_args(Level)}, got {self.level!r}", "level")
        if self.length < 1 or not self.tokens:
            raise DataError(
                f"expected tokens, and rows of at least one number; got {len(self.tokens)} tokens, "
                f"length {self.length}",
                "tokenizer",
            )
        twice = [t for t, times in Counter((*SPECIAL, *self.tokens)).items() if times > 1]
        if twice:
            raise DataError(f"{twice[0]!r} stands in the vocabulary twice", "tokenizer")

    @classmethod
    def of(
        cls,
        sentences: Sequence[str],
        *,
        level: Level | None = None,
        least: int = 1,
        largest: int | None = None,
    ) -> Self:
        """The vocabulary of `sentences`, most frequent tokens first, and their length.

        Args:
            sentences: at least one that is not empty.
            level: "word", "character" or "symbol"; None: what the class stands for.
            least: times that a token must occur; rarer ones are read as UNK.
            largest: tokens that are kept at most, without the special ones.
        """
        level = level or cls.level
        split = [_split(sentence, level) for sentence in sentences]
        counts = Counter(token for tokens in split for token in tokens)
        for special in SPECIAL:  # a text that holds "<unk>" means it
            counts.pop(special, None)
        ranked = sorted((t for t in counts if counts[t] >= least), key=lambda t: (-counts[t], t))
        if not ranked:
            raise DataError(
                f"no {level} occurs {least} times or more in {len(sentences)} sentences: give "
                "more text, or a smaller least=",
                "sentences",
            )
        return cls(tuple(ranked[:largest]), max(map(len, split)) + 1, level)

    @property
    def vocabulary(self) -> int:
        """V, the special tokens counted."""
        return len(SPECIAL) + len(self.tokens)

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Sentences to ``(N, T)``, int64.

        What the vocabulary lacks becomes UNK in a text; a molecule would become another one.

        Raises:
            DataError: for a sentence that is longer than T - 1 tokens, by its number from 0; at
                level "symbol" for a symbol that the vocabulary lacks.
        """
        numbers = {token: number for number, token in enumerate((*SPECIAL, *self.tokens))}
        rows = torch.full((len(sentences), self.length), PAD)
        for row, sentence in enumerate(sentences):
            split = _split(sentence, self.level)
            if len(split) >= self.length:
                raise DataError(
                    f"{len(split)} tokens, where this vocabulary's rows hold {self.length - 1} "
                    "and the end: shorten or leave out the sentence",
                    "sentences",
                    row=row,
                )
            known = [numbers.get(token, UNK) for token in split]
            # a sentence that spells out <pad> or <eos> must not end there
            known = [number if number >= UNK else UNK for number in known]
            if self.level == "symbol" and UNK in known:
                missing = split[known.index(UNK)]
                raise DataError(f"{missing!r} is not in the vocabulary", "molecules", row=row)
            rows[row, : len(known) + 1] = torch.tensor([*known, EOS])
        return rows

    def decode(self, x: Tensor) -> list[str]:
        """Rows ``(N, T)`` to sentences, each up to its EOS; any T."""
        words = (*SPECIAL, *self.tokens)
        blank = " " if self.level == "word" else ""
        return [blank.join(words[number] for number in _until_end(row)) for row in x.tolist()]

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` reads: to be written as JSON."""
        return {"tokens": list(self.tokens), "length": self.length, "level": self.level}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """The tokenizer that `as_dict` described.

        Raises:
            DataError: where something is missing, or of another type.
        """
        tokens, length = found.get("tokens"), found.get("length")
        texts = isinstance(tokens, (list, tuple)) and all(isinstance(t, str) for t in tokens)
        if not texts or type(length) is not int:
            raise DataError(
                'expected {"tokens": [...], "length": ..., "level": "word"}',
                "tokenizer",
            )
        return cls(tuple(tokens or ()), length, found.get("level", "word"))


def read_sentences(path: str | Path, *, longest: int | None = None) -> list[str]:
    """The lines of a text file, a sentence each; empty lines are left out.

    Args:
        path: of UTF-8 text.
        longest: characters that a line may have; None: any number.

    Raises:
        DataError: where there is no such file or no sentence in it; for a line that is no UTF-8,
            that holds control characters or is too long, by its number from 1.
    """
    return [line for _, line in read_lines(path, longest=longest)]


def read_lines(path: str | Path, *, longest: int | None = None) -> list[tuple[int, str]]:
    """The same with the number of each line, from 1."""
    path = Path(path)
    if not path.is_file():
        raise DataError("there is no such file", path, missing=True)
    found = []
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"byte {error.start} is no UTF-8: save the file as UTF-8", path, row=number
            ) from error
        if not line.replace("\t", " ").isprintable():
            raise DataError("control characters: one sentence of text a line", path, row=number)
        if longest is not None and len(line) > longest:
            raise DataError(
                f"{len(line)} characters, where at most {longest} were asked for: one sentence a "
                "line",
                path,
                row=number,
            )
        if line:
            found.append((number, line))
    if not found:
        raise DataError("no sentences: expected one a line", path)
    return found


def check_tokens(x: Tensor, vocabulary: int, name: str | Path = "x") -> Tensor:
    """Refuse rows that are no sentences of a vocabulary of this size; return them as int64.

    A row without EOS is the beginning of a longer sentence, and is accepted.

    Args:
        x: ``(*, T)``, whole numbers of any dtype.
        vocabulary: V, the special tokens counted.
        name: how the caller knows `x`.

    Raises:
        DataError: for another shape; at the first wrong number, by row and column.
    """
    if x.ndim < 1 or not x.shape[-1]:
        raise DataError(f"expected rows of tokens, (N, T); got shape {tuple(x.shape)}", name)
    refuse_where(x != x.round() if x.is_floating_point() else x < 0, "no token number", name)
    x = x.long()
    refuse_where((x < 0) | (x >= vocabulary), f"no token: there are 0 to {vocabulary - 1}", name)
    refuse_where(x == BOS, "BOS begins every row by itself: leave it out", name)
    over = (x == EOS).cumsum(-1) - (x == EOS).long() > 0  # after the first EOS
    refuse_where(over & (x != PAD), "after EOS there is only padding", name)
    refuse_where(~over & (x == PAD), "padding before EOS: end the sentence first", name)
    return x


def token_counts(x: Tensor) -> Tensor:
    """Tokens of each sentence, EOS counted and padding not: ``(*, T) -> (*)``."""
    return (x != PAD).sum(-1)


def _split(sentence: str, level: Level) -> list[str]:
    if level == "symbol":
        return split_tokens(sentence)
    return sentence.split() if level == "word" else list(sentence)


def _until_end(row: Iterable[int]) -> list[int]:
    found = []
    for number in row:
        if number in (EOS, PAD):
            break
        found.append(number)
    return found
