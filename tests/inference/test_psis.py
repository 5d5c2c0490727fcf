"""Importance resampling: exact where the weights are, and a refusal where they hold nothing."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference import HMC, MAP, Laplace
from ppgen.inference.psis import repair, systematic
from ppgen.posterior import Posterior

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5  # as in tests/conftest.py
Z = 4.3  # two-sided normal quantile of FAILURE_RATE: 4.26


def proposal(scale, count=4000):
    """Draws of N(0, scale) for a target N(1, 1): ``(1, count)``."""
    x = scale * torch.randn(1, count)
    return Posterior(
        draws={"x": x},
        engine="proposal",
        kind="independent",
        unconstrained=x[..., None],
        log_density=dist.Normal(1.0, 1.0).log_prob(x) + 5.0,
        log_guide=dist.Normal(0.0, scale).log_prob(x),
        stats={"twice": 2 * x},
    )


def test_draws_follow_the_target_after_the_repair():
    before = proposal(1.5)
    after = repair(before)
    assert after.converged, after.messages
    x = after["x"]
    assert 400 < after.count < 4000
    # worth as many draws as there are, resampled once more: twice the variance at most
    error = math.sqrt(2 / after.count)
    assert abs(x.mean() - 1) < Z * error
    assert abs(x.var() - 1) < Z * error * math.sqrt(2)
    assert torch.equal(after.unconstrained[..., 0], x)
    assert torch.equal(after.stats["twice"], 2 * x)
    torch.testing.assert_close(after.log_guide, dist.Normal(0.0, 1.5).log_prob(x))


def test_the_error_of_a_repaired_mean_is_that_of_repetition():
    """Of N(0, 1.3) under N(0, 1) large weights lie far out: the mean is worth a third of IS-ESS.

    The variance of x under w^2 q is 1 / (2 / 1.69 - 1) = 5.45, where that under p is 1.69.
    """
    z, kept = [], []
    for _ in range(200):
        x = torch.randn(1, 2000)
        given = Posterior(
            {"x": x}, "proposal", "independent", unconstrained=x[..., None],
            log_density=dist.Normal(0.0, 1.3).log_prob(x),
            log_guide=dist.Normal(0.0, 1.0).log_prob(x),
        )  # fmt: skip
        row = repair(given).summary()["x"]
        z.append(row.mean / row.mcse)
        kept.append(given.diagnosis()["relative_is_ess"] * 2000 * (row.mcse / row.sd) ** 2)
    assert 2 < sum(kept) / len(kept) < 5
    # the mean square of 200 has sd .1, and that of the IS-ESS would be 3
    assert 0.6 < sum(each**2 for each in z) / len(z) < 1.6


def test_the_diagnosis_stays_that_of_the_weights():
    before = proposal(1.5)
    after = repair(before)
    assert after.diagnosis() == before.diagnosis()
    assert f"k-hat {before.diagnosis()['khat']:.2f}" in after.headline()


def test_a_guide_that_is_too_narrow_is_reported_not_repaired_in_silence():
    """Weights of exp(c x^2), c = (1 / .09 - 1) / 2, have k = 1 - .09 = .91 under N(0, .3)."""
    after = repair(proposal(0.3))
    assert not after.converged
    assert "too far from the posterior" in after.headline()


@pytest.mark.parametrize(("scale", "far"), [(1.5, False), (0.3, True)])
def test_the_heading_says_what_the_weights_say(scale, far):
    before = proposal(scale)
    found = before.diagnosis()
    assert (found["khat"] > found["khat_limit"] and found["relative_is_ess"] < 0.1) == far
    assert before.converged  # the optimiser's part
    assert before.trusted != far
    assert ("converged" in before.headline()) != far
    assert (f"k-hat {found['khat']:.2f}" in before.headline()) == far
    assert not replace(before, converged=False).trusted


def test_a_heavy_tail_stands_in_the_heading_where_weights_are_worth_much():
    """Of Student's t under a normal of scale 1.5: weights exp(x^2 / 4.5) have k = 1."""
    x = 1.5 * torch.randn(1, 4000)
    found = Posterior(
        {"x": x}, "proposal", "independent", unconstrained=x[..., None],
        log_density=dist.StudentT(3.0).log_prob(x), log_guide=dist.Normal(0.0, 1.5).log_prob(x),
    )  # fmt: skip
    khat = found.diagnosis()["khat"]
    assert found.trusted
    assert khat > 0.7
    assert (
        f"converged: k-hat {khat:.2f} (limit 0.70): the posterior has heavier" in found.headline()
    )


def test_weights_that_are_no_numbers_are_said_to_be_so():
    before = proposal(1.5)
    before.log_density[0, :3] = torch.nan
    assert "3 of its 4000 importance weights are not finite" in before.headline()
    before.log_density[0, :3] = -torch.inf  # outside the support: no weight
    assert before.trusted


def test_the_number_of_draws_may_be_chosen():
    assert repair(proposal(1.5), draws=77).count == 77


def test_systematic_resampling_takes_each_as_often_as_its_weight_says():
    weights = torch.rand(50)
    weights /= weights.sum()
    times = torch.bincount(systematic(weights, 400), minlength=50)
    assert times.sum() == 400
    assert ((times - 400 * weights).abs() < 1).all()
    order = systematic(torch.full((400,), 1 / 400), 400)
    assert order.sort().values.tolist() == list(range(400))
    assert order.tolist() != list(range(400))


def test_systematic_resampling_is_unbiased():
    weights = torch.tensor([0.05, 0.25, 0.7])
    hits = torch.stack([torch.bincount(systematic(weights, 1), minlength=3) for _ in range(4000)])
    share = hits.double().mean(0)
    # three comparisons, each at 4.7 standard errors: 2e-5 together
    assert ((share - weights).abs() < 4.7 * (weights * (1 - weights) / 4000).sqrt()).all()


def gamma():
    pyro.sample("x", dist.Gamma(3.0, 1.0))


def test_laplace_is_repaired():
    """Gamma(3, 1): mean 3, variance 3; its Laplace approximation on the log scale is off."""
    fitted = Laplace(draws=20_000).run(gamma)
    after = repair(fitted)
    assert after.converged, after.messages
    error = math.sqrt(2 * 3 / after.count)
    assert abs(fitted["x"].mean() - 3) > 3 * error
    assert abs(after["x"].mean() - 3) < Z * error


def test_points_outside_the_support_get_no_weight():
    before = proposal(1.5)
    before.log_density[0, :1000] = -torch.inf
    before.log_density[0, 1000:1500] = torch.nan
    gone = before["x"][0, :1500]
    assert not torch.isin(repair(before)["x"], gone).any()


def test_what_cannot_be_repaired_is_refused():
    with pytest.raises(ValueError, match="already"):
        repair(repair(proposal(1.5)))
    with pytest.raises(ValueError, match="HMC: Markov chains"):
        repair(HMC(chains=2, draws=5, warmup=20).run(gamma))
    with pytest.raises(ValueError, match="MAP: a point"):
        repair(MAP().run(gamma))
    with pytest.raises(ValueError, match="draws without the log density of a guide"):
        repair(replace(proposal(1.5), log_guide=None))
    with pytest.raises(ValueError, match="at least 25 weights"):
        repair(proposal(1.5, count=10))
    with pytest.raises(ValueError, match="draws must be at least 1"):
        repair(proposal(1.5), draws=0)


def test_it_survives_saving(tmp_path):
    after = repair(proposal(1.5))
    after.save(tmp_path / "run")
    loaded = Posterior.load(tmp_path / "run")
    assert loaded.diagnosis() == after.diagnosis()
    with pytest.raises(ValueError, match="already"):
        repair(loaded)
