"""Stories that write into tensors that they have made: recorded, with the right gradient."""

import math

import pyro
import pyro.distributions as dist
import torch

from ppgen.program import Program
from ppgen.simulation import simulate_all
from ppgen.story import sandbox

Y = torch.tensor([0, 2, 1, 2])


def filled(y=Y):
    """Probabilities of three ordered kinds, written entry by entry."""
    cut = pyro.sample("cut", dist.Normal(0.0, 1.0))
    p = torch.zeros(3)
    p[0] = torch.sigmoid(cut - 1)
    p[-1] = 1 - torch.sigmoid(cut + 1)
    p[1] = 1 - torch.sigmoid(cut - 1) - (1 - torch.sigmoid(cut + 1))
    weights = torch.ones(3)
    weights[torch.isnan(p)] = 0.0  # a mask that depends on a site
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Categorical(probs=p * weights), obs=y)


def by_hand(z):
    low, high = torch.sigmoid(z - 1), torch.sigmoid(z + 1)
    p = torch.stack([low, high - low, 1 - high])
    return dist.Normal(0.0, 1.0).log_prob(z) + p[Y].log().sum()


def test_a_table_filled_entry_by_entry_is_recorded_with_its_gradient():
    program = Program(filled)
    z = torch.linspace(-2, 2, 5).reshape(5, 1)
    value, gradient = program.value_and_grad(z)
    assert program.fallback is None
    torch.testing.assert_close(value, torch.stack([by_hand(row[0]) for row in z]))
    slope = torch.stack([torch.func.grad(by_hand)(row[0]) for row in z])
    torch.testing.assert_close(gradient[:, 0], slope)


def test_many_simulations_at_once_are_independent_and_distributed_right():
    def story(n):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", n):
            kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("y", dist.Normal(loc + kind, 2.0))

    draws = 4000
    with sandbox(torch.float64):
        found = simulate_all(story, {"loc": torch.full((draws,), 10.0)}, (3,), {})
    assert found["y"].shape == found["kind"].shape == (draws, 3)
    assert len(found["y"].unique()) == 3 * draws  # no two draws share their noise
    # mean 10 + 1.3, variance 4 + 0.61; 4.3 standard errors is a failure rate of 2e-5
    mean, error = found["y"].mean(), math.sqrt(4.61 / (3 * draws))
    assert abs(mean - 11.3) < 4.3 * error
    share = (found["kind"] == 2).double().mean()
    assert abs(share - 0.5) < 4.3 * math.sqrt(0.25 / (3 * draws))
    correlation = torch.corrcoef(found["y"].mT)[0, 1]
    assert abs(correlation) < 4.3 / math.sqrt(draws)


def test_what_vmap_cannot_simulate_is_simulated_one_by_one():
    def story():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = 1.0 if loc > 0 else 100.0
        pyro.sample("y", dist.Normal(loc, scale))

    with sandbox(torch.float64):
        found = simulate_all(story, {"loc": torch.tensor([5.0, -5.0]).repeat(20)}, (), {})
    assert found["y"].shape == (40,)
    assert found["y"][1::2].std() > 10 * found["y"][::2].std()
