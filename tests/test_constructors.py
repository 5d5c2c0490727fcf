"""Whatever is made from sizes, scales and shares refuses those that mean nothing, by name."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import ppgen.distributions
import ppgen.models
import ppgen.networks
import ppgen.transforms
from ppgen.arguments import require_positive, require_whole
from ppgen.distributions.units import Beside, Binary
from ppgen.inference import (
    CAVI,
    DADVI,
    ELBO,
    HMC,
    MAP,
    MLE,
    NUTS,
    VI,
    Annealing,
    BlockGibbs,
    ContrastiveDivergence,
    DReG,
    Exact,
    ForwardKL,
    Gibbs,
    GibbsLangevin,
    ImportanceWeightedELBO,
    Langevin,
    Laplace,
    LeaveOneOut,
    ParallelTempering,
    Pathfinder,
    ReweightedWakeSleep,
    SingleSiteDivergence,
    SingleSiteGibbs,
    StickingTheLanding,
    TopLayer,
    Trajectory,
    TrajectoryTempering,
    UpDown,
    WakeSleep,
)
from ppgen.models import FullyVisibleBoltzmannMachine
from ppgen.networks.additive import AdditiveCode
from ppgen.transforms.autoregressive import Autoregressive
from ppgen.transforms.planar import Planar
from ppgen.transforms.scalar import Affine

# by the annotation of an argument, what no argument of that kind may be
SIZE = (-1, 2.5, math.nan, True, "3")
NONSENSE = {
    "int": SIZE,
    "int | None": SIZE,
    "int | Callable[[int], int]": SIZE,
    "float | Callable[[int], float]": (math.nan, math.inf, -1.0, "1"),
    "Sequence[int]": (*((width,) for width in (0, *SIZE)), 3, None),
    "Sequence[int] | None": ((-1,), (0, 2.5, 1), (True, 0, 2), 3),
    "tuple[int, int]": ((0, 4), (4, math.nan), (True, 4), 4),
    "tuple[int, int, int]": ((0, 4, 4), (1, 4, math.nan), (1, True, 4), (4, 4), 4),
    "tuple[float, ...]": ((1.0, math.nan), (1.0, True), ("1", 1.0), (), 1.0),
    "float": (math.nan, math.inf, True, "1", None),
    "float | None": (math.nan, math.inf, 0.0, -1.0, True, "1"),
}
# sizes that may be zero
ZERO = {"refine", "code", "context", "reflections", "ahead", "posterior_sweeps", "warmup"}
REAL = {"mean"}  # numbers that may be negative
# what must be given beside the numbers, and numbers where a default of 1 would not fit
MADE: dict[str, dict[str, Any]] = {
    "ClassificationRBM": {"visible": 9, "hidden": 3, "classes": 3},
    "RBMVAE": {"visible": 6, "prior": ppgen.models.RBM(3, 2), "hidden": (4,)},
    "HierarchicalVAE": {"visible": 6, "latent": (3, 2), "hidden": (5, 4)},
    "DBM": {"visible": 6, "hidden": (4, 3)},
    "DBN": {"visible": 6, "hidden": (4, 3)},
    "VAE": {"visible": 6, "latent": 2, "hidden": (4,)},
    "MLP": {"widths": (3, 2)},
    "ConvolutionalEncoder": {"shape": (1, 4, 4), "features": 3},
    "ConvolutionalDecoder": {"shape": (1, 4, 4), "latent": 2},
    "ImageFlow": {"shape": (1, 4, 4), "scales": 1, "steps": 1, "hidden": 4},
    "Sentence": {"decoder": None, "z": torch.zeros(2, 3), "length": 4},
    "DiscretisedLogistic": {"loc": torch.zeros(2), "scale": torch.ones(2)},
    "Autoregressive": {"dim": 3, "scalar_map": Affine(), "hidden": (4,)},
    "Coupling": {"dim": 3, "scalar_map": Affine(), "hidden": (4,)},
    "ToCube": {"shape": (1, 4, 4)},
    "Glow": {"shape": (1, 4, 4), "scales": 1, "steps": 1, "hidden": 4},
    "ImageCoupling": {"channels": 4, "hidden": 4, "scalar_map": Affine()},
    "FlowPosterior": {"features": 3, "latent": 2, "vector_map": Planar(2)},
    "SubtractingDecoder": {"code": AdditiveCode(6, 4, 2), "hidden": 4},
    "CausalBernoulliLikelihood": {"image_shape": (4, 4)},
}
_RBM, _START = ppgen.models.RBM(3, 2), torch.zeros(2, 3)
MADE |= {
    "TopLayer": {},
    "UpDown": {},
    "BlockGibbs": {"machine": _RBM, "start": _START},
    "ParallelTempering": {"machine": _RBM, "start": _START},
    "TrajectoryTempering": {"trajectory": [_RBM, _RBM], "start": _START},
    "GibbsLangevin": {"machine": ppgen.models.GaussianRBM(3, 2), "start": _START},
    "SingleSiteGibbs": {"machine": FullyVisibleBoltzmannMachine(3), "start": _START},
}
NUMBERS = {"vocabulary": 6, "length": 4, "classes": 3, "levels": 4, "categories": 3}
ELSEWHERE = {
    "Cell",  # made by a flow alone
    "CodeOfCode",
    "CausalBernoulli",
    "State",
    "KnownLogPartition",
    "RezendeMohamed",
    "Rayleigh",  # torch's own checks
    "VonMisesFisher",
    "Bijection",
    "Stereographic",
    "SphereMap",
    "ScalarMap",
    "Beside",
}


def constructors() -> Iterator[tuple[str, Callable, dict[str, str]]]:
    """Name, class, and the annotations of those arguments that are numbers."""
    for package in (ppgen.models, ppgen.distributions, ppgen.transforms, ppgen.networks):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            for name, made in vars(module).items():
                if not inspect.isclass(made) or made.__module__ != info.name or name[0] == "_":
                    continue
                numbers = numbers_of(made)
                if numbers and name not in ELSEWHERE and not inspect.isabstract(made):
                    yield f"{info.name.rsplit('.', 1)[1]}.{name}", made, numbers


def numbers_of(made: Any) -> dict[str, str]:
    """The annotations of those arguments that are numbers."""
    kinds = {p.name: str(p.annotation) for p in inspect.signature(made).parameters.values()}
    return {k: v for k, v in kinds.items() if "int" in v or "float" in v}


LOSSES_AND_KERNELS = (
    *(ELBO, ImportanceWeightedELBO, DReG, StickingTheLanding, ReweightedWakeSleep, WakeSleep),
    *(ContrastiveDivergence, SingleSiteDivergence, TopLayer, UpDown, LeaveOneOut),
    *(Langevin, Trajectory, BlockGibbs, ParallelTempering, TrajectoryTempering, SingleSiteGibbs),
    GibbsLangevin,
)
ENGINES = (
    CAVI,
    DADVI,
    HMC,
    MAP,
    MLE,
    NUTS,
    VI,
    Annealing,
    Exact,
    ForwardKL,
    Gibbs,
    Laplace,
    Pathfinder,
)
CASES = {
    label: (made, numbers)
    for label, made, numbers in (
        *constructors(),
        *((made.__name__, made, numbers_of(made)) for made in (*LOSSES_AND_KERNELS, *ENGINES)),
    )
}


def arguments(made: Any) -> dict[str, Any]:
    """Arguments with which a class can be made."""
    needed = inspect.signature(made).parameters.values()
    numbers = {p.name: NUMBERS.get(p.name, 2) for p in needed if p.default is p.empty}
    return MADE.get(made.__name__, numbers)


@pytest.mark.parametrize("label", CASES)
def test_numbers_that_mean_nothing_are_refused_by_name(label):
    made, numbers = CASES[label]
    good = arguments(made)
    made(**good)
    for name, kind in numbers.items():
        refused = NONSENSE.get(kind, ())
        if kind.startswith("int") and name not in ZERO:
            refused = (0, *refused)
        if kind == "float" and name not in REAL:
            refused = (-1.0, *refused)
        for value in refused:
            with pytest.raises(ValueError, match=name):
                made(**{**good, name: value})


def test_every_kind_of_number_is_looked_at():
    # one without nonsense of its own would pass above without a look
    kinds = {kind for _, numbers in CASES.values() for kind in numbers.values()}
    assert kinds <= NONSENSE.keys()


def test_numbers_of_any_library_are_numbers():
    require_whole("story", a=np.int64(3), b=torch.tensor(3))
    require_positive("story", a=np.float32(0.5), b=torch.tensor(0.5), c=2)
    order = torch.tensor([2, 0, 1])
    assert Autoregressive(3, Affine(), order=order).conditioner.order.equal(order)
    for value in (torch.tensor([0.5, 0.5]), torch.tensor(math.nan), 10**400, 0.5j):
        with pytest.raises(ValueError, match="story"):
            require_positive("story", a=value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ppgen.models.RBM(4, 3),
        lambda: ppgen.models.DBM(4, (3, 2)),
        lambda: ppgen.models.DBN(4, (3, 2)),
        lambda: ppgen.models.FullyVisibleBoltzmannMachine(4),
    ],
    ids=["RBM", "DBM", "DBN", "fully visible"],
)
def test_a_machine_is_given_examples_or_draws_them(make):
    machine = make()
    assert machine.model(examples=3).shape == (3, 4)
    x = torch.ones(2, 4)
    assert len(machine.model(x)) == len(machine.model(x, examples=2)) == 2
    for given, examples in ((x, 3), (None, 0), (None, 2.5)):
        with pytest.raises(ValueError, match="examples"):
            machine.model(given, examples=examples)


def test_a_log_partition_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="log_partition"):
        ppgen.models.RBM(4, 3).normalise(math.nan)


def test_kinds_of_units_beside_each_other_have_counts():
    for parts in ((), ((Binary(), 0),), ((Binary(), 2.5),)):
        with pytest.raises(ValueError, match=r"Beside\(parts"):
            Beside(parts)
