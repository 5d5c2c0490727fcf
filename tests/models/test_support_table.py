"""Every cell of the table in docs/stories.md that plain Pyro can run."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.infer
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.infer.inspect import get_model_relations
from pyro.infer.mcmc import MCMC, NUTS
from pyro.optim import Adam

from ppgen.inference import (
    ELBO,
    BlockGibbs,
    ContrastiveDivergence,
    DReG,
    ImportanceWeightedELBO,
    LeaveOneOut,
    ParallelTempering,
    PseudoLikelihood,
    SingleSiteDivergence,
    TrajectoryTempering,
    UpDown,
)
from ppgen.models import (
    DBM,
    DBN,
    RBM,
    RBMVAE,
    VAE,
    BaseRate,
    BetaBernoulli,
    ClassificationRBM,
    ConditionalVAE,
    ConjugateRegression,
    DequantizedFlow,
    DirichletCategorical,
    Flow,
    FullyVisibleBoltzmannMachine,
    GammaPoisson,
    GaussianMixture,
    GaussianRBM,
    HierarchicalVAE,
    ImageFlow,
    LanguageModel,
    LogitRegression,
    MoebiusMixture,
    MoleculeVAE,
    NormalGamma,
    NormalNormal,
    ProbitRegression,
    SemiSupervisedVAE,
    SentenceVAE,
    ShrinkageRegression,
    SphereFlow,
    TorusFlow,
    banana,
    bayesian_neural_network,
    correlated_gaussian,
    eight_schools,
    eight_schools_centred,
    gaussian_process,
    hierarchical_regression,
    item_response,
    linear_regression,
    logistic_regression,
    neals_funnel,
    poisson_gaussian_process,
    stochastic_volatility,
)
from ppgen.models.bayesian_neural_network import data as network_data
from ppgen.models.beta_bernoulli import data as beta_bernoulli_data
from ppgen.models.conjugate_regression import data as conjugate_regression_data
from ppgen.models.dirichlet_categorical import data as dirichlet_categorical_data
from ppgen.models.eight_schools import data as schools_data
from ppgen.models.gamma_poisson import data as gamma_poisson_data
from ppgen.models.gaussian_mixture import data as gaussian_mixture_data
from ppgen.models.gaussian_process import counts
from ppgen.models.gaussian_process import data as gaussian_process_data
from ppgen.models.hierarchical_regression import data as groups_data
from ppgen.models.item_response import data as item_response_data
from ppgen.models.linear_regression import data as linear_data
from ppgen.models.logistic_regression import data as logistic_data
from ppgen.models.logit_regression import data as logit_regression_data
from ppgen.models.normal_gamma import data as normal_gamma_data
from ppgen.models.normal_normal import data as normal_normal_data
from ppgen.models.probit_regression import data as probit_regression_data
from ppgen.models.shrinkage_regression import data as shrinkage_regression_data
from ppgen.models.stochastic_volatility import data as volatility_data


@dataclass
class Case:
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    story: Any = None
    losses: tuple[Any, ...] = field(default_factory=lambda: (pyro.infer.Trace_ELBO(),))


BITS = (torch.arange(24).reshape(4, 6) % 5 < 2).to(torch.float64)
TOKENS = torch.tensor([[4, 5, 2, 0], [5, 2, 0, 0], [2, 0, 0, 0], [3, 4, 5, 2]])
POLES = torch.eye(3, dtype=torch.float64)
POINTS = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)


def bayes(model, data):
    def case():
        floating = (v.double() if v.is_floating_point() else v for v in data().values())
        return Case(model, AutoNormal(model), tuple(floating))

    return case


def mixture():
    """Its assignments are summed out, so that the guide knows nothing of them."""
    model, x = GaussianMixture().model, gaussian_mixture_data()["x"]
    guide = AutoNormal(pyro.poutine.block(model, hide=["z"]))
    return Case(model, guide, (x,), losses=(pyro.infer.TraceEnum_ELBO(max_plate_nesting=1),))


def deep(make, x, losses=None, *more):
    def case():
        story = make()
        given = losses or (pyro.infer.Trace_ELBO(),)
        return Case(story.model, story.guide, (x, *more), story, given)

    return case


CASES = {
    "eight_schools": bayes(eight_schools, schools_data),
    "eight_schools_centred": bayes(eight_schools_centred, schools_data),
    "linear_regression": bayes(linear_regression, linear_data),
    "logistic_regression": bayes(logistic_regression, logistic_data),
    "BetaBernoulli": bayes(BetaBernoulli().model, beta_bernoulli_data),
    "NormalNormal": bayes(NormalNormal().model, normal_normal_data),
    "NormalGamma": bayes(NormalGamma().model, normal_gamma_data),
    "DirichletCategorical": bayes(DirichletCategorical().model, dirichlet_categorical_data),
    "GammaPoisson": bayes(GammaPoisson().model, gamma_poisson_data),
    "ConjugateRegression": bayes(ConjugateRegression().model, conjugate_regression_data),
    "ProbitRegression": bayes(ProbitRegression().model, probit_regression_data),
    "LogitRegression": bayes(LogitRegression().model, logit_regression_data),
    "ShrinkageRegression": bayes(ShrinkageRegression().model, shrinkage_regression_data),
    "GaussianMixture": mixture,
    "hierarchical_regression": bayes(hierarchical_regression, groups_data),
    "gaussian_process": bayes(gaussian_process, gaussian_process_data),
    "poisson_gaussian_process": bayes(poisson_gaussian_process, counts),
    "bayesian_neural_network": bayes(bayesian_neural_network, network_data),
    "stochastic_volatility": bayes(stochastic_volatility, volatility_data),
    "item_response": bayes(item_response, item_response_data),
    "neals_funnel": bayes(neals_funnel, dict),
    "banana": bayes(banana, dict),
    "correlated_gaussian": bayes(correlated_gaussian, dict),
    "RBM": deep(lambda: RBM(6, 3), BITS, (ContrastiveDivergence(), pyro.infer.Trace_ELBO())),
    "large RBM": deep(lambda: RBM(30, 30), BITS.repeat(1, 5), (ContrastiveDivergence(),)),
    "GaussianRBM": deep(
        lambda: GaussianRBM(2, 3), POINTS, (ContrastiveDivergence(), pyro.infer.Trace_ELBO())
    ),
    "ClassificationRBM": deep(
        lambda: ClassificationRBM(6, 3, classes=2),
        torch.cat([BITS[:, :4], torch.eye(2, dtype=torch.float64).repeat(2, 1)], 1),
        (ContrastiveDivergence(), pyro.infer.Trace_ELBO()),
    ),
    "FullyVisibleBoltzmannMachine": deep(
        lambda: FullyVisibleBoltzmannMachine(6),
        BITS,
        (SingleSiteDivergence(), PseudoLikelihood(), pyro.infer.Trace_ELBO()),
    ),
    "RBMVAE": deep(
        lambda: RBMVAE(6, RBM(3, 2), hidden=(8,)), BITS, (LeaveOneOut(), pyro.infer.Trace_ELBO())
    ),
    "DBM": deep(lambda: DBM(6, (3, 2)), BITS, (ContrastiveDivergence(), pyro.infer.Trace_ELBO())),
    "large DBM": deep(lambda: DBM(30, (25, 25)), BITS.repeat(1, 5), (ContrastiveDivergence(),)),
    "DBN": deep(
        lambda: DBN(6, (3, 2), tied=False), BITS, (UpDown(), pyro.infer.Trace_ELBO(), ELBO())
    ),
    "large DBN": deep(lambda: DBN(30, (25, 25), tied=False), BITS.repeat(1, 5), (UpDown(),)),
    "VAE": deep(
        lambda: VAE(6, 2, (8,)),
        BITS,
        (pyro.infer.Trace_ELBO(), pyro.infer.TraceMeanField_ELBO(), ELBO(), DReG(4)),
    ),
    "HierarchicalVAE": deep(
        lambda: HierarchicalVAE(6, (2, 1), (8, 4)),
        BITS,
        (pyro.infer.Trace_ELBO(), ELBO(), ImportanceWeightedELBO(4), DReG(4)),
    ),
    "ConditionalVAE": deep(
        lambda: ConditionalVAE(6, 3, 2, (8,)),
        BITS,
        (pyro.infer.Trace_ELBO(), ELBO(), ImportanceWeightedELBO(4)),
        torch.tensor([0, 1, 2, 0]),
    ),
    "SemiSupervisedVAE": deep(
        lambda: SemiSupervisedVAE(6, 3, 2, (8,)),
        BITS,
        (pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), ELBO()),
        torch.tensor([0, -1, 2, -1]),
    ),
    "SentenceVAE": deep(
        lambda: SentenceVAE(6, 4, 2, 5, word_dropout=0.2),
        TOKENS,
        (pyro.infer.Trace_ELBO(), pyro.infer.TraceMeanField_ELBO(), ELBO(), DReG(4)),
    ),
    "MoleculeVAE": deep(
        lambda: MoleculeVAE(6, 4, 2, 5), TOKENS, (pyro.infer.Trace_ELBO(), ELBO(), DReG(4))
    ),
    "LanguageModel": deep(
        lambda: LanguageModel(6, 4, 5), TOKENS, (pyro.infer.Trace_ELBO(), ELBO())
    ),
    "Flow": deep(lambda: Flow(2), POINTS, (pyro.infer.Trace_ELBO(), ELBO())),
    "MoebiusMixture": deep(lambda: MoebiusMixture(2, 3), POLES, (pyro.infer.Trace_ELBO(), ELBO())),
    "ImageFlow": deep(lambda: ImageFlow((1, 2, 2), scales=1, steps=1, hidden=4), BITS[:, :4]),
    "SphereFlow": deep(SphereFlow, POLES, (pyro.infer.Trace_ELBO(), ELBO())),
    "TorusFlow": deep(lambda: TorusFlow(3), POLES, (pyro.infer.Trace_ELBO(), ELBO())),
    "DequantizedFlow": deep(lambda: DequantizedFlow(6, hidden=(8,)), BITS),
    "BaseRate": deep(lambda: BaseRate(BITS), BITS),
}


@pytest.mark.parametrize("name", [n for n in CASES if n != "BaseRate"])
def test_svi_changes_the_parameters_twice_in_one_process(name):
    for _ in range(2):
        case = CASES[name]()
        for loss in case.losses:
            with pyro.get_param_store().scope():
                svi = pyro.infer.SVI(case.model, case.guide, Adam({"lr": 0.05}), loss)
                svi.step(*case.args)
                store = pyro.get_param_store()
                before = {k: v.detach().clone() for k, v in store.items()}
                value = svi.step(*case.args)
                moved = [not torch.equal(before[k], v) for k, v in store.items()]
            assert isinstance(value, float)
            assert before, "SVI found no parameter"
            assert any(moved)


ROWS = (
    "VAE",
    "HierarchicalVAE",
    "ConditionalVAE",
    "SemiSupervisedVAE",
    "RBMVAE",
    "RBM",
    "GaussianRBM",
    "ClassificationRBM",
    "FullyVisibleBoltzmannMachine",
    "DBM",
    "DBN",
    "BaseRate",
    "SentenceVAE",
    "MoleculeVAE",
    "LanguageModel",
    "Flow",
    "SphereFlow",
    "TorusFlow",
    "MoebiusMixture",
    "DequantizedFlow",
    "ImageFlow",
)


@pytest.mark.parametrize("name", ROWS)
def test_one_example_alone_is_not_taken_for_as_many_as_it_has_numbers(name):
    case = CASES[name]()
    x, *more = case.args
    with pytest.raises(ValueError, match=r"one alone is x\[None\]"):
        case.model(x[0], *more)


@pytest.mark.parametrize("name", ROWS)
def test_a_batch_without_examples_is_refused_as_such(name):
    case = CASES[name]()
    empty = [part[:0] for part in case.args]
    for loss in (*case.losses, ELBO()):
        for call in (loss.loss_and_grads, loss.loss):
            with pytest.raises(ValueError, match=r"no examples, the shape is|with B > 0"):
                call(case.model, case.guide, *empty)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "eight_schools",
        "linear_regression",
        "logistic_regression",
        "BetaBernoulli",
        "NormalNormal",
        "NormalGamma",
        "DirichletCategorical",
        "GammaPoisson",
        "ConjugateRegression",
        "LogitRegression",
        "ProbitRegression",
        "ShrinkageRegression",
        "GaussianMixture",
        "hierarchical_regression",
        "gaussian_process",
        "poisson_gaussian_process",
        "bayesian_neural_network",
        "stochastic_volatility",
        "item_response",
        "neals_funnel",
        "banana",
        "correlated_gaussian",
    ],
)
def test_pyros_own_mcmc_runs(name):
    case = CASES[name]()
    mcmc = MCMC(NUTS(case.model), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(*case.args)
    assert all(torch.isfinite(v).all() for v in mcmc.get_samples().values())


def trajectory_tempering(machine, start):
    return TrajectoryTempering([machine], start)


@pytest.mark.parametrize("kernel", [BlockGibbs, ParallelTempering, trajectory_tempering])
@pytest.mark.parametrize("name", ["RBM", "large RBM", "DBM", "large DBM", "DBN"])
def test_a_machine_runs_under_mcmc_with_our_kernels(name, kernel):
    """That of a DBN is the one on top."""
    case = CASES[name]()
    start = case.story.machine_side(case.args[0])
    mcmc = MCMC(
        kernel(case.story.machine, start), num_samples=5, warmup_steps=2, disable_progbar=True
    )
    mcmc.run()
    (draws,) = mcmc.get_samples().values()
    assert set(draws.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", [n for n in CASES if "large" not in n])
def test_predictive_and_the_graph_run(name):
    case = CASES[name]()
    blind = pyro.poutine.uncondition(case.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = pyro.infer.Predictive(blind, num_samples=3)(*case.args)
        relations = get_model_relations(case.model, case.args)
    assert all(len(v) == 3 for v in drawn.values())
    assert relations["sample_sample"]


@pytest.mark.parametrize("name", ["large RBM", "large DBM", "large DBN"])
def test_an_elbo_on_a_machine_whose_log_partition_is_unknown_raises(name):
    case = CASES[name]()
    with pytest.raises(ValueError, match=r"(?i)log partition|log Z|partition function"):
        pyro.infer.Trace_ELBO().loss(case.model, case.guide, *case.args)
