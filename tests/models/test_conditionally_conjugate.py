"""Laws of stories that declare conditionals: one formula, as Gibbs and as coordinate ascent."""

import math

import pytest
import torch

from ppgen.inference.cavi import elbo
from ppgen.models import (
    ConjugateRegression,
    GaussianMixture,
    LogitRegression,
    NormalGamma,
    ProbitRegression,
    ShrinkageRegression,
)
from ppgen.moments import covariance, mean_log, point, shares
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.types import ConditionallyConjugate, Exchangeable

Z = 4.3  # two-sided normal quantile of FAILURE_RATE = 2e-5: 4.26
CHAINS = 3

X = torch.tensor([[1.0, -0.4], [1.0, 0.3], [1.0, 1.5], [1.0, -2.0], [1.0, 0.9]]).double()
Y = torch.tensor([0.4, 1.2, 2.7, -3.0, 1.4]).double()
CASES = {
    "NormalGamma": (NormalGamma(0.5, 0.7, 3.0, 1.5), (Y,)),
    "ConjugateRegression": (ConjugateRegression(1.5, 3.0, 2.0), (X, Y)),
    "ShrinkageRegression": (ShrinkageRegression(2.0, 1.5, 3.0, 0.7), (X, Y)),
    "GaussianMixture": (GaussianMixture(2, 1.5, 0.3, 2.0, 3.0, 1.2), (Y,)),
    "GaussianMixture, 3 in the plane": (GaussianMixture(3, 0.7, 0.3, 2.0, 3.0, 1.2), (X,)),
    "ProbitRegression": (ProbitRegression(1.3), (X, (Y > 1).double())),
    "LogitRegression": (LogitRegression(1.3), (X, (Y > 1).double())),
}
each_story = pytest.mark.parametrize(("story", "data"), CASES.values(), ids=CASES)


def swept(story, data):
    """Values of all blocks after one sweep of Gibbs, ``(CHAINS, *shape)``."""
    values = story.start(CHAINS, *data)
    for name, conditional in story.coordinates(*data).items():
        values[name] = conditional(points(values)).sample()
    return values


def points(values):
    return {name: point(value) for name, value in values.items()}


def flat(program, values):
    return program.unconstrain({name: values[name] for name in program.sites})


@each_story
def test_the_joint_without_its_auxiliary_blocks_is_the_storys_own(story, data):
    """log p(theta, data) = log p(theta, a, data) - log p(a | theta, data), for every a."""
    assert isinstance(story, ConditionallyConjugate)
    program, values = Program(story.model, *data), swept(story, data)
    joint = story.expected_log_joint(points(values), *data)
    for name, conditional in story.coordinates(*data).items():
        if name not in program.sites:
            joint = joint - conditional(points(values)).log_prob(values[name])
    own, _ = program.value_and_grad(flat(program, values), part="map")
    assert torch.allclose(joint, own, rtol=0, atol=1e-9)


@each_story
def test_each_conditional_is_the_joint_up_to_a_constant(story, data):
    values, others = swept(story, data), swept(story, data)
    for name, conditional in story.coordinates(*data).items():
        law = conditional(points(values))
        moved = {**values, name: others[name]}
        if name == "latent":  # signs are those of y in both
            assert bool((values[name] * others[name] > 0).all())
        left = law.log_prob(others[name]) - law.log_prob(values[name])
        right = story.expected_log_joint(points(moved), *data)
        right = right - story.expected_log_joint(points(values), *data)
        assert torch.allclose(left, right, rtol=0, atol=1e-8), name


@each_story
def test_no_single_update_lowers_the_elbo(story, data):
    coordinates = story.coordinates(*data)
    factors = points(story.start(CHAINS, *data))
    for name, coordinate in coordinates.items():  # factors in the place of point masses
        factors[name] = coordinate(factors)
    before = elbo(story, factors, data)
    for name, coordinate in [*coordinates.items()] * 3:
        factors[name] = coordinate(factors)
        now = elbo(story, factors, data)
        assert bool((now >= before - 1e-10).all()), name
        before = now


@each_story
def test_each_update_is_the_best_of_its_family(story, data):
    """A factor that is optimal for other factors cannot be better here."""
    coordinates = story.coordinates(*data)
    factors = points(story.start(CHAINS, *data))
    elsewhere = []
    for _ in range(30):
        for name, coordinate in coordinates.items():
            factors[name] = coordinate(factors)
        elsewhere.append(dict(factors))
    for name, coordinate in coordinates.items():
        best = elbo(story, {**factors, name: coordinate(factors)}, data)
        nearby = [point_like(factors, name, shift) for shift in (0.9, 0.97, 1.03, 1.1)]
        for others in [*elsewhere[:4], *nearby]:
            other = elbo(story, {**factors, name: coordinate(others)}, data)
            assert bool((other <= best + 1e-10).all()), name


def point_like(factors, name, shift):
    """The same with all other blocks at points beside their means, where they have one."""
    found = dict(factors)
    for other in factors:
        if other not in (name, "z", "weights", "latent"):
            found[other] = point(factors[other].mean * shift)
    return found


@each_story
def test_the_elbo_is_what_its_own_draws_say(story, data):
    coordinates, factors = story.coordinates(*data), points(story.start(1, *data))
    for _ in range(5):
        for name, coordinate in coordinates.items():
            factors[name] = coordinate(factors)
    draws = {name: law.sample((20_000,))[:, 0] for name, law in factors.items()}
    log_q = sum(law.log_prob(draws[name][:, None])[:, 0] for name, law in factors.items())
    weights = story.expected_log_joint(points(draws), *data) - log_q
    error = float(weights.std()) / math.sqrt(len(weights))
    assert abs(float(weights.mean() - elbo(story, factors, data))) < Z * error


def test_canonical_order_changes_no_density_and_is_unique():
    story, data = CASES["GaussianMixture, 3 in the plane"]
    assert isinstance(story, Exchangeable)
    values = swept(story, data)
    other = {
        "weights": values["weights"][:, [2, 0, 1]],
        "mu": values["mu"][:, [2, 0, 1]],
        "tau": values["tau"][:, [2, 0, 1]],
        "z": torch.tensor([1, 2, 0])[values["z"]],
    }
    one, two = story.canonical(values), story.canonical(other)
    assert all(torch.equal(one[name], two[name]) for name in values)
    assert bool((one["mu"][..., 0].diff() >= 0).all())
    before = story.expected_log_joint(points(values), *data)
    assert torch.allclose(story.expected_log_joint(points(one), *data), before)


def test_canonical_points_are_as_dense_and_every_posterior_has_them():
    story, data = CASES["GaussianMixture, 3 in the plane"]
    program = Program(story.model, *data)
    z = torch.randn(2, 50, program.dim)
    ordered = program.canonical(z)
    torch.testing.assert_close(program.log_density(ordered), program.log_density(z))
    assert bool((program.constrain(ordered)["mu"][..., 0].diff() >= 0).all())
    stays = (program.constrain(z)["mu"][..., 0].diff() >= 0).all(-1)
    assert bool(stays.any())
    assert torch.equal((ordered == z).all(-1), stays)
    posterior = Posterior.from_program(program, z, engine="test", kind="independent")
    torch.testing.assert_close(posterior.unconstrained, ordered)
    assert "canonical order" in posterior.headline()


def test_moments_refuse_laws_that_they_do_not_know():
    law = torch.distributions.Normal(0.0, 1.0)
    for moment in (mean_log, covariance, lambda q: shares(q, 2, torch.float64)):
        with pytest.raises(TypeError, match="known here for"):
            moment(law)


def test_a_mixture_needs_a_whole_number_of_components():
    with pytest.raises(ValueError, match="whole number"):
        GaussianMixture(2.5)
