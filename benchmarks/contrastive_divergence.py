"""One CD-1 update of an RBM: against its five matrix products, and against other libraries.

    python benchmarks/contrastive_divergence.py [--threads 2] [--epochs 60]

RBM 784-500, batch 100, float32. ``ppgen.inference.train`` runs, and after each of its epochs the
other rows take their turn in the same process, as many updates each; every ratio is taken within a
turn, so that a busy machine slows all rows alike. scikit-learn and rbms are asked for their bare
update, learnergy for its `fit`; those that are not installed are named and skipped. Where others
are at work, ``--cpu-time`` counts the CPU seconds of a single thread (set OPENBLAS_NUM_THREADS=1
for scikit-learn's products). With all peers:

    python3.11 -m venv peers
    peers/bin/pip install torch==2.13.0 pyro-ppl safetensors scikit-learn rbms learnergy
    PYTHONPATH=. peers/bin/python benchmarks/contrastive_divergence.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import pyro
import pyro.infer
import pyro.optim
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ppgen.inference.contrastive_divergence import ContrastiveDivergence
from ppgen.inference.train import train
from ppgen.models.rbm import RBM
from ppgen.progress import quiet

VISIBLE, HIDDEN, BATCH = 784, 500, 100
UPDATES = 20  # in a row, each turn: an epoch of `train`
FLOOR, TRAIN, SVI = "five matrix products", "ppgen: train", "ppgen: SVI.step"
BARS = {TRAIN: 1.25, SVI: 1.6}  # times the floor
PEERS = {"scikit-learn": 1.3, "rbms": 1.5, "learnergy": 2.8}  # times as long as `train`, at least


def matrix_products(x: Tensor) -> Callable[[], None]:
    """The floor: x W, h W^T, v W and two outer products, into memory that is kept."""
    weight = 0.01 * torch.randn(VISIBLE, HIDDEN)
    hidden, visible = torch.rand(BATCH, HIDDEN).round(), x.clone()
    hidden_out, visible_out = torch.empty(BATCH, HIDDEN), torch.empty(BATCH, VISIBLE)
    outer = torch.empty(VISIBLE, HIDDEN)

    def run() -> None:
        torch.mm(x, weight, out=hidden_out)
        torch.mm(hidden, weight.T, out=visible_out)
        torch.mm(visible, weight, out=hidden_out)
        torch.mm(x.T, hidden, out=outer)
        torch.mm(visible.T, hidden, out=outer)

    return run


def ours(x: Tensor, **options: object) -> Callable[[], None]:
    rbm = RBM.from_data(x, HIDDEN)
    loss = ContrastiveDivergence(**options)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.01, momentum=0.5, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        loss.loss_and_grads(rbm.model, rbm.guide, x)
        optimizer.step()

    return run


def ours_under_svi(x: Tensor) -> Callable[[], None]:
    rbm = RBM.from_data(x, HIDDEN)
    optimizer = pyro.optim.SGD({"lr": 0.01, "momentum": 0.5})
    svi = pyro.infer.SVI(rbm.model, rbm.guide, optimizer, loss=ContrastiveDivergence())
    return lambda: svi.step(x)


def by_hand(x: Tensor) -> Callable[[], None]:
    """The loop that a practised user writes: statistics, momentum, no monitoring, no centring."""
    weight = 0.01 * torch.randn(VISIBLE, HIDDEN)
    a, b = torch.zeros(VISIBLE), torch.zeros(HIDDEN)
    momenta = [torch.zeros_like(p) for p in (weight, a, b)]

    def run() -> None:
        p = torch.sigmoid(x @ weight + b)
        h = torch.bernoulli(p)
        v = torch.bernoulli(torch.sigmoid(h @ weight.T + a))
        q = torch.sigmoid(v @ weight + b)
        gradients = (x.T @ p - v.T @ q) / BATCH, (x - v).mean(0), (p - q).mean(0)
        for parameter, momentum, gradient in zip((weight, a, b), momenta, gradients, strict=True):
            momentum.mul_(0.5).add_(gradient)
            parameter.add_(momentum, alpha=0.01)

    return run


def by_autograd(x: Tensor) -> Callable[[], None]:
    """Two free energies under autograd, as most libraries do."""
    weight = torch.nn.Parameter(0.01 * torch.randn(VISIBLE, HIDDEN))
    a = torch.nn.Parameter(torch.zeros(VISIBLE))
    b = torch.nn.Parameter(torch.zeros(HIDDEN))
    optimizer = torch.optim.SGD([weight, a, b], lr=0.01, momentum=0.5, fused=True)

    def free_energy(v: Tensor) -> Tensor:
        return -(v @ a) - softplus(v @ weight + b).sum(-1)

    def run() -> None:
        with torch.no_grad():
            h = torch.bernoulli(torch.sigmoid(x @ weight + b))
            v = torch.bernoulli(torch.sigmoid(h @ weight.T + a))
        optimizer.zero_grad()
        (free_energy(x).mean() - free_energy(v).mean()).backward()
        optimizer.step()

    return run


def scikit_learn(x: Tensor) -> Callable[[], None]:
    """Persistent CD-1, the only one it has."""
    from sklearn.neural_network import BernoulliRBM

    rbm, data = BernoulliRBM(HIDDEN, learning_rate=0.01, batch_size=BATCH), x.numpy()
    return lambda: rbm.partial_fit(data)


def rbms(x: Tensor) -> Callable[[], None]:
    """The body of its training loop with ``training_type="cd"``, centred as by default."""
    from rbms.bernoulli_bernoulli.classes import BBRBM
    from rbms.training.pcd import fit_batch_pcd

    a, b = torch.zeros(VISIBLE), torch.zeros(HIDDEN)
    machine = BBRBM(0.01 * torch.randn(VISIBLE, HIDDEN), a, b)
    machine.init_grad()
    optimizer = torch.optim.SGD(machine.parameters(), lr=0.01, maximize=True)
    weights = torch.ones(BATCH, 1)

    @torch.no_grad()
    def run() -> None:
        chains = machine.init_chains(BATCH, weights=weights, start_v=x)
        optimizer.zero_grad(set_to_none=False)
        fit_batch_pcd((x, weights), chains, machine, gibbs_steps=1, beta=1.0)
        optimizer.step()

    return run


def learnergy(x: Tensor) -> Callable[[], None]:
    """Its `fit`, an epoch of one batch: loader and monitors are a part of it, as of `train`."""
    from learnergy.models.bernoulli import RBM as Learnergy

    machine = Learnergy(n_visible=VISIBLE, n_hidden=HIDDEN, steps=1, learning_rate=0.01)
    data = torch.utils.data.TensorDataset(x, torch.zeros(BATCH))
    return lambda: machine.fit(data, batch_size=BATCH, epochs=1)


def learnergy_update(x: Tensor) -> Callable[[], None]:
    """The body of the same without loader and monitors."""
    from learnergy.models.bernoulli import RBM as Learnergy

    machine = Learnergy(n_visible=VISIBLE, n_hidden=HIDDEN, steps=1, learning_rate=0.01)

    def run() -> None:
        states = machine.gibbs_sampling(x)[-1].detach()
        cost = machine.energy(x).mean() - machine.energy(states).mean()
        machine.optimizer.zero_grad()
        cost.backward()
        machine.optimizer.step()

    return run


def timed(run: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds an update."""
    start = clock()
    for _ in range(UPDATES):
        run()
    return (clock() - start) / UPDATES


def measure(
    x: Tensor, rows: dict[str, Callable[[], None]], epochs: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds an update of `train` and of each row, turn by turn; the first tenth is warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in (FLOOR, TRAIN, *rows)}
    since = clock()

    def turn(story: object, row: object) -> None:
        nonlocal since
        seconds[TRAIN].append((clock() - since) / UPDATES)
        with torch.enable_grad():
            for name, run in rows.items():
                seconds[name].append(timed(run, clock))
        since = clock()

    train(
        RBM.from_data(x, HIDDEN),
        x.repeat(UPDATES, 1),
        loss=ContrastiveDivergence(),
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=0.01,
        optimizer=partial(torch.optim.SGD, momentum=0.5, fused=True),
        callbacks=[turn],
    )
    return {name: times[epochs // 10 :] for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--cpu-time", action="store_true")
    arguments = parser.parse_args()
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    threads = 1 if arguments.cpu_time else arguments.threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x = (torch.rand(BATCH, VISIBLE) < 0.2).float()
    rows = {
        FLOOR: matrix_products(x),
        SVI: ours_under_svi(x),
        "ppgen: a torch loop": ours(x),
        "  centred=False": ours(x, centred=False),
        "  persistent=True": ours(x, persistent=True),
        "by hand": by_hand(x),
        "autograd of free energies": by_autograd(x),
    }
    peers = {
        "scikit-learn": scikit_learn,
        "rbms": rbms,
        "learnergy": learnergy,
        "  its bare update": learnergy_update,
    }
    for name, make in peers.items():
        try:
            rows[name] = make(x)
        except ImportError as error:
            print(f"{name} is not installed, and is left out ({error})")
    with pyro.get_param_store().scope(), quiet():
        seconds = measure(x, rows, arguments.epochs, clock)
    kind = "CPU time" if arguments.cpu_time else "wall clock"
    print(f"RBM {VISIBLE}-{HIDDEN}, batch {BATCH}, float32, {threads} threads, {kind}")
    print(f"{'an update':28}{'median ms':>10}{'least ms':>10}{'/ floor':>9}{'/ train':>9}")
    for name, times in seconds.items():
        floor, trained = (against(times, seconds[other]) for other in (FLOOR, TRAIN))
        print(
            f"{name:28}{1e3 * statistics.median(times):10.2f}{1e3 * min(times):10.2f}"
            f"{floor:9.2f}{trained:9.2f}{verdict(name, floor, trained)}"
        )


def against(times: list[float], others: list[float]) -> float:
    """Median ratio within the turns."""
    return statistics.median(t / o for t, o in zip(times, others, strict=True))


def verdict(name: str, floor: float, trained: float) -> str:
    if name in BARS:
        return f"   at most {BARS[name]}: {'holds' if floor <= BARS[name] else 'MISSED'}"
    if name in PEERS:
        return f"   at least {PEERS[name]}: {'holds' if trained >= PEERS[name] else 'MISSED'}"
    return ""


if __name__ == "__main__":
    main()
