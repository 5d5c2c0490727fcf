"""The comparison: its verdicts on posteriors whose distance is known."""

import json
import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppgen
from ppgen.inference.compare import comparison
from ppgen.inference.hmc_engine import HMC
from ppgen.inference.laplace import Laplace
from ppgen.inference.point import MAP
from ppgen.inference.verdict import marginals
from ppgen.posterior import Posterior


def normal(loc=0.0, sd=1.0, kind="chains", shape=(8, 1000), names=("a", "b"), converged=True):
    draws = {name: loc + sd * torch.randn(*shape) for name in names}
    return Posterior(draws=draws, engine="test", kind=kind, converged=converged)


@pytest.mark.parametrize(
    ("loc", "sd", "level"),
    [
        (0.0, 1.0, "pass"),
        (0.05, 1.0, "pass"),
        (0.2, 1.0, "warn"),
        (0.5, 1.0, "fail"),
        (0.0, 0.82, "warn"),
        (0.0, 0.6, "fail"),
        (0.0, 1.6, "fail"),
    ],
)
def test_verdicts_follow_the_printed_thresholds(loc, sd, level):
    found = comparison({"mcmc": normal(), "q": normal(loc, sd, kind="independent")}, "mcmc")
    assert found.verdicts["q"].level == level
    row = found.marginals["q"][0]
    # 8,000 draws each: errors of .016 in the shift and .011 in the ratio; 4.3 of them
    assert row.shift == pytest.approx(loc, abs=0.07)
    assert row.ratio == pytest.approx(sd, abs=0.05 * sd)
    assert f"{0.1}" in str(found)


def test_the_worst_scalar_stands_first_and_is_named():
    reference = normal()
    spoilt = Posterior(
        draws={"a": torch.randn(1, 4000), "b": 0.3 * torch.randn(1, 4000)},
        engine="test",
        kind="independent",
    )
    found = comparison({"mcmc": reference, "q": spoilt}, "mcmc")
    assert [row.name for row in found.marginals["q"]] == ["b", "a"]
    assert re.search("interval of b (69|70|71)% too narrow", found.verdicts["q"].sentence)


def test_a_difference_within_its_monte_carlo_error_never_fails():
    few = normal(0.0, 1.0, kind="independent", shape=(1, 10))
    few.draws["a"] += 0.35  # beyond the threshold, but 10 draws know a mean to .32 only
    levels = {row.name: row.level for row in marginals(few, normal())}
    assert levels["a"] in ("pass", "warn")


def test_no_verdict_rests_on_a_reference_that_has_not_converged():
    found = comparison({"mcmc": normal(converged=False), "q": normal(kind="independent")}, "mcmc")
    assert found.verdicts["q"].level == "unknown"
    assert "reference has not converged" in found.verdicts["q"].sentence


def test_what_has_not_converged_is_not_judged_as_a_method():
    found = comparison({"mcmc": normal(), "q": normal(converged=False)}, "mcmc")
    assert found.verdicts["q"].level == "fail"
    assert "has not converged" in found.verdicts["q"].sentence


def test_khat_fails_only_where_importance_sampling_is_inefficient_too():
    for spread, level in ((0.0, "pass"), (6.0, "fail")):
        weights = spread * torch.randn(1, 4000).abs() ** 1.5
        q = Posterior(
            draws={n: torch.randn(1, 4000) for n in ("a", "b")},
            engine="test",
            kind="independent",
            log_density=weights,
            log_guide=torch.zeros(1, 4000),
        )
        assert comparison({"mcmc": normal(), "q": q}, "mcmc").verdicts["q"].level == level


@pytest.mark.parametrize(("sd", "level"), [(1.6, "pass"), (0.3, "fail")])
def test_what_resampling_repairs_is_measured(sd, level):
    """A wide guide is repaired; in a narrow one the tails are missing, and its weights say so."""
    truth = torch.distributions.Normal(0.0, 1.0)
    guide = torch.distributions.Normal(0.0, sd)
    z = guide.sample((1, 20_000))
    found = Posterior(
        draws={"a": z},
        engine="test",
        kind="independent",
        unconstrained=z[..., None],
        log_density=truth.log_prob(z),
        log_guide=guide.log_prob(z),
    )
    compared = comparison({"mcmc": normal(names=("a",)), "q": found}, "mcmc")
    assert compared.verdicts["q"].level == "fail"
    assert compared.repairs["q"][0].verdict.level == level
    assert f"resampled by its weights: {level.upper()}" in str(compared)


def test_different_scalars_cannot_be_compared():
    with pytest.raises(ValueError, match="different scalars"):
        comparison({"one": normal(), "two": normal(names=("a", "c"))}, "one")


def test_half_of_a_reference_against_the_other_half_passes():
    wrong = 0
    for seed in range(100):
        torch.manual_seed(seed)
        found = comparison({"one": normal(shape=(4, 500)), "two": normal(shape=(4, 500))}, "one")
        wrong += found.verdicts["two"].level != "pass"
    # sd ratio of two samples of 2,000: error .022; beyond .1 is 4.4 of them; shift: .032, 3.2
    # two scalars, so about 100 x 2 x .0016 = .3 warnings are expected; P(more than 5) < 1e-6
    assert wrong <= 5


Y = torch.tensor([0.5, 1.5, 2.5])


def story(y=Y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_engines_agree_with_the_conjugate_posterior_and_the_page_is_written(tmp_path):
    found = ppgen.compare(
        story,
        Y,
        using={"HMC": HMC(chains=16, draws=100, warmup=150), "Laplace": Laplace(), "MAP": MAP()},
        reference="HMC",
    )
    exact = dist.Normal(4.5 / 4, 0.5)  # precision 1 + 3, mean sum(y) / 4
    row = found["Laplace"].summary()["mu"]
    assert row.mean == pytest.approx(float(exact.mean), abs=4.3 * 0.5 / math.sqrt(4000))
    assert row.sd == pytest.approx(0.5, rel=4.3 / math.sqrt(8000))
    assert found.verdicts["Laplace"].level == "pass"
    assert "point estimate" in found.verdicts["MAP"].sentence
    page = found.save(tmp_path / "a comparison")
    assert "mu" in page.read_text()
    numbers = json.loads((page.parent / "comparison.json").read_text())
    assert numbers["methods"]["Laplace"]["verdict"]["level"] == "pass"
    assert Posterior.load(page.parent / "draws" / "0-HMC").engine == "HMC"


def test_a_story_with_trainable_parameters_is_refused():
    net = nn.Linear(1, 1)

    def trainable():
        pyro.sample("x", dist.Normal(net(torch.ones(1)), 1.0).to_event(1))

    using = {"HMC": HMC(), "Laplace": Laplace()}
    with pytest.raises(ValueError, match="2 trainable parameters"):
        ppgen.compare(trainable, using=using, reference="HMC")
    with pytest.raises(ValueError, match="not among"):
        ppgen.compare(story, using=using, reference="truth")


def test_fit_gives_the_callers_random_state_back_and_repeats_itself():
    state = torch.random.get_rng_state()
    one = ppgen.fit(story, Y, using=Laplace(draws=10), seed=4)
    two = ppgen.fit(story, Y, using=Laplace(draws=10), seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one["mu"], two["mu"])
    with pytest.raises(TypeError, match="engine with its options"):
        ppgen.fit(story, Y, using=Laplace)
