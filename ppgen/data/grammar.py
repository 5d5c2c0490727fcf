r"""Probabilistic context-free grammars: sentences whose entropy is known exactly.

A derivation begins with the start symbol and replaces each symbol by one of its productions, drawn
by their probabilities. Where every sentence has one derivation, the entropy of sentences is that of
derivations: the expected uses of each symbol times the entropy of its choice,

.. math:: H = \sum_A e_A H_A, \qquad e = (I - M^\top)^{-1} s,

with :math:`M_{AB}` the expected number of B in a production of A and s one at the start symbol.

References:
    | Probability Measures on the Infinite Trees of Stochastic Grammars (Grenander, 1967)
    | Estimation of Probabilistic Context-Free Grammars (Chi and Geman, 1998)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Production(NamedTuple):
    """One way to replace a symbol."""

    symbols: tuple[str, ...]  # other symbols, and words
    log_prob: float  # nats


class Grammar:
    """Sentences from a start symbol.

    Args:
        rules: for each symbol its productions, ``{"NP": {"the N": 2, "N": 1}}``: symbols and words
            between blanks, and a positive weight. What is no key is a word.
        start: the symbol that derivations begin with; the first of `rules` when None.

    Raises:
        ValueError: for an empty production, a weight that is not positive, a symbol that never
            ends, symbols that replace each other in a circle, and derivations that are infinite on
            average: by the symbol.

    Example:
        >>> coins = Grammar({"S": {"heads": 1, "tails": 1}})
        >>> round(coins.entropy, 4)
        0.6931
    """

    def __init__(self, rules: Mapping[str, Mapping[str, float]], start: str | None = None) -> None:
        if not rules:
            raise ValueError("a grammar needs at least one rule")
        self.start = next(iter(rules)) if start is None else start
        if self.start not in rules:
            raise ValueError(f"the start symbol {self.start!r} has no rule")
        self.rules = {symbol: _productions(symbol, found) for symbol, found in rules.items()}
        self.words = tuple(
            dict.fromkeys(
                part for found in self.rules.values() for p in found for part in p.symbols
                if part not in rules
            )
        )  # fmt: skip
        self._refuse_circles()
        self.uses = self._expected_uses()

    def sample(self, count: int) -> tuple[list[str], Tensor]:
        """Independent sentences, and the log-probability of each derivation, ``(count,)``, nats."""
        choices = {
            symbol: torch.tensor([p.log_prob for p in found], dtype=torch.float64).exp()
            for symbol, found in self.rules.items()
        }
        drawn = [self._derive(choices) for _ in range(count)]
        scores = torch.tensor([score for _, score in drawn], dtype=torch.float64)
        return [sentence for sentence, _ in drawn], scores

    def log_prob(self, sentences: Sequence[str]) -> Tensor:
        """Log-probability of each sentence, ``(N,)``, nats; -inf where it has no derivation."""
        found = [self._inside(sentence, count=False) for sentence in sentences]
        return torch.tensor(found, dtype=torch.float64).log()

    def derivations(self, sentence: str) -> int:
        """How many derivations a sentence has; more than one: the grammar is ambiguous."""
        return int(self._inside(sentence, count=True))

    def grammatical(self, sentences: Sequence[str]) -> float:
        """The share of `sentences` that have a derivation."""
        if not sentences:
            raise ValueError("the share of no sentences: expected at least one")
        return float(self.log_prob(sentences).isfinite().double().mean())

    def enumerate(self, longest: int) -> Iterator[tuple[str, float]]:
        """All derivations of at most `longest` words, and their log-probabilities, nats.

        Those of an ambiguous grammar give some sentences more than once.
        """
        for words, score in self._expand((self.start,), longest):
            yield " ".join(words), score

    @cached_property
    def entropy(self) -> float:
        """Nats of a derivation: of a sentence, where the grammar is unambiguous."""
        each = [
            -sum(math.exp(p.log_prob) * p.log_prob for p in found) for found in self.rules.values()
        ]
        return float(self.uses @ torch.tensor(each, dtype=torch.float64))

    @cached_property
    def mean_length(self) -> float:
        """Expected words of a sentence."""
        each = [
            sum(math.exp(p.log_prob) * sum(s not in self.rules for s in p.symbols) for p in found)
            for found in self.rules.values()
        ]
        return float(self.uses @ torch.tensor(each, dtype=torch.float64))

    @cached_property
    def longest(self) -> float:
        """Words of the longest sentence; infinite where a symbol comes back."""
        lengths: dict[str, float] = dict.fromkeys(self.rules, 0.0)
        for _ in self.rules:  # after as many rounds as symbols only recursion still grows
            lengths = {symbol: self._longest(symbol, lengths) for symbol in self.rules}
        settled = {symbol: self._longest(symbol, lengths) for symbol in self._reachable()}
        grows = any(settled[symbol] > lengths[symbol] for symbol in settled)
        return math.inf if grows else lengths[self.start]

    def _longest(self, symbol: str, lengths: Mapping[str, float]) -> float:
        return max(sum(lengths.get(s, 1.0) for s in p.symbols) for p in self.rules[symbol])

    def _derive(self, choices: Mapping[str, Tensor]) -> tuple[str, float]:
        words, score, left = [], 0.0, [self.start]
        while left:
            part = left.pop()
            if part not in self.rules:
                words.append(part)
                continue
            chosen = self.rules[part][int(torch.multinomial(choices[part], 1))]
            score += chosen.log_prob
            left.extend(reversed(chosen.symbols))
        return " ".join(words), score

    def _inside(self, sentence: str, *, count: bool) -> float:
        """The inside algorithm: sum over derivations of their probabilities, or of ones."""
        words = sentence.split()
        known: dict[tuple[tuple[str, ...], int, int], float] = {}

        def inside(parts: tuple[str, ...], begin: int, end: int) -> float:
            # every part covers at least one word, so that recursion ends
            if not parts or len(parts) > end - begin:
                return float(not parts and begin == end)
            key = (parts, begin, end)
            if key not in known:
                first, rest = parts[0], parts[1:]
                if first not in self.rules:
                    fits = words[begin] == first
                    known[key] = inside(rest, begin + 1, end) if fits else 0.0
                elif rest:
                    known[key] = sum(
                        left * inside(rest, middle, end)
                        for middle in range(begin + 1, end - len(rest) + 1)
                        if (left := inside((first,), begin, middle))
                    )
                else:
                    known[key] = sum(
                        (1.0 if count else math.exp(p.log_prob)) * inside(p.symbols, begin, end)
                        for p in self.rules[first]
                    )
            return known[key]

        return inside((self.start,), 0, len(words)) if words else 0.0

    def _expand(self, parts: tuple[str, ...], room: int) -> Iterator[tuple[tuple[str, ...], float]]:
        if len(parts) > room:
            return
        if not parts:
            yield (), 0.0
            return
        first, rest = parts[0], parts[1:]
        if first not in self.rules:
            for words, score in self._expand(rest, room - 1):
                yield (first, *words), score
            return
        for production in self.rules[first]:
            for words, score in self._expand((*production.symbols, *rest), room):
                yield words, production.log_prob + score

    def _reachable(self) -> set[str]:
        found, left = {self.start}, [self.start]
        while left:
            for production in self.rules[left.pop()]:
                new = {s for s in production.symbols if s in self.rules} - found
                found |= new
                left.extend(new)
        return found

    def _refuse_circles(self) -> None:
        """Symbols that replace each other alone would make infinitely many derivations."""
        alone = {
            symbol: {p.symbols[0] for p in found if len(p.symbols) == 1}
            for symbol, found in self.rules.items()
        }
        for symbol in alone:
            left, seen = [symbol], set()
            while left:
                for other in alone.get(left.pop(), set()) - seen:
                    if other == symbol:
                        raise ValueError(f"{symbol} can be replaced by itself, in a circle")
                    seen.add(other)
                    left.append(other)

    def _expected_uses(self) -> Tensor:
        names = list(self.rules)
        index = {name: number for number, name in enumerate(names)}
        matrix = torch.zeros(len(names), len(names), dtype=torch.float64)
        for name, production in ((n, p) for n in names for p in self.rules[n]):
            for symbol in production.symbols:
                if symbol in index:
                    matrix[index[name], index[symbol]] += math.exp(production.log_prob)
        reached = [index[name] for name in sorted(self._reachable())]
        radius = float(torch.linalg.eigvals(matrix[reached][:, reached]).abs().max())
        if radius >= 1:
            raise ValueError(
                f"derivations are infinite on average (spectral radius {radius:.3f}, expected "
                "below 1): give recursive productions less weight"
            )
        uses = torch.zeros(len(names), dtype=torch.float64)
        begin = (torch.tensor(reached) == index[self.start]).double()
        identity = torch.eye(len(reached), dtype=torch.float64)
        uses[reached] = torch.linalg.solve(identity - matrix[reached][:, reached].T, begin)
        return uses


def _productions(symbol: str, found: Mapping[str, float]) -> tuple[Production, ...]:
    if not found:
        raise ValueError(f"{symbol} has no production")
    for text, weight in found.items():
        if not text.split():
            raise ValueError(f"{symbol} has an empty production: write one for each case instead")
        if not 0 < weight < math.inf:
            raise ValueError(f"{symbol} -> {text}: expected a positive weight, got {weight}")
    total = sum(found.values())
    return tuple(Production(tuple(t.split()), math.log(w / total)) for t, w in found.items())


_TOPICS: dict[str, tuple[str, str, str, str, str]] = {
    # nouns; adjectives; verbs without object; verbs with object; places
    "farm": ("cow horse goat hen", "lazy brown young", "sleep graze", "follow feed",
             "in the barn,near the fence"),
    "sea": ("sailor whale gull captain", "wet proud tired", "swim drift", "watch chase",
            "on the waves,under the pier"),
    "city": ("baker driver poet clerk", "busy kind rich", "work dance", "greet pay",
             "in the street,at the station"),
}  # fmt: skip


def small_english() -> Grammar:
    """Simple clauses on a farm, at sea or in a city, with agreement of subject and verb.

    What the sentence is about is drawn first and decides on every later word, and the subject's
    number on the form of the verb, so that a sentence has something to be summed up in a code. It
    is unambiguous, and finite: at most 7 words, 25,728 sentences.
    """
    rules: dict[str, dict[str, float]] = {"S": {}}
    for topic, (nouns, adjectives, intransitive, transitive, places) in _TOPICS.items():
        one = {"N1": nouns.split(), "VI1": [f"{v}s" for v in intransitive.split()],
               "VT1": [f"{v}s" for v in transitive.split()]}  # fmt: skip
        one["VT1"] = ["watches" if v == "watchs" else v for v in one["VT1"]]
        many = {"N2": [f"{n}s" for n in nouns.split()], "VI2": intransitive.split(),
                "VT2": transitive.split()}  # fmt: skip
        lists = {**one, **many, "A": adjectives.split(), "PLACE": places.split(",")}
        rules |= {f"{name}-{topic}": dict.fromkeys(found, 1.0) for name, found in lists.items()}
        for number, determiner in ((1, "a"), (2, "some")):
            subject, verb = f"NP{number}-{topic}", f"VP{number}-{topic}"
            rules["S"][f"{subject} {verb}"] = 1.0
            noun = f"N{number}-{topic}"
            rules[subject] = {f"D{number} {noun}": 2.0, f"D{number} A-{topic} {noun}": 1.0}
            rules[f"D{number}"] = {"the": 1.0, determiner: 1.0}
            rules[verb] = {
                f"VI{number}-{topic}": 1.0,
                f"VI{number}-{topic} PLACE-{topic}": 2.0,
                f"VT{number}-{topic} NP1-{topic}": 2.0,
                f"VT{number}-{topic} NP2-{topic}": 1.0,
            }
    return Grammar(rules)


def mass(pairs: Iterator[tuple[str, float]]) -> float:
    """The probability of all that `enumerate` gives."""
    return math.fsum(math.exp(score) for _, score in pairs)
