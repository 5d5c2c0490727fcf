"""Smoothed counts of tokens: a probability, by hand on a few sentences."""

import itertools

import pytest
import torch

from ppgen.data.tokens import EOS, PAD, UNK
from ppgen.diagnostics.ngrams import ngram_log_prob

V, T = 6, 3
TRAIN = torch.tensor([[4, 5, EOS], [4, EOS, PAD], [5, 5, EOS]])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_what_may_follow_sums_to_one_after_any_beginning(order):
    symbols = (EOS, UNK, 4, 5)
    ended = [(EOS, PAD, PAD), *((a, EOS, PAD) for a in symbols[1:])]
    full = [s for s in itertools.product(symbols[1:], symbols[1:], symbols)]
    x = torch.tensor([*ended, *full])  # the last ones are cut at T, and count as beginnings
    assert ngram_log_prob(TRAIN, x, V, order).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_a_bigram_by_hand():
    # unigram: 8 tokens of 3 kinds, and four that may come; after 4 came 5 and EOS, once each
    uniform = 1 / 4
    five, end, first = ((c + 3 * uniform) / (8 + 3) for c in (3, 3, 2))
    after_four = (1 + 2 * five) / (2 + 2)
    after_five = (2 + 2 * end) / (3 + 2)
    begins = (2 + 2 * first) / (3 + 2)
    expected = torch.tensor([begins * after_four * after_five]).log()
    torch.testing.assert_close(ngram_log_prob(TRAIN, TRAIN[:1], V), expected)
    # UNK was never seen, nor what follows it: the unigram goes on from there
    unknown = ngram_log_prob(TRAIN, torch.tensor([[UNK, EOS, PAD]]), V).exp()
    never = 3 * uniform / (8 + 3)
    torch.testing.assert_close(unknown, torch.tensor([2 * never / (3 + 2) * end]))


def test_an_order_below_a_unigram_is_refused():
    with pytest.raises(ValueError, match="order must be at least 1"):
        ngram_log_prob(TRAIN, TRAIN, V, 0)
