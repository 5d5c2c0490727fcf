"""Calibration around given data: the doubled story is the right one, planted faults are flagged."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference import MAP, Exact, Laplace, calibrate_given_data
from ppgen.inference.calibrate import LIKELIHOOD
from ppgen.inference.calibrate_given_data import Replicator, Twice
from ppgen.models import NormalNormal
from ppgen.posterior import Posterior
from ppgen.program import Program

pytestmark = pytest.mark.usefixtures("silent")

X = torch.linspace(0.5, 1.0, 10).double()
Y = X + 0.3 * torch.sin(9 * X)


def story(x, y):
    """A flat prior: over the prior there is no calibration."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).mask(False))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    pyro.deterministic("twice", 2 * slope)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


@dataclass(frozen=True)
class Conjugate:
    """The exact posterior of a normal mean with a flat prior and unit noise, perhaps spoilt."""

    scale: float = 1.0
    shift: float = 0.0
    ignores_first: bool = False

    def run(self, model):
        data = model.observed()
        if self.ignores_first and len(data) == 2:
            data.pop("y")
        y = torch.cat([v.flatten() for v in data.values()])
        mu = y.mean() + (self.scale * torch.randn(1, 200) + self.shift) / len(y) ** 0.5
        return Posterior({"mu": mu}, "Conjugate", "independent", unconstrained=mu[..., None])


def mean(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0).mask(False))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_the_doubled_story_is_that_of_both_data_sets_at_once():
    z, new = torch.randn(5, 2), Y + 1.0
    doubled = Program(Twice(story, ("slope", "scale")), {"y": new}, X, Y)
    whole = Program(story, torch.cat([X, X]), torch.cat([Y, new]))
    assert doubled.sites == whole.sites
    assert torch.allclose(doubled.log_density(z), whole.log_density(z))


def test_true_values_come_from_the_posterior_and_data_from_them():
    first = Conjugate().run(Program(mean, Y))
    simulator = Replicator(Program(mean, Y), first)
    drawn = [simulator.draw() for _ in range(200)]
    values = torch.stack([d["mu"] for d in drawn])
    assert values.sort().values.allclose(first["mu"].flatten().sort().values)  # each once
    noise = torch.stack([d["y"] - d["mu"] for d in drawn])
    assert noise.std() == pytest.approx(1.0, abs=4.3 / (2 * 2000) ** 0.5)
    assert simulator.draw()["mu"] in values  # used up: again, by chance


def test_an_exact_engine_passes_with_a_flat_prior():
    found = calibrate_given_data(mean, Conjugate(), Y, first=Conjugate(), simulations=60)
    assert found.passed, str(found)
    assert "60 data sets from the posterior by Conjugate" in str(found)


@pytest.mark.parametrize(
    ("engine", "reading"),
    [
        (Conjugate(scale=0.4), "draws too narrow"),
        (Conjugate(scale=2.5), "draws too wide"),
        (Conjugate(shift=1.2), "draws too high"),
    ],
    ids=["narrow", "wide", "high"],
)
def test_planted_faults_are_flagged(engine, reading):
    found = calibrate_given_data(mean, engine, Y, first=Conjugate(), simulations=60)
    assert "mu" in found.flagged
    assert found.reading("mu") == reading


def test_an_engine_that_ignores_the_given_data_is_found_by_the_likelihood_alone():
    """Given the new data alone, the true value has an even rank under a flat prior."""
    engine = Conjugate(ignores_first=True)
    found = calibrate_given_data(mean, engine, Y, first=Conjugate(), simulations=80)
    assert found.flagged == (LIKELIHOOD,)


@pytest.mark.slow  # 30 s
@pytest.mark.timeout(600)
def test_a_good_normal_approximation_passes_and_laplace_on_few_data_does_not():
    """Three observations leave the scale skewed: a normal at the mode is too narrow."""
    many = torch.linspace(0.5, 1.5, 60).double()
    y = many + 0.3 * torch.sin(9 * many)
    assert calibrate_given_data(
        story, Laplace(draws=100), many, y, simulations=100, level=2e-5
    ).passed
    few = calibrate_given_data(story, Laplace(draws=100), X[::4], Y[::4], simulations=200)
    assert "scale" in few.flagged


def test_what_cannot_be_replicated_is_refused_by_name():
    def factor(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("pull", -mu.square())
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def blind():
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'pull' cannot be drawn"):
        calibrate_given_data(factor, Laplace(), Y[:1])
    with pytest.raises(ValueError, match="observes nothing"):
        calibrate_given_data(blind, Laplace())
    with pytest.raises(ValueError, match="single point: true values"):
        calibrate_given_data(mean, Laplace(), Y, first=MAP())
    with pytest.raises(ValueError, match="needs a story that declares"):
        # the doubled story is no longer the declared one
        calibrate_given_data(NormalNormal().model, Exact(), Y, first=Laplace(), simulations=10)
