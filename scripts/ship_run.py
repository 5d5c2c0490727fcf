"""Make of a training run what is shipped in pretrained/: its final weights, half precision.

    python scripts/ship_run.py runs/rbm-mnist-500 pretrained/rbm-mnist-500

The folder has what `ppgen evaluate` and `ppgen sample` read: config.json and a checkpoint without
the state of the optimizer and of the chains. It names no folder of the machine that trained it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ppgen import checkpoint
from ppgen.models import RBM

SWEEPS = 10_000


def main() -> None:
    """Read the run, write the folder."""
    parser = argparse.ArgumentParser(description="What `ppgen train` wrote, as shipped weights.")
    parser.add_argument("run", type=Path, help="a run folder that `ppgen train` wrote")
    parser.add_argument("out", type=Path, help="the folder to write")
    options = parser.parse_args()
    tensors, _ = checkpoint.load(options.run / "ckpt")
    final: dict[str, torch.Tensor] = {}
    for part in ("story/", "average/", "best/"):  # as restore_story: the last that is there counts
        final |= {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
    halves = {f"story/{name}": t.half() for name, t in final.items()}
    config = json.loads((options.run / "config.json").read_text())
    if config["command"]["model"] == "rbm":
        # `ppgen sample` starts at these where the data are not: 100 long chains from noise
        torch.manual_seed(0)
        rbm = RBM(*final["weight"].shape)
        rbm.load_state_dict(final)
        side = torch.bernoulli(torch.full((100, rbm.visible), 0.5))
        for _ in range(SWEEPS):
            side = rbm.sweep(side)
        halves["examples"] = side.to(torch.uint8)
    checkpoint.save(options.out / "ckpt", halves, {"precision": "half"})
    config["command"]["folder"] = None
    kept = {k: v for k, v in config.items() if k != "git"}
    (options.out / "config.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
