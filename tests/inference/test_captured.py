"""Updates in memory that stays where it is, as CUDA graphs replay them.

There need be no GPU: `Recorded` keeps what a graph keeps, the operations with the tensors and the
numbers that they had, and replays these whatever Python would do by now.
"""

from functools import partial

import pytest
import torch
from torch.utils._pytree import tree_leaves

from ppgen.distributions.units import softplus
from ppgen.inference import (
    ELBO,
    ContrastiveDivergence,
    Langevin,
    Tempered,
    TopLayer,
    Trajectory,
    UpDown,
    greedy,
)
from ppgen.inference import contrastive_divergence as cd
from ppgen.inference.train import train
from ppgen.inference.training import captured
from ppgen.models import DBM, DBN, RBM, VAE, ClassificationRBM, GaussianRBM, labelled
from ppgen.models.duplicated_rbm import DuplicatedRBM
from ppgen.tape import Mode

pytestmark = pytest.mark.usefixtures("silent")

ROWS = 23  # batches of 5 and a last one of 3
ADAM = partial(torch.optim.Adam, fused=True)
MOMENTUM = partial(torch.optim.SGD, momentum=0.5, fused=True)


class Recorded(Mode):
    """A graph on a CPU. What is captured has run once, which its first replay stands for."""

    made = 0

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0
        Recorded.made += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, result in self.calls if self.replays > 1 else ():
            anew = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(anew), strict=True):
                if isinstance(old, torch.Tensor) and new is not old:
                    old.copy_(new)


def record(step, device):
    graph = Recorded()
    with graph:
        step()
    return graph.replay


def change_on_a_gpu(logits, start, end):
    """On a CPU it looks at the numbers, to take fewer operations where they are small."""
    return (softplus(end * logits.double()) - softplus(start * logits.double())).sum(-1)


@pytest.fixture
def graphs(monkeypatch):
    Recorded.made = 0
    monkeypatch.setattr(captured, "captured", record)
    monkeypatch.setattr(captured, "has_graphs", lambda device: True)
    monkeypatch.setattr("ppgen.distributions.units.softplus_change", change_on_a_gpu)


def data(units=6):
    return (torch.rand(ROWS, units) < torch.linspace(0.2, 0.8, units)).double()


def trained(make, x, compile, *, loss=ContrastiveDivergence, optimizer=MOMENTUM, **options):
    """Parameters, the loss's state and the history's losses; 4 epochs are 16 and 4 updates."""
    torch.manual_seed(1)
    story, objective = make(), loss()
    options = {"epochs": 4, "batch_size": 5, "learning_rate": 0.05, **options}
    result = train(story, x, loss=objective, optimizer=optimizer, compile=compile, **options)
    state = {k: v.clone() for k, v in objective.state_dict().items()}
    parameters = {k: v.detach().clone() for k, v in story.named_parameters()}
    return parameters | state, result.history["loss"]


def assert_same(one, other):
    (tensors, losses), (others, expected) = one, other
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        assert torch.equal(value, others[name]), name
    assert losses == expected


PERSISTENT = partial(ContrastiveDivergence, 2, persistent=True, chains=7, weight_decay=0.01)
LANGEVIN = partial(ContrastiveDivergence, persistent=True, sampler=Langevin(2))
BASE = torch.linspace(-1.0, 1.0, 6)
CASES = {
    "CD": (lambda: RBM(6, 4), data, ContrastiveDivergence),
    "PCD": (lambda: RBM(6, 4), data, PERSISTENT),
    "not centred": (lambda: RBM(6, 4), data, partial(PERSISTENT, centred=False)),
    "sparse": (lambda: RBM(6, 4), data, partial(ContrastiveDivergence, sparsity=0.1)),
    "DBM": (lambda: DBM(6, (4, 3, 2), tolerance=0, mean_field_steps=3), data, PERSISTENT),
    "DBM, sampled": (
        lambda: DBM(6, (4, 3, 2), tolerance=0),
        data,
        partial(PERSISTENT, posterior_sweeps=2),
    ),
    "pretraining": (lambda: DuplicatedRBM(RBM(6, 4), "visible"), data, PERSISTENT),
    "real": (lambda: GaussianRBM(6, 4), lambda: torch.randn(ROWS, 6), PERSISTENT),
    "Langevin": (lambda: GaussianRBM(6, 4), lambda: torch.randn(ROWS, 6), LANGEVIN),
    "tempered": (lambda: RBM(6, 4), data, partial(PERSISTENT, sampler=Tempered(3, BASE))),
    "deep and tempered": (
        lambda: DBM(6, (4, 3), tolerance=0),
        data,
        partial(PERSISTENT, sampler=Tempered(3)),
    ),
    "top of a DBN": (lambda: DBN(6, (4, 3)), data, partial(TopLayer, 2, sampler=Tempered(3))),
    "DBN": (lambda: DBN(6, (5, 4, 3), tied=False), data, partial(UpDown, 2, chains=7)),
    "DBN by CD": (lambda: DBN(6, (4, 3), tied=False), data, partial(UpDown, 1, persistent=False)),
    "labels": (
        lambda: ClassificationRBM(9, 4, classes=3),
        lambda: labelled(data(), torch.arange(ROWS) % 3, 3),
        PERSISTENT,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_replayed_updates_are_the_plain_ones_bit_for_bit(case, graphs):
    make, draw, loss = CASES[case]
    x = draw()
    assert_same(trained(make, x, True, loss=loss), trained(make, x, False, loss=loss))
    assert Recorded.made == 2  # whole batches and the short ones at the end of an epoch


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_graphs_on_a_gpu_change_no_bit(case):
    make, draw, loss = CASES[case]
    x, options = draw(), {"loss": loss, "device": "cuda", "optimizer": ADAM}
    assert_same(trained(make, x, True, **options), trained(make, x, False, **options))


@pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM, torch.optim.SGD])
def test_optimizers_moments_averages_and_falling_rates_go_along(optimizer, graphs):
    options = {"optimizer": optimizer, "averaging": 0.9, "schedule": lambda e: 1 / (1 + e // 2)}
    x = data()
    runs = [trained(lambda: RBM(6, 4), x, c, loss=PERSISTENT, **options) for c in (True, False)]
    assert_same(*runs)
    assert Recorded.made == 3  # of the whole batches at both rates, of the short ones at the second


def test_where_there_are_no_graphs_nothing_changes(monkeypatch):
    x = data()
    monkeypatch.setattr(captured.CapturedUpdates, "run", None)
    runs = [trained(lambda: RBM(6, 4), x, c, loss=PERSISTENT) for c in (True, False)]
    assert_same(*runs)


def test_a_killed_run_is_resumed_to_the_same_bits(graphs, tmp_path):
    x = data()
    options = {"batch_size": 5, "optimizer": ADAM, "compile": True, "checkpoint_every": 2}

    def run(**more):
        torch.manual_seed(1)
        rbm, loss = RBM(6, 4), PERSISTENT()
        losses = train(rbm, x, loss=loss, epochs=4, **options, **more).history["loss"]
        return rbm.state_dict() | loss.state_dict(), losses

    def kill(story, row):
        if row["epoch"] == 3:
            raise KeyError("killed")

    whole = run()
    with pytest.raises(KeyError, match="killed"):
        run(out=tmp_path / "run", callbacks=[kill])
    assert Recorded.made == 4
    assert_same(run(out=tmp_path / "run", resume=True), whole)


def test_a_loss_that_is_used_elsewhere_meanwhile_is_captured_anew(graphs):
    """Its chains are others then, and the graph would go on with the ones that it knows."""
    x, loss = data(), PERSISTENT()

    def elsewhere(story, row):
        loss.loss_and_grads(story.model, story.guide, x)

    runs = []
    for compile in (True, False):
        loss.state = None
        options = {"loss": lambda: loss, "callbacks": [elsewhere]}
        runs.append(trained(lambda: RBM(6, 4), x, compile, **options))
    assert_same(*runs)
    assert Recorded.made > 2


def test_divergence_ends_the_run_at_its_next_look(graphs):
    result = train(
        RBM(6, 4), data(), loss=PERSISTENT(), learning_rate=100.0, batch_size=5, compile=True,
        epochs=400, optimizer=lambda p, lr: torch.optim.SGD(p, lr=1e200 * lr),
    )  # fmt: skip
    assert result.stopped == "diverged"
    assert "smaller learning_rate" in result.message


def test_what_cannot_be_captured_is_refused(graphs, tmp_path):
    x = data()
    for loss, story, match in (
        (ELBO(), VAE(6, 2, (4,)), "those by ELBO run as they are written"),
        (PERSISTENT(sampler=Trajectory()), RBM(6, 4), "Trajectory decides on its way"),
        (TopLayer(lambda epoch: 1 + epoch), DBN(6, (4, 3)), "one number of gibbs_steps"),
    ):
        with pytest.raises(ValueError, match=match):
            train(story, x, loss=loss, batch_size=5, compile=True, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="ranks exchange gradients"):
        captured.require_capturable(PERSISTENT(), 2)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        train(DBM(6, (4, 3)), x, batch_size=5, compile=True)  # which looks whether it converges


def test_the_layers_of_a_stack_are_captured_each(graphs):
    x, found = data(), []
    for compile in (True, False):
        torch.manual_seed(1)
        stack = [RBM(6, 4), RBM(4, 3)]
        greedy(stack, x, loss=PERSISTENT, epochs=4, batch_size=5, compile=compile)
        found.append([p.detach().clone() for rbm in stack for p in rbm.parameters()])
    assert all(map(torch.equal, *found))
    assert Recorded.made == 4


# Planted bugs: each is one that steps without a graph would hide


def stale_batch(self, batch):
    if self.replay is None:
        self.batch[0].copy_(batch[0])
        if self.runs >= captured._AS_IT_IS:
            self.replay = record(self.step, self.device)
    self.runs += 1
    (self.replay or self.step)()


def stale_chains(self, machine, batch):
    _, gradient, info = cd.step(self.state, batch, machine=machine, **self.options)
    for name, value in machine.by_parameter(*gradient).items():
        getattr(machine, name).grad = value
    return info.contrast


def stale_rate(self):
    self._counting = False


BUGS = {
    "the batch is not copied in": (captured._Program, "run", stale_batch),
    "chains are not overwritten": (ContrastiveDivergence, "accumulate_in_place", stale_chains),
    "a graph outlives its learning rate": (captured.CapturedUpdates, "begin_epoch", stale_rate),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug, graphs, monkeypatch):
    x, options = data(), {"loss": PERSISTENT, "schedule": lambda e: 1 / (1 + e // 2)}
    plain = trained(lambda: RBM(6, 4), x, False, **options)
    monkeypatch.setattr(*BUGS[bug])
    with pytest.raises(AssertionError):
        assert_same(trained(lambda: RBM(6, 4), x, True, **options), plain)
