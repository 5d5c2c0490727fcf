"""Coordinates scaled by the curvature: the same posterior, in which independent normals do."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.inference import DADVI, HMC, MAP, VI, Laplace, full_rank_guide, low_rank_guide
from ppgen.inference.comparison.repairs import DECORRELATED
from ppgen.inference.decorrelate import along_axes, decorrelated
from ppgen.posterior import Posterior
from ppgen.program import Program

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5
# heights in centimetres, far from zero: a correlation of -.9993 between slope and intercept
X = torch.linspace(160.0, 190.0, 30).double()
Y = 1.0 + 0.02 * X + 0.1 * torch.sin(7.0 * X)


def heights(x, y):
    """Known noise, so that the posterior is a normal with a formula."""
    a = pyro.sample("a", dist.Normal(0.0, 100.0))
    b = pyro.sample("b", dist.Normal(0.0, 100.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, 0.1), obs=y)


def exact():
    """Mean and covariance of (a, b)."""
    design = torch.stack([torch.ones_like(X), X], 1)
    covariance = torch.linalg.inv(design.mT @ design / 0.1**2 + torch.eye(2) / 100.0**2)
    return covariance @ (design.mT @ Y / 0.1**2), covariance


def test_the_new_density_is_the_old_one_with_its_jacobian():
    found = decorrelated(heights, X, Y)
    new, old = Program(found.story, X, Y), Program(heights, X, Y)
    u = torch.randn(20, 2).double()
    z = found.frame.push(u)
    there = old.log_density(z) + torch.linalg.slogdet(found.frame.factor)[1]
    torch.testing.assert_close(new.log_density(u), there, rtol=1e-9, atol=1e-9)
    normal = torch.distributions.Normal(0.0, 1.0)
    drawn = Posterior.from_program(
        new, u[None], engine="test", kind="independent", converged=False,
        log_density=new.log_density(u)[None], log_guide=normal.log_prob(u).sum(-1)[None],
        guide_log_prob=lambda u: normal.log_prob(u).sum(-1),
    )  # fmt: skip
    back = found.restored(drawn)
    pushed = normal.log_prob(u).sum(-1) - torch.linalg.slogdet(found.frame.factor)[1]
    torch.testing.assert_close(back.unconstrained[0], z)
    torch.testing.assert_close(back.log_guide[0], pushed)
    torch.testing.assert_close(back.guide_log_prob(z), pushed)
    torch.testing.assert_close(back.log_density[0], old.log_density(z))
    assert not back.converged
    # which is that of the standard normal
    torch.testing.assert_close(
        new.log_density(u) - new.log_density(u[:1]),
        0.5 * (u[:1].square().sum(1) - u.square().sum(1)),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@pytest.mark.slow
def test_independent_normals_are_exact_there_and_the_sites_are_the_storys():
    posterior = ppgen.fit(heights, X, Y, using=VI(), reparametrise=True)
    assert set(posterior.draws) == {"a", "b"}
    assert posterior.messages[0] == (
        "decorrelated: coordinates scaled by the curvature (correlation of a and b -1.00)"
    )
    mean, covariance = exact()
    draws = torch.stack([posterior["a"], posterior["b"]], -1)[0]
    z = (draws.mean(0) - mean) / covariance.diagonal().sqrt()
    # 4,000 draws know a mean to .016 sd and an sd to 1.1 %; the optimiser's error is as large
    assert (z.abs() < 4.5 * 0.016 + 0.05).all()
    ratio = draws.std(0) / covariance.diagonal().sqrt()
    assert (abs(ratio - 1) < 4.5 * 0.011 + 0.05).all()
    # the guide's density came back with the draws: weights of a good guide are all alike
    assert posterior.diagnosis()["relative_is_ess"] > 0.95
    known = posterior.guide_log_prob(posterior.unconstrained[0])
    torch.testing.assert_close(known, posterior.log_guide[0], rtol=1e-6, atol=1e-6)


def test_what_is_scaled_well_is_left_alone():
    centred = X - X.mean()
    assert decorrelated(heights, centred, Y) is None
    found = decorrelated(heights, X, Y)
    _, covariance = exact()
    precision = torch.linalg.inv(covariance)
    expected = (covariance.diagonal() * precision.diagonal()).rsqrt().min()
    assert found.narrow == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.slow
def test_compare_finds_the_coordinates_by_itself_and_names_the_gain():
    """The reference is the exact posterior: Laplace of a normal."""
    found = ppgen.compare(
        heights, X, Y,
        using={"exact": Laplace(), "mean-field": VI(), "full-rank": VI(guide=full_rank_guide())},
        reference="exact", repair=True,
    )  # fmt: skip
    assert found.verdicts["mean-field"].level == "fail"
    assert found.verdicts["mean-field"].remedy.startswith(f"{DECORRELATED} repairs it at ")
    attempt = next(a for a in found.repairs["mean-field"] if a.how == DECORRELATED)
    # before, log(1 / sqrt(1 - rho^2)) = log 27 over log 1.33, where 1 fails
    _, covariance = exact()
    sd = covariance.diagonal().sqrt()
    narrow = math.sqrt(1 - float(covariance[0, 1] / sd.prod()) ** 2)
    assert attempt.before == pytest.approx(-math.log(narrow) / math.log(1.33), rel=0.1)
    assert attempt.after < 0.4
    assert "coordinates: PASS" in str(found)
    assert "full-rank" not in found.repairs


@pytest.mark.slow
def test_a_heavy_run_proposes_them_and_auto_takes_them():
    few = VI(max_steps=300)
    asked = ppgen.fit(heights, X, Y, using=few)
    assert asked.messages[-1].startswith("fit(..., reparametrise=True) would run it decorrelated")
    taken = ppgen.fit(heights, X, Y, using=few, reparametrise="auto")
    assert any(m.startswith("decorrelated") for m in taken.messages)


def test_only_engines_that_work_along_axes_are_moved():
    assert all(along_axes(e) for e in (VI(), VI(guide=low_rank_guide()), HMC()))
    assert along_axes(DADVI(linear_response=False))
    assert not any(along_axes(e) for e in (VI(guide=full_rank_guide()), DADVI(), Laplace(), MAP()))
    # a mode would be another one
    assert ppgen.fit(heights, X, Y, using=MAP(), reparametrise=True).converged
