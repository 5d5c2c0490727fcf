"""The command line: results on stdout, one-line errors on stderr, exit codes."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

import ppgen.models
from ppgen.cli import exits, run
from ppgen.cli.bundled import BUNDLED
from ppgen.cli.runs import load_data, read_settings, restored
from ppgen.cli.training import usual_epochs
from ppgen.likelihood import Likelihood

RBM, DBM, VAE = (
    str(Path(__file__).parent.parent / "pretrained" / name)
    for name in ("rbm-mnist-500", "dbm-mnist-500-1000", "vae-mnist-conv")
)
STORY = """
import pyro, pyro.distributions as dist, torch

def model(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mystory.py").write_text(STORY)
    (tmp_path / "my.csv").write_text("x,y\n1,2\n2,3.5\n3,6.5\n")
    return tmp_path


def test_a_users_own_story_and_table_are_fitted(files, capsys):
    command = ["fit", "mystory.py:model", "--data", "my.csv", "--using", "Laplace(draws=100)"]
    assert run([*command, "--json", "--out", "out", "--quiet"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["scalars"][0]["name"] == "slope"
    assert found["scalars"][0]["mean"] == pytest.approx(28.5 / 15, abs=0.13)  # 4.3 x .26 / 10
    assert (files / "out" / "report.html").is_file()
    assert (files / "out" / "posterior.nc").is_file()
    assert run([*command, "--out", "out"]) == exits.CANNOT_WRITE
    assert "not empty" in capsys.readouterr().err


def test_a_column_may_have_the_name_of_an_option(files, capsys):
    (files / "farm.py").write_text(
        STORY.replace("x,", "seed,").replace("slope * x", "slope * seed")
    )
    (files / "farm.py").write_text((files / "farm.py").read_text().replace("len(x)", "len(seed)"))
    (files / "farm.csv").write_text("seed,y\n1,2\n2,3.5\n3,6.5\n")
    command = ["fit", "farm.py:model", "--data", "farm.csv", "--using", "Laplace(draws=100)"]
    assert run([*command, "--json", "--out", "out", "--quiet", "--seed", "1"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["scalars"][0]["mean"] == pytest.approx(28.5 / 15, abs=0.13)


def test_methods_are_compared_by_label(files, capsys):
    command = ["compare", "mystory.py:model", "--data", "my.csv", "--reference", "exact", "--quiet"]
    command += ["--using", "exact=Laplace(draws=500), other=Laplace(draws=400)", "--out", "here"]
    assert run([*command, "--json"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["methods"]["other"]["verdict"]["level"] == "pass"
    assert (files / "here" / "report.html").is_file()


def test_a_story_is_explained(files, capsys):
    assert run(["explain", "mystory.py:model", "--data", "my.csv"]) == exits.DONE
    printed = capsys.readouterr().out
    assert "slope" in printed
    assert "data:3" in printed
    assert "recorded as" in printed


GROUPED = """
import pyro, pyro.distributions as dist

def model(y, group):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu[group], 1.0), obs=y)

def wrong(y, group):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    return mu * y
"""


def test_a_column_that_the_story_uses_as_an_index_is_one(files, capsys):
    (files / "grouped.py").write_text(GROUPED)
    (files / "groups.csv").write_text("y,group\n1.5,0\n2.5,1\n1,2\n0,1\n")
    assert run(["explain", "grouped.py:model", "--data", "groups.csv"]) == exits.DONE
    assert "recorded as" in capsys.readouterr().out


def test_what_the_codes_of_a_text_column_mean_is_said(files, capsys):
    (files / "grouped.py").write_text(GROUPED)
    (files / "groups.csv").write_text("y,group\n1.5,red\n2.5,blue\n1,green\n0,red\n")
    assert run(["explain", "grouped.py:model", "--data", "groups.csv"]) == exits.DONE
    assert "column group holds text: blue = 0, green = 1, red = 2" in capsys.readouterr().err


def test_a_failing_story_is_explained_by_line_shapes_and_sites(files, capsys):
    (files / "grouped.py").write_text(GROUPED)
    (files / "groups.csv").write_text("y,group\n1.5,0\n2.5,1\n1,2\n0,7\n")
    assert run(["fit", "grouped.py:wrong", "--data", "groups.csv"]) == exits.USAGE
    said = capsys.readouterr().err
    assert "grouped.py, line 11: return mu * y: RuntimeError" in said
    assert "arguments: y (4,), group (4,); sites before: mu (3,)" in said
    assert run(["fit", "grouped.py:model", "--data", "groups.csv"]) == exits.USAGE
    assert "index 7 is out of bounds" in capsys.readouterr().err
    assert run(["fit", "grouped.py:model"]) == exits.USAGE
    assert "missing a required argument: 'y'. Give --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ([], exits.DONE, "Usage"),
        (["--help"], exits.DONE, "compare"),
        (["fit", "--help"], exits.DONE, "ppgen fit eight_schools"),
        (["models"], exits.DONE, "eight_schools"),
        (["data", "list"], exits.DONE, "digits"),
        (["data", "check", "digits"], exits.DONE, "1437"),
        (["data", "check", "nothing.csv"], exits.MISSING, "no such file"),
        (["fit"], exits.USAGE, "STORY"),
        (["fti"], exits.USAGE, "fti"),
        (["fit", "nothing"], exits.USAGE, "eight_schools"),
        (["fit", "eight_school"], exits.USAGE, "did you mean eight_schools?"),
        (["fit", "mystory.py"], exits.USAGE, "as mystory.py:model"),
        (["fit", "rbm"], exits.USAGE, "ppgen train rbm"),
        (["fit", "nothing.py:model"], exits.MISSING, "no file nothing.py"),
        (["fit", "mystory.py:other"], exits.USAGE, "no function 'other'; it has model"),
        (["fit", "eight_schools", "--using", "HCM"], exits.USAGE, "HMC, NUTS"),
        (["fit", "eight_schools", "--using", "HMC(chain=3)"], exits.USAGE, "no option 'chain'"),
        (["fit", "eight_schools", "--using", "HMC(chains=0)"], exits.USAGE, "at least 1"),
        (["fit", "eight_schools", "--using", "VI(guide='x')"], exits.USAGE, "mean-field"),
        (["fit", "eight_schools", "--using", "ForwardKL(guide='flow')"], exits.USAGE, "full_rank"),
        (["fit", "eight_schools", "--using", "__import__('os')"], exits.USAGE, "no engine"),
        (["fit", "eight_schools", "--device", "cuda:99"], exits.USAGE, "not available"),
        (["fit", "eight_schools", "--sed", "3"], exits.USAGE, "--seed"),
        (["compare", "eight_schools", "--reference", "NUTS"], exits.USAGE, "not among"),
        (["train", "rbn"], exits.USAGE, "rbm, dbm, dbn, vae, flow"),
        (["train", "eight_schools"], exits.USAGE, "ppgen fit eight_schools"),
        (["train", "rbm", "--epochs", "0"], exits.USAGE, "epochs"),
        (["train", "dbm", "--patience", "3"], exits.USAGE, "--likelihood-every"),
        (["train", "rbm", "--data", "broken.csv"], exits.BAD_DATA, "row 3"),
        (["resume", "nowhere"], None, "nowhere"),
        (["evaluate", "nowhere"], None, "nowhere"),
        (["sample", "nowhere"], None, "nowhere"),
        (["evaluate", DBM, "--raise-chains", "2"], exits.USAGE, "of an rbm; this is a dbm"),
        (["evaluate", RBM, "--temperatures", "0"], exits.USAGE, "--temperatures must be at least"),
        (["evaluate", RBM, "--samples", "9"], exits.USAGE, "not measured by it; leave it out"),
        (["evaluate", DBM, "--thorough", "9"], exits.USAGE, "not measured by it; leave it out"),
        (["evaluate", VAE, "--chains", "9"], exits.USAGE, "without --anneal; leave it out"),
        (["sample", RBM, "--gibbs-steps", "0"], exits.USAGE, "--gibbs-steps must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_exit_codes_and_what_is_said(files, capsys, command, code, says):
    (files / "broken.csv").write_text("a,b\n1,0\nx,1\n0,1\n")
    found = run(command)
    printed = capsys.readouterr()
    if code is None:
        assert found in (exits.USAGE, exits.MISSING, exits.BAD_DATA)
    else:
        assert found == code
    assert says in printed.out + printed.err
    if found and command[0] != "data":  # `data check` reports on stdout
        assert len(printed.err.strip().splitlines()) == 1


@pytest.fixture
def without_pages(monkeypatch):
    """What is written beside a run has tests of its own."""
    monkeypatch.setattr("ppgen.cli.train.write_page", lambda *_: (None, None))


@pytest.mark.parametrize("model", ["dbm", pytest.param("dbn", marks=pytest.mark.slow)])
def test_deep_machines_are_trained_evaluated_sampled_and_resumed(
    model, files, capsys, without_pages
):
    train = ["train", model, "--epochs", "1", "--hidden", "6", "--out", "run", "--quiet"]
    assert run(train) == exits.DONE
    assert run(["resume", "run", "--epochs", "2", "--quiet"]) == exits.DONE
    capsys.readouterr()
    assert run(["evaluate", "run", "--samples", "20", "--json", "--quiet"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == ("exact" if model == "dbm" else "lower")
    assert -60 < found["lower"] < -15
    sample = ["sample", "run", "--count", "4", "--gibbs-steps", "2", "--out", "x.npy", "--quiet"]
    assert run(sample) == exits.DONE
    assert np.load(files / "x.npy").shape == (4, 64)


@pytest.mark.parametrize(
    ("model", "layers", "options"),
    [
        ("dbm", ("6", "5"), ["--start-from", "below"]),
        ("dbm", ("6", "5", "4"), ["--start-from", "below", "--mean-field-steps", "2", "--compile"]),
        ("dbm", ("6", "5"), ["--pretraining-epochs", "1"]),
        ("dbn", ("6", "64"), ["--start-from", "below"]),
    ],
)
def test_deep_machines_start_from_a_run_or_pretrained(
    model, layers, options, files, capsys, without_pages
):
    common = ["--epochs", "1", "--quiet", "--persistent"]
    assert run(["train", "rbm", "--hidden", "6", "--out", "below", *common]) == exits.DONE
    train = ["train", model, "--hidden", *layers, *common, "--likelihood-every", "1"]
    assert run([*train, "--out", "run", *options]) == exits.DONE
    assert run([*train, "--out", "more", "--start-from", "run"]) == exits.DONE
    assert run(["resume", "run", "--epochs", "2", "--quiet"]) == exits.DONE
    text = (files / "run" / "likelihood.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(-30 < line["lower"] < -20 for line in lines)  # the base rates have -27.2
    assert run(["evaluate", "run", "--chains", "5", "--temperatures", "20", "--binarisation",
                "dynamic", "--quiet"]) == exits.DONE  # fmt: skip
    assert "dynamic binarisation" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rbm", "dbm", "dbn"])
def test_the_page_of_a_machine_shows_it_from_inside(model, files):
    train = ["train", model, "--hidden", "6", "--epochs", "1", "--likelihood-every", "1"]
    assert run([*train, "--quiet", "--out", "run"]) == exits.DONE
    page = (files / "run" / "report.html").read_text()
    shown = ["of layer 1 is on", "start at noise", "is overfitting", "block Gibbs", "was trained"]
    shown += ["no likelihoods", "what each adds to a pixel"]
    shown += ["of layer 2 is on"] if model != "rbm" else []
    assert [words for words in shown if words not in page] == []


def test_a_run_that_is_no_start_is_refused(files, capsys, without_pages):
    options = ["--epochs", "1", "--quiet"]
    assert run(["train", "rbm", "--hidden", "6", "--out", "below", *options]) == exits.DONE
    wrong = [["dbm", "--hidden", "7", "5"], ["dbn", "--hidden", "6", "5", "4"], ["rbm"]]
    for model in wrong:
        assert run(["train", *model, *options, "--start-from", "below"]) == exits.USAGE
        assert "are not the lowest of" in capsys.readouterr().err
    assert run(["resume", "below", "--patience", "3"]) == exits.USAGE
    assert "--likelihood-every" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("examples", "batch_size", "epochs"),
    [(54_000, 100, 20), (10_000, 100, 20), (1_294, 100, 154), (30, 100, 200), (1_294, 20, 31)],
)
def test_few_examples_are_gone_through_more_often(examples, batch_size, epochs):
    assert usual_epochs(examples, batch_size) == epochs
    steps = -(-examples // batch_size)
    assert epochs in (20, 200) or (epochs - 1) * steps < 2_000 <= epochs * steps


def test_a_run_is_trained_evaluated_sampled_resumed_and_reported(files, capsys, monkeypatch):
    train = ["train", "rbm", "--epochs", "2", "--hidden", "8", "--out", "run", "--quiet"]
    assert run(train) == exits.DONE
    assert {p.name for p in (files / "run").iterdir()} >= {
        "config.json", "metrics.jsonl", "metrics.csv", "ckpt", "samples.png", "report.html"
    }  # fmt: skip
    assert run(train) == exits.CANNOT_WRITE
    assert "run" in capsys.readouterr().err
    assert run(["resume", "run", "--epochs", "3", "--quiet"]) == exits.DONE
    assert len((files / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert read_settings(Path("run"))["epochs"] == 3  # of the next resume, and of the page
    assert run(["resume", "run", "--epochs", "0", "--quiet"]) == exits.USAGE
    said = capsys.readouterr().out
    assert run(["evaluate", "run", "--json", "--quiet"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)
    assert f"on {found['data']}: {found['lower']:.2f} nats per example (exact)" in said
    assert found["kind"] == "exact"
    assert -60 < found["lower"] < -15
    assert "static binarisation" in found["data"]
    evaluate = ["evaluate", "run", "--raise-chains", "3", "--temperatures", "20", "--quiet"]
    assert run([*evaluate, "--json"]) == exits.DONE
    raised = json.loads(capsys.readouterr().out)["raise"]
    settings = read_settings(Path("run"))
    x = load_data(settings, "test")
    options = {"raise_chains": 3, "temperatures": 20, "seed": 0}
    expected = ppgen.log_likelihood(restored(settings, x, Path("run")), x, **options).details
    assert raised == pytest.approx(expected["raise"]["bound"])
    assert run(evaluate) == exits.DONE
    assert f"3 reverse passes from each: >= {raised:.2f} nats" in capsys.readouterr().out
    assert run(["sample", "run", "--count", "4", "--out", "x.npy", "--quiet"]) == exits.DONE
    assert run(["report", "run", "--quiet"]) == exits.DONE
    two_runs_are_compared_example_by_example(capsys)
    apart = Likelihood("bounds", -30.0, -20.0, 0.1, 0.1, "AIS", 360)
    monkeypatch.setattr("ppgen.cli.deep.held_out_likelihood", lambda *_, **__: apart)
    assert run(["evaluate", "run", "--quiet"]) == exits.DONE
    assert "no likelihood: the two sides disagree" in capsys.readouterr().out
    assert run(["evaluate", "run", "--quiet", "--strict"]) == exits.NOT_PASSED


def two_runs_are_compared_example_by_example(capsys):
    """Another machine, told another binarisation by its own seed, and one that is told labels."""
    train = ["train", "rbm", "--epochs", "1", "--hidden", "6", "--seed", "1", "--quiet"]
    assert run([*train, "--out", "other"]) == run([*train, "--labels", "--out", "labels"]) == 0
    capsys.readouterr()
    assert run(["evaluate", "run", "--against", "other", "--json", "--quiet"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)["against"]
    settings = read_settings(Path("run"))
    x = load_data(settings, "test")
    one, two = (
        ppgen.log_likelihood(restored(read_settings(place), x, place), x, seed=0)
        for place in (Path("run"), Path("other"))
    )
    assert found["value"] == pytest.approx(one.lower - two.lower)
    assert found["paired_error"] == pytest.approx((one.each - two.each).std(ddof=1) / 360**0.5)
    assert run(["evaluate", "run", "--against", "labels", "--quiet"]) == exits.USAGE
    assert "it takes these data as other numbers" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--given-data"]], ids=["prior", "given data"])
def test_an_engine_is_calibrated_and_a_page_is_written(files, capsys, more):
    command = ["calibrate", "mystory.py:model", "--data", "my.csv", "--quiet", "--json", *more]
    command += ["--using", "Laplace(draws=60)", "--simulations", "12", "--out", "here"]
    assert run(command) == exits.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["simulations"] == 12
    assert found["around"].startswith("posterior by HMC" if more else "prior")
    assert (files / "here" / "report.html").is_file()
    assert (files / "here" / "calibration.png").is_file()


def test_every_story_that_is_a_function_is_known_by_name():
    functions = {n for n, v in vars(ppgen.models).items() if inspect.isfunction(v)}
    listed = {name: bundled for name, bundled in BUNDLED.items() if bundled.kind == "bayes"}
    assert functions - {"labelled"} <= set(listed)
    for bundled in listed.values():
        program = ppgen.Program(bundled.load(), **bundled.arguments())
        assert program.dim > 0
