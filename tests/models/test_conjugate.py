"""Laws of the conjugate stories: the formulas against quadrature, Bayes' rule, and sampling."""

import math

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

import ppgen
from ppgen.inference import HMC, VI, Exact
from ppgen.models import (
    BetaBernoulli,
    ConjugateRegression,
    DirichletCategorical,
    GammaPoisson,
    NormalGamma,
    NormalNormal,
)
from ppgen.program import Program
from ppgen.types import Conjugate

pytestmark = pytest.mark.usefixtures("silent")

Z = 4.6  # two-sided normal quantile of 2e-5 over 5 comparisons, 4.61

X = torch.tensor([[1.0], [-0.5], [0.3], [2.0]])
CASES = {  # story, data, one more row of data; at most two dimensions, for the quadrature
    "BetaBernoulli": (
        BetaBernoulli(2.0, 1.5),
        (torch.tensor([1.0, 0.0, 1.0]),),
        (torch.tensor([1.0]),),
    ),
    "NormalNormal": (
        NormalNormal(0.5, 2.0, 1.5),
        (torch.tensor([1.2, -0.7, 3.0]),),
        (torch.tensor([0.4]),),
    ),
    "NormalGamma": (
        NormalGamma(0.5, 2.0, 3.0, 1.5),
        (torch.tensor([1.2, -0.7, 2.0]),),
        (torch.tensor([0.4]),),
    ),
    "DirichletCategorical": (
        DirichletCategorical((1.0, 2.0, 1.5)),
        (torch.tensor([0, 2, 2, 1]),),
        (torch.tensor([2]),),
    ),
    "GammaPoisson": (
        GammaPoisson(2.0, 1.5),
        (torch.tensor([3.0, 0.0, 1.0]),),
        (torch.tensor([2.0]),),
    ),
    "ConjugateRegression": (
        ConjugateRegression(1.5, 3.0, 2.0),
        (X, torch.tensor([0.9, -1.2, 0.1, 2.2])),
        (torch.tensor([[0.7]]), torch.tensor([1.1])),
    ),
}
CASES = {  # made before the fixture sets float64
    name: (
        story,
        *[tuple(t.double() if t.is_floating_point() else t for t in ts) for ts in tensors],
    )
    for name, (story, *tensors) in CASES.items()
}
each_story = pytest.mark.parametrize(("story", "data", "more"), CASES.values(), ids=CASES)


@each_story
def test_the_elbo_of_the_exact_posterior_is_the_log_evidence_for_every_draw(story, data, more):
    assert isinstance(story, Conjugate)
    for _ in range(5):
        guide = pyro.poutine.trace(story.guide).get_trace(*data)
        model = pyro.poutine.trace(pyro.poutine.replay(story.model, guide)).get_trace(*data)
        elbo = model.log_prob_sum() - guide.log_prob_sum()
        assert float(elbo) == pytest.approx(float(story.log_evidence(*data)), abs=1e-10)


@each_story
def test_the_evidence_agrees_with_quadrature(story, data, more):
    """The trapezoid rule on a smooth density that vanishes at the ends has no error to speak of."""
    program = Program(story.model, *data)
    z = Exact(draws=2000).run(program).unconstrained[0]
    # 14 sd: log-gamma tails fall slowly; gamma(2) has exp(-28) left there
    low, high = z.mean(0) - 14 * z.std(0), z.mean(0) + 14 * z.std(0)
    points = 2000 if program.dim == 1 else 400
    axes = [torch.linspace(float(a), float(b), points) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes).reshape(-1, program.dim)
    cell = sum(math.log(float(axis[1] - axis[0])) for axis in axes)
    found = torch.logsumexp(program.log_density(grid), 0) + cell
    assert float(found) == pytest.approx(float(story.log_evidence(*data)), abs=1e-5)


@each_story
def test_the_predictive_law_is_a_ratio_of_evidences(story, data, more):
    longer = [torch.cat(pair) for pair in zip(data, more, strict=True)]
    ratio = story.log_evidence(*longer) - story.log_evidence(*data)
    law = story.predictive(*data, *more[:-1])  # a regression predicts at new inputs
    assert float(law.log_prob(more[-1]).sum()) == pytest.approx(float(ratio), abs=1e-10)


@each_story
def test_the_marginals_are_those_of_the_joint_draws(story, data, more):
    posterior = Exact(draws=4000).run(story.model, *data)
    weights = posterior.log_density - posterior.log_guide
    evidence = story.log_evidence(*data).expand_as(weights)
    assert torch.allclose(weights, evidence, rtol=0, atol=1e-9)
    for name, law in story.exact_posterior(*data).items():
        error = (law.variance / 4000).sqrt()
        assert ((posterior[name][0].mean(0) - law.mean).abs() < Z * error).all(), name
        # at most five scalars; the variance by an interval of batch means, 40 of 100 draws
        squares = (posterior[name][0] - law.mean).square()
        spread = squares.std(0) / math.sqrt(4000)
        assert ((squares.mean(0) - law.variance).abs() < Z * spread).all(), name


@each_story
def test_without_data_the_posterior_is_the_prior(story, data, more):
    nothing = [d[:0] for d in data]
    assert float(story.log_evidence(*nothing)) == pytest.approx(0.0, abs=1e-12)
    prior = pyro.poutine.trace(story.model).get_trace(*data)
    guide = pyro.poutine.trace(pyro.poutine.replay(story.guide, prior)).get_trace(*nothing)
    for name in story.exact_posterior(*nothing):
        one, other = prior.nodes[name], guide.nodes[name]
        assert float(one["fn"].log_prob(one["value"])) == pytest.approx(
            float(other["fn"].log_prob(one["value"])), abs=1e-10
        )


@pytest.mark.slow  # 2-3 s each
@each_story
def test_hmc_finds_the_moments_of_the_exact_posterior(story, data, more):
    posterior = ppgen.fit(story.model, *data, using=HMC())
    summary = posterior.summary()
    for name, law in story.exact_posterior(*data).items():
        flat = (
            posterior[name].flatten(2) if posterior[name].dim() > 2 else posterior[name][..., None]
        )
        for k, mean in enumerate(law.mean.reshape(-1)):
            scalar = name if law.mean.dim() == 0 else f"{name}[{k}]"
            assert abs(flat[..., k].mean() - mean) < Z * summary[scalar].mcse, scalar


@pytest.mark.slow
def test_full_rank_vi_is_exact_on_the_normal_posterior():
    story, data, _ = CASES["NormalNormal"]
    posterior = ppgen.fit(story.model, *data, using=VI(guide=AutoMultivariateNormal))
    # KL to the exact posterior: evidence minus ELBO
    gap = story.log_evidence(*data) - posterior.diagnosis()["elbo"]
    assert abs(float(gap)) < 1e-2


@pytest.mark.parametrize(
    "make",
    [
        lambda: BetaBernoulli(a=0.0),
        lambda: NormalNormal(noise=-1.0),
        lambda: NormalNormal(mean=float("nan")),
        lambda: NormalGamma(rate=float("inf")),
        lambda: DirichletCategorical((1.0,)),
        lambda: DirichletCategorical((1.0, -2.0)),
        lambda: GammaPoisson(shape="2"),
        lambda: ConjugateRegression(scale=0),
    ],
)
def test_impossible_hyperparameters_are_refused_by_name(make):
    with pytest.raises(ValueError, match=r"\w+\((a|noise|mean|rate|concentration|shape|scale)=..."):
        make()


def test_classes_beyond_the_prior_are_refused():
    with pytest.raises(ValueError, match="from 0 to 3"):
        DirichletCategorical().exact_posterior(torch.tensor([0, 4]))


def test_exact_refuses_a_story_without_a_formula():
    with pytest.raises(ValueError, match=r"Exact needs a story that declares .*log_evidence"):
        ppgen.fit(lambda: None, using=Exact())
    with pytest.raises(ValueError, match="draws"):
        Exact(draws=0)
