"""The joint part of a comparison, on Gaussians where every number has a closed form."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference.compare_text import joint_lines
from ppgen.inference.comparison.coordinates import coordinates, of_program, same_scale
from ppgen.inference.comparison.evidence import sandwich
from ppgen.inference.comparison.joint import Joint, joint
from ppgen.inference.flow_guides import flow_guide
from ppgen.inference.guides import full_rank_guide, low_rank_guide, mean_field_guide
from ppgen.inference.laplace import Laplace
from ppgen.posterior import Posterior
from ppgen.program import Program

LOG_Z = 3.7  # nats
RHO = 0.8
P = torch.distributions.MultivariateNormal(
    torch.zeros(2).double(), torch.tensor([[1.0, RHO], [RHO, 1.0]]).double()
)
# the mean-field optimum: precisions are those of the conditionals, so variances 1 - rho^2
Q = torch.distributions.MultivariateNormal(
    torch.zeros(2).double(), (1 - RHO**2) * torch.eye(2).double()
)


def posterior(z, kind="independent", **fields):
    draws = {"a": z[..., 0], "b": z[..., 1]}
    return Posterior(draws, "test", kind, unconstrained=z, **fields)


def story():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(RHO * a, math.sqrt(1 - RHO**2)))


def reference(**fields):
    z = P.sample((8, 500))
    return posterior(z, "chains", log_density=P.log_prob(z) + LOG_Z, **fields)


def approximation(law=Q, draws=4000):
    z = law.sample((1, draws))
    return posterior(
        z, log_density=P.log_prob(z) + LOG_Z, log_guide=law.log_prob(z), guide_log_prob=law.log_prob
    )


def test_the_evidence_is_bounded_from_both_sides_and_the_gap_is_kl_both_ways():
    found = joint(approximation(), reference(), None).sandwich
    forward = float(torch.distributions.kl_divergence(P, Q))
    backward = float(torch.distributions.kl_divergence(Q, P))
    # 4.3 standard errors, as the estimates give them
    assert found.elbo == pytest.approx(LOG_Z - backward, abs=4.3 * found.elbo_error)
    assert found.eubo == pytest.approx(LOG_Z + forward, abs=4.3 * found.eubo_error)
    assert found.gap == pytest.approx(forward + backward, abs=0.4)
    assert 0.005 < found.elbo_error < 0.05
    assert 0.005 < found.eubo_error < 0.2


def test_the_error_of_the_upper_bound_knows_that_chains_remember():
    """An autoregression of .9, whose squares correlate by .81^t."""
    z = P.sample((8, 500))
    for t in range(1, 500):
        z[:, t] = 0.9 * z[:, t - 1] + math.sqrt(1 - 0.9**2) * z[:, t]
    chains = posterior(z, "chains", log_density=P.log_prob(z) + LOG_Z)
    free = posterior(z, "independent", log_density=P.log_prob(z) + LOG_Z)
    q = approximation()
    slow, fast = (sandwich(q, p, coordinates(q, p), None, []).eubo_error for p in (chains, free))
    # every second draw is used, of which squares correlate by .66^t: sqrt(1.66 / .34) = 2.2
    assert 1.5 < slow / fast < 3


def test_only_the_upper_bound_sees_a_missed_mode():
    z = torch.randn(8, 500, 1)
    at = torch.where(torch.rand(8, 500, 1) < 0.5, 5.0, -5.0)
    normal = torch.distributions.Normal(0.0, 1.0)

    def log_p(x):
        both = torch.stack([normal.log_prob(x - 5), normal.log_prob(x + 5)]).logsumexp(0)
        return (both - math.log(2)).squeeze(-1)

    def log_q(x):
        return normal.log_prob(x - 5).squeeze(-1)

    def one(x, kind, **fields):
        return Posterior({"a": x[..., 0]}, "test", kind, unconstrained=x, **fields)

    truth = one(z + at, "chains", log_density=log_p(z + at))
    own = torch.randn(1, 4000, 1) + 5
    missed = one(
        own, "independent", log_density=log_p(own), log_guide=log_q(own), guide_log_prob=log_q
    )
    found = joint(missed, truth, None)
    assert found.sandwich.elbo == pytest.approx(-math.log(2), abs=0.01)  # a seemingly tight bound
    assert found.efficiency > 0.99
    # half of the reference lies 10 sd away: (100 / 2) / 2 nats on average, less log 2
    assert found.sandwich.eubo == pytest.approx(25 - math.log(2), abs=2.0)


def test_the_worst_direction_is_the_long_axis_and_the_pair_is_named():
    found = joint(approximation(), reference(), None)
    # along (a + b): variance 2 (1 + rho) under p, 2 (1 - rho^2) under q: ratio sqrt(1 - rho)
    assert found.worst == found.narrowest
    assert found.narrowest.ratio == pytest.approx(math.sqrt(1 - RHO), rel=0.07)
    assert found.narrowest.beyond_noise
    # 4.3 times sqrt(2 / 4000 + 2 / 4000) / 2 = .07; and along (a - b): sqrt(1 + rho)
    assert found.widest.ratio == pytest.approx(math.sqrt(1 + RHO), rel=0.07)
    assert dict(found.narrowest.weights) == pytest.approx({"a": 0.71, "b": 0.71}, abs=0.05)
    assert str(found.widest).count("-") == 1
    assert set(found.correlation.names) == {"a", "b"}
    assert found.correlation.ours == pytest.approx(0.0, abs=4.3 / math.sqrt(4000))
    assert found.correlation.theirs == pytest.approx(RHO, abs=4.3 * (1 - RHO**2) / math.sqrt(4000))
    assert found.correlation.error > found.correlation.null
    assert found.mmd.p <= 0.01
    assert found.c2st.p <= 0.01
    assert found.c2st.accuracy > 0.6


def test_what_agrees_stays_within_what_halves_show():
    found = joint(approximation(P), reference(), None)
    assert not found.narrowest.beyond_noise
    assert not found.widest.beyond_noise
    assert found.correlation.error <= found.correlation.null
    assert found.sandwich.gap == pytest.approx(0.0, abs=1e-9)


def test_ksd_needs_the_story_alone():
    program = Program(story)
    right, wrong = (joint(approximation(law), reference(), program).ksd for law in (P, Q))
    assert right.p > 0.01
    assert wrong.p < 0.01
    without = joint(approximation(), reference(), None)
    assert without.ksd is None
    assert any("KSD needs the story" in reason for reason in without.missing)


def test_log_densities_of_the_reference_come_from_the_story_where_it_has_none():
    program, truth = Program(story), posterior(P.sample((8, 500)), "chains")
    law = approximation()
    found = joint(law, truth, program).sandwich
    assert found.eubo == pytest.approx(float(torch.distributions.kl_divergence(P, Q)), abs=0.4)
    without = joint(law, truth, None)
    assert math.isnan(without.sandwich.eubo)
    assert "log p is not known at the reference's draws: no upper bound" in without.missing


@pytest.mark.parametrize("each", [2, 40])
def test_the_importance_weighted_bound_is_that_of_quadrature(each):
    """Of a guide that proposes two, and of the 40 that each hundredth of 4,000 draws holds."""
    p, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.0, 1.5)
    z = q.sample((20_000, 2) if each == 2 else (1, 4000))
    log_w = p.log_prob(z) - q.log_prob(z)
    fields = {"history": {"log_weights": log_w}} if each == 2 else {"log_density": p.log_prob(z)}
    kept = z[:, 0][None] if each == 2 else z
    law = Posterior({"a": kept}, "test", "independent", unconstrained=kept[..., None],
                    log_guide=q.log_prob(z), **fields)  # fmt: skip
    draws = torch.randn(8, 500)
    truth = Posterior({"a": draws}, "test", "chains", unconstrained=draws[..., None])
    found = joint(law, truth, None).sandwich
    assert found.each == each
    if each == 2:  # Gauss-Hermite, 60 nodes a side
        x, w = (torch.as_tensor(v) for v in np.polynomial.hermite_e.hermegauss(60))
        at = p.log_prob(1.5 * x) - q.log_prob(1.5 * x)
        both = torch.logaddexp(at[:, None], at) - math.log(2)
        exact = float((w[:, None] * w * both).sum() / (2 * math.pi))
    else:  # log Z = 0, less half the variance of a mean of 40 weights
        exact = -0.5 * (float(log_w.exp().var()) / each)
    # of 40 the next order in 1 / K is some .001
    assert found.weighted == pytest.approx(exact, abs=4.3 * found.weighted_error + 0.003)
    assert found.elbo < found.weighted
    assert f"(importance weighted, {each} draws)" in str(found)


@pytest.mark.parametrize(
    ("khat", "needed", "says"),
    [
        (0.9, 2096.4, "limit 0.70; estimates would need 2,096 draws or more)"),
        (0.9, 3e9, "limit 0.70; estimates would need 1e9 draws or more)"),
        (0.9, math.inf, "limit 0.70; no number of draws is enough)"),
        (0.5, 100.0, "limit 0.70)"),
    ],
)
def test_the_draws_that_importance_weights_would_need_are_said(khat, needed, says):
    (line,) = joint_lines(Joint(khat=khat, khat_limit=0.7, needed=needed, efficiency=0.1))
    assert says in line


def test_a_point_and_broken_draws_have_no_joint_distribution():
    point = posterior(torch.zeros(1, 1, 2), "point")
    assert joint(point, reference(), None).missing == ("a point has no spread",)
    z = Q.sample((1, 100))
    z[0, 0, 0] = torch.nan
    assert "not finite" in joint(posterior(z), reference(), None).missing[0]


def test_two_parameterisations_meet_on_the_scale_of_their_sites():
    centred, free = P.sample((4, 100)), torch.randn(4, 100, 2)
    one = posterior(centred, "chains")
    other = Posterior(
        {"a": free[..., 0], "e": free[..., 1], "b": free.sum(-1)},
        "test", "chains", unconstrained=free, deterministic=("b",),
    )  # fmt: skip
    assert same_scale(one, one)
    assert not same_scale(one, other)
    found = coordinates(one, other)
    assert found.names == ("a", "b")
    assert not found.unconstrained
    assert np.array_equal(found.theirs[..., 1], free.sum(-1).numpy())
    assert of_program(one, Program(story))
    assert not of_program(other, Program(story))


@pytest.mark.parametrize(
    "family",
    [mean_field_guide(), full_rank_guide(), low_rank_guide(2), flow_guide(layers=4)],
    ids=str,
)
def test_guides_know_their_density_anywhere(family):
    guide: torch.nn.Module = family.build(3).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        u, log_q = guide(torch.randn(50, guide.noise_dim))
        assert torch.allclose(guide.log_prob(u), log_q, atol=1e-8)


@pytest.mark.usefixtures("silent")
def test_an_engine_hands_its_density_on():
    found = Laplace(draws=50).run(story)
    assert torch.allclose(found.guide_log_prob(found.unconstrained[0]), found.log_guide[0])


def test_directions_do_not_depend_on_units():
    units = torch.tensor([1.0, 1000.0])
    found = joint(
        posterior(Q.sample((1, 4000)) * units), posterior(P.sample((8, 500)) * units), None
    )
    assert dict(found.narrowest.weights) == pytest.approx({"a": 0.71, "b": 0.71}, abs=0.05)
