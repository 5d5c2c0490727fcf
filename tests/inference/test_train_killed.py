"""Runs that are killed with SIGKILL and resumed end bit for bit where they would have ended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def _complaints(moments: int, saves: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "killed_runs.py"), str(moments), str(saves)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_few_killed_runs_resume_bit_for_bit():
    # More than 2 s, nearly all of it the imports of a process that can be killed.
    assert _complaints(moments=2, saves=4) == []


@pytest.mark.slow
def test_runs_killed_at_25_moments_and_in_50_saves_resume_bit_for_bit():
    assert _complaints(moments=25, saves=50) == []
