"""Assignments given the data, against enumeration of all of them."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

from ppgen.posterior import Posterior
from ppgen.program import Program

FAILURE_RATE = 2e-5
DRAWS = 8000

MIXED = torch.tensor([-1.3, 0.4, 0.1, 2.0]).double()
SERIES = torch.tensor([0.3, -0.2, 1.4, 0.9, -1.0]).double()
GROUPED = torch.tensor([[0.2, 1.1], [-0.4, 0.8]]).double()


def mixture(y):
    apart = pyro.sample("apart", dist.Normal(1.0, 0.1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("y", dist.Normal(z * apart, 1.0), obs=y)


def hidden_markov(y):
    apart = pyro.sample("apart", dist.Normal(1.5, 0.1))
    stay = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    state = 0
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(f"s{t}", dist.Categorical(stay[state]))
        pyro.sample(f"y{t}", dist.Normal(state * apart, 1.0), obs=y[t])


def nested(y):
    """A class of each group, on which the kinds of its members depend."""
    apart = pyro.sample("apart", dist.Normal(1.0, 0.1))
    with pyro.plate("groups", 2, dim=-1):
        kind = pyro.sample("kind", dist.Bernoulli(0.4))
        with pyro.plate("members", 2, dim=-2):
            z = pyro.sample("z", dist.Binomial(2, 0.2 + 0.5 * kind))
            pyro.sample("y", dist.Normal(z * apart, 1.0), obs=y)


CASES = {
    "mixture": (mixture, MIXED, {"z": ((4,), 2)}),
    "hidden Markov": (hidden_markov, SERIES, {f"s{t}": ((), 2) for t in range(5)}),
    "nested plates": (nested, GROUPED, {"kind": ((2,), 2), "z": ((2, 2), 3)}),
}


def fixed(story, y, draws=DRAWS, chains=1):
    """A posterior that is one point, again and again: its draws of assignments are alike."""
    program = Program(story, y)
    z = torch.full((chains, draws, program.dim), 1.2)
    return Posterior.from_program(program, z, engine="test", kind="independent")


def enumerated(story, y, shapes):
    """Every assignment and its posterior probability, by Pyro's log joint."""
    ranges = [(n, shape, torch.Size(shape).numel(), k) for n, (shape, k) in shapes.items()]
    sites, logs = [], []
    for digits in itertools.product(*(range(k) for _, _, size, k in ranges for _ in range(size))):
        values, start = {"apart": torch.tensor(1.2)}, 0
        for name, shape, size, _ in ranges:
            # indices have to be whole numbers, Pyro's Bernoulli floating ones
            whole = torch.tensor(digits[start : start + size]).reshape(shape)
            values[name] = whole if name not in ("kind",) and story is not nested else whole * 1.0
            start += size
        trace = poutine.trace(poutine.condition(story, data=values)).get_trace(y)
        sites.append(digits)
        logs.append(float(trace.log_prob_sum()))
    return sites, torch.tensor(logs).softmax(0).numpy()


@pytest.mark.parametrize("case", CASES)
def test_assignments_have_their_joint_posterior_probabilities(case):
    story, y, shapes = CASES[case]
    found = fixed(story, y).infer_discrete(story, y)
    assert {n: v.shape[2:] for n, v in found.items()} == {n: s for n, (s, _) in shapes.items()}
    flat = torch.cat([found[n].reshape(DRAWS, -1) for n in shapes], 1).long().tolist()
    sites, probability = enumerated(story, y, shapes)
    place = {digits: i for i, digits in enumerate(sites)}
    counts = torch.bincount(torch.tensor([place[tuple(row)] for row in flat]), minlength=len(sites))
    # cells that are too rare for a chi-square count together
    rare = probability * DRAWS < 5
    observed = [*counts.numpy()[~rare], counts.numpy()[rare].sum()]
    expected = [*(probability[~rare] * DRAWS), probability[rare].sum() * DRAWS]
    if not rare.any():
        observed, expected = observed[:-1], expected[:-1]
    assert stats.chisquare(observed, expected).pvalue > FAILURE_RATE


def test_they_stand_beside_the_draws_that_they_were_drawn_for():
    """With y = 0 and 1 certain where the classes lie 100 apart, the sign of `apart` decides."""

    def story(y):
        apart = pyro.sample("apart", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(100.0 * z * apart, 1.0), obs=y)

    y = torch.tensor(100.0).double()
    program = Program(story, y)
    z = torch.tensor([[[1.0], [0.0], [1.0]], [[-1.0], [1.0], [-1.0]]]).double()
    posterior = Posterior.from_program(program, z, engine="test", kind="independent")
    found = posterior.infer_discrete(story, y)["z"]
    assert found.shape == (2, 3)
    sure = posterior["apart"].abs() == 1
    assert torch.equal(found[sure] == 1, posterior["apart"][sure] == 1)
    assert posterior.infer_discrete(story, y, draws=2)["z"].shape == (2, 2)
    # without the flat vectors, from the sites
    assert posterior.only("apart").infer_discrete(story, y)["z"].shape == (2, 3)
    before = torch.get_rng_state()
    one, two = (posterior.infer_discrete(story, y, seed=1)["z"] for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(before, torch.get_rng_state())


def test_what_follows_from_them_is_drawn_with_them_and_not_before():
    def story(y):
        apart = pyro.sample("apart", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * apart)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            mean = pyro.deterministic("mean", z * apart)
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    posterior = fixed(story, MIXED, 10)
    assert set(posterior.draws) == {"apart", "twice"}
    assert "needed for mean: infer_discrete" in posterior.headline()
    found = posterior.infer_discrete(story, MIXED)
    assert set(found) == {"z", "mean"}
    torch.testing.assert_close(found["mean"], found["z"] * posterior["apart"][..., None])
    assert set(posterior.predict(story, MIXED, draws=3)) == {"twice", "z", "mean", "y"}


def test_what_has_nothing_to_infer_is_refused():
    def plain(y):
        pyro.sample("y", dist.Normal(pyro.sample("apart", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    def other(y):
        pyro.sample("b", dist.Normal(0.0, 1.0))
        mixture(y)

    with pytest.raises(ValueError, match="discrete and summed out"):
        fixed(plain, MIXED[0], 10).infer_discrete(plain, MIXED[0])
    with pytest.raises(ValueError, match=r"\['b', 'apart'\] are not the posterior's \['apart'\]"):
        fixed(mixture, MIXED, 10).infer_discrete(other, MIXED)
