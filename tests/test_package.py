"""The package as a whole: what importing it does, what it ships, what its files never hold."""

import ast
import importlib.metadata
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppgen

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = ("ppgen", "models", "inference", "benchmarks", "tutorials", "scripts")


def python(code: str) -> str:
    """What a fresh interpreter prints for `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sources() -> list[Path]:
    # rglob does not follow the links, so that each file comes once
    return [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]


def repository_files() -> list[Path]:
    """Files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    files = [ROOT / name for name in names.split("\0") if name]
    return [path for path in files if path.is_file() and not path.is_symlink()]


def test_importing_ppgen_imports_none_of_the_heavy_packages():
    heavy = {"torch", "pyro", "numpy", "scipy", "matplotlib", "xarray", "cyclopts", "rich"}
    loaded = json.loads(python("import ppgen, sys, json; print(json.dumps(list(sys.modules)))"))
    assert not heavy & set(loaded)


@pytest.mark.slow  # 3 s: every module of the suite, torch and Pyro in a fresh interpreter
def test_importing_every_module_changes_no_global_and_draws_no_random_number():
    python("import runpy; runpy.run_path('scripts/check_imports.py', run_name='__main__')")


def test_the_links_are_relative_and_show_the_folders():
    for name in ("models", "inference"):
        link = ROOT / "ppgen" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"
    # a folder imported under both names would hold each class twice
    assert not {"models", "inference"} & set(sys.modules)


def test_the_version_stands_in_one_place():
    assert PROJECT["dynamic"] == ["version"]
    assert importlib.metadata.version(PROJECT["name"]) == ppgen.__version__
    found = [
        path.relative_to(ROOT).as_posix()
        for path in (*sources(), ROOT / "CITATION.cff", ROOT / "README.md")
        if re.search(rf"version[\W_]+{re.escape(ppgen.__version__)}\b", path.read_text(), re.I)
    ]
    assert found == ["ppgen/_version.py"]


FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = re.compile(
    r"""^(?: eval | exec | torch\.(load|save) | yaml\.(load|unsafe_load|full_load)
        | (?:.*\.)? (?: pickle | param_store | get_param_store\(\) | PyroOptim | optim ) \.load
        )$""",
    re.VERBOSE,
)


def unsafe_loading(code: str) -> Iterator[tuple[int, str]]:
    """Line and text of everything in `code` through which a loaded file could run commands."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [module or ""] if module else [alias.name for alias in node.names]
            if FORBIDDEN_MODULES & {name.split(".")[0] for name in names}:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call):
            flags = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if (
                FORBIDDEN_CALLS.match(ast.unparse(node.func))
                or flags.get("weights_only") == "False"
                or flags.get("allow_pickle") == "True"
            ):
                yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "f(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pyro.get_param_store().load(path)",
        "self.optim.load(path)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
    ],
)
def test_unsafe_loading_is_recognised(code):
    assert list(unsafe_loading(code))


@pytest.mark.parametrize(
    "code", ["story.eval()", "np.load(path, allow_pickle=False)", "load_file(path)", "json.load(f)"]
)
def test_safe_loading_is_not_mistaken_for_unsafe(code):
    assert not list(unsafe_loading(code))


def test_no_source_loads_a_file_that_could_run_code():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sources()
        for line, text in unsafe_loading(path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the files are git's to list")
def test_no_file_names_a_path_of_one_machine_or_a_package_index():
    places = re.compile(
        r"(?<![\w.~])/(?:root|work|farm|home/[a-z]\w*|Users/[A-Za-z]\w*)/"
        r"|\bpypi\.org/simple|files\.pythonhosted|registry\.npmjs"
    )
    found = []
    for path in repository_files():
        if path.suffix in {".npz", ".gz", ".png", ".zip", ".safetensors"}:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number}: {m[0]}" for m in places.finditer(line)]
    assert not found, "\n".join(found)


def requirement_names() -> set[str]:
    extras = PROJECT["optional-dependencies"].values()
    wanted = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    names = {re.split(r"[^\w-]", line)[0] for line in wanted}
    return names - {PROJECT["name"]}  # an extra that takes in others


def test_constraints_pin_every_dependency_and_name_no_index():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; .+)?", pin) for pin in pins)
    assert requirement_names() <= {pin.split("==")[0] for pin in pins}
    # torch's own metadata choose the CUDA libraries; pinned, they would forbid other builds
    assert not [pin for pin in pins if re.match("nvidia|cuda|triton", pin)]


def test_contributing_says_why_for_each_dependency():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert not {name for name in requirement_names() if f"`{name}`" not in text}


def test_a_wheel_with_a_stranger_or_a_gap_is_refused():
    faults = runpy.run_path(str(ROOT / "scripts/check_wheel.py"))["faults"]
    licences = [f"ppgen_suite-0.dist-info/licenses/{n}" for n in ("LICENSE", "LICENCES.md")]
    shipped = [
        *(f"ppgen/{p.relative_to(ROOT / 'ppgen')}" for p in (ROOT / "ppgen").rglob("*.*")),
        *(
            f"ppgen/{p.relative_to(ROOT)}"
            for f in ("models", "inference")
            for p in (ROOT / f).rglob("*.*")
        ),
    ]
    good = licences + shipped
    assert faults(good, size=1) == []
    assert "top-level" in faults([*good, "models/rbm.py"], size=1)[0]
    assert "missing" in faults([n for n in good if n != "ppgen/py.typed"], size=1)[0]
    assert "LICENCES.md" in faults([*licences[:1], *shipped], size=1)[0]
    assert "bytes" in faults(good, size=10**8)[0]


@pytest.mark.slow  # builds the wheel twice and an environment
def test_the_wheel_works_without_the_checkout():
    command = [sys.executable, "scripts/check_wheel.py", "--install"]
    subprocess.run(command, check=True, cwd=ROOT)


@pytest.mark.slow  # 10 s: two fits with HMC, one with VI
def test_the_example_of_the_readme_runs_and_fails_mean_field(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    # with x far from zero slope and intercept have correlation -.98: mean field cannot hold it
    assert "mean-field: FAIL" in done.stdout
    assert "Reference: converged" in done.stdout
    assert (tmp_path / "runs/line-vi-vs-mcmc/report.html").is_file()
