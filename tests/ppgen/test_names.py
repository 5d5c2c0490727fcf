"""A story's argument that has the name of an option is never taken for the option in silence."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.inference import Exact, Laplace, calibrate_given_data
from ppgen.models import NormalNormal


def harvest(y, seed):
    """Yields on seeds sown."""
    rate = pyro.sample("rate", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(rate * seed, 1.0), obs=y)


def harvest_by_default(y, seed=torch.ones(3)):  # noqa: B008
    harvest(y, seed)


Y, SEED = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 2.5])
CALLS = {
    "fit": lambda story, *data, **k: ppgen.fit(story, *data, using=Laplace(), **k),
    "compare": lambda story, *data, **k: ppgen.compare(
        story, *data, using={"a": Laplace()}, reference="a", **k
    ),
    "calibrate": lambda story, *data, **k: ppgen.calibrate(story, Laplace(), *data, **k),
    "calibrate_given_data": lambda story, *data, **k: calibrate_given_data(
        story, Laplace(), *data, **k
    ),
}


@pytest.mark.parametrize("story", [harvest, harvest_by_default])
@pytest.mark.parametrize("call", CALLS)
def test_an_argument_that_is_an_option_too_is_refused_by_name(call, story):
    with pytest.raises(ValueError, match=rf"{call} both have an argument 'seed'.*partial\(story"):
        CALLS[call](story, Y, seed=SEED)


def test_by_position_or_bound_first_it_reaches_the_story():
    precision = 1.0 + float(SEED.square().sum())
    expected = float((SEED * Y).sum()) / precision
    for story, data in (
        (harvest, (Y, SEED)),
        (functools.partial(harvest, seed=SEED), (Y,)),
    ):
        posterior = ppgen.fit(story, *data, using=Laplace(draws=4000), seed=3)
        error = (precision * 4000) ** -0.5  # of independent draws
        assert float(posterior["rate"].mean()) == pytest.approx(expected, abs=4.3 * error)


def test_a_default_that_nobody_touches_is_left_alone():
    posterior = ppgen.fit(harvest_by_default, Y, using=Laplace(draws=100))
    assert posterior.converged
    assert ppgen.fit(NormalNormal().model, Y, using=Exact(10), seed=5).converged
