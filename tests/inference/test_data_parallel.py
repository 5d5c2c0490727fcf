"""Ranks train what one process trains; a killed rank ends the group, and the run can go on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ppgen.inference.train import restore_story
from ppgen.inference.training.data_parallel import Ranks, ranks

SCRIPT = Path(__file__).parent / "parallel_runs.py"


def _complaints(which):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), which],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_forked_ranks_train_what_one_process_trains_resume_and_end_with_a_killed_one():
    # Some 5 s: imports in a process that can be forked, and seven groups that meet.
    assert _complaints("quick") == []


@pytest.mark.slow
def test_more_ranks_losses_and_optimizers_train_what_one_process_trains():
    assert _complaints("full") == []


def _torchrun(out, resume="", die_at=-1):
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(SCRIPT), "noisy", str(out), resume, str(die_at),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_rank_ends_a_torchrun_group_which_resumes_bit_for_bit(tmp_path):
    done = _torchrun(tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    done = _torchrun(tmp_path / "killed", die_at=18)
    assert done.returncode != 0
    assert time.time() - float((tmp_path / "died").read_text()) < 30
    done = _torchrun(tmp_path / "killed", resume="resume")
    assert done.returncode == 0, done.stderr
    stories = [torch.nn.ModuleDict(), torch.nn.ModuleDict()]
    for story, run in zip(stories, ("whole", "killed"), strict=True):
        for name, sizes in (("encoder", (6, 2)), ("decoder", (2, 6))):
            story[name] = torch.nn.Linear(*sizes, dtype=torch.float32)
        restore_story(story, tmp_path / run)
    for ours, theirs in zip(*(story.parameters() for story in stories), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_cover_a_batch_once_and_are_even(rows, world):
    batch = (torch.arange(rows), torch.arange(rows) * 2)
    shares = [Ranks(rank, world).share(batch) for rank in range(world)]
    assert torch.equal(torch.cat([x for x, _ in shares]), batch[0])
    assert torch.equal(torch.cat([y for _, y in shares]), batch[1])
    sizes = [len(x) for x, _ in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_group_without_a_place_to_meet_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"not set: start the processes"):  # noqa: SIM117
        with ranks(torch.device("cpu")):
            pass
