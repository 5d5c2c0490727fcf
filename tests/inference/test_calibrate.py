"""Calibration calibrated: exact engines pass at the stated rate, planted bugs are flagged."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppgen
from ppgen.inference import CAVI, HMC, MAP, VI, Calibration, Exact, Gibbs, Laplace
from ppgen.inference.calibrate import LIKELIHOOD, _pit
from ppgen.models import (
    BetaBernoulli,
    ConjugateRegression,
    GaussianMixture,
    NormalGamma,
    NormalNormal,
    ProbitRegression,
    eight_schools,
)
from ppgen.models.eight_schools import data as schools
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.replication import Simulator

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5
STORY = NormalGamma(0.0, 0.5, 3.0, 2.0)
X = torch.zeros(6).double()
ROWS = torch.tensor([[1.0, 0.9], [1.0, 1.1], [-1.0, -0.95], [0.5, 0.6]]).double()


@dataclass(frozen=True)
class Twisted:
    """A planted bug: an exact engine whose draws, or whose data, are changed on the way."""

    scale: float = 1.0  # of the draws about their mean
    shift: float = 0.0  # of the data
    prior: NormalGamma | None = None  # in the place of the story's own

    def run(self, model):
        with torch.no_grad(), pyro.plate("draws", 100):
            trace = pyro.poutine.trace((self.prior or STORY).guide)
            nodes = trace.get_trace(model.args[0] + self.shift).nodes
        z = torch.stack([nodes["tau"]["value"].log(), nodes["mu"]["value"]], -1)[None]
        z = z.mean(1, keepdim=True) + self.scale * (z - z.mean(1, keepdim=True))
        draws = {"tau": z[..., 0].exp(), "mu": z[..., 1]}
        return Posterior(draws, "Twisted", "independent", unconstrained=z)


@pytest.mark.slow
def test_an_exact_engine_passes_and_says_what_that_rests_on():
    found = ppgen.calibrate(STORY.model, Exact(200), X, simulations=100)
    assert found.passed
    assert str(found).startswith("PASS: Exact on NormalGamma: all 3 quantities stay")
    assert set(found.pit) == {"mu", "tau", LIKELIHOOD}
    assert "100 data sets" in str(found)
    assert "at most 0.01" in str(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "flagged", "reading"),
    [
        (Twisted(scale=0.6), {"mu"}, "narrow"),
        pytest.param(Twisted(scale=1.6), {"mu"}, "wide", marks=pytest.mark.slow),
        (Twisted(shift=0.5), {"mu"}, "high"),
        pytest.param(Twisted(shift=-0.5), {"mu"}, "low", marks=pytest.mark.slow),
        (Twisted(prior=NormalGamma(0.0, 0.5, 9.0, 2.0)), {"tau"}, "high"),
        (Twisted(prior=NormalGamma(3.0, 3.0, 3.0, 2.0)), {"mu"}, "high"),
    ],
    ids=[
        "sd too small",
        "sd too large",
        "shifted up",
        "shifted down",
        "prior of tau",
        "prior of mu",
    ],
)
def test_planted_bugs_are_flagged_and_named(engine, flagged, reading):
    found = ppgen.calibrate(STORY.model, engine, X, simulations=150)
    assert str(found).startswith("FAIL: Twisted on NormalGamma")
    assert flagged <= set(found.flagged)
    assert any(reading in found.reading(name) for name in flagged), str(found)


@pytest.mark.slow
def test_swapped_parameters_are_flagged():
    """The draws of one coefficient under the name of the other: alike in the prior, not after.

    The data know w[0] well and w[1] badly, so that its draws are narrow.
    """

    @dataclass(frozen=True)
    class Swapped:
        def run(self, model):
            found = Exact(100).run(model)
            return replace(found, draws={**found.draws, "w": found["w"].flip(-1)})

    story = ConjugateRegression(1.0, 3.0, 2.0)
    x = torch.tensor([[1.0, 0.2], [-0.5, 0.1], [2.0, -0.3], [1.5, 0.0]]).double()
    found = ppgen.calibrate(story.model, Swapped(), x, torch.zeros(4).double(), simulations=150)
    assert "w[1]" in found.flagged, str(found)


def test_an_engine_that_ignores_the_data_is_found_by_the_likelihood_alone():
    @dataclass(frozen=True)
    class Prior:
        def run(self, model):
            mu = torch.randn(1, 50)
            return Posterior({"mu": mu}, "Prior", "independent", unconstrained=mu[..., None])

    story = NormalNormal(0.0, 1.0, 1.0)
    found = ppgen.calibrate(story.model, Prior(), X, simulations=100, draws=50)
    assert found.flagged == (LIKELIHOOD,)


def test_the_rank_among_ties_is_spread_evenly_over_them():
    """Three draws below, four alike, two above: the rank is uniform over its five places."""
    draws = torch.tensor([0.0] * 3 + [1.0] * 4 + [2.0] * 2)
    ranks = np.array([_pit(draws, torch.tensor(1.0)) for _ in range(500)])
    assert stats.kstest(ranks, stats.uniform(0.3, 0.5).cdf).pvalue > FAILURE_RATE


class Sticky:
    """Exact draws as chains that keep each for 25 steps: 1,000 of them are worth 40."""

    def run(self, model):
        draws = Twisted().run(model).draws
        kept = {n: v[:, :40].reshape(4, 10).repeat_interleave(25, 1) for n, v in draws.items()}
        return Posterior(kept, "Sticky", "chains")


def test_ranks_are_among_as_many_draws_as_a_chain_is_worth():
    found = ppgen.calibrate(STORY.model, Sticky(), X, simulations=10, draws=100)
    # the smallest of several estimates of 40, each by ten steps of four chains
    assert 5 < found.independent.min() <= found.independent.max() < 80
    ends = f"{found.independent.min()} to {found.independent.max()}"
    assert f"10 data sets from the prior, ranks among {ends} draws" in found.rests_on()


@pytest.mark.slow  # 60 s
def test_an_exact_engine_is_flagged_at_the_stated_rate():
    runs, level = 100, 0.1
    story = NormalNormal(1.0, 2.0, 1.5)
    flagged = sum(
        not ppgen.calibrate(
            story.model, Exact(60), X, simulations=60, draws=60, level=level, seed=seed
        ).passed
        for seed in range(runs)
    )
    # Bonferroni over two quantities that depend on each other: at most the level
    assert stats.binom.sf(flagged - 1, runs, level) > FAILURE_RATE
    assert stats.binom.cdf(flagged, runs, level / 3) > FAILURE_RATE


@pytest.mark.slow  # 5 to 30 s each
@pytest.mark.parametrize(
    ("story", "engine", "data"),
    [
        (
            ConjugateRegression(1.0, 3.0, 2.0),
            Exact(200),
            (torch.randn(8, 2).double(), X[:1].expand(8)),
        ),
        (BetaBernoulli(2.0, 1.5), Exact(200), (X,)),
        (STORY, Gibbs(draws=200), (X,)),
        (GaussianMixture(2, 2.0, 0.0, 3.0, 3.0, 2.0), Gibbs(draws=400), (torch.zeros(20),)),
    ],
    ids=["regression", "coin", "Gibbs", "Gibbs on a mixture"],
)
def test_correct_engines_pass(story, engine, data):
    found = ppgen.calibrate(story.model, engine, *data, simulations=200, level=FAILURE_RATE)
    assert found.passed, str(found)


@pytest.mark.slow  # 60 s
def test_hmc_passes_on_eight_schools():
    engine = HMC(chains=32, draws=50, warmup=200)
    found = ppgen.calibrate(eight_schools, engine, simulations=60, level=FAILURE_RATE, **schools())
    assert found.passed, str(found)
    assert "theta[7]" in found.pit


@pytest.mark.slow  # 7 s
def test_mean_field_is_too_narrow_without_bias():
    """Probit: coefficients depend on the latent outcomes, which mean field takes as independent."""
    x = torch.linspace(-2, 2, 20)[:, None].double()
    story, y = ProbitRegression(1.0), torch.zeros(20).double()
    found = ppgen.calibrate(story.model, CAVI(draws=100, restarts=1), x, y, simulations=150)
    assert "w[0]" in found.flagged
    assert found.reading("w[0]") == "draws too narrow"


@pytest.mark.slow
def test_a_story_with_derived_data_is_calibrated_all_the_same():
    def story(y, x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * mu)
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(mu + x, 1.0), obs=y.log())

    given = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    program = Program(story, given, given)
    assert Simulator(program).arguments is None
    found = ppgen.calibrate(story, Laplace(draws=100), given, given, simulations=12)
    assert found.passed, str(found)
    assert set(found.pit) == {"mu", "twice", LIKELIHOOD}


def test_data_that_are_predictors_too_stay_as_they_are():
    """Simulated outcomes must not become predictors: that would be another story."""

    def story(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + y.mean(), 1.0), obs=y)

    simulator = Simulator(Program(story, X + 3.0))
    assert simulator.arguments is None
    drawn = simulator.draw()
    replicate = simulator.with_data(drawn)
    mu = drawn["mu"]
    expected = (
        dist.Normal(0.0, 1.0).log_prob(mu) + dist.Normal(mu + 3.0, 1.0).log_prob(drawn["y"]).sum()
    )
    assert torch.allclose(replicate.log_density(mu.reshape(1, 1)), expected)


def test_all_data_sets_share_one_recording():
    simulator = Simulator(Program(STORY.model, X))
    for k in range(4):
        replicate = simulator.with_data(simulator.draw())
        replicate.log_density(torch.zeros(3, 2))
        assert (replicate.seconds_recording > 0) == (k == 0)


@dataclass(frozen=True)
class Moody:
    """Draws of the prior; raises on every third data set and says on others that it is unsure."""

    runs: list

    def run(self, model):
        self.runs.append(1)
        if len(self.runs) % 3 == 0:
            raise ValueError("no luck")
        mu = torch.randn(1, 50)
        unsure = len(self.runs) % 3 == 1
        return Posterior({"mu": mu}, "Moody", "independent", converged=not unsure,
                         unconstrained=mu[..., None])  # fmt: skip


def test_fits_that_fail_or_are_unsure_are_counted():
    found = ppgen.calibrate(NormalNormal(0.0, 1.0, 1.0).model, Moody([]), X, simulations=12)
    assert (found.simulations, found.unconverged, found.failures) == (8, 4, ("no luck",) * 4)
    assert not found.passed
    assert "4 fits failed (no luck)" in found.verdict()
    assert "4 fits said that they had not converged" in found.verdict()


@pytest.mark.parametrize(
    ("ranks", "reading"),
    [
        (lambda u: u, ""),
        (lambda u: u**0.5, "draws too low"),  # true values high among the draws
        (lambda u: 1 - u**0.5, "draws too high"),
        (lambda u: 0.5 + 0.4 * np.sign(u - 0.5) + 0.2 * (2 * u % 1 - 0.5), "draws too narrow"),
        (lambda u: 0.5 + (u - 0.5) / 2, "draws too wide"),
        (lambda u: 0.5 + np.sign(u - 0.5) / 12**0.5, "ranks uneven"),  # mean and variance right
    ],
)
def test_ranks_are_read_as_what_is_wrong_with_the_draws(ranks, reading):
    pit = ranks((np.arange(200) + 0.5) / 200)
    found = Calibration("s", "e", 0.01, 1.0, {"mu": pit}, np.full(200, 50), "independent")
    assert found.reading("mu") == reading


def test_the_level_is_shared_by_all_quantities():
    found = Calibration("s", "e", 0.01, 1.0, {n: np.zeros(9) for n in "abc"}, np.ones(9), "chains")
    vars(found)["p"] = {"a": 0.0034, "b": 0.0033, "c": 0.0001}
    assert found.flagged == ("c", "b")


def test_saves_numbers_and_a_picture(tmp_path):
    found = ppgen.calibrate(STORY.model, Twisted(scale=0.5), X, simulations=60)
    assert isinstance(found, Calibration)
    path = found.save(tmp_path / "run")
    kept = json.loads(path.read_text())
    assert kept["verdict"] == found.verdict()
    assert np.allclose(kept["quantities"]["mu"]["pit"], found.pit["mu"])
    assert (tmp_path / "run" / "calibration.png").stat().st_size > 10_000


def test_the_same_seed_gives_the_same_ranks_and_leaves_the_callers_state_alone():
    before = torch.get_rng_state()
    one, two = (ppgen.calibrate(STORY.model, Exact(50), X, simulations=10) for _ in range(2))
    assert all(np.array_equal(one.pit[name], two.pit[name]) for name in one.pit)
    assert torch.equal(before, torch.get_rng_state())


def test_stories_that_cannot_be_drawn_are_refused_by_site():
    def flat(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0).mask(False))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def improper(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def factor(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("pull", -mu.square())
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def blind():
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match="'mu' has a flat prior"):
        ppgen.calibrate(flat, VI(), one)
    with pytest.raises(ValueError, match="'mu' has a flat prior"):
        ppgen.calibrate(improper, VI(), one)
    with pytest.raises(ValueError, match="factor 'pull'"):
        ppgen.calibrate(factor, VI(), one)
    with pytest.raises(ValueError, match="observes nothing"):
        ppgen.calibrate(blind, VI())
    with pytest.raises(ValueError, match="single point"):
        ppgen.calibrate(STORY.model, MAP(), X)
    with pytest.raises(TypeError, match="second argument is an engine"):
        ppgen.calibrate(STORY.model, X)
    with pytest.raises(ValueError, match="simulations"):
        ppgen.calibrate(STORY.model, Exact(), X, simulations=1)


def test_an_observation_that_is_one_event_is_calibrated_too():
    def story(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)

    y, engine = torch.zeros(3), Laplace(draws=100)
    found = ppgen.calibrate(story, engine, y, simulations=20, level=2e-5)  # FAILURE_RATE
    assert set(found.pit) == {"mu", LIKELIHOOD}
    assert found.passed
