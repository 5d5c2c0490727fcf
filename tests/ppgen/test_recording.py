"""What a recording may be used for: other data, stories that write, look or change."""

import gc
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.program import Program


def weighed(y, weights):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("f", z * sum(v * w for v, w in zip(y.tolist(), weights, strict=True)))


@pytest.mark.parametrize(
    "other",
    [
        (torch.tensor([3.0, 5.0]), [1.0, 2.0]),
        (torch.tensor([1.0, 2.0]), [7.0, 2.0]),
        (torch.tensor([1.0, 2.0]), np.array([3.0, 1.0])),
    ],
    ids=["a tensor made a list", "a list", "an array"],
)
def test_data_that_are_numbers_to_the_recording_are_not_taken_for_those_of_other_data(other):
    program = Program(weighed, torch.tensor([1.0, 2.0]), [1.0, 2.0])
    z = torch.randn(3, 1)
    program.value_and_grad(z)
    for ours, theirs in zip(
        program.with_data(*other).value_and_grad(z),
        Program(weighed, *other).value_and_grad(z),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_one_tensor_given_twice_may_become_two():
    def story(x, y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", z * (x - 2 * y).sum())

    x, z = torch.ones(2), torch.randn(3, 1)
    program = Program(story, x, x)
    program.log_density(z)
    expected = Program(story, 2 * x, 3 * x).log_density(z)
    torch.testing.assert_close(program.with_data(2 * x, 3 * x).log_density(z), expected)


def test_a_detached_value_is_refused_in_a_recording_too():
    def story():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", -z * z.detach())

    with pytest.raises(ValueError, match="detaches it"):
        Program(story).value_and_grad(torch.linspace(-2, 2, 5)[:, None])


@pytest.mark.parametrize("kind", ["numpy noise", "counter"])
def test_what_differs_from_run_to_run_is_refused(kind):
    runs = itertools.count()

    def story():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", z * (np.random.rand() if kind == "numpy noise" else next(runs)))

    with pytest.raises(ValueError, match="two runs of the story at the same point differ"):
        Program(story).log_density(torch.ones(3, 1))


def test_a_story_may_write_to_its_data_what_they_then_hold():
    def story(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        y[0] = 1.0  # the same in each run: slow, but right
        pyro.factor("f", (y * z).sum())

    with pytest.warns(UserWarning, match="point by point"):
        value, slope = Program(story, torch.tensor([5.0, 2.0])).value_and_grad(torch.ones(3, 1))
    torch.testing.assert_close(value, 3 + dist.Normal(0.0, 1.0).log_prob(torch.ones(3)))
    torch.testing.assert_close(slope, torch.full((3, 1), 2.0))


def test_attention_is_recorded():
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(4, 2).requires_grad_(False)
    x = torch.randn(3, 4)

    def story():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        pyro.factor("f", attention(x * z, x, x)[0].sum())

    program = Program(story)
    z = torch.randn(3, 4)
    value, _ = program.value_and_grad(z)
    assert program.fallback is None
    expected = [attention(x * row, x, x)[0].sum() - row.square().sum() / 2 for row in z]
    torch.testing.assert_close(value, torch.stack(expected) - 2 * math.log(2 * math.pi))


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_after_a_recording_as_before(enabled):
    before, seen = gc.isenabled(), []

    def story():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        seen.append(gc.isenabled())

    try:
        (gc.enable if enabled else gc.disable)()
        program = Program(story)
        seen.clear()
        program.log_density(torch.zeros(3, 1))
        assert gc.isenabled() is enabled
        assert False in seen
    finally:
        (gc.enable if before else gc.disable)()
