"""The law over every distribution of Pyro: recorded, or evaluated directly, but never wrong."""

import inspect
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.program import Program

EYE = torch.eye(3, dtype=torch.float64)
P3 = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
ONES = torch.ones(3, dtype=torch.float64)


def positive(z):
    return torch.nn.functional.softplus(z) + 0.5


# name -> distribution with parameters that depend on a latent z (), from which data are drawn
OBSERVED = {
    "AffineBeta": lambda z: dist.AffineBeta(positive(z), 2.0, -1.0, 3.0),
    "AsymmetricLaplace": lambda z: dist.AsymmetricLaplace(z, positive(z), 2.0),
    "Bernoulli": lambda z: dist.Bernoulli(logits=z),
    "Beta": lambda z: dist.Beta(positive(z), 2.0),
    "BetaBinomial": lambda z: dist.BetaBinomial(positive(z), 2.0, 10),
    "Binomial": lambda z: dist.Binomial(10, logits=z),
    "Categorical": lambda z: dist.Categorical(logits=z * ONES.cumsum(0)),
    "Cauchy": lambda z: dist.Cauchy(z, positive(z)),
    "Chi2": lambda z: dist.Chi2(positive(z)),
    "ContinuousBernoulli": lambda z: dist.ContinuousBernoulli(logits=z),
    "Dirichlet": lambda z: dist.Dirichlet(positive(z) * ONES),
    "DirichletMultinomial": lambda z: dist.DirichletMultinomial(positive(z) * ONES, 10),
    "Exponential": lambda z: dist.Exponential(positive(z)),
    "ExtendedBinomial": lambda z: dist.ExtendedBinomial(torch.tensor(10), logits=z),
    "FisherSnedecor": lambda z: dist.FisherSnedecor(positive(z), 5.0),
    "FoldedDistribution": lambda z: dist.FoldedDistribution(dist.Normal(z, 1.0)),
    "Gamma": lambda z: dist.Gamma(positive(z), 2.0),
    "GammaPoisson": lambda z: dist.GammaPoisson(positive(z), 2.0),
    "GeneralizedPareto": lambda z: dist.GeneralizedPareto(0.0, positive(z), 0.1),
    "Geometric": lambda z: dist.Geometric(logits=z),
    "Gumbel": lambda z: dist.Gumbel(z, positive(z)),
    "HalfCauchy": lambda z: dist.HalfCauchy(positive(z)),
    "HalfNormal": lambda z: dist.HalfNormal(positive(z)),
    "Independent": lambda z: dist.Normal(z * ONES, 1.0).to_event(1),
    "InverseGamma": lambda z: dist.InverseGamma(positive(z), 2.0),
    "Kumaraswamy": lambda z: dist.Kumaraswamy(positive(z), 2.0),
    "LKJCholesky": lambda z: dist.LKJCholesky(3, positive(z)),
    "Laplace": lambda z: dist.Laplace(z, positive(z)),
    "LinearHMM": None,
    "LogNormal": lambda z: dist.LogNormal(z, positive(z)),
    "LogNormalNegativeBinomial": lambda z: dist.LogNormalNegativeBinomial(3.0, z, positive(z)),
    "Logistic": lambda z: dist.Logistic(z, positive(z)),
    "LogisticNormal": lambda z: dist.LogisticNormal(z * ONES, positive(z) * ONES),
    "LowRankMultivariateNormal": lambda z: dist.LowRankMultivariateNormal(
        z * ONES, z * ONES.unsqueeze(-1), positive(z) * ONES
    ),
    "MaskedDistribution": lambda z: dist.Normal(z, 1.0).expand([3]).mask(P3 > 0.25).to_event(1),
    "MaskedMixture": lambda z: dist.MaskedMixture(
        P3 > 0.25, dist.Normal(z * ONES, 1.0), dist.Cauchy(z * ONES, 1.0)
    ).to_event(1),
    "MixtureOfDiagNormals": lambda z: dist.MixtureOfDiagNormals(
        z * torch.ones(2, 3), positive(z) * torch.ones(2, 3), torch.zeros(2)
    ),
    "MixtureOfDiagNormalsSharedCovariance": lambda z: dist.MixtureOfDiagNormalsSharedCovariance(
        z * torch.ones(2, 3), positive(z) * ONES, torch.zeros(2)
    ),
    "MixtureSameFamily": lambda z: dist.MixtureSameFamily(
        dist.Categorical(P3), dist.Normal(z * ONES.cumsum(0), 1.0)
    ),
    "Multinomial": lambda z: dist.Multinomial(10, logits=z * ONES.cumsum(0)),
    "MultivariateNormal": lambda z: dist.MultivariateNormal(z * ONES, positive(z) * EYE),
    "MultivariateStudentT": lambda z: dist.MultivariateStudentT(5.0, z * ONES, positive(z) * EYE),
    "NegativeBinomial": lambda z: dist.NegativeBinomial(10, logits=z),
    "Normal": lambda z: dist.Normal(z, positive(z)),
    "OneHotCategorical": lambda z: dist.OneHotCategorical(logits=z * ONES.cumsum(0)),
    "OneHotCategoricalStraightThrough": lambda z: dist.OneHotCategoricalStraightThrough(
        logits=z * ONES.cumsum(0)
    ),
    "OrderedLogistic": lambda z: dist.OrderedLogistic(z, ONES.cumsum(0)),
    "Pareto": lambda z: dist.Pareto(torch.ones(()), positive(z)),
    "Poisson": lambda z: dist.Poisson(positive(z)),
    "ProjectedNormal": lambda z: dist.ProjectedNormal(z * ONES),
    "RelaxedBernoulli": lambda z: dist.RelaxedBernoulli(torch.tensor(0.7), logits=z),
    "RelaxedOneHotCategorical": lambda z: dist.RelaxedOneHotCategorical(
        torch.tensor(0.7), logits=z * ONES.cumsum(0)
    ),
    "SkewLogistic": lambda z: dist.SkewLogistic(z, positive(z)),
    "SoftAsymmetricLaplace": lambda z: dist.SoftAsymmetricLaplace(z, positive(z), 2.0),
    "SoftLaplace": lambda z: dist.SoftLaplace(z, positive(z)),
    "StableWithLogProb": lambda z: dist.StableWithLogProb(1.5, 0.1, positive(z), z),
    "StudentT": lambda z: dist.StudentT(positive(z), z, 1.0),
    "TransformedDistribution": lambda z: dist.TransformedDistribution(
        dist.Normal(z, 1.0), dist.transforms.SigmoidTransform()
    ),
    "Uniform": lambda z: dist.Uniform(torch.zeros(()), 5.0 + positive(z)),
    "VonMises": lambda z: dist.VonMises(z, positive(z)),
    "VonMises3D": lambda z: dist.VonMises3D(z * P3),
    "Weibull": lambda z: dist.Weibull(positive(z), 2.0),
    "Wishart": lambda z: dist.Wishart(torch.tensor(5.0), positive(z) * EYE),
    "ZeroInflatedDistribution": lambda z: dist.ZeroInflatedDistribution(
        dist.Poisson(positive(z)), gate=torch.tensor(0.3)
    ),
    "ZeroInflatedNegativeBinomial": lambda z: dist.ZeroInflatedNegativeBinomial(
        torch.tensor(5.0), logits=z, gate=torch.tensor(0.3)
    ),
    "ZeroInflatedPoisson": lambda z: dist.ZeroInflatedPoisson(positive(z), gate=torch.tensor(0.3)),
}

# evaluated directly, because they look at values; the list in the docs is this one
FALLBACK = {"StableWithLogProb"}

# not stories' likelihoods: bases, wrappers, priors over other objects, or no log_prob
APART = {
    "AVFMultivariateNormal": "MultivariateNormal with another sampler",
    "CoalescentTimes": "a prior over genealogies",
    "CoalescentTimesWithRate": "a prior over genealogies",
    "Delta": "deterministic",
    "DiscreteHMM": "scored by its own contraction",
    "Empirical": "no density",
    "ExpandedDistribution": "wrapper",
    "ExponentialFamily": "base",
    "ExtendedBetaBinomial": "moment-matched epidemics only",
    "GammaGaussianHMM": "scored by its own contraction",
    "GaussianHMM": "scored by its own contraction",
    "GaussianMRF": "scored by its own contraction",
    "GaussianScaleMixture": "no general log_prob",
    "GroupedNormalNormal": "marginal with its own posterior",
    "ImproperUniform": "see test_program",
    "IndependentHMM": "scored by its own contraction",
    "LKJ": "supported on correlation matrices, which have no unconstrained view",
    "LKJCorrCholesky": "deprecated name of LKJCholesky",
    "LinearHMM": "no log_prob",
    "NanMaskedMultivariateNormal": "for data with NaN, which Program refuses",
    "NanMaskedNormal": "for data with NaN, which Program refuses",
    "OMTMultivariateNormal": "MultivariateNormal with another gradient",
    "OneOneMatching": "normalised by belief propagation",
    "OneTwoMatching": "normalised by belief propagation",
    "Rejector": "base",
    "RelaxedBernoulliStraightThrough": "RelaxedBernoulli with another gradient",
    "RelaxedOneHotCategoricalStraightThrough": "RelaxedOneHotCategorical with another gradient",
    "SineBivariateVonMises": "normalised by a Python loop over the order",
    "SineSkewed": "wrapper around distributions on tori",
    "SpanningTree": "a distribution over graphs",
    "Stable": "no log_prob",
    "TorchDistribution": "base",
    "TruncatedPolyaGamma": "latent of an augmentation",
    "Unit": "see pyro.factor in test_program",
}


def test_every_distribution_of_pyro_is_listed():
    every = {
        name
        for name, item in vars(dist).items()
        if inspect.isclass(item) and issubclass(item, torch.distributions.Distribution)
    }
    assert every - set(OBSERVED) - set(APART) == set()


CASES = {name: make for name, make in OBSERVED.items() if make is not None}


GIVEN = {  # where a draw would not do: no sampler, or a support that moves
    "LogNormalNegativeBinomial": torch.tensor(4.0),
    "Uniform": torch.tensor(2.0),
    "VonMises3D": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / 14**0.5,
    "Wishart": 3 * EYE,
}


def _data(name):
    return GIVEN[name] if name in GIVEN else CASES[name](torch.tensor(0.3)).sample()


@pytest.mark.parametrize("name", CASES)
def test_observed_with_parameters_that_move(name):
    data = _data(name)

    def story():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", CASES[name](z), obs=data)

    program = Program(story)
    z = torch.tensor([[-0.4], [0.1], [0.8]])
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        value, gradient = program.value_and_grad(z)
    assert (program.fallback is not None) == (name in FALLBACK), program.fallback
    for i, point in enumerate(z[:, 0]):
        point = point.clone().requires_grad_()
        expected = dist.Normal(0.0, 1.0).log_prob(point) + CASES[name](point).log_prob(data).sum()
        (slope,) = torch.autograd.grad(expected, point)
        torch.testing.assert_close(value[i], expected.detach())
        torch.testing.assert_close(gradient[i, 0], slope)


def _continuous(name):
    try:
        support = CASES[name](torch.tensor(0.3)).support
        torch.distributions.biject_to(support)
    except NotImplementedError:
        return False
    return not support.is_discrete


@pytest.mark.parametrize("name", [n for n in CASES if _continuous(n)])
def test_as_a_latent_site(name):
    def story():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", CASES[name](z))

    program = Program(story)
    z = torch.randn(3, program.dim)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        value = program.log_density(z)
    for i in range(3):
        fn = CASES[name](z[i, 0])
        transform = torch.distributions.biject_to(fn.support)
        point = z[i, 1:].reshape(transform.inverse_shape(fn.shape()))
        x = transform(point)
        expected = (
            dist.Normal(0.0, 1.0).log_prob(z[i, 0])
            + fn.log_prob(x).sum()
            + transform.log_abs_det_jacobian(point, x).sum()
        )
        torch.testing.assert_close(value[i], expected, equal_nan=True)


@pytest.mark.parametrize(
    "name",
    [n for n in CASES if CASES[n](torch.tensor(0.3)).has_enumerate_support and n != "Binomial"],
)
def test_as_a_discrete_latent_site_it_is_summed_out(name):
    def story():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        x = pyro.sample("x", CASES[name](z))
        value = x.sum(-1) if CASES[name](z).event_dim else x
        pyro.sample("y", dist.Normal(1.0 * value, 1.0), obs=torch.tensor(0.7))

    program = Program(story)
    z = torch.tensor([[0.2]])
    fn = CASES[name](z[0, 0])
    values = fn.enumerate_support()
    total = values.sum(-1) if fn.event_dim else values
    joint = fn.log_prob(values) + dist.Normal(1.0 * total, 1.0).log_prob(torch.tensor(0.7))
    expected = dist.Normal(0.0, 1.0).log_prob(z[0, 0]) + torch.logsumexp(joint, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OrderedLogistic is evaluated directly
        value = program.log_density(z)
    torch.testing.assert_close(value[0], expected)


def test_supports_that_have_no_unconstrained_view_say_so():
    for name in ("Wishart", "ProjectedNormal", "VonMises3D"):
        assert not _continuous(name)
