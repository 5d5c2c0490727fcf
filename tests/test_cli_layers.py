"""`ppgen train dbn` and `dbm`: a run that is killed while a layer is trained loses no layer."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ppgen
from ppgen import checkpoint
from ppgen.cli import demo, exits, run
from ppgen.cli.runs import read_settings
from ppgen.inference.train import TrainResult
from ppgen.progress import quiet

DBM = ["dbm", "--epochs", "1", "--pretraining-epochs", "2"]
DBN = ["dbn", "--epochs", "2"]


def _complaints(models, kills):
    script = Path(__file__).parent / "layers_killed.py"
    start = [sys.executable, "-P", str(script)]  # -P: tests/ppgen is not the package
    done = subprocess.run(
        [*start, json.dumps(models), json.dumps(kills)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class Killed(BaseException):
    """Passes through everything, as death does; the processes below really die."""


def test_a_run_killed_in_a_layer_ends_as_a_whole_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppgen.cli.train.write_page", lambda *_: (None, None))
    train = ["train", *DBM, "--hidden", "6", "--persistent", "--batch-size", "400", "--quiet"]
    assert run([*train, "--out", "whole"]) == exits.DONE
    replace, left = os.replace, iter(range(20))

    def killing(*args):
        replace(*args)
        if next(left, None) is None:
            raise Killed

    monkeypatch.setattr(os, "replace", killing)
    with pytest.raises(Killed):
        run([*train, "--out", "killed"])
    monkeypatch.setattr(os, "replace", replace)
    assert sorted(p.name for p in Path("killed/layers").iterdir()) == ["layer-1", "layer-2"]
    assert not checkpoint.exists(Path("killed/ckpt"))
    assert run(["resume", "killed", "--quiet"]) == exits.DONE
    ends = [checkpoint.pack(checkpoint.load(Path(out) / "ckpt")[0]) for out in ("whole", "killed")]
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_runs_killed_in_either_layer_end_bit_for_bit_as_whole_ones():
    assert _complaints([DBN, DBM], [1, 2, 4, 7, 10, 13, 16, 19, 22]) == []


def test_an_interrupted_layer_ends_the_run_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    """Ctrl-C in the first layer: the second is not begun, nor are all trained together."""
    monkeypatch.chdir(tmp_path)
    greedy = importlib.import_module("ppgen.inference.greedy")
    calls = []

    def interrupted(story, data, **options):
        calls.append(options["out"])
        return TrainResult(story, {}, 0, 3, 0.1, "interrupted", "", options["out"])

    monkeypatch.setattr(greedy, "train", interrupted)
    command = ["train", "dbn", "--hidden", "6", "--epochs", "1", "--out", "run", "--quiet"]
    assert run(command) == exits.INTERRUPTED
    assert calls == [Path("run/layers/layer-1")]
    assert "layer 1 was trained; continue with: ppgen resume run" in capsys.readouterr().err
    resume = ["resume", "run", "--epochs", "4", "--quiet"]
    assert run(resume) == exits.INTERRUPTED
    assert read_settings(Path("run"))["epochs"] == 4


def test_the_demo_trains_layers_without_a_run_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ppgen, "log_likelihood", lambda *_, **__: None)  # most of the seconds
    monkeypatch.setitem(demo._SETTINGS, "dbn", demo._SETTINGS["dbn"] | {"hidden": [4], "epochs": 1})
    with demo.interruptible() as interrupt, quiet():
        entries = demo.train_digits(0, interrupt, ["dbn"])
    assert [entry.name for entry in entries] == ["base rates", "dbn"]
    assert not list(tmp_path.iterdir())
