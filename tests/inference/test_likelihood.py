"""Likelihoods of stories whose evidence is a formula."""

import math
from dataclasses import fields

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppgen.data import Dataset
from ppgen.inference.likelihood import log_likelihood
from ppgen.inference.peak_memory import peak_memory
from ppgen.models import VAE, ConditionalVAE, DequantizedFlow, Flow
from ppgen.models.base_rate import BaseRate
from ppgen.networks.likelihoods import GaussianLikelihood


class LinearGaussian(nn.Module):
    """z ~ N(0, I), x | z ~ N(W z, s^2 I); the guide is the posterior, widened and shifted."""

    def __init__(self, dim=6, latent=2, widen=1.2, shift=0.2):
        super().__init__()
        self.W, self.s = torch.randn(dim, latent), 0.8
        self.widen, self.shift = widen, shift

    def evidence(self, x):
        covariance = self.W @ self.W.T + self.s**2 * torch.eye(len(self.W))
        return dist.MultivariateNormal(torch.zeros(len(self.W)), covariance).log_prob(x)

    def posterior(self, x):
        precision = torch.eye(self.W.shape[1]) + self.W.T @ self.W / self.s**2
        loc = torch.linalg.solve(precision, self.W.T @ x.T / self.s**2).T
        return dist.MultivariateNormal(loc + self.shift, precision.inverse() * self.widen**2)

    def log_weights(self, x, samples):
        q = self.posterior(x)
        z = q.sample(torch.Size([samples]))
        prior = dist.Normal(0.0, 1.0).expand([self.W.shape[1]]).to_event(1)
        given = dist.Normal(z @ self.W.T, self.s).to_event(1)
        return prior.log_prob(z) + given.log_prob(x) - q.log_prob(z)


@pytest.fixture
def story():
    return LinearGaussian()


@pytest.fixture
def x(story):
    z = torch.randn(20, story.W.shape[1])
    return z @ story.W.T + story.s * torch.randn(20, len(story.W))


def test_elbo_is_below_the_weighted_bound_below_the_evidence(story, x):
    exact = story.evidence(x).mean().item()
    few, many = (log_likelihood(story, x, samples=k, seed=0) for k in (10, 5000))
    assert few.kind == many.kind == "lower"
    assert few.upper is None
    # 5000 draws make the ELBO and the bound sharp to 0.001, far below what separates them
    assert many.details["elbo"] + 0.05 < exact
    assert few.lower < exact + 4.3 * few.lower_error  # exceeded once in 2e-5
    assert many.lower < exact + 4.3 * many.lower_error
    assert abs(many.lower - exact) < 0.01


def test_the_bound_rises_with_the_draws(story, x):
    """The mean of L_K over many repetitions of each example."""
    x = x.repeat(50, 1)
    exact = story.evidence(x).mean().item()
    elbo, two, ten = (log_likelihood(story, x, samples=k, seed=k) for k in (1, 2, 10))
    # at K = 2 the stated error is of a single pair of weights; take the spread over examples
    error = 4.3 * 2 * (two.details["examples_error"] ** 2 / 50) ** 0.5
    assert elbo.lower < two.lower + error < ten.lower + 2 * error < exact + 3 * error
    assert elbo.lower + 0.02 < ten.lower


class Normal:
    def __init__(self, loc):
        self.loc = loc

    def log_prob(self, x):
        return torch.distributions.Normal(self.loc, 1.0).log_prob(x).sum(-1)


def test_the_error_of_a_difference_is_that_of_the_pairs():
    """log N(x; .1, 1) - log N(x; 0, 1) = .1 x - .005, ten times as sure as either."""
    x = torch.randn(400, 1)
    near, far = (log_likelihood(Normal(loc), x) for loc in (0.1, 0.0))
    found = near.minus(far)
    assert found.value == pytest.approx(near.lower - far.lower, abs=1e-12)
    assert found.paired_error == pytest.approx(0.1 * float(x.std()) / 20, rel=1e-9)
    assert found.monte_carlo == 0.0
    assert far.examples_error == pytest.approx(float(x.square().std()) / 40, rel=1e-9)
    assert near.examples_error > 5 * found.paired_error
    assert f"400 examples (+- {near.examples_error:.2g} over examples)" in str(near)
    assert f"+- {found.paired_error:.3f} nats per example, example by example" in str(found)
    with pytest.raises(ValueError, match="the same examples, two or more, got 400 and 399"):
        near.minus(log_likelihood(Normal(0.0), x[1:]))


def test_a_bound_says_which_error_is_which(story, x):
    found = log_likelihood(story, x, samples=100, seed=0)
    assert found.each.mean() == pytest.approx(found.lower, abs=1e-12)
    assert found.details["examples_error"] == pytest.approx(found.examples_error)
    assert f"(lower bound, Monte Carlo error {found.lower_error:.2g})" in str(found)
    some = log_likelihood(story, x, samples=100, seed=0, thorough=2)
    assert some.each.mean() == pytest.approx(some.lower, abs=1e-12)
    assert set(found.to_json()) == {f.name for f in fields(found)} - {"each"} | {"examples_error"}


def test_one_draw_is_the_elbo_without_an_error(story, x):
    likelihood = log_likelihood(story, x, samples=1, seed=0)
    assert likelihood.lower == pytest.approx(likelihood.details["elbo"], abs=1e-12)
    assert likelihood.lower_error == math.inf


def test_the_error_is_that_of_repetition(story, x):
    runs = [log_likelihood(story, x, samples=200, seed=i) for i in range(60)]
    values = torch.tensor([run.lower for run in runs])
    stated = torch.tensor([run.lower_error for run in runs]).mean()
    # a standard deviation of 60 normal values is within a factor 1 +- 4.3 / sqrt(118) of the truth
    assert abs(values.std() / stated - 1) < 0.45


def test_streaming_in_small_batches_gives_the_same_number(story, x):
    whole = log_likelihood(story, x, samples=300, seed=0)
    split = log_likelihood(story, x, samples=300, seed=1, memory=5e4)
    gap = math.hypot(whole.lower_error, split.lower_error)
    assert abs(whole.lower - split.lower) < 4.3 * gap


def test_peak_memory_counts_what_is_alive_at_once():
    def compute():
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100) * 2  # 8,000 bytes each: never more than two of them
        del b
        return c + 1

    before = torch.random.get_rng_state()
    assert peak_memory(compute) == 16_000
    assert peak_memory(lambda: [torch.rand(10) for _ in range(3)]) == 240
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "wide",
    [lambda: VAE(2, 2, (300,), likelihood=GaussianLikelihood()), lambda: DequantizedFlow(2, 64)],
    ids=["VAE", "flow"],
)
def test_a_batch_takes_the_memory_that_it_may(wide):
    """Whatever the networks: two pixels tell nothing of hidden layers of hundreds of units."""
    story, x = wide(), torch.ones(40, 2)
    for memory in (2e6, 8e6):
        used = peak_memory(lambda m=memory: log_likelihood(story, x, samples=100, memory=m))
        assert 0.5 * memory < used < 1.5 * memory


def test_an_exact_guide_gives_the_evidence_without_error(x, story):
    exact = LinearGaussian(widen=1.0, shift=0.0)
    exact.W = story.W
    likelihood = log_likelihood(exact, x, samples=3, seed=0)
    assert likelihood.lower == pytest.approx(story.evidence(x).mean().item(), abs=1e-10)
    assert likelihood.lower_error < 1e-6  # a variance of rounding errors
    assert likelihood.details["effective_draws"] == pytest.approx(3.0)


def test_exact_densities_are_exact():
    x = torch.bernoulli(torch.full((50, 4), 0.3))
    story = BaseRate(x)
    likelihood = log_likelihood(story, x)
    rates = (x.sum(0) + 0.5) / 51
    expected = (x * rates.log() + (1 - x) * (1 - rates).log()).sum(1).mean().item()
    assert likelihood.kind == "exact"
    assert likelihood.lower == likelihood.upper == pytest.approx(expected, abs=1e-12)
    assert "exact" in str(likelihood)


def test_the_generator_and_the_training_mode_come_back(story, x):
    story.train()
    before = torch.random.get_rng_state()
    first = log_likelihood(story, x, samples=10, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert story.training
    assert log_likelihood(story, x, samples=10, seed=5) == first


def test_other_things_are_refused_with_advice():
    with pytest.raises(TypeError, match="log_weights"):
        log_likelihood(object(), torch.zeros(2, 3))


def test_a_data_set_and_what_a_conditional_story_is_told_are_taken_as_by_train(story, x):
    examples = Dataset(x)
    assert log_likelihood(story, examples, samples=3, seed=0) == log_likelihood(
        story, x, samples=3, seed=0
    )
    told = ConditionalVAE(6, 3, 2, (4,))
    y, pixels = torch.arange(30) % 3, (torch.rand(30, 6) < 0.5).to(x)
    found = log_likelihood(told, (pixels, y), samples=1000, seed=0)
    with torch.no_grad():  # other draws, batches of other sizes
        each = told.log_weights(pixels, y, 1000).logsumexp(0) - math.log(1000)
    assert found.lower == pytest.approx(each.mean().item(), abs=4.3 * 2**0.5 * found.lower_error)
    with pytest.raises(ValueError, match=r"x given y: expected log_likelihood\(story, \(x, y\)\)"):
        log_likelihood(told, pixels)
    with pytest.raises(ValueError, match=r"a likelihood of x: expected .*; got 2 tensors"):
        log_likelihood(story, (x, y[: len(x)]))


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match=r"no values: the shape is \(0, 6\)"):
        log_likelihood(LinearGaussian(), torch.zeros(0, 6))
    with pytest.raises(ValueError, match=r"\(N, D\) with N >= 1"):
        log_likelihood(LinearGaussian(), torch.zeros(6))


def test_missing_values_name_the_row(story, x):
    class Root:
        def log_prob(self, x):
            return x[:, 0].sqrt()

    x = x.abs()
    x[7, 0] = -1.0
    with pytest.raises(ValueError, match="row 7 is nan"):
        log_likelihood(Root(), x)
    x[7, 0] = float("nan")
    with pytest.raises(ValueError, match="row 7, column 0: NaN"):
        log_likelihood(Root(), x)


def test_log_weights_of_a_wrong_shape_are_refused(story, x):
    class Wrong(LinearGaussian):
        def log_weights(self, x, samples):
            return torch.zeros(len(x), samples)

    with pytest.raises(ValueError, match="must return"):
        log_likelihood(Wrong(), x, samples=3)


def test_options_that_have_no_meaning_are_refused(story, x):
    with pytest.raises(TypeError, match=r"an exact density takes no options; got \['memory'\]"):
        log_likelihood(Flow(6), x, memory=1e6)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        log_likelihood(story, x, samples=0)


def test_a_few_thorough_examples_stand_for_all(story, x):
    x = x.repeat(3, 1) + 0.1 * torch.randn(60, x.shape[1])
    whole = log_likelihood(story, x, samples=200, seed=0)
    runs = [log_likelihood(story, x, samples=200, thorough=40, seed=i) for i in range(60)]
    values = torch.tensor([run.lower for run in runs])
    stated = torch.tensor([run.lower_error for run in runs]).mean()
    # four draws on all would be lower by 0.05, many of these errors
    assert abs(values.mean() - whole.lower) < 4.3 * math.hypot(
        values.std() / 60**0.5, whole.lower_error
    )
    # the sd of 60 values is known to 1 / sqrt(2 x 59) = 9 %; it is 0.45 of what the errors of the
    # two parts add up to: 40 of the 60 first bounds cancel
    assert 0.6 < values.std() / stated < 1.4
    assert "on 40 examples, with 4 on all" in runs[0].method
    assert runs[0].examples == 60
    with pytest.raises(ValueError, match="at least 2"):
        log_likelihood(story, x, thorough=1)
