"""The pages of the site: their Python runs, what they name exists, tutorials are whole."""

from __future__ import annotations

import ast
import importlib
import math
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from ppgen.cli import exits
from ppgen.cli.app import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
ELSEWHERE = {"tutorials", "_build"}
PAGES = sorted(path for path in DOCS.rglob("*.md") if ELSEWHERE.isdisjoint(path.parts))
TUTORIALS = sorted(DOCS.glob("tutorials/[0-9]*.py"))
CONCEPTS = [path for path in PAGES if path.parent.name == "concepts"]
WITH_CODE = [path for path in PAGES if "```python" in path.read_text()]
WITH_COMMANDS = [README, ROOT / "pretrained/README.md", *PAGES]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@pytest.mark.slow  # `make docs` runs them, and so does CI
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda path: path.stem)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python_of(page)


def run_python_of(page):
    """Its blocks one after the other, in the folder where one stands."""
    Path("page.py").write_text("\n".join(blocks_of(page, "python")))
    torch.set_default_dtype(torch.float32)  # a reader's
    try:
        runpy.run_path("page.py")
    finally:
        torch.set_default_dtype(torch.float64)


def blocks_of(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.mark.slow
def test_the_readme_prints_what_it_says_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_python_of(README)
    printed = capsys.readouterr().out
    (said,) = blocks_of(README, "text")
    assert lines_that_are_not_in(printed, said) == []
    assert (tmp_path / "runs/line-vi-vs-mcmc/report.html").is_file()


def lines_that_are_not_in(printed, said):
    """Words are the same; numbers near, seconds anything: another machine rounds otherwise."""

    def is_said(line):
        words = r"\s+".join(map(re.escape, NUMBER.sub("#", line).split()))
        pattern = re.compile(words.replace(r"\#", f"({NUMBER.pattern})"))
        expected = [float(n.replace(",", "")) for n in NUMBER.findall(line)]
        timed = [line[m.end() :].startswith(" s,") for m in NUMBER.finditer(line)]
        for found in pattern.finditer(printed):
            got = [float(n.replace(",", "")) for n in found.groups()]
            pairs = zip(expected, got, timed, strict=True)
            if all(free or math.isclose(a, b, rel_tol=0.2, abs_tol=0.2) for a, b, free in pairs):
                return True
        return False

    return [line for line in filter(None, said.splitlines()) if not is_said(line)]


def test_a_line_that_is_not_printed_is_found():
    printed = "HMC, 64 chains, 3.4 s, converged\nslope   2.04  14,142\n"
    said = "HMC, 64 chains, 1.0 s, converged\nslope 2.1 14142"
    assert lines_that_are_not_in(printed, said) == []
    for wrong in ("HMC, 32 chains, 1.0 s, converged", "slope 2.8 14142", "slop 2.04 14142"):
        assert lines_that_are_not_in(printed, f"{said}\n{wrong}") == [wrong]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_are_commands_with_these_options(page):
    for block in blocks_of(page, "sh"):
        commands = re.sub(r"(^|\s)#.*", "", block.replace("\\\n", " "), flags=re.M)
        for words in map(shlex.split, re.split(r"\n|&&|;", commands)):
            if "ppgen" in words:
                app.parse_args(words[words.index("ppgen") + 1 :], exit_on_error=False)


@pytest.mark.parametrize("page", CONCEPTS, ids=lambda path: path.stem)
def test_every_displayed_formula_is_asserted_by_code_that_names_it(page):
    """A formula is labelled ``eq-...``; ``def-...`` if it says no more than what a symbol means."""
    text = page.read_text()
    displays = re.findall(r"^ *\$\$\n.*?^ *\$\$([^\n]*)$", text, re.M | re.S)
    assert text.count("$$") == 2 * len(displays)
    labels = [re.fullmatch(r" \((eq|def)-[a-z-]+\)", after) for after in displays]
    assert all(labels), displays
    claims = sorted(label[0].strip(" ()") for label in labels if label[1] == "eq")
    code = "\n".join(blocks_of(page, "python"))
    comments = re.split(r"^( *#.*\(eq-.*)$", code, flags=re.M)[1:]
    named = [
        label for comment in comments[::2] for label in re.findall(r"\((eq-[a-z-]+)\)", comment)
    ]
    assert sorted(named) == claims
    assert all(re.search(r"^ *assert ", check, re.M) for check in comments[1::2])


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda path: path.stem)
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
    for target in re.findall(r"\{doc\}`(?:[^`<]*<)?/([^`>]+)>?`", page.read_text()):
        files = [DOCS / f"{target}{suffix}" for suffix in (".md", ".ipynb")]
        assert any(file.exists() for file in files), target


def test_the_page_of_the_command_line_has_every_command_and_every_exit_code():
    page = (DOCS / "reference/command_line.md").read_text()
    commands = {name for name in app if not name.startswith("-")}
    assert set(re.findall(r"`ppgen ([a-z]+)", page)) >= commands
    assert set(re.findall(r"`ppgen ([a-z]+)", page)) <= commands | {"COMMAND"}
    codes = {value for name, value in vars(exits).items() if name.isupper()}
    assert set(map(int, re.findall(r"^\| (\d+) \|", page, re.M))) == codes


@pytest.mark.slow  # it imports the whole package
def test_the_reference_has_every_name_that_tutorials_and_pages_import():
    reference = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    listed = set(re.findall(r"auto(?:module|function|class):: ([\w.]+)", reference))
    sources = [path.read_text() for path in TUTORIALS]
    for page in WITH_CODE:
        sources += blocks_of(page, "python")
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    imports = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module.startswith("ppgen")]
    missing = []
    for module, name in {(node.module, alias.name) for node in imports for alias in node.names}:
        found = getattr(importlib.import_module(module), name)
        homes = {module, f"{module}.{name}", getattr(found, "__module__", "")}
        exported = any(getattr(sys.modules.get(m), name, None) is found for m in listed)
        module_of_listed = any(m.startswith(f"{module}.{name}") for m in listed)
        if not (homes & listed or exported or module_of_listed):
            missing.append(f"{module}.{name}")
    assert not missing


def test_every_tutorial_is_on_the_page_of_the_lecture():
    page = (DOCS / "lecture.md").read_text()
    missing = [path.stem for path in TUTORIALS if f"</tutorials/{path.stem}>" not in page]
    assert not missing


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_has_all_its_parts(script):
    text = script.read_text()
    parts = (
        "**Result first.**",
        "## What goes wrong",
        "## Exercises",
        "Your output should look like",
    )
    assert not [part for part in parts if part not in text]
    exercises = re.findall(r"^# \*\*(\d)\.\*\*", text.partition("## Exercises")[2], re.M)
    assert exercises == ["1", "2", "3"]
    assert len(re.findall(r"^ *assert |\bassert_close\(", text, re.M)) >= 10
