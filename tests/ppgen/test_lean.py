"""Lean forms of log densities agree with torch's own, where those are delicate too."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.special import safe_log

from ppgen.lean import batched_safe_log, plain_shapes
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


def test_a_discrete_hidden_markov_model_is_recorded_and_right():
    """Against the sum over all paths of states, one of whose steps has probability zero."""
    x = torch.tensor([0.3, -1.0, 2.0, 0.1])
    paths = torch.cartesian_prod(*[torch.arange(2)] * 5)  # before each step, and after the last

    def laws(stay, gap):
        steps = torch.stack([torch.stack([stay, 1 - stay]), torch.tensor([0.0, 1.0])])
        return torch.tensor([0.7, 0.3]), steps, gap * torch.tensor([-1.0, 1.0])

    def story(x):
        stay = pyro.sample("stay", dist.Uniform(0.0, 1.0))
        first, steps, means = laws(stay, pyro.sample("gap", dist.Normal(0.0, 1.0)))
        seen = dist.Normal(means, 1.0)
        pyro.sample("x", dist.DiscreteHMM(first.log(), steps.log(), seen), obs=x)

    def by_paths(z):
        (stay, gap), jacobian = (z[0].sigmoid(), z[1]), z[0].sigmoid() * (1 - z[0].sigmoid())
        first, steps, means = laws(stay, gap)
        weight = first[paths[:, 0]] * steps[paths[:, :-1], paths[:, 1:]].prod(-1)
        seen = dist.Normal(means[paths[:, 1:]], 1.0).log_prob(x).sum(-1).exp()
        prior = dist.Normal(0.0, 1.0).log_prob(gap)
        return (weight * seen).sum().log() + jacobian.log() + prior

    program = Program(story, x)
    z = torch.randn(7, 2)
    value, slope = program.value_and_grad(z)  # warnings are errors: it is not point by point
    truth = torch.stack([by_paths(row) for row in z])
    torch.testing.assert_close(value, truth)
    torch.testing.assert_close(slope, torch.stack([torch.func.grad(by_paths)(row) for row in z]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_batched_safe_log_is_pyros(dtype):
    x = torch.tensor([0.0, 1e-40, 1e-20, 1e-8, 0.5, 3.0], dtype=dtype)
    sloped = [x.clone().requires_grad_() for _ in range(2)]
    values = [safe_log(sloped[0])]
    with batched_safe_log():
        values.append(safe_log(sloped[1]))
        (slope,) = torch.autograd.grad(safe_log(sloped[1]).sum(), sloped[1], create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), sloped[1])
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=0)
    for value in values:
        value.sum().backward()
    torch.testing.assert_close(sloped[1].grad, sloped[0].grad)
    torch.testing.assert_close(curvature[-2:], -1 / x[-2:] ** 2)


def test_a_clamp_in_place_is_done_for_all_rows_at_once():
    def story():
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("above", x.max(-1, keepdim=True).values.clamp_(min=0.5).sum())

    program, z = Program(story), torch.randn(50, 3)
    above = z.max(-1).values.clamp(min=0.5)
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(program.value_and_grad(z)[0], prior + above)
    assert program.operations < 50
