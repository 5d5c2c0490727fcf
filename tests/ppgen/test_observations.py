"""Data that would be misread are refused by site; what Pyro can read stays allowed."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.program import Program

Y = torch.tensor([1.0, 2.0, 4.0])
X = torch.tensor([0.0, 1.0, 2.0])


def line(y, x=X):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def columns_without_a_plate(y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(slope * X[:, None], 1.0), obs=y)


def column_in_a_plate(y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(slope * X[:, None], 1.0), obs=y)


def one_event(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(loc, 1.0).expand([3]).to_event(1), obs=y)


def under(make):
    def story(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", make(z), obs=y)

    return story


@pytest.mark.parametrize(
    ("story", "y", "says"),
    [
        # the classic: a column against a row, and every value counts three times
        (line, Y[:, None], r"'y' observes data of shape \(3, 1\).*broadcast to \(3, 3\)"),
        (columns_without_a_plate, Y, r"'y'.*\(3,\).*\(3, 1\).*broadcast to \(3, 3\)"),
        (column_in_a_plate, Y, r"'y'.*\(3,\).*\(3, 3\).*broadcast to \(3, 3\)"),
        (line, Y[:2], r"'y' observes data of shape \(2,\).*\(3,\): they do not fit"),
        (one_event, Y[:, None], r"'y' observes data of shape \(3, 1\).*event of shape \(3,\)"),
        (line, np.ones(3), r"'y' observes a ndarray.*torch.as_tensor"),
        (line, [1.0, 2.0, 3.0], r"'y' observes a list"),
    ],
)
def test_data_of_another_shape_or_type_are_refused(story, y, says):
    with pytest.raises(ValueError, match=says):
        Program(story, y)


@pytest.mark.parametrize(
    ("make", "y", "says"),
    [
        (lambda z: dist.Bernoulli(logits=z), [0.0, 1.0, 2.0], r"2.0 at index \[2\].*Bernoulli"),
        (lambda z: dist.Poisson(z.exp()), [0.0, -1.0, 2.5], r"-1.0 at index \[1\] \(2 of 3.*Poi"),
        (lambda z: dist.LogNormal(z, 1.0), [1.0, -1.0, 1.0], r"-1.0 at index \[1\].*LogNormal"),
        (lambda z: dist.Categorical(logits=z * X), [0, 1, 3], r"3 at index \[2\].*Categorical"),
    ],
)
def test_impossible_data_are_refused_with_their_index(make, y, says):
    with pytest.raises(ValueError, match=f"observed site 'y' is {says}"):
        Program(under(make), torch.tensor(y))


def test_masked_data_and_supports_that_depend_on_a_site_are_not_judged():
    def masked(y):
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", 3), pyro.poutine.mask(mask=y >= 0):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    def depends(y):
        top = pyro.sample("top", dist.Uniform(0.0, 100.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Uniform(0.0, top), obs=y)

    y = torch.tensor([0.0, -1.0, 2.0])
    value = Program(masked, y).log_likelihood(torch.zeros(1))["y"]  # rate 1
    torch.testing.assert_close(value, torch.tensor([-1.0, 0.0, -1.0 - np.log(2.0)]))
    Program(depends, torch.tensor([1.0, 50.0, 99.0]))


def test_one_value_may_stand_for_all():
    def censored():
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("late", dist.Bernoulli(torch.exp(-rate * (X + 1))), obs=torch.tensor(1.0))

    # log P(late) at rate 1 is minus 1 + 2 + 3
    assert Program(censored).log_likelihood(torch.zeros(1))["late"].sum().item() == pytest.approx(
        -6.0
    )


def test_numbers_and_whole_zeros_and_ones_are_data():
    def number(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    z = torch.zeros(1)
    assert Program(number, 2).log_likelihood(z)["y"].item() == pytest.approx(-2 - 0.918938533)
    assert Program(number, 2).observed()["y"].item() == 2.0
    coin = under(lambda z: dist.Bernoulli(logits=z))
    value = Program(coin, torch.tensor([0, 1, 1])).log_likelihood(z)["y"]
    torch.testing.assert_close(value, torch.full((3,), -np.log(2.0)))
