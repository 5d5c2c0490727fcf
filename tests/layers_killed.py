"""Run by test_cli_layers.py: deep machines killed while a layer is trained, and gone on with.

A process of its own, which forks for every command after the imports are paid for once.
"""

import hashlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import torch

import ppgen.cli.train
import ppgen.data
import ppgen.inference
import ppgen.models
from ppgen import checkpoint
from ppgen.cli import run

COMMON = ["--hidden", "6", "--persistent", "--averaging", "0.9", "--batch-size", "50",
          "--checkpoint-every", "3", "--quiet", "--data", "small.csv"]  # fmt: skip


def in_child(command: list[str], dies_after: int | None = None) -> bool:
    """Run a command in a forked process, killed after so many files; whether it ended well."""
    pid = os.fork()
    if pid == 0:
        ppgen.cli.train.write_page = lambda *_: (None, None)  # type: ignore[assignment]
        if dies_after is not None:
            rename, left = os.replace, iter(range(dies_after))

            def replace(*args: str) -> None:
                rename(*args)
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)

            os.replace = replace  # type: ignore[assignment]
        os._exit(run(command))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def digest(run: str) -> str:
    """Of all tensors of the last checkpoint: parameters, optimizer, chains, generators."""
    return hashlib.sha256(checkpoint.pack(checkpoint.load(Path(run) / "ckpt")[0])).hexdigest()


def trial(model: list[str], kills: list[int]) -> list[str]:
    """Complaints about the runs that were killed after so many files."""
    found = []
    if not in_child(["train", *model, *COMMON, "--out", "whole"]):
        return [f"{model}: the whole run failed"]
    for kill in kills:
        if in_child(["train", *model, *COMMON, "--out", f"killed-{kill}"], kill):
            found.append(f"{model}: not killed after {kill} files")
        elif checkpoint.exists(Path(f"killed-{kill}") / "ckpt"):
            found.append(f"{model}: killed after {kill} files, when all layers were trained")
        elif not in_child(["resume", f"killed-{kill}", "--quiet"]):
            found.append(f"{model}: killed after {kill} files, and not to be resumed")
        elif digest(f"killed-{kill}") != digest("whole"):
            found.append(f"{model}: killed after {kill} files, and ended elsewhere")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models, kills = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    rows = (torch.rand(120, 6) < 0.4).int().tolist()
    lines = [",".join("abcdef"), *(",".join(map(str, row)) for row in rows)]
    complaints = []
    for model in models:
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            Path("small.csv").write_text("\n".join(lines) + "\n")
            complaints += trial(model, kills)
            os.chdir("/")
    print(json.dumps(complaints))
