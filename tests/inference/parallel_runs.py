"""Run by test_data_parallel.py: the cases, each in forked ranks; or one rank under torchrun.

    parallel_runs.py quick|full                 the cases; complaints as JSON on stdout
    parallel_runs.py KIND OUT RESUME DIE_AT     one training, as a rank of torchrun
"""  # fmt: skip

import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppgen import checkpoint
from ppgen.inference.contrastive_divergence import ContrastiveDivergence
from ppgen.inference.train import restore_story, train
from ppgen.models.rbm import RBM
from ppgen.progress import quiet

STEPS = 52  # four an epoch
EXACT = [
    ("sum", torch.optim.SGD, 2),
    ("mean", torch.optim.Adam, 2),
    ("sum", torch.optim.Adam, 3),
    ("mean", torch.optim.SGD, 3),
]  # loss, optimizer, ranks


class Autoregression(PyroModule):
    """A story without noise: each unit given those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    @pyro_method
    def model(self, x: Tensor) -> None:
        lower = torch.tril(self.linear.weight, -1)
        logits = x @ lower.T + self.linear.bias
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        pass


class Noisy(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 2), nn.Linear(2, 6)

    @pyro_method
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


class MeanLoss(Trace_ELBO):
    reduction = "mean"

    def loss_and_grads(self, model, guide, x):
        loss = self.differentiable_loss(model, guide, x) / len(x)
        loss.backward()
        return loss.item()


class Dies(Trace_ELBO):
    """Rank 1 is killed at a step; a file says when."""

    def __init__(self, at: int, note: Path) -> None:
        super().__init__()
        self._left, self._note = at, note

    def loss_and_grads(self, model, guide, *args):
        self._left -= 1
        if self._left == 0 and os.environ.get("RANK") == "1":
            self._note.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss_and_grads(model, guide, *args)


def fit(kind: str, out: Path | None = None, epochs: int = STEPS // 4, **options) -> nn.Module:
    torch.manual_seed(1)
    x = (torch.rand(37, 6) < 0.4).float()  # batches of 12, 12, 12, 1: one share is empty
    torch.manual_seed(int(os.environ.get("RANK", 0)))  # stories differ, until rank 0's is taken
    story, loss = {
        "sum": lambda: (Autoregression(), Trace_ELBO()),
        "mean": lambda: (Autoregression(), MeanLoss()),
        "noisy": lambda: (Noisy(), Trace_ELBO()),
        "pcd": lambda: (RBM(6, 3), ContrastiveDivergence(persistent=True)),
    }[kind]()
    options = {"loss": loss, "learning_rate": 0.01, **options}
    with quiet():
        result = train(story, x, epochs=epochs, batch_size=12, out=out, **options)
    assert result.stopped == "finished", result
    return result.story


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def in_ranks(folder: Path, work, world: int = 2) -> list[dict[str, Tensor] | str]:
    """What `work` returns in each rank: a story's tensors, or the error's text."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            os.environ.update(environment, RANK=str(rank), WORLD_SIZE=str(world))
            try:
                checkpoint.save(folder / str(rank), work().state_dict(), {})
            except Exception as error:
                (folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
            finally:
                sys.stderr.flush()
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    results = []
    for rank in range(world):
        text = folder / f"{rank}.txt"
        if text.exists():
            results.append(text.read_text())
        elif checkpoint.exists(folder / str(rank)):
            results.append(checkpoint.load(folder / str(rank))[0])
        else:
            results.append("killed")
    return results


def equal(a, b, tolerance: float = 0.0) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return False
    return all(float((a[k] - b[k]).abs().max()) <= tolerance for k in a)


def cases(folder: Path, full: bool) -> list[str]:
    complaints = []

    def check(fine: bool, what: object) -> None:
        if not fine:
            complaints.append(str(what))

    def several(name: str, kind: str, world: int = 2, **options) -> list:
        (folder / name).mkdir()
        return in_ranks(folder / name, lambda: fit(kind, **options), world)

    start = {k: v.clone() for k, v in fit("sum", epochs=1).state_dict().items()}
    for kind, optimizer, world in EXACT if full else EXACT[:2]:
        name = f"{kind} {optimizer.__name__} {world}"
        single = fit(kind, optimizer=optimizer).state_dict()
        check(not equal(single, start, 1e-3), f"{name}: nothing was trained")
        results = several(name, kind, world, optimizer=optimizer)
        for rank, result in enumerate(results):
            # float32 sums in another order, over 52 steps of size at most .01
            check(equal(single, result, 1e-6), (name, rank, single, result))
            check(equal(results[0], result), f"{name}: rank {rank} differs from rank 0")
    for kind in ("noisy", "pcd") if full else ("pcd",):
        out = folder / f"{kind}-run"
        whole = several(kind, kind)
        check(equal(*whole), f"{kind}: the ranks differ")
        several(f"{kind} cut", kind, out=out, epochs=3)
        resumed = several(f"{kind} resumed", kind, out=out, resume=True)
        check(equal(whole[0], resumed[0]), f"{kind}: resumed elsewhere, {resumed}")
        restored = restore_story(fit(kind, epochs=1), out).state_dict()
        check(equal(whole[0], restored), f"{kind}: the run folder holds something else")
        check(len(list((out / "ckpt").iterdir())) == 2, "more than one rank has written")
        tensors, _ = checkpoint.load(out / "ckpt")
        check(not torch.equal(tensors["rank/0"], tensors["rank/1"]), "the ranks' noise is the same")
        try:
            fit(kind, out, resume=True)
            complaints.append("a run of two processes was resumed by one")
        except ValueError as error:
            check("was one of 2 processes" in str(error), error)
    out = folder / "killed-run"
    began = time.monotonic()
    killed = several("killed", "noisy", out=out, loss=Dies(18, out.with_name("died")))
    check(killed[1] == "killed", killed)
    check("resume=True" in str(killed[0]) and "\n" not in str(killed[0]), killed[0])
    check(time.monotonic() - began < 30, "the group outlived its killed rank by 30 s")
    again = several("again", "noisy", out=out, loss=Dies(-1, out), resume=True)
    if full:
        check(equal(again[0], checkpoint.load(folder / "noisy" / "0")[0]), f"not resumed: {again}")
    return complaints


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        kind, out, resume, die_at = sys.argv[1:]
        fit(
            kind,
            Path(out),
            loss=Dies(int(die_at), Path(out).with_name("died")),
            resume=resume == "resume",
        )
        threads = Path("/proc/self/task")  # those of a group that is still held may abort the exit
        assert not threads.exists() or len(list(threads.iterdir())) == 1
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(cases(Path(folder), full=sys.argv[1] == "full")))
