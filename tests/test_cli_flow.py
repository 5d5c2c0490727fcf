"""``ppgen train flow``: its kinds of layers, and what becomes of their runs."""

import json

import pytest
import torch

from ppgen.cli import exits, run
from ppgen.cli.flows import flow, options
from ppgen.cli.model_options import FlowOptions

LAYERS = ["coupling", "spline", "planar", "radial", "sylvester", "continuous", "autoregressive"]


@pytest.mark.parametrize("layer", LAYERS)
def test_every_kind_of_layer_scores_and_draws(layer):
    settings = options("flow", FlowOptions(layer=layer, flow_layers=2)) | {"layer": layer}
    story = flow(settings, 3, (8,))
    x = torch.randint(0, 2, (20, 3)).double()
    story.model(x)  # the layers that start from data do
    bounds = story.eval().log_weights(x, 3)
    assert bounds.shape == (3, 20)
    assert bounds.isfinite().all()
    assert set(story.sample(9).unique().tolist()) <= {0.0, 1.0}


def test_a_run_is_trained_evaluated_and_sampled(tmp_path, capsys):
    place = tmp_path / "run"
    train = ["train", "flow", "--data", "digits", "--layer", "planar", "--flow-layers", "2"]
    assert run([*train, "--epochs", "1", "--out", str(place), "--quiet"]) == exits.DONE
    settings = json.loads((place / "config.json").read_text())["command"]
    assert (settings["layer"], settings["flow_layers"]) == ("planar", 2)
    capsys.readouterr()
    assert run(["evaluate", str(place), "--samples", "3", "--json", "--quiet"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "lower"
    assert found["lower"] < -20  # the entropy of these images, 20 nats or so, is out of reach
    assert run(["sample", str(place), "--count", "4", "--quiet"]) == exits.DONE
    assert (place / "samples.png").exists()


def test_real_numbers_are_sent_to_python(tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("a,b\n" + "0.5,1.25\n-3,2\n" * 20)
    command = ["train", "flow", "--data", str(table), "--out", str(tmp_path / "run")]
    assert run(command) == exits.BAD_DATA
    assert "in Python: ppgen.models.Flow" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--flow-layers", "0"], "--flow-layers must be at least 1"),
        (["--layer", "sylvester", "--flow-columns", "400"], "takes 1 to 64"),
        (["--layer", "plannar"], "planar"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, capsys, more, says):
    command = ["train", "flow", "--data", "digits", *more, "--out", str(tmp_path / "run")]
    assert run(command) in (exits.USAGE, exits.BAD_DATA)
    assert says in capsys.readouterr().err
