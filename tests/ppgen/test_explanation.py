"""What a story is said to consist of. (Its table, by the command line: `tests/test_cli.py`.)"""

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen


def walk(y):
    steps = pyro.sample("steps", dist.Normal(0.0, 1.0).expand(y.shape).to_event(1))
    state = [steps[..., 0]]
    for t in range(1, len(y)):
        state.append(0.9 * state[-1] + steps[..., t])
    pyro.sample("y", dist.Normal(torch.stack(state, -1), 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(("length", "long"), [(4, False), (150, True)])
def test_a_long_loop_is_told_what_does_without(length, long):
    explanation = ppgen.explain(walk, torch.zeros(length))
    assert explanation.dim == length
    assert (explanation.operations > 1000) is long
    assert ("ppgen.recursion" in str(explanation)) is long
