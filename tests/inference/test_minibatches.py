"""Batches of rows: their expectation is the story with all its data, exactly."""

import math
from itertools import combinations

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference.frame import Frame
from ppgen.inference.guides import full_rank_guide, mean_field_guide
from ppgen.inference.minibatches import Anchor, Minibatches
from ppgen.inference.mode import Batched
from ppgen.inference.vi import VI
from ppgen.inference.vi_fit import Fit
from ppgen.program import Program

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5  # as in tests/conftest.py
Z = 4.3  # its two-sided normal quantile: 4.26


def regression(x, y, scale=0.5):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, scale), obs=y)


def indexed(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=2) as rows:
        pyro.sample("y", dist.Normal(x[rows] @ beta, 0.5), obs=y[rows])


def handed(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=2):
        x, y = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


def mixture(x, y):
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    pyro.sample("hint", dist.Normal(loc[0], 1.0), obs=torch.tensor(0.3))  # outside: counts once
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(weight))
        pyro.sample("y", dist.Normal(loc[k.long()], 1.0), obs=y)


def data(rows):
    x = torch.randn(rows, 2)
    return x, x @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(rows)


STORIES = {
    "all rows given": (regression, regression, 2),
    "indexed by the story": (indexed, regression, None),
    "handed out by Pyro": (handed, regression, None),
    "summed-out assignments": (mixture, mixture, 2),
}


@pytest.mark.parametrize(("story", "whole", "size"), STORIES.values(), ids=STORIES)
@pytest.mark.parametrize("rows", [6, 7])
def test_batches_average_to_the_story_with_all_rows(story, whole, size, rows):
    x, y = data(rows)
    program = Program(whole, x, y)
    z = torch.randn(3, program.dim)
    expected = program.value_and_grad(z)
    batches = Minibatches(story, (x, y), {}, size, 3)
    every = [torch.tensor(rows) for rows in combinations(range(rows), 2)]

    def average():
        found = []
        for chosen in every:
            batches.data.take(chosen)
            found.append(batches(z))
        return [torch.stack(part).mean(0) for part in zip(*found, strict=True)]

    for got in (batches.everything(z), average()):
        torch.testing.assert_close(list(got), list(expected), rtol=1e-10, atol=1e-10)
    at = torch.randn(1, program.dim)
    value, gradient = program.value_and_grad(at)
    batches.anchor = Anchor(at[0], value[0], gradient[0])
    torch.testing.assert_close(average(), list(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("guide", [mean_field_guide(), full_rank_guide()])
def test_gradients_of_the_elbo_average_to_that_of_all_rows(guide, monkeypatch):
    x, y = data(6)
    flat = guide.build(2).double()
    frame = Frame(torch.tensor([0.8, -1.5]), torch.tensor([0.2, 0.4]))
    noise = torch.randn(4, 2)
    monkeypatch.setattr(Fit, "noise", lambda *_: noise)

    def gradient(function):
        return torch.cat([g.flatten() for g in Fit(flat, frame, function, True).step(4).gradients])

    batches = Minibatches(regression, (x, y), {}, 2, 4)
    batches.anchor = Anchor(z := frame.centre, *(t[0] for t in batches.everything(z[None])))
    monkeypatch.setattr(batches.data, "next", lambda: None)
    found = []
    for rows in combinations(range(6), 2):
        batches.data.take(torch.tensor(rows))
        found.append(gradient(batches))
    assert torch.stack(found).std(0).max() > 1e-3  # each batch has its own
    whole = gradient(Batched(Program(regression, x, y), 4))
    torch.testing.assert_close(torch.stack(found).mean(0), whole, rtol=1e-10, atol=1e-10)


def test_an_epoch_shows_every_row_once_in_a_new_order():
    x, y = torch.zeros(12, 1), torch.arange(12.0)
    batches = Minibatches(regression, (x, y), {}, 4, 2)
    epochs = []
    for _ in range(2):
        seen = []
        for _ in range(3):
            batches.data.next()
            seen.append(batches.program.args[1].clone())
        epochs.append(torch.cat(seen))
    assert all(torch.equal(e.sort().values, y) for e in epochs)
    assert not torch.equal(*epochs)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_posterior_is_the_exact_one(dtype):
    x, y = data(110)
    posterior = VI(guide=full_rank_guide(), batch_size=20).run(regression, x.to(dtype), y.to(dtype))
    precision = x.T @ x / 0.25 + torch.eye(2) / 100
    mean = torch.linalg.solve(precision, x.T @ y / 0.25)
    marginal = 100.0 * x @ x.T + 0.25 * torch.eye(110)
    evidence = dist.MultivariateNormal(torch.zeros(110), marginal).log_prob(y)
    beta = posterior["beta"][0]
    white = torch.linalg.cholesky(precision).T @ (beta - mean).T
    # within the tolerance of 1e-3 nats the mean is off by at most sqrt(2e-3) = .045 sd
    assert white.mean(1).abs().max() < 0.045 + Z / math.sqrt(4000)
    assert (white @ white.T / 4000 - torch.eye(2)).abs().max() < 0.1 + Z * math.sqrt(2 / 4000)
    # the guide can be exact: the weights of all rows are then the evidence
    weights = posterior.history["elbo_of_all_rows"]
    assert (weights.mean() - evidence).abs() < 0.02
    assert abs(posterior.diagnosis()["elbo"] - float(evidence)) < 0.02
    assert posterior.converged
    assert "batches of 20 of the 110 rows of 'data'" in posterior.headline()


@pytest.mark.slow
def test_many_rows_leave_the_density_of_each_draw_unknown(monkeypatch):
    monkeypatch.setattr("ppgen.inference.minibatches._AFFORDABLE", 100)
    posterior = VI(batch_size=20, draws=30, max_steps=2).run(regression, *data(60))
    assert posterior.log_density is None
    assert "khat" not in posterior.diagnosis()
    assert "ELBO of all rows" in posterior.headline()


def test_few_rows_are_taken_whole():
    posterior = VI(batch_size=100, draws=10, max_steps=2).run(regression, *data(30))
    assert posterior.log_density is not None
    assert "batches" not in posterior.headline()


@pytest.mark.slow
def test_values_of_a_batch_are_not_kept_as_draws():
    def story(x, y):
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
        pyro.deterministic("double", 2 * beta)
        with pyro.plate("data", len(x)):
            mean = pyro.deterministic("mean", x[:, 0] * beta)
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    posterior = VI(batch_size=5, draws=10, max_steps=2).run(story, *data(20))
    assert set(posterior.draws) == {"beta", "double"}


# -- what cannot be taken in batches -----------------------------------------------------------


def without_plate(x, y):
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x[:, 0] * beta, 1.0).to_event(1), obs=y)


def local(x, y):
    with pyro.plate("data", len(x)):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def centred(x, y):
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x[:, 0] - x[:, 0].mean()) * beta, 1.0), obs=y)


def looped(x, y):
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(x), subsample_size=3):
        pyro.sample(f"y_{i}", dist.Normal(x[i, 0] * beta, 1.0), obs=y[i])


@pytest.mark.parametrize(
    ("story", "options", "said"),
    [
        (without_plate, {"batch_size": 3}, "no pyro.plate around an observed site"),
        (local, {"batch_size": 3}, "site 'theta' has a value for each row of plate 'data'"),
        (centred, {"batch_size": 3}, "rows of plate 'data' hang together"),
        (looped, {}, "loop over its rows"),
        (indexed, {"batch_size": 3}, "takes 2 rows itself"),
        (regression, {"batch_size": 3, "guide": lambda x, y: None}, "batch_size=3 is for families"),
    ],
)
def test_what_cannot_be_taken_in_batches_is_said(story, options, said):
    with pytest.raises(ValueError, match=said):
        VI(**options).run(story, *data(12))


def test_rows_without_a_density_are_named():
    def story(x, y):
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            pyro.sample("y", dist.Normal(x[rows, 0] * beta, 1.0), obs=y[rows])

    x, y = data(12)
    x[9, 0] = torch.nan
    with pytest.raises(ValueError, match="rows 8 to 11 is nan"):
        Minibatches(story, (x, y), {}, None, 2).everything(torch.zeros(1, 1))
