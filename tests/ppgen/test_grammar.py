"""Grammars: entropy, lengths and probabilities against enumeration, and what is refused."""

import math
from collections import Counter

import pytest
import torch

from ppgen.data import Grammar, small_english
from ppgen.data.grammar import mass

TINY = Grammar({
    "S": {"NP VP": 3, "VP": 1},
    "NP": {"the N": 2, "the A N": 1},
    "VP": {"sleeps": 1, "sees NP": 2},
    "N": {"cat": 1, "dog": 2},
    "A": {"red": 1, "old": 1},
})  # fmt: skip
NESTED = Grammar({"S": {"( S )": 1, "x": 2, "S + x": 1}})  # left recursion and centre embedding


def test_a_finite_grammar_is_its_enumeration():
    every = list(TINY.enumerate(longest=20))
    scores = torch.tensor([s for _, s in every], dtype=torch.float64)
    assert len({sentence for sentence, _ in every}) == len(every)
    assert float(scores.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert TINY.entropy == pytest.approx(float(-(scores.exp() * scores).sum()), abs=1e-12)
    lengths = torch.tensor([float(len(sentence.split())) for sentence, _ in every])
    assert TINY.mean_length == pytest.approx(float(scores.exp() @ lengths), abs=1e-12)
    assert TINY.longest == lengths.max()
    torch.testing.assert_close(TINY.log_prob([sentence for sentence, _ in every]), scores)


def test_the_bundled_grammar_is_its_enumeration_and_unambiguous():
    grammar = small_english()
    every = dict(grammar.enumerate(longest=20))
    assert len(every) == sum(1 for _ in grammar.enumerate(longest=20)) == 25_728
    assert mass(iter(every.items())) == pytest.approx(1, abs=1e-9)
    entropy = -math.fsum(math.exp(s) * s for s in every.values())
    assert grammar.entropy == pytest.approx(entropy, abs=1e-9)
    assert grammar.longest == max(len(sentence.split()) for sentence in every)


def test_a_recursive_grammar_is_the_limit_of_enumerations():
    every = list(NESTED.enumerate(longest=23))
    assert len({sentence for sentence, _ in every}) == len(every)
    # k recursions make 2 k + 1 words and have probability 2^-(k + 1) in all: 2^k of them, each
    # log 2 + k log 4 nats
    assert 1 - mass(iter(every)) == pytest.approx(2**-12, abs=1e-12)
    partial = -math.fsum(math.exp(s) * s for _, s in every)
    tail = math.fsum(2.0 ** -(k + 1) * math.log(2) * (1 + 2 * k) for k in range(12, 200))
    assert NESTED.entropy == pytest.approx(partial + tail, abs=1e-12)
    # one use of S, and one more for each of two recursive productions in four: 1 / (1 - 1/2)
    assert NESTED.entropy == pytest.approx(2 * 1.5 * math.log(2), abs=1e-12)
    assert NESTED.longest == math.inf
    assert NESTED.mean_length == pytest.approx(2 * (2 + 2 + 2 * 1) / 4, abs=1e-12)


def test_drawn_sentences_carry_their_own_log_probability_and_average_to_the_entropy():
    for grammar in (TINY, NESTED):
        sentences, scores = grammar.sample(2000)
        torch.testing.assert_close(grammar.log_prob(sentences), scores)
        error = float(scores.std()) / 2000**0.5
        # 4.3 standard errors: exceeded once in 5e4
        assert abs(float(scores.mean()) + grammar.entropy) < 4.3 * error


def test_frequencies_are_the_probabilities():
    count = 4000
    sentences, _ = TINY.sample(count)
    expected = {s: count * math.exp(score) for s, score in TINY.enumerate(20)}
    seen = Counter(sentences)
    assert not seen.keys() - expected.keys()
    # cells with fewer than 5 expected are one cell
    small = {s for s, e in expected.items() if e < 5}
    cells = [(seen[s], e) for s, e in expected.items() if s not in small]
    cells.append((sum(seen[s] for s in small), sum(expected[s] for s in small)))
    chi2 = sum((o - e) ** 2 / e for o, e in cells if e)
    freedom = len(cells) - 1
    # Wilson-Hilferty quantile of chi-square at 2e-5 (z = 4.11)
    limit = freedom * (1 - 2 / (9 * freedom) + 4.11 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi2 < limit


def test_what_is_no_sentence_has_no_probability():
    wrong = ["", "the", "the cat", "the cat sleeps sleeps", "the zebra sleeps", "sleeps the cat"]
    assert torch.equal(TINY.log_prob(wrong), torch.full((6,), -math.inf, dtype=torch.float64))
    assert TINY.grammatical([*wrong, "the cat sleeps", "sleeps"]) == 0.25


def test_derivations_of_an_ambiguous_sentence_are_counted_and_summed():
    doubtful = Grammar({"S": {"S and S": 1, "x": 3}})
    assert doubtful.derivations("x and x and x") == 2
    one = 0.25**2 * 0.75**3
    assert float(doubtful.log_prob(["x and x and x"])) == pytest.approx(math.log(2 * one))
    assert NESTED.derivations("( x + x ) + x") == 1


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "at least one rule"),
        ({"S": {}}, "S has no production"),
        ({"S": {" ": 1}}, "empty production"),
        ({"S": {"x": 0}}, "S -> x.*positive weight"),
        ({"S": {"A": 1, "x": 1}, "A": {"S": 1, "y": 1}}, "circle"),
        ({"S": {"S S": 1, "x": 1}}, "infinite on average.*1.000"),
        ({"S": {"x S": 1}}, "infinite on average"),
    ],
)
def test_rules_that_make_no_distribution_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        Grammar(rules)


def test_rules_out_of_reach_do_no_harm():
    grammar = Grammar({"S": {"x": 1, "y": 1}, "UNUSED": {"UNUSED UNUSED": 3, "z": 1}})
    assert grammar.entropy == pytest.approx(math.log(2))
    assert grammar.longest == 1
