"""Counts of neighbouring tokens: what a language model has to beat."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from ppgen.data.tokens import BOS, EOS, PAD, check_tokens

_Words = tuple[int, ...]


def ngram_log_prob(train: Any, x: Any, vocabulary: int, order: int = 2) -> Tensor:
    r"""Log-probability of each row under counts in `train`, interpolated after Witten and Bell.

    .. math:: p(w \mid h) = \frac{c(h w) + n(h)\, p(w \mid h')}{c(h) + n(h)}

    Here h is the `order` - 1 tokens before, h' the same without the first of them, c counts in
    `train`, and n(h) is the number of different tokens that follow h there; below the unigram all
    tokens are alike. Sums to one over all rows, and needs no tuning.

    Args:
        train: rows of tokens, ``(M, T)``, see `ppgen.data.Tokenizer`.
        x: the rows to be scored, ``(N, T)``.
        vocabulary: V, the special tokens counted; PAD and BOS are never next.
        order: 1 for a unigram, 2 for a bigram, ...

    Returns:
        ``(N,)``, nats; EOS is scored, padding is not.

    Raises:
        ValueError: for rows that are no sentences; for an order below 1.

    References:
        | The zero-frequency problem (Witten and Bell, 1991)

    Example:
        >>> rows = torch.tensor([[4, 2], [5, 2]])
        >>> print(f"{ngram_log_prob(rows, rows, vocabulary=6)[0].exp():.3f}")
        0.261
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, a unigram; got {order}")
    counts, followers = Counter[_Words](), Counter[_Words]()
    for row in check_tokens(torch.as_tensor(train), vocabulary, "train").tolist():
        for words in _windows(row, order):
            for start in range(order):
                followers[words[start:-1]] += words[start:] not in counts
                counts[words[start:]] += 1
    totals = Counter[_Words]()
    for words, count in counts.items():
        totals[words[:-1]] += count

    def probability(words: _Words) -> float:
        p = 1 / (vocabulary - EOS)
        for start in reversed(range(order)):  # from no token before to all of them
            h, new = words[start:-1], followers[words[start:-1]]
            if new:
                p = (counts[words[start:]] + new * p) / (totals[h] + new)
        return p

    rows = check_tokens(torch.as_tensor(x), vocabulary, "x").tolist()
    each = [sum(math.log(probability(words)) for words in _windows(row, order)) for row in rows]
    return torch.tensor(each, dtype=torch.get_default_dtype())


def _windows(row: list[int], order: int) -> list[_Words]:
    """Each token of a row, after the ``order - 1`` before it."""
    tokens = [BOS] * (order - 1) + [token for token in row if token != PAD]
    return [tuple(tokens[end - order : end]) for end in range(order, len(tokens) + 1)]
