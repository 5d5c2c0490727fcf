"""Trust, consequences, repairs and cost: against closed forms and planted faults."""

import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppgen
from ppgen.inference import DADVI, HMC, VI, Exact, Laplace, flow_guide, full_rank_guide
from ppgen.inference.compare import comparison
from ppgen.inference.compare_text import consequence_lines
from ppgen.inference.comparison.consequences import _crps, consequences, of_quantities
from ppgen.inference.comparison.cost import cost
from ppgen.inference.comparison.repairs import NON_CENTRED, ladder
from ppgen.inference.comparison.trust import _promise, optimiser_trust, reference_trust
from ppgen.inference.point import as_program
from ppgen.inference.verdict import _judge, _moments, marginals, verdict
from ppgen.models import NormalNormal
from ppgen.posterior import Cost, Posterior
from ppgen.program import Program
from ppgen.report.plain import plain

pytestmark = pytest.mark.usefixtures("silent")

Y = torch.tensor([0.5, 1.5, 2.5, -1.0, 0.3]).double()
STORY = NormalNormal(0.0, 2.0, 1.0)


def normal(loc=0.0, sd=1.0, kind="chains", shape=(8, 500), **fields):
    return Posterior({"a": loc + sd * torch.randn(*shape)}, "test", kind, **fields)


# -- trust -----------------------------------------------------------------------------------


def trust_of(posteriors):
    rows = {name: marginals(p, posteriors["one"]) for name, p in posteriors.items()}
    return reference_trust("one", posteriors, rows)


def test_a_second_sampler_confirms_the_reference_or_does_not():
    agreeing = trust_of({"one": normal(), "two": normal()})
    assert agreeing.ok
    assert "two agrees" in str(agreeing)
    for shift in (0.3, -0.3):  # sd with 4,000 draws each: an error of .022, so 13 of them
        apart = trust_of({"one": normal(), "two": normal(shift)})
        assert not apart.ok
        assert "two DISAGREES" in str(apart)
    alone = trust_of({"one": normal(), "q": normal(0.3, kind="independent")})
    assert alone.ok
    assert "no second sampler" in str(alone)


def test_two_samplers_that_disagree_leave_no_verdict():
    found = comparison({"one": normal(), "two": normal(0.3), "q": normal()}, "one")
    assert {v.level for v in found.verdicts.values()} == {"unknown"}
    assert "not confirmed" in found.verdicts["q"].sentence


def test_the_reference_is_diagnosed_in_words():
    chains = normal(stats={"diverging": torch.ones(8, 500), "energy": torch.randn(8, 500)})
    said = str(trust_of({"one": chains}))
    assert "4000 divergences" in said
    assert "means known to 0.01" in said  # 1 / sqrt(4000) = .016
    assert not trust_of({"one": normal(converged=False)}).ok
    assert "exact posterior" in str(trust_of({"one": Exact().run(STORY.model, Y)}))


def test_a_rising_elbo_has_not_settled_and_a_noisy_flat_one_has():
    noise = 0.3 * torch.randn(2000)
    flat, rising = (
        normal(kind="independent", history={"elbo": noise + slope * torch.arange(2000.0)})
        for slope in (0.0, 0.01)
    )
    assert optimiser_trust(flat).ok
    said = optimiser_trust(rising)
    assert not said.ok
    assert str(said).startswith("NOT SETTLED; the last 400 steps gained +")
    gain = float(re.search(r"gained (\S+)", str(said)).group(1))
    # .01 x 400; a slope of batches of 20 with error .3 x 1.25 / sqrt(20) x sqrt(12 / 20) = .07
    assert gain == pytest.approx(4.0, abs=4.3 * 0.07 + 0.05)  # printed with two digits
    assert optimiser_trust(normal()) is None


def test_errors_of_moments_are_those_of_independent_normals():
    found = normal(kind="independent", sd=3.0, shape=(1, 4000))
    mean, sd, mean_error, sd_error = _moments(found, found["a"].numpy()[..., None])
    # the kurtosis of so many draws is known to sqrt(24 / 4000) = .08 of 2
    assert sd_error == pytest.approx(3 / math.sqrt(2 * 4000), rel=4.3 * 0.04)
    assert mean_error == pytest.approx(3 / math.sqrt(4000), rel=4.3 / math.sqrt(8000))
    assert abs(mean) < 4.3 * mean_error
    assert abs(sd - 3) < 4.3 * sd_error


def test_what_has_no_number_is_not_judged():
    assert _judge(math.nan, 0.1, 1.0, 0.1) == "unknown"
    assert _judge(0.0, 0.1, math.nan, 0.1) == "unknown"
    assert _judge(0.0, 0.1, math.nan, math.nan) == "pass"  # a point has no width


def test_the_promise_of_more_steps_is_a_regression_with_its_standard_error():
    elbo = np.random.default_rng(0).standard_normal(20)  # as many as batches
    line = stats.linregress((np.arange(20) + 0.5) / 20, elbo)
    assert _promise(elbo) == pytest.approx((line.slope, line.stderr))


def test_a_point_warns_and_fails_only_where_its_mean_is_off():
    exact = normal()
    for at, level in ((0.0, "warn"), (0.2, "warn"), (-0.5, "fail")):
        point = Posterior({"a": torch.full((1, 1), at)}, "MAP", "point")
        found = verdict(point, marginals(point, exact))
        assert found.level == level
        assert "a point estimate" in found.sentence


# -- does it matter? -------------------------------------------------------------------------


def test_leave_one_out_is_that_of_the_conjugate_formula():
    exact = Exact(4000).run(STORY.model, Y)
    program = Program(STORY.model, Y)
    (loo,) = consequences(exact, exact, program).loo
    truth = 0.0
    for i in range(len(Y)):
        rest = torch.cat([Y[:i], Y[i + 1 :]])
        precision = 1 / 4 + len(rest)
        predictive = dist.Normal(rest.sum() / precision, math.sqrt(1 + 1 / precision))
        truth += float(predictive.log_prob(Y[i]))
    # each term is known to about .4 / sqrt(4000) nats: the weights vary little
    assert loo.elpd == pytest.approx(truth, abs=4.3 * 0.4 * 5 / math.sqrt(4000))
    assert loo.difference == 0.0
    assert loo.khat < 0.7


@pytest.mark.parametrize(("sd", "shown"), [(0.5, True), (1.5, False)])
def test_leave_one_out_is_withheld_where_its_weights_have_no_mean(sd, shown):
    """1 / p(y | mu) = exp((y - mu)^2 / 2) under a normal of this sd has a tail of shape sd^2."""
    z = sd * torch.randn(1, 4000, 1)
    wide = Posterior({"mu": z[..., 0]}, "test", "independent", unconstrained=z)
    program, exact = Program(STORY.model, Y), Exact(4000).run(STORY.model, Y)
    found = consequences(wide, exact, program)
    (line,) = [line for line in consequence_lines(found) if "leave-one-out" in line]
    assert ("nats" in line) == shown
    assert ("weights have no mean" in line) != shown
    assert found.loo[0].heavy == (0 if shown else len(Y))


@pytest.mark.parametrize("which", ["it", "the reference"])
def test_what_has_not_converged_shows_no_scores(which):
    """Draws that went astray have elpds and ELBOs of minus a billion, which mean nothing."""
    exact = Exact(400).run(STORY.model, Y)
    z = exact.unconstrained + 1e5
    astray = Posterior({"mu": z[..., 0]}, "test", "independent", converged=False, unconstrained=z,
                       log_density=-(z[..., 0] ** 2), log_guide=torch.zeros(1, 400))  # fmt: skip
    ours, theirs = (astray, exact) if which == "it" else (exact, astray)
    found = comparison({"q": ours, "p": theirs}, "p", program=Program(STORY.model, Y))
    printed = str(found)
    assert f"not known: {which} has not converged" in printed
    assert "leave-one-out of y" not in printed
    assert ("log evidence at least: -9.6" in printed) == (which != "it")  # q's own, not p's
    if which == "the reference":
        assert {row.level for row in found.marginals["q"]} == {"unknown"}


def test_predictions_of_a_wrong_posterior_are_off_by_as_much():
    program, exact = Program(STORY.model, Y), Exact(4000).run(STORY.model, Y)
    moved = Posterior({"mu": exact["mu"] + 1.0}, "moved", "independent",
                      unconstrained=exact.unconstrained + 1.0)  # fmt: skip
    same, off = (consequences(p, exact, program) for p in (exact, moved))
    assert same.predictive[0].shift == 0.0  # the same draws and the same noise
    # the predictive sd is sqrt(1 + 1 / 5.25) = 1.09
    assert off.predictive[0].shift == pytest.approx(1 / 1.09, abs=0.1)
    assert off.predictive[0].crps > 0.1
    assert off.loo[0].difference < -0.5
    assert consequences(exact, exact, None).missing == ("predictions need the story and its data",)


def test_a_factor_of_rows_is_listed_as_left_out():
    def truncated(y):
        STORY.model(y)
        pyro.factor("kept", torch.zeros_like(y))

    exact = Exact(200).run(STORY.model, Y)
    found = consequences(exact, exact, Program(truncated, Y))
    (said,) = found.missing
    assert "pyro.factor 'kept'" in said
    assert "leave it out" in said


def test_the_crps_is_that_of_the_closed_form():
    assert _crps(np.array([[0.0], [1.0]]), np.array([2.0])).tolist() == [1.0]  # 1.5 less half of 1
    y = np.array([-1.0, 0.0, 2.5])
    expected = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / math.sqrt(math.pi)
    found = _crps(np.random.default_rng(0).standard_normal((20_000, 3)), y)
    # one draw adds |x - y| less its mean distance to others: an sd of at most 1
    assert np.abs(found - expected).max() < 4.5 / math.sqrt(20_000)


def test_quantities_of_the_user_are_judged_like_scalars():
    good, bad = normal(kind="independent"), normal(sd=0.5, kind="independent")
    functions = {"square": lambda s: s["a"] ** 2, "both": lambda s: torch.stack([s["a"]] * 2, -1)}
    names = [row.name for row in of_quantities(good, normal(), functions)]
    assert sorted(names) == ["both[0]", "both[1]", "square"]
    rows = {row.name: row for row in of_quantities(bad, normal(), functions)}
    # E[a^2] = 1 against .25, in the sd of a chi-square, sqrt(2)
    assert rows["square"].shift == pytest.approx(-0.75 / math.sqrt(2), abs=0.1)
    assert rows["square"].level == "fail"
    of_them = verdict(good, marginals(good, normal()), None, tuple(rows.values()))
    assert of_them.level == "fail"
    assert "quantity square off by" in of_them.sentence
    found = comparison(
        {"one": normal(), "q": good}, "one", quantities={"far": lambda s: s["a"] ** 2}
    )
    assert found.verdicts["q"].level == "pass"
    assert "far" in str(found)
    with pytest.raises(ValueError, match=r"'oops' asks for site 'b'.* has \['a'\]"):
        of_quantities(good, normal(), {"oops": lambda s: s["b"]})
    with pytest.raises(ValueError, match=r"'mean' gave shape \(\)"):
        of_quantities(good, normal(), {"mean": lambda s: s["a"].mean()})


# -- repairs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "steps"),
    [
        (VI(), ["linear response", "a full-rank guide", "a flow guide"]),
        (VI(guide=full_rank_guide()), ["a flow guide"]),
        (VI(guide=flow_guide()), []),
        (Laplace(), ["a full-rank guide", "a flow guide"]),
        (DADVI(), ["a full-rank guide", "a flow guide"]),
        (DADVI(linear_response=False), ["linear response", "a full-rank guide", "a flow guide"]),
        (HMC(), []),
    ],
)
def test_the_ladder_leads_to_richer_families(engine, steps):
    found = ladder(engine)
    assert [how for how, _ in found] == steps
    if steps and isinstance(engine, VI):
        assert found[-1][1].draws == engine.draws


@dataclass(frozen=True)
class Planted:
    """Draws of a normal of this width, with the density of a guide that knows it."""

    sd: float
    converged: bool = True

    def run(self, model, *args):
        z = self.sd * torch.randn(4, 1000, 1)
        return Posterior(
            {"mu": z[..., 0]}, "Planted", "chains", converged=self.converged, unconstrained=z,
            cost=Cost(sampling=1.0),
        )  # fmt: skip


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1e3), obs=y)


@pytest.mark.slow
def test_a_hierarchy_is_written_non_centred_where_the_reference_does_not_converge():
    # The planted engine fails on the story as written, and draws exactly from the other one,
    # which has no likelihood: so mu, log tau and (x - mu) / tau are independent.
    def funnel(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    @dataclass(frozen=True)
    class Stuck(Planted):
        def run(self, story, *args):
            program = as_program(story, args, {})
            z = torch.randn(8, 1000, 3)
            found = Posterior.from_program(program, z, engine="Stuck", kind="chains")
            return replace(found, converged="x_decentred" in found)

    using, y = {"HMC": Stuck(1.0), "other": Stuck(1.0)}, torch.tensor(0.0)
    assert ppgen.compare(funnel, y, using=using, reference="HMC").verdicts["other"].level == (
        "unknown"
    )
    found = ppgen.compare(funnel, y, using=using, reference="HMC", repair=True)
    assert found["HMC"].converged
    assert list(found["HMC"].draws) == ["mu", "tau", "x"]
    spread = (found["HMC"]["x"] - found["HMC"]["mu"]) / found["HMC"]["tau"]
    assert abs(spread.std() - 1) < 4.3 / 16_000**0.5
    assert found.repairs["other"][-1].how == NON_CENTRED
    assert found.repairs["other"][-1].verdict.level == "pass"


# -- cost and JSON ---------------------------------------------------------------------------


def test_the_cost_counts_what_draws_are_worth():
    chains = normal(cost=Cost(recording=1.0, sampling=3.0, gradients=7))
    row = cost(chains)
    assert row["recording"] == 1.0
    assert row["seconds"] == 4.0
    assert row["ESS/s"] == pytest.approx(row["ESS"] / 4.0, rel=1e-3)
    weighted = normal(
        kind="independent", log_density=torch.zeros(8, 500), log_guide=torch.zeros(8, 500)
    )
    assert cost(weighted)["ESS"] == 4000
    resampled = normal(kind="independent", history={"log_weights": torch.zeros(4000, 16)})
    assert cost(resampled)["ESS"] == 4000  # as many as there are
    assert cost(normal(kind="independent"))["ESS"] is None


def test_findings_become_json():
    rows = marginals(normal(kind="point", shape=(1, 1)), normal())
    found = plain({"rows": rows, "array": np.array([1.0, np.inf])})
    assert found["rows"][0]["name"] == "a"
    assert found["rows"][0]["ratio"] is None
    assert found["array"] == [1.0, None]
