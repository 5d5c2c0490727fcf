"""Make of a training run what is shipped in pretrained/: its final weights, half precision.

    python scripts/ship_run.py runs/rbm-mnist-500 pretrained/rbm-mnist-500

The folder has what `ppgen evaluate` and `ppgen sample` read: config.json and a checkpoint without
the state of the optimizer and of the chains. Examples of a Boltzmann machine come along, the ends
of long chains from noise, at which `ppgen sample` starts where the data are not. The folder names
no path of the machine that trained it.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch

from ppgen import checkpoint
from ppgen.cli.runs import draw_examples, read_settings, restored
from ppgen.cli.training import MACHINES
from ppgen.data import Dataset

EXAMPLES, SWEEPS = 100, 2_000


def main() -> None:
    """Read the run, write the folder."""
    parser = argparse.ArgumentParser(description="What `ppgen train` wrote, as shipped weights.")
    parser.add_argument("run", type=Path, help="a run folder that `ppgen train` wrote")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--units", type=int, default=784, help="units of x; 784 for MNIST")
    options = parser.parse_args()
    torch.manual_seed(0)
    side = math.isqrt(options.units)
    shape = (side, side) if side**2 == options.units else None
    noise = Dataset(torch.rand(EXAMPLES, options.units).round(), name="noise", image_shape=shape)
    settings = read_settings(options.run)
    story = restored(settings, noise, options.run)
    for parameter in story.parameters():  # the examples are those of the weights as shipped
        parameter.data = parameter.data.half().float()
    shipped = {f"story/{name}": t.half() for name, t in story.state_dict().items()}
    if settings["model"] in (*MACHINES, "vae"):
        x = draw_examples(story, noise, EXAMPLES, SWEEPS, seed=0)
        shipped["examples"] = torch.from_numpy(x).to(torch.uint8)
    checkpoint.save(options.out / "ckpt", shipped, {"precision": "half"})
    config = json.loads((options.run / "config.json").read_text())
    config["command"]["folder"] = None
    if config["command"].get("start_from"):
        config["command"]["start_from"] = Path(config["command"]["start_from"]).name
    config["command"]["epochs"] = config["options"]["epochs"]  # a resumed run may have had fewer
    kept = {k: v for k, v in config.items() if k != "git"}
    (options.out / "config.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
