"""``ppgen benchmark posteriordb`` on a small clone: results, resumption, what is said."""

import json
import zipfile

import numpy as np
import pytest

from ppgen.cli import exits, run
from ppgen.cli.benchmark_table import markdown
from ppgen.cli.engines import engine, written

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2))


def pack(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.json", json.dumps(content))


def add(root, name, data, draws):
    """Ten chains of 100 draws: they need not be right, only there."""
    (root / "posteriors").mkdir(parents=True, exist_ok=True)
    description = {"data_name": name, "reference_posterior_name": name}
    (root / "posteriors" / f"{name}.json").write_text(json.dumps(description))
    pack(root / f"data/data/{name}.json.zip", data)
    chains = [
        {n: (m + s * RNG.normal(size=100)).tolist() for n, (m, s) in draws.items()}
        for _ in range(10)
    ]
    pack(root / f"reference_posteriors/draws/draws/{name}.json.zip", chains)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Of blr the reference is right: sigma 2, and the least-squares fit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPGEN_POSTERIORDB", raising=False)
    root = tmp_path / "clone/posterior_database"
    y = X @ [1.0, -1.0] + 2 * RNG.normal(size=40)
    fit = np.linalg.lstsq(X, y, rcond=None)[0]
    sd = 2 * np.sqrt(np.linalg.inv(X.T @ X).diagonal())
    draws = {f"beta[{k + 1}]": (fit[k], sd[k]) for k in range(2)}
    add(root, "sblrc-blr", {"X": X.tolist(), "y": y.tolist()}, {**draws, "sigma": (2.0, 0.2)})
    return tmp_path / "clone"


@pytest.mark.parametrize(
    "text", ["HMC()", "NUTS(draws=500, max_draws=500)", "VI(batch_size=10)", "Laplace(draws=400)"]
)
def test_an_engine_is_written_by_the_options_that_are_not_the_defaults(text):
    assert written(engine(text)) == text


def command(clone, *more):
    start = ["benchmark", "posteriordb", "--posteriordb", str(clone), "--out", "out", "--quiet"]
    return [*start, "--posteriors", "blr", *more]


def results(tmp_path):
    return json.loads((tmp_path / "out" / "results.json").read_text())


@pytest.mark.slow
def test_results_are_written_resumed_and_added_to(clone, tmp_path, capsys):
    engines = "Laplace(draws=400), again=Laplace(draws=500)"
    assert run(command(clone, "--engines", engines)) == exits.DONE
    printed = capsys.readouterr()
    first = results(tmp_path)["results"]
    assert [(r["posterior"], r["label"]) for r in first] == [
        ("sblrc-blr", "Laplace(draws=400)"),
        ("sblrc-blr", "again"),
    ]
    right = first[0]
    assert right["shift"] < 1.5  # the data's own sigma is not 2: its sd is 2 / sqrt(80) = .22
    assert 0.5 < right["low_ratio"] < right["high_ratio"] < 2
    assert right["k_hat"] is not None
    assert right["rhat"] is None
    assert (tmp_path / "out" / "table.md").read_text() in printed.out
    assert (tmp_path / "out" / "table.png").read_bytes().startswith(b"\x89PNG")

    assert run(command(clone, "--engines", engines)) == exits.CANNOT_WRITE
    assert "not empty" in capsys.readouterr().err
    changed = "Laplace(draws=400), again=Laplace(draws=600), MLE"
    assert run(command(clone, "--engines", changed, "--resume")) == exits.DONE
    said = capsys.readouterr().err
    assert "again on sblrc-blr" in said  # its options have changed
    assert "Laplace(draws=400) on" not in said
    second = results(tmp_path)["results"]
    assert len(second) == 3
    assert first[0] in second


def test_an_engine_that_cannot_says_why_and_the_others_go_on(clone, tmp_path, capsys):
    assert run(command(clone, "--engines", "CAVI, Laplace", "--strict")) == exits.NOT_PASSED
    found = results(tmp_path)["results"]
    assert "CAVI" in found[0]["error"]
    assert "error" not in found[1]
    assert "CAVI on sblrc-blr: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--posteriors", "other"], exits.USAGE, "no posterior 'other': there are arK-arK"),
        (["--engines", "HCM"], exits.USAGE, "no engine 'HCM'"),
        (["--posteriordb", "nowhere"], exits.MISSING, "not a clone"),
        (["--posteriors", "arma"], exits.MISSING, "no posterior 'arma-arma11' in this clone"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(clone, capsys, more, code, says):
    given = command(clone, "--engines", "MAP")
    for key, value in zip(more[::2], more[1::2], strict=True):
        given = [w for i, w in enumerate(given) if key not in (w, given[i - 1])]
        given += [key, value]
    assert run(given) == code
    said = capsys.readouterr().err.strip().splitlines()
    assert says in said[-1]


def test_a_foreign_results_file_is_not_overwritten(clone, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text('{"format": "other"}')
    assert run(command(clone, "--resume")) == exits.USAGE
    assert "no results of a benchmark" in capsys.readouterr().err


def test_what_fails_the_bars_is_bold_and_what_has_not_converged_is_marked():
    row = {
        **dict.fromkeys(("shift", "low_ratio", "high_ratio", "w1", "rhat", "mcse"), 1.0),
        **{"posterior": "data-model", "messages": ["R-hat"], "gradients": 12_345, "seconds": 2.0},
        "ess_per_second": None,
        "k_hat": None,
    }
    good = {**row, "label": "good", "converged": True, "passed": True}
    silent = {**row, "label": "silent", "converged": True, "passed": False}
    honest = {**row, "label": "honest", "converged": False, "passed": False}
    text = markdown([good, silent, honest])
    assert "| | model |" in text
    assert "| good | 12,345 |" in text
    assert "| silent | **12,345** |" in text
    assert "| honest | **12,345*** |" in text
    assert "| good | – |" in text
