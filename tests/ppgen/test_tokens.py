"""Sentences to rows of numbers and back; files of text, and what is said of bad ones."""

import json

import pytest
import torch

from ppgen.data import DataError, Tokenizer, read_sentences
from ppgen.data.tokens import BOS, EOS, PAD, UNK, check_tokens, token_counts

TEXT = ["the cat sleeps", "the dog", "a cat sees the dog"]


@pytest.mark.parametrize("level", ["word", "character"])
def test_sentences_come_back(level):
    tokenizer = Tokenizer.of(TEXT, level=level)
    x = tokenizer.encode(TEXT)
    assert x.shape == (3, tokenizer.length)
    assert x.dtype == torch.int64
    assert tokenizer.decode(x) == TEXT
    assert token_counts(x).tolist() == [len(s.split() if level == "word" else s) + 1 for s in TEXT]
    assert int(x.max()) == tokenizer.vocabulary - 1
    assert torch.equal(check_tokens(x, tokenizer.vocabulary), x)


def test_a_row_is_tokens_one_end_and_padding():
    tokenizer = Tokenizer(("b", "a"), length=4)
    assert tokenizer.encode(["a b", "", "c"]).tolist() == [
        [5, 4, EOS, PAD],
        [EOS, PAD, PAD, PAD],
        [UNK, EOS, PAD, PAD],
    ]


def test_a_text_cannot_spell_the_special_tokens():
    tokenizer = Tokenizer.of(["x <eos> y <pad>", "<unk> <bos>"])
    x = tokenizer.encode(["x <eos> y <pad>"])
    assert x.tolist() == [[4, UNK, 5, UNK, EOS]]
    assert tokenizer.tokens == ("x", "y")


def test_rare_tokens_and_the_tail_are_left_out():
    assert Tokenizer.of(TEXT, least=2).tokens == ("the", "cat", "dog")
    assert Tokenizer.of(TEXT, largest=1).tokens == ("the",)


def test_it_is_the_same_after_json():
    tokenizer = Tokenizer.of(["schöne Grüße", "日 本"], level="character")
    assert Tokenizer.from_dict(json.loads(json.dumps(tokenizer.as_dict()))) == tokenizer


@pytest.mark.parametrize(
    "found",
    [{}, {"tokens": "ab", "length": 3}, {"tokens": ["a"], "length": 2.0}, {"tokens": [1],
     "length": 2}, {"tokens": ["a", "a"], "length": 2}, {"tokens": ["<eos>"], "length": 2},
     {"tokens": ["a"], "length": 2, "level": "letter"}, {"tokens": [], "length": 2}],
)  # fmt: skip
def test_what_is_no_tokenizer_is_refused(found):
    with pytest.raises(DataError):
        Tokenizer.from_dict(found)


def test_longer_sentences_than_the_rows_are_refused_by_number():
    with pytest.raises(DataError, match=r"row 1.*3 tokens.*hold 2"):
        Tokenizer(("a",), length=3).encode(["a a", "a a a"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([4, 9, EOS, PAD], "row 1, column 1.*0 to 5"),
        ([4, -1, EOS, PAD], "row 1, column 1"),
        ([BOS, 4, EOS, PAD], "row 1, column 0.*BOS"),
        ([4, EOS, 4, PAD], "row 1, column 2.*padding"),
        ([4, EOS, EOS, PAD], "row 1, column 2.*padding"),
        ([4, PAD, EOS, PAD], "row 1, column 1.*end"),
        ([4, 4.5, EOS, PAD], "row 1, column 1"),
    ],
)
def test_rows_that_are_no_sentences_are_refused_by_place(row, message):
    with pytest.raises(DataError, match=message):
        check_tokens(torch.tensor([[4, 5, UNK, EOS], row]), 6)


def test_beginnings_of_sentences_are_rows_too():
    assert check_tokens(torch.tensor([[4.0, 5.0]]), 6).dtype == torch.int64


def test_lines_of_a_file_are_sentences(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffthe cat\r\n\r\n  schöner\tHund \n".encode())
    assert read_sentences(path) == ["the cat", "schöner\tHund"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\nbad \xff\n", "text.txt:row 2.*byte 4 is no UTF-8"),
        (b"fine\n\nbe\x00ll\n", "text.txt:row 3.*control"),
        (b"\n \n", "no sentences"),
        (b"short\n" + b"long " * 10, "row 2.*49 characters.*20"),
    ],
)
def test_files_that_are_no_text_are_refused_by_line(tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_sentences(path, longest=20)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_sentences(tmp_path / "none.txt")
