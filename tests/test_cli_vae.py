"""``ppgen train vae``: its parts, its bounds, and what another run gives it to begin with."""

import json
import math
import re

import pytest
import torch

import ppgen
from ppgen.cli import exits, run
from ppgen.cli.runs import load_data, read_settings, restored
from ppgen.plots import pictures

QUICK = ["--data", "digits", "--epochs", "1", "--hidden", "8", "--latent", "3", "--quiet"]


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.setattr("ppgen.cli.runs.THOROUGH", 2)  # the page is not looked at

    def run_folder(name, *options):
        place = tmp_path / name
        assert run(["train", "vae", *QUICK, *options, "--out", str(place)]) == exits.DONE
        settings = read_settings(place)
        return restored(settings, load_data(settings, "train"), place)

    return run_folder


@pytest.mark.slow
def test_a_run_begins_with_the_parameters_of_another(train, tmp_path, capsys):
    first = train("first")
    slow = ["--learning-rate", "1e-12", "--start-from", str(tmp_path / "first")]
    again = train("again", *slow)
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)
    capsys.readouterr()
    flow = train(
        "flow", "--posterior", "sylvester", "--flow-layers", "2", "--flow-columns", "1", *slow
    )
    torch.testing.assert_close(flow.encoder.state_dict(), first.encoder.state_dict())
    torch.testing.assert_close(flow.posterior.base.state_dict(), first.posterior.state_dict())
    assert "new here: posterior.head.weight, posterior.head.bias\n" in capsys.readouterr().err
    told = train("told", "--posterior", "spline", *slow)
    torch.testing.assert_close(told.posterior.base.state_dict(), first.posterior.state_dict())
    assert len(told.posterior.layers) == 2


@pytest.mark.slow
def test_a_run_goes_on_with_another_patience(train, tmp_path, monkeypatch):
    train("run")
    given, real = {}, ppgen.train

    def watched(*args, **options):
        given.update(options)
        return real(*args, **options)

    monkeypatch.setattr(ppgen, "train", watched, raising=False)
    more = ["resume", str(tmp_path / "run"), "--epochs", "2", "--patience", "1", "--quiet"]
    assert run(more) == exits.DONE
    assert (given["patience"], given["epochs"]) == (1, 2)
    settings = read_settings(tmp_path / "run")
    assert (settings["patience"], settings["epochs"]) == (1, 2)


@pytest.mark.slow
def test_a_convolutional_vae_with_causal_pixels(train, tmp_path, capsys):
    story = train(
        "causal", "--convolutional", "--channels", "2", "--refine", "0", "--pixels", "causal",
        "--objective", "dreg", "--draws", "2", "--weight-decay", "0.1",
    )  # fmt: skip
    assert story.likelihood.image_shape == (8, 8)
    assert story.sample(3).shape == (3, 64)
    capsys.readouterr()
    place = str(tmp_path / "causal")
    assert run(["evaluate", place, "--samples", "3", "--json", "--quiet"]) == exits.DONE
    assert json.loads(capsys.readouterr().out)["kind"] == "lower"
    options = json.loads((tmp_path / "causal" / "config.json").read_text())["options"]
    assert options["loss"] == {"name": "DReG", "options": {"draws": 2}}
    assert options["optimizer"]["options"]["weight_decay"] == 0.1


@pytest.mark.slow
def test_the_code_is_annealed_on_request(train, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ppgen.inference.decoder_likelihood.SETTLING", 2)
    train("plain")
    capsys.readouterr()
    place = str(tmp_path / "plain")
    ask = ["--samples", "2", "--anneal", "2", "--chains", "8", "--temperatures", "12", "--quiet"]
    assert run(["evaluate", place, *ask, "--json"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)["looseness"]
    assert found["examples"] == 2
    # three bounds of one number, the last of which is off by its own error
    least = found["importance_sampled"] - 4.3 * found["annealed_error"] - 0.05
    assert found["elbo"] < found["importance_sampled"]
    assert least < found["annealed"] < found["importance_sampled"] + 0.3
    assert run(["evaluate", place, "--samples", "2", "--quiet"]) == exits.DONE
    assert re.search(r"\nELBO -\d+\.\d\d nats per example\n", capsys.readouterr().out)
    assert run(["evaluate", place, "--anneal", "0", "--quiet"]) == exits.USAGE
    assert "--anneal must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loss"), [("rws", "ReweightedWakeSleep"), ("ws", "WakeSleep")])
def test_wake_sleep_is_an_objective(train, tmp_path, name, loss):
    train(name, "--objective", name, "--draws", "3")
    options = json.loads((tmp_path / name / "config.json").read_text())["options"]
    assert options["loss"] == {"name": loss, "options": {"draws": 3}}


@pytest.mark.parametrize("pixels", ["grey", "gaussian"])
def test_grey_levels_are_modelled_as_they_are(train, pixels):
    story = train("grey", "--binarisation", "none", "--pixels", pixels)
    x = story.sample(5)
    assert ((x != 0) & (x != 1)).any()


@pytest.mark.slow
@pytest.mark.parametrize("pixels", ["logistic", "categorical"])
def test_whole_grey_levels_have_bits_per_dimension(train, tmp_path, capsys, monkeypatch, pixels):
    shown = []
    draw = pictures._mosaic
    monkeypatch.setattr(
        pictures, "_mosaic", lambda x, *a, **k: (shown.append(x.max()), draw(x, *a, **k))[1]
    )
    story = train("whole", "--pixels", pixels)
    assert story.likelihood.levels == 17  # the 8x8 digits are sums of 16 bits
    assert story.sample(9).unique().numel() > 5
    settings = read_settings(tmp_path / "whole")
    x = load_data(settings, "test").x
    assert x.max() == 16
    assert (x == x.round()).all()
    assert (story.reconstruct(x[:3].double()) <= 16).all()
    capsys.readouterr()
    place = str(tmp_path / "whole")
    assert run(["evaluate", place, "--samples", "3", "--json", "--quiet"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["bits_per_dimension"] == pytest.approx(-found["lower"] / (64 * math.log(2)))
    for command in ("interpolate", "reconstruct", "sample"):
        assert run([command, place, "--quiet"]) == exits.DONE
    assert len(shown) == 5  # samples and reconstructions of the page, and these three
    assert max(shown) <= 1  # what pictures take for white


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--binarisation", "none"], "or model them as they are: --pixels grey or gaussian"),
        (["--binarisation", "none"], "whole grey levels by --pixels logistic or categorical"),
        (["--binarisation", "static", "--pixels", "logistic"], "leave --binarisation out"),
        (["--pixels", "logistic", "--levels", "1"], "--levels says how many there are"),
        (["--objective", "iwae", "--warm-up", "10"], "--warm-up and --free-bits are for elbo"),
        (["--draws", "0"], "--draws must be at least 1 with --objective elbo; got 0"),
        (["--objective", "rws", "--draws", "1"], "--draws must be at least 2"),
        (["--posterior", "planar", "--flow-layers", "0"], "--flow-layers must be at least 1"),
        (["--start-from", "."], "no such file: no checkpoint was committed"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, capsys, options, says):
    command = ["train", "vae", *QUICK, *options, "--out", str(tmp_path / "run")]
    assert run(command) in (exits.USAGE, exits.BAD_DATA)
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
