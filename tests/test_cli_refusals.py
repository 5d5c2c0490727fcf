"""Commands that make no sense, files that are none, Ctrl-C: one line, a code, nothing left."""

import json
import shutil
import signal
import warnings

import pytest
import torch

from ppgen.cli import _code, _one_line, _warnings_on_one_line, exits, run
from ppgen.cli.runs import read_likelihoods
from ppgen.progress import interruptible
from ppgen.run_folder import RunFolder

TRAIN = ["train", "rbm", "--data", "ok.csv", "--hidden", "2", "--quiet", "--out", "out"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppgen.cli.train.write_page", lambda *_: (None, None))
    (tmp_path / "ok.csv").write_text("a,b\n" + "0,1\n1,0\n" * 10)
    (tmp_path / "latin.csv").write_bytes("größe,b\n0,1\n1,0\n".encode("latin-1"))
    (tmp_path / "afile").write_text("x")
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs, measured after each."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "ok.csv").write_text("a,b\n" + "0,1\n1,0\n" * 10)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # that of the tests
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("ppgen.cli.train.write_page", lambda *_: (None, None))
        assert run([*TRAIN, "--epochs", "2", "--likelihood-every", "1"]) == exits.DONE
    torch.set_default_dtype(dtype)
    return folder / "out"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--epochs", "0"], "--epochs 0: expected a whole number, at least 1"),
        (["--epochs", "1.5"], 'Invalid value for --epochs: unable to convert "1.5" into int'),
        (["--epochs", "x"], "Invalid value for --epochs"),
        (["--seed", "0.5"], "Invalid value for --seed"),
        (["--seed", "-1"], "--seed -1: expected a whole number from 0 to 2**64 - 1"),
        (["--seed", str(2**64)], f"--seed {2**64}: expected a whole number"),
        (["--batch-size", "0"], "--batch-size 0: expected a whole number, at least 1"),
        (["--learning-rate", "0"], "--learning-rate 0: expected a number above 0"),
        (["--learning-rate", "nan"], "--learning-rate nan: expected a finite number"),
        (["--averaging=1"], "--averaging 1: expected the decay"),
        (["--folder", "."], "--folder '.': it is for mnist and fashion-mnist; ok.csv is found"),
        (["--weight-decay", "nan"], "--weight-decay must be a number of at least 0, got nan"),
        (["--sparsity", "nan"], "--sparsity must be a number of at least 0, got nan"),
        (["--likelihood-every", "0"], "--likelihood-every must be at least 1, got 0"),
        (["--hidden", "0"], "--hidden must be a whole number of at least 1, got 0"),
        (["--hidden", "2.5"], 'Invalid value for --hidden: unable to convert "2.5" into int'),
        (["--device", "meta"], "--device meta is not available"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_make_no_sense_are_named_as_they_were_given(here, capsys, options, says):
    command = [word for word in TRAIN if word not in ("--hidden", "2")]
    command += [] if "--hidden" in options else ["--hidden", "2"]
    command += [] if "--epochs" in options else ["--epochs", "1"]
    assert run([*command, *options]) == exits.USAGE
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
    assert not (here / "out").exists()


def test_an_option_of_several_numbers_needs_one(here, capsys):
    assert run(["train", "rbm", "--epochs", "1", "--out", "out", "--hidden"]) == exits.USAGE
    assert "--hidden: give it a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ([*TRAIN[:3], "gone.csv"], exits.MISSING, "gone.csv: there is no such file"),
        ([*TRAIN[:3], "latin.csv"], exits.BAD_DATA, "latin.csv: not UTF-8"),
        (["fit", "eight_schools", "--data", "gone.csv"], exits.MISSING, "gone.csv: there is no"),
        (["data", "check", "gone.csv"], exits.MISSING, "there is no such file"),
        ([*TRAIN[:-1], "afile"], exits.CANNOT_WRITE, "afile is a file: a run needs a folder"),
        ([*TRAIN[:-1], "afile/x"], exits.CANNOT_WRITE, "cannot write a run in afile/x: Not a"),
        (["fit", "banana", "--out", "afile"], exits.CANNOT_WRITE, "afile is a file"),
        (["fit", "banana", "--out", "afile/x"], exits.CANNOT_WRITE, "the folder afile/x cannot"),
        (["demo", "--out", "afile"], exits.CANNOT_WRITE, "afile is a file: name a folder"),
        (["sample", "afile"], exits.MISSING, "there is no run folder afile"),
        (["compare", "banana", "--using", ","], exits.USAGE, "no engine: write one, as HMC"),
        (["compare", "banana", "--using", "a=HMC, a=VI"], exits.USAGE, "two engines are called a"),
        (["compare", "banana", "--using", "HMC"], exits.USAGE, "one alone: ppgen fit banana"),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_files_that_are_none_have_their_codes(here, capsys, command, code, says):
    assert run([*command, *(["--epochs", "1"] if command[0] == "train" else [])]) == code
    printed = capsys.readouterr()
    assert says in printed.err + printed.out


def _without_checkpoint(run):
    shutil.rmtree(run / "ckpt")


def _of_another_command(run):
    config = json.loads((run / "config.json").read_text())
    config["command"]["model"] = "eight_schools"
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (lambda run: (run / "config.json").unlink(), exits.MISSING, "it holds no config.json"),
        (lambda run: (run / "config.json").write_text("{"), exits.BAD_DATA, "not JSON, or"),
        (lambda run: (run / "config.json").write_text("[]"), exits.BAD_DATA, "config.json of a"),
        (_of_another_command, exits.USAGE, "its config.json names no model"),
        (_without_checkpoint, exits.BAD_DATA, "run/ckpt/manifest.json: no such file"),
    ],
    ids=["no config", "half a config", "another config", "another model", "no checkpoint"],
)
def test_what_is_no_run_cannot_be_sampled(
    trained, tmp_path, monkeypatch, capsys, damage, code, says
):
    monkeypatch.chdir(trained.parent)
    shutil.copytree(trained, tmp_path / "run")
    damage(tmp_path / "run")
    assert run(["sample", str(tmp_path / "run"), "--count", "1", "--quiet"]) == code
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("edit", "command", "says"),
    [
        (lambda c: c["command"].pop("folder"), "evaluate", "its 'command' has no 'folder'"),
        (lambda c: c.update(options="x"), "resume", "'options' is not an object"),
    ],
)
def test_a_config_that_somebody_has_edited_is_named(
    trained, tmp_path, monkeypatch, capsys, edit, command, says
):
    shutil.copytree(trained.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    edit(config)
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert run([command, "out", "--quiet"]) == exits.BAD_DATA
    error = capsys.readouterr().err
    assert f"config.json: {says}" in error
    assert error.count("\n") == 1


def test_measured_likelihoods_have_the_error_over_the_examples(trained):
    lines = (trained / "likelihood.jsonl").read_text().splitlines()
    assert all(json.loads(line)["examples_error"] >= 0 for line in lines)
    assert list(read_likelihoods(trained)) == [1, 2]


def test_a_run_that_is_not_overwritten_keeps_all_its_files(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert trained / "likelihood.jsonl" in before
    assert run([*TRAIN, "--epochs", "1"]) == exits.CANNOT_WRITE
    assert "exists and holds" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_run_that_is_overwritten_has_the_likelihoods_of_the_new_one(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    with RunFolder(tmp_path / "run", overwrite=True):
        assert not (tmp_path / "run" / "likelihood.jsonl").exists()


def test_other_data_than_those_of_the_run_are_named(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent)
    (tmp_path / "more.csv").write_text("a,b,c\n" + "0,1,0\n1,0,1\n" * 20)
    evaluate = ["evaluate", "out", "--data", str(tmp_path / "more.csv"), "--split", "train"]
    assert run([*evaluate, "--quiet"]) == exits.BAD_DATA
    assert "more.csv with its 3 columns: weight" in capsys.readouterr().err
    shutil.copytree(trained, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ok.csv").write_text("a,b\n" + "0,1\n1,0\n" * 20)
    assert run(["resume", "out", "--epochs", "3", "--quiet"]) == exits.USAGE
    assert "made with other data" in capsys.readouterr().err


def test_a_picture_has_a_name_that_says_so(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent)
    assert run(["sample", "out", "--count", "1", "--out", "noext", "--quiet"]) == exits.USAGE
    assert "--out noext: name a .png or a .npy file" in capsys.readouterr().err


def test_ctrl_c_before_there_is_anything_leaves_nothing(here, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ppgen.run_folder.RunFolder.clean", stop)
    assert run([*TRAIN, "--epochs", "1"]) == exits.INTERRUPTED
    assert capsys.readouterr().err == "ppgen: interrupted\n"
    assert not (here / "out").exists()


def test_ctrl_c_that_a_loop_has_answered_has_its_code(monkeypatch):
    def command(*_, **__):
        with interruptible() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt
        return exits.DONE  # what there was is saved

    monkeypatch.setattr("ppgen.cli.app.app", command)
    assert run(["fit"]) == exits.INTERRUPTED
    monkeypatch.setattr("ppgen.cli.app.app", lambda *_, **__: exits.NOT_PASSED)
    assert run(["fit"]) == exits.NOT_PASSED


def test_warnings_are_one_line(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with _warnings_on_one_line():
            warnings.warn("constant column\n a", stacklevel=1)
    assert capsys.readouterr().err == "ppgen: warning: constant column a\n"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("x: can't allocate memory: y")])
def test_sizes_beyond_the_memory_are_no_fault_of_ppgens(error):
    assert _code(error) == exits.USAGE
    assert _one_line(error).startswith("not enough memory for options of this size")
