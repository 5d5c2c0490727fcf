import json
import os
import subprocess
import sys

import pytest

from ppgen.run_folder import RunFolder, RunFolderError, read_config


def _made(path, rows=1):
    with RunFolder(path) as run:
        run.write_config({"options": {"seed": 0}, "story": {"name": "rbm", "options": {}}})
        for epoch in range(rows):
            run.append({"epoch": epoch + 1, "loss": 0.5})
    return path


def test_the_config_says_what_the_result_depends_on(tmp_path):
    config = read_config(_made(tmp_path / "run"))
    assert config["story"] == {"name": "rbm", "options": {}}
    assert config["options"] == {"seed": 0}
    assert {"ppgen", "python", "torch", "pyro-ppl"} <= config["versions"].keys()
    assert config["machine"]["cores"] == os.cpu_count()


def test_metrics_gain_a_line_an_epoch_in_both_files(tmp_path):
    path = _made(tmp_path / "run", rows=2)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"epoch": 1, "loss": 0.5},
        {"epoch": 2, "loss": 0.5},
    ]
    assert (path / "metrics.csv").read_text() == "epoch,loss\n1,0.5\n2,0.5\n"


def test_resuming_keeps_only_the_rows_of_the_checkpoint(tmp_path):
    path = _made(tmp_path / "run", rows=3)
    with RunFolder(path, resume=True) as run:
        run.rewrite([{"epoch": 1, "loss": 0.5}])
        run.append({"epoch": 2, "loss": float("nan")})
    assert (path / "metrics.csv").read_text() == "epoch,loss\n1,0.5\n2,nan\n"
    assert (path / "metrics.jsonl").read_text().count("\n") == 2


def test_an_existing_run_is_refused_unless_resumed_or_overwritten(tmp_path):
    path = _made(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"`ppgen resume .*run`.*overwrite=True"):
        RunFolder(path)
    assert read_config(path)
    with RunFolder(path, resume=True):
        assert (path / "metrics.csv").exists()
    with RunFolder(path, overwrite=True):
        assert os.listdir(path) == ["lock"]
    with pytest.raises(RunFolderError, match="exclude each other"):
        RunFolder(path, resume=True, overwrite=True)


def test_files_that_are_not_of_a_run_are_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(RunFolderError):
            RunFolder(tmp_path, **options)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    path = _made(tmp_path / "run")
    (path / "notes.txt").write_text("mine")
    with RunFolder(path, overwrite=True):
        pass
    assert os.listdir(path) == ["notes.txt"]


def test_a_missing_folder_cannot_be_resumed(tmp_path):
    with pytest.raises(RunFolderError, match="nothing to resume"):
        RunFolder(tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder(tmp_path / "file")


def test_a_second_writer_is_refused_by_the_pid_of_the_first(tmp_path):
    with RunFolder(tmp_path), pytest.raises(RunFolderError, match=f"process {os.getpid()}"):
        RunFolder(tmp_path, resume=True)
    with RunFolder(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_the_lock_of_a_killed_process_is_stale(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from ppgen.run_folder import _Lock\n"
        "from pathlib import Path\n"
        f"lock = _Lock(Path({str(tmp_path / 'lock')!r}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert (tmp_path / "lock").exists()
    with RunFolder(tmp_path):  # of the same name, with the pid of a process that is gone
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write a run in") as info:
        RunFolder(tmp_path / "file" / "run")
    assert "\n" not in str(info.value)


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with RunFolder(tmp_path / "run") as run:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"cannot write .*config\.json: No space left") as info:
            run.write_config({})
    assert "\n" not in str(info.value)
    assert os.listdir(tmp_path / "run") == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": "other"}', '{"format": "ppgen run", "schema": 99}']
)
def test_a_config_that_is_not_of_a_run_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"config\.json"):
        read_config(tmp_path)
    with pytest.raises(RunFolderError, match=r"no config\.json"):
        read_config(tmp_path / "none")
