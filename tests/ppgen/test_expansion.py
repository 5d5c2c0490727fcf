"""Expansions follow the operations on what they expand: the same values at a lower cost."""

import inspect
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppgen import expansion
from ppgen.program import Program
from ppgen.simplify import tidy
from ppgen.tape import trace
from unrecorded import value_and_slope

ROWS = 40


def shrunk(function, *inputs):
    """The graph of ``function(*inputs)``, as a recording tidies it, and what it computed before."""
    plain, _ = trace(lambda z: function(z, *inputs[1:]), inputs[0], list(inputs[1:]))
    small, _ = trace(lambda z: function(z, *inputs[1:]), inputs[0], list(inputs[1:]))
    tidy(small.graph)
    expansion.shrink(small.graph)
    small.recompile()
    return plain, small


def computed(graph, name):
    """Numbers that the operations of that name make."""
    found = [n for n in graph.graph.nodes if n.op == "call_function" and name in str(n.target)]
    return sum(n.meta["form"].shape.numel() for n in found)


def normal(z, x):
    scale = z[:, :1].exp().expand(len(z), ROWS)
    return (-(x.square()) / (2 * scale**2) - scale.log()).sum(-1)


def picked(z, x):
    return z[:, None].expand(len(z), ROWS, 3).log().gather(-1, (x > 0).long()[..., None])[..., 0]


def scattered(z, x):
    """The slope of what rows pick from three numbers, summed over rows."""
    values = (x * z[:, :1])[:, None, :, None].expand(len(z), 2, ROWS, 1)
    index = (x > 0).long()[:, None, :, None].expand(len(z), 2, ROWS, 1)
    return torch.zeros(len(z), 2, ROWS, 3).to(z).scatter_add(3, index, values).sum((2,))


FUNCTIONS = {
    "a shared scale": normal,
    "a number against a tensor": lambda z, x: (z.sum().expand(len(z), ROWS) * 2 + x).sum(-1),
    "seen as another shape": lambda z, x: z[:, :1].expand(len(z), ROWS).exp().view(-1) + x.view(-1),
    "shared weights": lambda z, x: (
        z[:, None].expand(len(z), ROWS, 3).log_softmax(-1) + x[..., None]
    ).logsumexp(-1),
    "softmax along what is repeated": lambda z, x: (
        z[:, :1].expand(len(z), ROWS).log_softmax(-1) * x
    ).sum(-1),
    "a factor of a sum": lambda z, x: -(x * z[:, :1].expand(len(z), ROWS) * 3).sum(1),
    "a quotient and its opposite": lambda z, x: (1 / (z[:, :1].expand(len(z), ROWS)) - x).sum(1),
    "what a sum repeats": lambda z, x: (z[:, :1].expand(len(z), ROWS) * z[:, 1:2]).sum(1),
    "two terms": lambda z, x: (x * z[:, :1] + x.cos() * z[:, 1:2]).sum(1, keepdim=True),
    "used twice": lambda z, x: (x * z[:, :1]).sum(1) + (x * z[:, :1])[:, 0],
    "over both": lambda z, x: (x * z[:, :1]).sum((0, 1)) + x.sum(),
    "a sum of rounded numbers": lambda z, x: (x.float() * z[:, :1]).sum(1),
    "a number of another kind": lambda z, x: (
        (z.sum().expand(len(z), ROWS) * z[:, :1].float().expand(len(z), ROWS)).cos() + x
    ),
    "terms and numbers": lambda z, x: ((x - z[:, :1]) - 0.9) + z[:, 1:2],
    "numbers alone": lambda z, x: (0.5 + (x + 2.0)) - 0.9,
    "from a number": lambda z, x: 3.0 - (x - z[:, :1]) + z[:, 1:2],
    "an opposite over a parameter": lambda z, x: -x / z[:, :1] + (-x) * z[:, 1:2],
    "the same factor twice": lambda z, x: (
        z[:, :1].expand(len(z), ROWS) * z[:, :1].expand(len(z), ROWS) * x * x
    ).sum(1),
    "a quotient of data": lambda z, x: (-(x.cos() / x.exp()) / z[:, :1]).sum(1),
    "below alone": lambda z, x: (z[:, :1] / x.exp()).sum(1),
    "over nothing": lambda z, x: (x / 0).sum(1),
    "whole numbers": lambda z, x: (-(x > 0).long() * 2).sum(1) * z[:, 0],
    "nothing behind a mask": lambda z, x: torch.where(
        (z[:, :1] > 0.5).expand(len(z), ROWS), x / z[:, :1].expand(len(z), ROWS), 0.0
    ).sum(1),
    "nothing before a mask": lambda z, x: torch.where(z[:, :1] > 0.5, 0.0, x).sum(1, keepdim=True),
    "nothing either way": lambda z, x: torch.where(z[:, :1] > 0.5, 0 * x, 0 * x).sum(1),
    "a mask of the data": lambda z, x: torch.where(x > 0, x * z[:, :1], 0.0).sum(1),
    "a number behind a mask": lambda z, x: torch.where(z[:, :1] > 0.5, x, 1.5).sum(1),
    "slopes": lambda z, x: sum(
        slope(x, z[:, :1].expand(len(z), ROWS), *more).sum(1)
        for slope, *more in (
            (torch.ops.aten.softplus_backward, 1.0, 20.0),
            (torch.ops.aten.sigmoid_backward,),
            (torch.ops.aten.tanh_backward,),
        )
    ),
    "a slope at the data": lambda z, x: torch.ops.aten.sigmoid_backward(x * z[:, :1], x).sum(1),
    "picked of what is repeated": picked,
    "scattered to one place": scattered,
    "scattered to their own": lambda z, x: scattered(z, x).mT.contiguous(),
    "scattered over what is there": lambda z, x: torch.scatter_add(
        x, 1, (x > 0).long(), x * z[:, :1]
    ).sum(0),
    "mixed numbers": lambda z, x: (z[:, :1].float().expand(len(z), ROWS) * x).sum(1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_values_stay(name):
    z, x = torch.rand(5, 3).double() + 0.1, torch.randn(5, ROWS).double()
    plain, small = shrunk(FUNCTIONS[name], z, x)
    for inputs in ((z, x), (z.roll(1, 0), 0.5 * x)):
        found, expected = small(*inputs), plain(*inputs)
        torch.testing.assert_close(found, expected, equal_nan=True)
        assert found.stride() == expected.stride()


def test_what_rows_share_is_computed_once():
    z, x = torch.rand(5, 3) + 0.1, torch.randn(5, ROWS)
    plain, small = shrunk(normal, z, x)
    assert computed(plain, "aten.log") == 5 * ROWS
    assert computed(small, "aten.log") == 5
    plain, small = shrunk(FUNCTIONS["a factor of a sum"], z, x)
    assert computed(plain, "aten.mul") == 2 * 5 * ROWS
    assert computed(small, "aten.mul") == 2 * 5


def test_a_logarithm_is_taken_before_one_is_picked():
    """Of 3 numbers, and not of as many copies as there are rows; in any memory's leavings."""
    for _ in range(3):  # indices that were left there decided whether it was tried
        _ = torch.full((5, ROWS, 1), 2**40)
        _, small = shrunk(picked, torch.rand(5, 3) + 0.1, torch.randn(5, ROWS))
        assert computed(small, "aten.log") == 5 * 3


def test_what_rows_pick_is_added_up_where_it_came_from():
    _, small = shrunk(scattered, torch.rand(5, 3) + 0.1, torch.randn(5, ROWS))
    assert computed(small, "aten.scatter_add") == 5 * 2 * 3


@pytest.mark.parametrize("name", ["nothing behind a mask", "slopes"])
def test_what_is_linear_in_its_slope_is_done_after_the_sum(name):
    _, small = shrunk(FUNCTIONS[name], torch.rand(5, 3) + 0.1, torch.randn(5, ROWS))
    assert max(computed(small, part) for part in ("aten.where", "_backward", "aten.div")) <= 3 * 5


def test_signs_numbers_and_shared_factors_come_out_of_a_sum():
    def function(z, x):
        scale = z[:, :1].exp().expand(len(z), ROWS)
        gap = x - z[:, 1:2]
        pull = -(gap**2) / scale
        return ((-(gap.cos()) * (pull / scale)).sum(1), (-(gap.cos() * (gap * 2)) / scale).sum(1))

    z, x = torch.rand(5, 3).double() + 0.1, torch.randn(5, ROWS).double()
    plain, small = shrunk(function, z, x)
    torch.testing.assert_close(small(z, x), plain(z, x))
    assert computed(plain, "aten.neg") == 3 * 5 * ROWS
    assert computed(small, "aten.neg") <= 3 * 5
    assert computed(plain, "aten.div") == 3 * 5 * ROWS
    assert computed(small, "aten.div") <= 4 * 5
    assert computed(small, "aten.mul") < 2.5 * 5 * ROWS


def test_terms_of_parameters_are_added_before_they_meet_the_data():
    z, x = torch.rand(5, 3).double() + 0.1, torch.randn(5, ROWS).double()
    plain, small = shrunk(FUNCTIONS["terms and numbers"], z, x)
    assert computed(plain, "aten.sub") == 2 * 5 * ROWS
    assert computed(small, "aten.sub") + computed(small, "aten.add") < 2 * 5 * ROWS


def test_a_story_records_its_scale_once_for_all_rows():
    def story(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        scale = pyro.sample("scale", dist.HalfNormal(torch.ones(2)).to_event(1))
        parts = dist.Normal((slope * x)[:, None], scale)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=y)

    program = Program(story, torch.randn(ROWS), torch.randn(ROWS))
    z = torch.randn(6, program.dim, dtype=torch.float64)
    value, gradient = program.value_and_grad(z)
    (recording,) = program._recordings.values()
    assert computed(recording.body, "aten._log_softmax.default") == 6 * 2
    assert computed(recording.body, "aten.log.default") < 6 * ROWS
    torch.testing.assert_close((value[0], gradient[0]), value_and_slope(program, z[0]))


STEPS = {
    "product": lambda x, a, y: x * a,
    "quotient": lambda x, a, y: -(x / a),
    "sum": lambda x, a, y: x + a * y,
    "sums in products": lambda x, a, y: x * a + a.cos() * y,
}


@pytest.mark.parametrize("name", STEPS)
def test_a_loop_may_be_longer_than_python_nests_calls(name, monkeypatch):
    def loop(z, y):
        x = y.sin()
        for _ in range(300):
            x = STEPS[name](x, z[:, :1], y)
        return x.sum(1)

    def shrink(graph):
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(len(inspect.stack(0)) + 280)  # so that 300 steps are many
        try:
            before(graph)
        finally:
            sys.setrecursionlimit(limit)

    before = expansion.shrink
    monkeypatch.setattr(expansion, "shrink", shrink)
    z, y = torch.rand(2, 3).double() + 0.5, torch.rand(2, 4).double()
    plain, small = shrunk(loop, z, y)
    torch.testing.assert_close(small(z, y), plain(z, y), rtol=1e-9, atol=0.0)


def test_the_graph_of_a_loop_grows_with_its_length():
    def loop(times):
        def function(z, x):
            total = 0.0
            for _ in range(times):
                x = x * z[:, :1]
                total = total + (x * x.cos()).sum(1)
            return total

        _, small = shrunk(function, torch.rand(2, 3), torch.rand(2, 4))
        return len(small.graph.nodes)

    assert loop(120) < 2.1 * loop(60)  # with every factor taken out of every sum, 3.1 times


def test_a_graph_that_writes_stays_as_it_is():
    class Writing(nn.Module):
        def forward(self, z):
            return torch.zeros(2, ROWS).add_(z.expand(2, ROWS).exp())

    graph = torch.fx.symbolic_trace(Writing()).graph
    graph.call_function(torch.ops.aten.add_.Tensor, (next(iter(graph.nodes)), 1))
    before = len(graph.nodes)
    expansion.shrink(graph)
    assert len(graph.nodes) == before
