"""The pages of the site: their Python runs, what they name exists, tutorials are whole."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from ppgen.cli import exits
from ppgen.cli.app import app

DOCS = Path(__file__).parents[1] / "docs"
ELSEWHERE = {"tutorials", "_build"}
PAGES = sorted(path for path in DOCS.rglob("*.md") if ELSEWHERE.isdisjoint(path.parts))
TUTORIALS = sorted(DOCS.glob("tutorials/[0-9]*.py"))
CONCEPTS = [path for path in PAGES if path.parent.name == "concepts"]
WITH_CODE = [path for path in PAGES if "```python" in path.read_text()]


@pytest.mark.slow  # `make docs` runs them, and so does CI
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda path: path.stem)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    Path("page.py").write_text("\n".join(blocks))
    torch.set_default_dtype(torch.float32)  # a reader's
    try:
        runpy.run_path("page.py")
    finally:
        torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("page", CONCEPTS, ids=lambda path: path.stem)
def test_every_displayed_formula_is_asserted_by_code_that_names_it(page):
    """A formula is labelled ``eq-...``; ``def-...`` if it says no more than what a symbol means."""
    text = page.read_text()
    displays = re.findall(r"^ *\$\$\n.*?^ *\$\$([^\n]*)$", text, re.M | re.S)
    assert text.count("$$") == 2 * len(displays)
    labels = [re.fullmatch(r" \((eq|def)-[a-z-]+\)", after) for after in displays]
    assert all(labels), displays
    claims = sorted(label[0].strip(" ()") for label in labels if label[1] == "eq")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    comments = re.split(r"^( *#.*\(eq-.*)$", code, flags=re.M)[1:]
    named = [
        label for comment in comments[::2] for label in re.findall(r"\((eq-[a-z-]+)\)", comment)
    ]
    assert sorted(named) == claims
    assert all(re.search(r"^ *assert ", check, re.M) for check in comments[1::2])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
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
        sources += re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
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
