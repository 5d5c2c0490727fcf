"""Every public option of Boltzmann machines runs for a step; one that is not listed here fails.

A path that nothing runs is where an unimported name hides.
"""

import dataclasses
import inspect
import types

import pytest
import torch

import ppgen
from ppgen.cli import exits, run
from ppgen.cli.model_options import MachineOptions
from ppgen.cli.starts import pretrain
from ppgen.cli.train import train
from ppgen.cli.training import build, optimisation
from ppgen.data import Dataset
from ppgen.distributions import OneHot, Rectified, UnitGaussian
from ppgen.inference import (
    BlockGibbs,
    ContrastiveDivergence,
    Gibbs,
    GibbsLangevin,
    Langevin,
    ParallelTempering,
    SingleSiteDivergence,
    SingleSiteGibbs,
    Tempered,
    TopLayer,
    Trajectory,
    TrajectoryTempering,
    UpDown,
    greedy,
)
from ppgen.inference.annealed_importance_sampling import annealed_importance_sampling
from ppgen.inference.boltzmann_likelihood import boltzmann_likelihood
from ppgen.inference.reverse_annealing import raise_bounds
from ppgen.models import (
    DBM,
    DBN,
    RBM,
    ClassificationRBM,
    FullyVisibleBoltzmannMachine,
    GaussianRBM,
    labelled,
)

pytestmark = pytest.mark.usefixtures("silent")

X = [[1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]]  # one-hot in threes


def x():
    return torch.tensor(X)


def stepped(story, loss=None, rows=None):
    loss = ContrastiveDivergence() if loss is None else loss
    for _ in range(2):
        loss.loss_and_grads(story.model, story.guide, x() if rows is None else rows)
    gradients = [p.grad for p in story.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


def drawn(kernel):
    assert kernel.sample(kernel.initial_params)[kernel.site].shape == (2, 6)


def negative_phase(sampler, machine=RBM):
    stepped(machine(6, 3), ContrastiveDivergence(persistent=True, sampler=sampler))


def large():
    """Too large to be summed."""
    return RBM(24, 22).requires_grad_(False)


def rows():
    return torch.ones(2, 24)


BASE = [0.1] * 24
MASK = torch.tensor([True] * 3 + [False] * 3)

# what is called, a use of it, and a value of each option that is not its default
USES = {
    RBM: (
        lambda **o: stepped(RBM(6, 3, **o)),
        {"weight_scale": 0.5, "units": OneHot(3), "hidden_units": Rectified()},
    ),
    GaussianRBM: (
        lambda **o: stepped(GaussianRBM(6, 3, **o)),
        {"weight_scale": 0.2, "least_scale": 0.3, "hidden_units": UnitGaussian()},
    ),
    ClassificationRBM: (
        lambda classes=3, **o: stepped(
            ClassificationRBM(6, 3, classes=classes, **o),
            rows=labelled(x()[:, classes:], torch.arange(len(x())) % classes, classes),
        ),
        {"classes": 2, "weight_scale": 0.5},
    ),
    DBM: (
        lambda **o: stepped(DBM(6, (3, 2), **o)),
        {"weight_scale": 0.5, "mean_field_steps": 2, "tolerance": 0.1},
    ),
    DBN: (
        lambda **o: stepped(DBN(6, (3, 2), **o), TopLayer()),
        {"weight_scale": 0.5, "tied": False},
    ),
    FullyVisibleBoltzmannMachine: (
        lambda **o: stepped(FullyVisibleBoltzmannMachine(6, **o), SingleSiteDivergence()),
        {"weight_scale": 0.5},
    ),
    ContrastiveDivergence: (
        lambda **o: stepped(RBM(6, 3), ContrastiveDivergence(**{"persistent": True, **o})),
        {
            "gibbs_steps": 2, "persistent": False, "chains": 5, "weight_decay": 0.1,
            "sparsity": 0.1, "sparsity_target": 0.2, "centred": False, "offset_rate": 0.5,
            "sampler": Tempered(3),
        },
    ),
    UpDown: (
        lambda **o: stepped(DBN(6, (3, 2), tied=False), UpDown(**o)),
        {"gibbs_steps": 2, "persistent": False},
    ),
    SingleSiteDivergence: (
        lambda **o: stepped(FullyVisibleBoltzmannMachine(6), SingleSiteDivergence(**o)),
        {"gibbs_steps": 2, "persistent": True},
    ),
    Tempered: (
        lambda **o: negative_phase(Tempered(**o)),
        {"temperatures": torch.tensor([0.0, 0.3, 1.0]), "base": torch.full((6,), 0.1)},
    ),
    Trajectory: (
        lambda **o: negative_phase(Trajectory(**o)),
        {"reservoir": 2, "freeze": 0.99, "rounds": 2},
    ),
    Langevin: (
        lambda **o: negative_phase(Langevin(**o), GaussianRBM),
        {"langevin_steps": 2, "step_size": 0.2, "adjusted": False},
    ),
    BlockGibbs: (
        lambda **o: drawn(BlockGibbs(RBM(6, 3), x(), **o)),
        {"sweeps": 2, "site": "s", "temperature": 0.5, "clamp": MASK},
    ),
    ParallelTempering: (
        lambda **o: drawn(ParallelTempering(RBM(6, 3), x(), **o)),
        {
            "temperatures": 3, "base": torch.full((6,), 0.1), "sweeps": 2, "site": "s",
            "clamp": MASK,
        },
    ),
    TrajectoryTempering: (
        lambda **o: drawn(TrajectoryTempering([RBM(6, 3)], x(), **o)),
        {"sweeps": 2, "site": "s", "clamp": MASK},
    ),
    GibbsLangevin: (
        lambda **o: drawn(GibbsLangevin(GaussianRBM(6, 3), x(), **o)),
        {"langevin": Langevin(2), "sweeps": 2, "site": "s"},
    ),
    SingleSiteGibbs: (
        lambda **o: drawn(SingleSiteGibbs(FullyVisibleBoltzmannMachine(6), x(), **o)),
        {"scan": "random", "sweeps": 2, "site": "s", "clamp": MASK},
    ),
    annealed_importance_sampling: (
        lambda **o: annealed_importance_sampling(
            large(), **{"temperatures": 3, "chains": 3, "burn_in": 2, **o}
        ),
        {
            "chains": 4, "temperatures": torch.tensor([0.0, 0.5, 1.0]), "base": torch.tensor(BASE),
            "base_name": "mine", "burn_in": 3, "seed": 1,
        },
    ),
    boltzmann_likelihood: (
        lambda **o: boltzmann_likelihood(
            large(), rows(), **{"temperatures": 3, "chains": 3, "burn_in": 2, **o}
        ),
        {
            "samples": 3, "chains": 4, "temperatures": 2, "base": torch.tensor(BASE), "burn_in": 3,
            "raise_chains": 2, "memory": 1e5, "seed": 1,
        },
    ),
    raise_bounds: (
        lambda **o: raise_bounds(large(), rows(), **{"temperatures": 3, "chains": 3, **o}),
        {"chains": 2, "temperatures": 2, "base": torch.tensor(BASE)},
    ),
    Gibbs: (
        lambda **o: ppgen.fit(RBM(6, 3).model, x(), using=Gibbs(**{"draws": 2, "warmup": 1, **o})),
        {"chains": 3, "draws": 3, "warmup": 2, "thin": 2, "temperatures": 3},
    ),
}  # fmt: skip
# of other stories, and of deep machines in test_dbm.py
ELSEWHERE = {Gibbs: {"keep"}, ContrastiveDivergence: {"posterior_sweeps"}}
CASES = [(use, option) for use, (_, options) in USES.items() for option in options]


@pytest.mark.parametrize(
    ("use", "option"), CASES, ids=[f"{use.__name__}-{option}" for use, option in CASES]
)
def test_each_option_runs(use, option):
    call, options = USES[use]
    call(**{option: options[option]})


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_every_option_is_listed(use):
    skipped = ("self", "visible", "hidden", "machine", "story", "x", "start", "trajectory")
    declared = {n for n in inspect.signature(use).parameters if n not in skipped}
    listed = set(USES[use][1]) | ELSEWHERE.get(use, set())
    assert declared - {"options"} == listed


@pytest.mark.parametrize("options", [{"upwards": "means"}, {"loss": ContrastiveDivergence}])
def test_options_of_a_stack_run(options, tmp_path):
    stack = [RBM(6, 4), RBM(4, 3)]
    for resume in (False, True):
        found = greedy(stack, x(), epochs=1, batch_size=2, seed=1, out=tmp_path / "run",
                       resume=resume, **options)  # fmt: skip
    assert [result.steps for result in found] == [1, 1]


# The command line

COMMANDS = [
    ["rbm", "--hidden", "3", "--out", "below"],
    ["rbm", "--hidden", "3", "--out", "below", "--overwrite", "--hidden-units", "gaussian",
     "--gibbs-steps", "2", "--persistent", "--likelihood-every", "1", "--sampler", "trajectory"],
    ["rbm", "--hidden", "3", "--out", "below", "--overwrite", "--decay", "--averaging", "0.9",
     "--weight-decay", "0.1"],
    ["dbm", "--hidden", "3", "--pretraining-epochs", "1", "--mean-field-steps", "2",
     "--learning-rate", "0.01", "--binarisation", "none", "--checkpoint-every", "2", "--compile"],
    ["dbm", "--hidden", "3", "--posterior-sweeps", "1", "--out", "swept"],
    ["dbn", "--hidden", "3", "6", "--start-from", "below", "--compile"],
]  # fmt: skip
REAL = ["rbm", "--hidden", "3", "--visible-units", "gaussian", "--sampler", "langevin",
        "--data", "real.csv"]  # fmt: skip
LABELLED = ["rbm", "--hidden", "3", "--labels", "--data", "labelled.csv", "--persistent",
            "--sampler", "tempering", "--temperatures", "2", "--sparsity", "0.1",
            "--sparsity-target", "0.2"]  # fmt: skip
REFUSED = ["rbm", "--hidden", "3", "--out", "refused", "--patience", "3", "--folder", "."]
COMMON = ["--data", "small.csv", "--epochs", "1", "--batch-size", "9"]


@pytest.mark.slow  # 3 s
def test_every_option_of_the_command_line_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppgen.cli.train.write_page", lambda *_: (None, None))
    lines = [",".join("abcdef"), *["1,0,0,0,1,0", "0,1,0,1,0,0", "0,0,1,0,0,1"] * 10]
    (tmp_path / "small.csv").write_text("\n".join(lines) + "\n")
    for command in COMMANDS:
        assert run(["train", *command, *COMMON, "--quiet"]) == exits.DONE, command
    real = ["a,b", *["0.5,-1.25", "-2.5,3.5", "1.5,0.25"] * 10]
    (tmp_path / "real.csv").write_text("\n".join(real) + "\n")
    assert run(["train", *REAL, *COMMON[2:], "--out", "real", "--quiet"]) == exits.DONE
    rows = zip(lines, ["label", *"012" * 10], strict=True)
    (tmp_path / "labelled.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    assert run(["train", *LABELLED, *COMMON[2:], "--out", "labelled", "--quiet"]) == exits.DONE
    # the free-energy gap of a machine is smallest before training, and no reason to stop
    assert run(["train", *REFUSED, *COMMON, "--quiet"]) == exits.USAGE


def test_every_option_of_the_command_line_is_listed():
    words = [word for command in [*COMMANDS, REAL, LABELLED, REFUSED, COMMON] for word in command]
    given = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
    declared = {field.name for field in dataclasses.fields(MachineOptions)}
    groups = ("model", "machine", "code", "flow", "common")  # the options of other models
    declared |= {n for n in inspect.signature(train).parameters if n not in groups}
    assert declared | {"weight_decay"} == given  # which stands with the options of other models


@pytest.mark.parametrize("model", ["rbm", "dbm", "dbn", "top of a dbn"])
def test_every_contrastive_divergence_of_a_run_is_the_one_that_was_asked_for(model, monkeypatch):
    settings = {"model": model[-3:], "gibbs_steps": 4, "persistent": True, "weight_decay": 0.3,
                "sampler": "trajectory", "decay": False, "top_alone": model != "dbn"}  # fmt: skip
    losses = [optimisation(settings)["loss"]]

    def greedy(stack, x, *, loss, **options):
        losses.append(loss())
        return [types.SimpleNamespace(stopped="interrupted")]

    if model in ("dbm", "dbn"):
        monkeypatch.setattr("ppgen.inference.greedy", greedy)
        monkeypatch.setattr("ppgen.cli.starts.replace", lambda result, message: result)
        more = {"batch_size": 2, "averaging": 0.0, "seed": 0}
        story = build({**settings, "hidden": [3, 2], "seed": 0}, Dataset(x()))
        pretrain(story, {**settings, **more}, Dataset(x()), "cpu", 1, None)
    assert len(losses) == 1 + (model in ("dbm", "dbn"))
    for loss in losses:
        divergence = getattr(loss, "top", loss)
        assert divergence.persistent
        assert divergence.options["gibbs_steps"] == 4
        assert divergence.options["weight_decay"] == 0.3
        assert divergence.sampler == Trajectory()
    older = {name: settings[name] for name in ("model", "gibbs_steps", "persistent", "decay")}
    divergence = getattr(optimisation(older)["loss"], "top", optimisation(older)["loss"])
    assert (divergence.sampler, divergence.options["weight_decay"]) == (None, 0.0)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["rbm", "--latent", "3"], "--latent: of vae, sentences, molecules; a run of rbm does not"),
        (["dbm", "--flow-layers", "2"], "--flow-layers: of flow, vae; a run of dbm"),
        (["rbm", "--pretraining-epochs", "2"], "--pretraining-epochs: of dbm, dbn; a run of rbm"),
        (["dbn", "--mean-field-steps", "2"], "--mean-field-steps: of dbm; a run of dbn"),
        (["vae", "--persistent"], "--persistent: of rbm, dbm, dbn; a run of vae"),
        (["flow", "--weight-decay", "0.1"], "--weight-decay: of rbm, dbm, dbn, vae, sentences"),
        (["rbm", "--sampler", "langevin"], "--sampler langevin: its steps are of real numbers"),
        (["rbm", "--sampler", "trajectory", "--compile"], "decides on its way what to do next"),
    ],
)
def test_options_that_nothing_would_look_at_are_refused(command, says, capsys, tmp_path):
    out = tmp_path / "run"
    assert run(["train", *command, "--out", str(out), "--quiet"]) == exits.USAGE
    assert says in capsys.readouterr().err
    assert not out.exists()
