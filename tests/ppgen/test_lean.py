"""Lean forms of log densities agree with torch's own, where those are delicate too."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.lean import plain_shapes
from ppgen.program import Program

LOGITS = torch.tensor([-800.0, -60.0, -39.0, -1e-9, 0.0, 0.7, 39.0, 41.0, 60.0, 800.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_a_bernoulli_site_has_torchs_density_and_slope_at_any_logit(y, dtype):
    def story(logits, y):
        shift = pyro.sample("shift", dist.Normal(logits.new_zeros(len(logits)), 1.0).to_event(1))
        with pyro.plate("data", len(logits)):
            pyro.sample("y", dist.Bernoulli(logits=logits + shift), obs=y)

    logits = LOGITS.to(dtype)
    program = Program(story, logits, torch.full_like(logits, y))
    assert program.dtype == torch.float64  # float32 data are cast
    at = torch.zeros(2, len(logits))
    value, slope = program.value_and_grad(at)
    wide = logits.double()
    truth = dist.Bernoulli(logits=wide).log_prob(torch.full_like(wide, y))
    prior = dist.Normal(0.0, 1.0).log_prob(torch.zeros(len(logits)).double()).sum()
    # logits of 800 leave 800 roundings
    torch.testing.assert_close(value[0], truth.sum() + prior, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(slope[0], y - wide.sigmoid(), rtol=1e-10, atol=1e-15)


def test_weights_of_a_cross_entropy_are_not_forgotten():
    def story(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        pyro.factor("weighted", -loss(x, y, weight=torch.tensor([1.0, 2.0, 5.0])))

    y = torch.tensor([0.0, 1.0, 1.0])
    at = torch.tensor([[0.5, -1.0, 2.0]])
    value, _ = Program(story, y).value_and_grad(at)
    each = torch.nn.functional.softplus(at[0]) - at[0] * y
    truth = dist.Normal(0.0, 1.0).log_prob(at[0]).sum() - (each * torch.tensor([1.0, 2, 5])).mean()
    torch.testing.assert_close(value[0], truth)


@pytest.mark.parametrize(
    "shapes", [(), ((),), ((2, 1), (3,)), (4, (5, 1)), (torch.Size([1, 0]), (7, 1)), ((1,), (1, 1))]
)
def test_plain_shapes_broadcast_as_torchs_do_and_are_given_back(shapes):
    own = torch.broadcast_shapes
    with plain_shapes():
        joint = torch.broadcast_shapes(*shapes)
        with pytest.raises(RuntimeError, match="broadcast"):
            torch.broadcast_shapes((2,), (3,))
    assert joint == own(*shapes)
    assert isinstance(joint, torch.Size)
    assert torch.broadcast_shapes is own
