"""Likelihoods of text in the units that papers report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ppgen.diagnostics.arrays import as_sample


@dataclass(frozen=True)
class TextScore:
    """Negative log-likelihood of sentences; from a lower bound it is an upper bound.

    Args:
        sentence: nats a sentence.
        tokens: mean tokens of a sentence, its end counted.
    """

    sentence: float
    tokens: float

    @property
    def token(self) -> float:
        """Nats a token: of all text together, so that long sentences count for more."""
        return self.sentence / self.tokens

    @property
    def perplexity(self) -> float:
        """``exp(token)``: the tokens that would be as hard to tell apart, were they equal."""
        return math.exp(self.token)

    def __str__(self) -> str:
        return (
            f"{self.sentence:.3f} nats a sentence, {self.token:.3f} a token, "
            f"perplexity {self.perplexity:.2f}"
        )


def text_score(log_likelihood: float, tokens: Any) -> TextScore:
    """The mean log-likelihood of sentences as perplexity.

    Args:
        log_likelihood: mean over the sentences, nats.
        tokens: of each sentence, its end counted and padding not, ``(N,)``:
            `ppgen.data.tokens.token_counts`.

    Raises:
        ValueError: for a sentence without tokens.

    Example:
        >>> print(text_score(-6.0, [2, 4]))
        6.000 nats a sentence, 2.000 a token, perplexity 7.39
    """
    counts = as_sample(tokens, "tokens")
    if counts.ndim != 1 or (counts < 1).any():
        raise ValueError("tokens: expected at least one of each sentence, its end; shape (N,)")
    return TextScore(-float(log_likelihood), float(counts.mean()))
