"""Reports: one file that stands alone, escapes everything, and is written whole."""

import functools
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ppgen import plots
from ppgen.report import Picture, Report, Section, Table, Verdict
from ppgen.report.cells import show_column
from ppgen.report.png import compressed, dimensions

EVIL = "<script>alert('1')</script> & \"quoted\" {{ 7 * 7 }}"


def figure():
    return plots.trace(np.random.default_rng(0).normal(size=(64, 200)), "theta")


@functools.cache
def small_figure():
    return plots.trace(np.random.default_rng(0).normal(size=(2, 20)), "theta")


def page(text="plain", **options):
    table = Table([text, "n"], [[text, 1.5], ["b", float("nan")]], text, {(0, 1): "bad"})
    sections = [
        Section(text, [text], [table], [Picture(small_figure(), text, text)]),
        Section("Empty"),
    ]
    verdict = Verdict("warn", text)
    return Report(text, sections, text, verdict, {text: text}, **options)


class Checker(HTMLParser):
    VOID = frozenset({"meta", "img", "br", "hr", "input", "link"})

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.stack == []
    return checker


def test_a_data_set_called_script_is_text_everywhere():
    html = page(EVIL).html()
    parsed = parse(html)
    assert "<script" not in html
    assert not any(tag == "script" for tag, _ in parsed.tags)
    assert "49" not in re.sub(r"base64,[^\"]*", "", html)  # braces in data are not evaluated
    # title, heading, subtitle, verdict, navigation, heading, paragraph, caption, column, cell,
    # picture's caption, fact and its name
    assert "".join(parsed.text).count(EVIL) == 13
    assert [a["alt"] for tag, a in parsed.tags if tag == "img"] == [EVIL]


def test_the_page_asks_for_nothing_outside():
    parsed = parse(page().html())
    for _, attributes in parsed.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value.startswith(("data:image/png;base64,", "#section-"))
    assert "http" not in re.sub(r'http-equiv|base64,[^"]*', "", page().html())
    assert "url(" not in page().html()
    assert "default-src 'none'" in page().html()


def test_the_page_is_readable_by_all():
    parsed = parse(page(lang="de").html())
    tags = dict(parsed.tags)
    assert tags["html"]["lang"] == "de"
    assert all(a["alt"] for tag, a in parsed.tags if tag == "img")
    ids = {a["id"] for _, a in parsed.tags if "id" in a}
    links = [a["href"][1:] for tag, a in parsed.tags if tag == "a"]
    assert len(links) == 2
    assert set(links) <= ids
    html = page().html()
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert re.search(r'class="number bad">1.5<.*✗.*\(fails\)', html)  # not by colour alone
    assert ">unknown<" in html


def test_a_report_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    path = page().save(tmp_path / "deep" / "report – ü.html")
    first = path.read_bytes()
    assert parse(first.decode()).stack == []
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o400
    assert page().html().encode() == first  # the same page, byte for byte

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Report("other", []).save(path)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("make", ["trace", "marginals", "images"])
def test_pictures_are_small_and_keep_dark_text(make):
    rng = np.random.default_rng(0)
    picture = {
        "trace": figure,
        "marginals": lambda: plots.marginals(
            {k: rng.normal(size=(500, 12)) for k in "abcd"}, None, "a"
        ),
        "images": lambda: plots.images(rng.random((100, 784)) ** 4, (28, 28)),
    }[make]()
    small = compressed(picture)
    assert len(small) <= (60_000 if make != "images" else 120_000)  # noise does not compress
    with Image.open(io.BytesIO(small)) as image:
        assert image.size == dimensions(small)
        assert image.width > 500
        assert np.asarray(image.convert("L")).min() < 60


def test_finished_pngs_are_taken_and_nothing_else():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((5, 7), dtype=np.uint8)).save(buffer, format="PNG")
    assert compressed(buffer.getvalue()) == buffer.getvalue()
    assert dimensions(buffer.getvalue()) == (7, 5)
    with pytest.raises(ValueError, match="must be a PNG"):
        compressed(b"<svg onload=alert(1)>")
    with pytest.raises(TypeError, match="not str"):
        compressed("picture.png")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        ([1.0042, 0.98], ["1.004", "0.980"]),
        ([3.2, 0.9, None, "x"], ["3.2", "0.9", "", "x"]),
        ([12345.6, 0.00012], ["12,346", "0.00012"]),
        ([np.float32(0.5), np.int64(3), True], ["0.5", "3.0", "yes"]),
        ([float("nan"), float("-inf"), 0.0, -0.25], ["unknown", "-∞", "0.00", "-0.25"]),
        ([1e9, 1e-30], ["1e+09", "1e-30"]),
        ([], []),
    ],
)
def test_numbers_of_a_column_share_their_decimals(cells, texts):
    assert show_column(cells) == texts


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Table(["a"], [[1, 2]]), "row 0 has 2 cells for 1 columns"),
        (lambda: Table(["a"], [[1]], marks={(1, 0): "ok"}), r"mark at \(1, 0\)"),
        (lambda: Table(["a"], [[1]], marks={(0, 0): "good"}), "expected one of ok, warn, bad"),
        (lambda: Report("t", [], verdict=Verdict("ok", "")), "expected one of pass, warn, fail"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
