"""Perplexity of laws that are known."""

import math

import pytest

from ppgen.diagnostics import text_score


def test_a_fair_die_has_six_faces():
    lengths = [1, 2, 5]
    score = text_score(-sum(lengths) / 3 * math.log(6), lengths)
    assert score.perplexity == pytest.approx(6)
    assert score.token == pytest.approx(math.log(6))


@pytest.mark.parametrize("tokens", [[], [0, 1], [[1, 2]], [math.nan]])
def test_sentences_without_an_end_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens"):
        text_score(-1.0, tokens)
