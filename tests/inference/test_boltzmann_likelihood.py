"""Likelihoods of deep machines: exact where they are small, else below the truth."""

import importlib
import itertools
import math

import pytest
import torch
from scipy import stats

import ppgen
from ppgen.inference.annealed_importance_sampling import (
    LogPartition,
    annealed_importance_sampling,
    schedule,
)
from ppgen.inference.boltzmann_likelihood import boltzmann_likelihood
from ppgen.models.dbm import DBM
from ppgen.models.dbn import DBN
from ppgen.models.rbm import RBM

pytestmark = pytest.mark.usefixtures("silent")

# the package has a function of this name, too
likelihood = importlib.import_module("ppgen.inference.boltzmann_likelihood")

FAILURE_RATE = 2e-5
Z = stats.norm.isf(FAILURE_RATE / 2)


def states(units):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)))


def deep(kind, *sizes, scale=0.5):
    made = kind(sizes[0], sizes[1:])
    for p in made.parameters():
        torch.nn.init.normal_(p, std=scale)
    return made.requires_grad_(False)


def binary(rows, visible):
    return (torch.rand(rows, visible) < 0.3).double()


@pytest.mark.parametrize(
    "sizes", [(6, 4, 3), (5, 3, 3, 2), pytest.param((24, 21, 5), marks=pytest.mark.slow)]
)
def test_a_dbm_with_a_small_latent_side_has_an_exact_first_part(sizes):
    """The last is bracketed (21 units on its smaller side), and still enumerable here."""
    dbm, x = deep(DBM, *sizes, scale=0.3), binary(8, sizes[0])
    exact = (dbm.log_unnormalised(x) - dbm.log_partition()).mean().item()
    found = boltzmann_likelihood(dbm, x, temperatures=300, burn_in=100, seed=0)
    if sizes[0] < 20:
        assert found.kind == "exact"
        assert abs(found.lower - exact) < 1e-10
        distinct = states(sizes[0])
        total = dbm.log_unnormalised(distinct).logsumexp(0)
        assert abs(total.item() - dbm.log_partition().item()) < 1e-10
    else:
        assert found.kind == "bounds"
        assert found.lower - Z * found.lower_error < exact < found.upper + Z * found.upper_error


@pytest.mark.parametrize("kind", [DBM, DBN])
def test_a_deep_story_has_a_lower_bound_that_holds_and_tightens(kind, monkeypatch):
    story, x = deep(kind, 6, 4, 3), binary(8, 6)
    if kind is DBM:
        exact = (story.log_unnormalised(x) - story.log_partition()).mean().item()
        monkeypatch.setattr(type(story), "log_unnormalised", lambda *_: None)
    else:
        h = states(4)
        joint = story.log_generative([x[:, None].expand(8, 16, 6), h.expand(8, 16, 4)])
        exact = (joint + story.top.marginal().log_prob(h)).logsumexp(1).mean().item()
    found = ppgen.log_likelihood(story, x, samples=4000, seed=0)
    assert found.kind == "lower"
    assert found.upper is None
    assert "enumeration" in found.method
    assert abs(found.lower - exact) < Z * found.lower_error + 1e-3  # 4000 draws: nearly tight
    assert found.details["elbo"] < found.lower
    few = [ppgen.log_likelihood(story, x, samples=2, seed=seed).lower for seed in range(200)]
    few = torch.tensor(few)
    assert few.mean() < exact + Z * few.std() / 200**0.5  # E of a bound is below
    assert few.mean() < found.lower


@pytest.mark.parametrize("crossed", [False, True])
def test_the_higher_estimate_of_log_z_is_subtracted(monkeypatch, crossed):
    """Also where the two sides cross, as they may when the reverse pass is only nominal."""
    dbm, x = deep(DBM, 24, 22, 14), binary(8, 24)
    ends = [(80.0, 0.3), (78.0, 0.4)] if crossed else [(78.0, 0.4), (80.0, 0.3)]
    z = LogPartition(*ends[0], *ends[1], 9.0, 10, 2, "uniform", False)
    monkeypatch.setattr(likelihood, "annealed_importance_sampling", lambda *_, **__: z)
    found = boltzmann_likelihood(dbm, x, samples=200, seed=0)
    torch.manual_seed(0)
    score = likelihood.importance_bound(dbm.unnormalised_log_weights, x, 200)
    assert found.kind == "lower"
    assert math.isclose(found.lower, score.each.mean().item() - 80.0, abs_tol=1e-9)
    assert math.isclose(found.lower_error, math.hypot(score.error, 0.3), abs_tol=1e-9)
    assert math.isclose(found.details["elbo"], score.details["elbo"] - 80.0, abs_tol=1e-9)
    # where the other part is a formula there are two sides, each with the error of its log Z
    rbm = RBM(24, 22).requires_grad_(False)
    found, mean = boltzmann_likelihood(rbm, x), -rbm.free_energy(x).mean().item()
    assert (found.kind, found.lower_error, found.upper_error) == ("bounds", 0.3, 0.4)
    assert math.isclose(found.lower, mean - 80.0, abs_tol=1e-9)
    assert math.isclose(found.upper, mean - 78.0, abs_tol=1e-9)


@pytest.mark.parametrize("sizes", [(6, 4, 3), (5, 3, 3, 2)])
def test_ais_encloses_the_log_partition_of_deep_machines(sizes):
    dbm = deep(DBM, *sizes, scale=1.0)
    truth = dbm.log_partition().item()
    for base in (None, dbm.visible_bias):
        found = annealed_importance_sampling(dbm, temperatures=200, base=base, seed=1)
        assert found.exact
        assert abs(found.lower - truth) < Z * found.lower_error + 0.02
        assert abs(found.upper - truth) < Z * found.upper_error + 0.02


def test_ais_weights_are_those_of_the_rbm_between_the_sides():
    dbm = deep(DBM, 5, 3, 3, 2)
    rbm = RBM(8, 5)
    with torch.no_grad():
        rbm.weight.copy_(dbm.weight)
        rbm.visible_bias.copy_(dbm.visible_bias)
        rbm.hidden_bias.copy_(dbm.hidden_bias)
    found = [annealed_importance_sampling(m, temperatures=20, seed=3) for m in (dbm, rbm)]
    assert math.isclose(found[0].lower, found[1].lower, abs_tol=1e-10)
    assert math.isclose(found[0].upper, found[1].upper, abs_tol=1e-10)
    assert schedule(20)[-1] == 1


def test_same_seed_same_score_and_float32_is_enough():
    dbm, x = deep(DBM, 24, 22, 14, scale=0.2).float(), binary(5, 24).float()
    before = torch.get_rng_state()
    options = {"samples": 10, "chains": 5, "temperatures": 3, "burn_in": 2, "seed": 7}
    found = [boltzmann_likelihood(dbm, x, **options) for _ in range(2)]
    assert found[0] == found[1]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [DBM, DBN])
def test_data_that_are_no_data_of_it_are_refused(kind):
    story, x = deep(kind, 6, 4, 3), binary(5, 6)
    x[3, 2] = 0.7
    with pytest.raises(ValueError, match=r"got 0\.7 in row 3, column 2"):
        boltzmann_likelihood(story, x)
    with pytest.raises(ValueError, match=r"expected shape \(\.\.\., 6\)"):
        boltzmann_likelihood(story, binary(5, 9))
