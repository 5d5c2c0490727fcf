"""Run by test_train_killed.py: trainings are killed, resumed, and compared with a whole one.

A process of its own, which forks for every training after the imports are paid for once.
"""

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppgen import checkpoint
from ppgen.inference.contrastive_divergence import ContrastiveDivergence
from ppgen.inference.train import train
from ppgen.models.rbm import RBM
from ppgen.progress import quiet

EPOCHS, EVERY = 3, 2


class Noisy(PyroModule):
    """A story whose gradient is noisy and whose buffers move."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.2))
        self.decoder = nn.Linear(4, 6)

    @pyro_method
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def fit(kind: str, out: Path | None, resume: bool) -> str:
    """Train; the digest of all that came out."""
    torch.manual_seed(1)
    x = (torch.rand(50, 6) < 0.4).float()
    story = RBM.from_data(x, 4) if kind == "rbm" else Noisy()
    loss = ContrastiveDivergence(persistent=True) if kind == "rbm" else Trace_ELBO()
    with quiet():
        result = train(
            story, x, loss=loss, epochs=EPOCHS, batch_size=12, learning_rate=0.01, seed=3,
            averaging=0.9, out=out, resume=resume, checkpoint_every=None if out is None else EVERY,
            schedule=lambda epoch: 0.9**epoch,
        )  # fmt: skip
    digest = hashlib.sha256(checkpoint.pack(story.state_dict()))
    digest.update(json.dumps(result.history["loss"]).encode())
    return digest.hexdigest()


def in_child(work: Callable[[], object], kill_after: float | None = None) -> bool:
    """Do `work` in a forked process; whether it came to its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Fault:
    """Kills its process at the n-th call to the disk, before or after it took effect."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0
        for name in ("fsync", "replace"):
            setattr(os, name, self.wrap(getattr(os, name)))
        unlink = self.wrap(Path.unlink)
        Path.unlink = lambda path, missing_ok=False: unlink(path, missing_ok)  # type: ignore

    def wrap(self, function: Callable[..., object]) -> Callable[..., object]:
        def faulty(*args: object) -> object:
            self.tick()
            value = function(*args)
            self.tick()
            return value

        return faulty

    def tick(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def trial(kind: str, folder: Path, expected: str, kill: Callable[[Path], object]) -> str:
    """Kill a run, look at what it left, resume it; a complaint, or nothing."""
    out = folder / "run"
    out.mkdir()
    kill(out)
    ckpt = out / "ckpt"
    if checkpoint.exists(ckpt):
        checkpoint.load(ckpt)
    elif list(ckpt.glob("*")) and (out / "metrics.csv").stat().st_size:
        return "epochs were done, and there is no checkpoint"
    answer = folder / "digest"
    if not in_child(lambda: answer.write_text(fit(kind, out, resume=True))):
        return "the run could not be resumed"
    if answer.read_text() != expected:
        return "the resumed run ended elsewhere"
    lines = (out / "metrics.jsonl").read_text().splitlines()
    if [json.loads(line)["epoch"] for line in lines] != list(range(1, EPOCHS + 1)):
        return "an epoch is missing in the metrics, or doubled"
    left = {path.name for path in out.rglob("*")}
    files = {"config.json", "metrics.jsonl", "metrics.csv", "ckpt", "manifest.json"}
    strays = {n for n in left - files if not n.endswith(".safetensors")}
    if strays or len(list(ckpt.iterdir())) != 2:
        return f"stray files: {sorted(left)}"
    return ""


def main(moments: int, saves: int) -> None:
    torch.set_num_threads(1)
    chance = random.Random(0)
    complaints = []
    # In memory where there is such a folder: what is killed here is a process, not the machine.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        for kind in ("rbm", "noisy"):
            expected = fit(kind, None, resume=False)
            whole = Path(folder) / f"{kind}-whole"
            counted = Path(folder) / f"{kind}-calls"

            def count(kind: str = kind, whole: Path = whole, counted: Path = counted) -> None:
                fault = Fault(at=-1)
                fit(kind, whole, resume=False)
                counted.write_text(str(fault.calls))

            start = time.monotonic()
            assert in_child(count)
            seconds, calls = time.monotonic() - start, int(counted.read_text())

            def at_a_moment(out: Path, kind: str = kind, seconds: float = seconds) -> None:
                after = chance.uniform(0, seconds)
                in_child(lambda: fit(kind, out, resume=False), kill_after=after)

            def in_a_save(out: Path, kind: str = kind, calls: int = calls) -> None:
                at = chance.randint(1, calls)

                def work() -> None:
                    Fault(at)
                    fit(kind, out, resume=False)

                assert not in_child(work)

            half = {at_a_moment: moments, in_a_save: saves}
            for kill, trials in half.items():
                for number in range(trials // 2 + (trials % 2 if kind == "rbm" else 0)):
                    place = Path(folder) / f"{kind}-{kill.__name__}-{number}"
                    place.mkdir()
                    if complaint := trial(kind, place, expected, kill):
                        complaints.append(f"{kind}, {kill.__name__} {number}: {complaint}")
    print(json.dumps(complaints))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
