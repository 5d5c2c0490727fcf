"""Other layouts of a recorded graph's tensors: the same values, long dimensions side by side."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.layout import lay_out
from ppgen.program import Program
from ppgen.simplify import tidy
from ppgen.tape import trace
from unrecorded import value_and_slope

C, N, K = 8, 700, 2


def laid_out(function, *inputs):
    """The graph of ``function(*inputs)`` as it is traced, and with other layouts."""
    plain, _ = trace(lambda z: function(z, *inputs[1:]), inputs[0], list(inputs[1:]))
    other, _ = trace(lambda z: function(z, *inputs[1:]), inputs[0], list(inputs[1:]))
    for improve in (tidy, lay_out, tidy):
        improve(other.graph)
    other.recompile()
    return plain, other


def nodes(graph, name):
    return [n for n in graph.graph.nodes if n.op == "call_function" and name in str(n.target)]


def components(z, x):
    return -((x[:, None] - z[:, None, :K]) ** 2) / z[:, None, K : 2 * K].exp()


FUNCTIONS = {
    "components": components,
    "summed over rows": lambda z, x: components(z, x).sum(1),
    "summed over components": lambda z, x: components(z, x).logsumexp(-1).sum(-1),
    "one component": lambda z, x: components(z, x)[..., 1],
    "weights": lambda z, x: (t := components(z, x)) - t.logsumexp(-1, keepdim=True),
    "shares": lambda z, x: ((t := components(z, x)) - t.logsumexp(-1)[..., None]).exp().sum(1),
    "shares along rows": lambda z, x: ((t := components(z, x)) - t.logsumexp(1)[:, None]).exp()[
        ..., 0
    ],
    "seen as another shape": lambda z, x: components(z, x).view(C, N * K)[:, :3],
    "read from memory": lambda z, x: components(z, x).as_strided((C, 3), (N * K, 1)),
    "sorted": lambda z, x: components(z, x).sort(-1).values,
    "products": lambda z, x: (x.reshape(-1, 4) @ z[:, :4].mT).mT + z[:, :1],
    "products for two": lambda z, x: (y := x.reshape(-1, 4) @ z[:, :4].mT).mT.exp().sum(1) + y[0],
    "slopes": lambda z, x: (x.reshape(-1, 4).mT @ (z[:, :1] + x[:175]).mT).mT,
    "slopes and values": lambda z, x: (
        torch.nn.functional.softplus((x.reshape(-1, 4) @ z[:, :4].mT).mT) @ x.reshape(-1, 4)
    ),
    "products and views": lambda z, x: (x.reshape(-1, 4) @ z[:, :4].mT).mT.reshape(-1)[3:9],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_shapes_stay(name):
    z, x = torch.rand(C, 2 * K).double() + 0.1, torch.randn(N).double()
    plain, other = laid_out(FUNCTIONS[name], z, x)
    for inputs in ((z, x), (z.roll(1, 0), 0.5 * x)):
        torch.testing.assert_close(other(*inputs), plain(*inputs))


def test_rows_are_side_by_side_where_components_meet_them():
    z, x = torch.rand(C, 2 * K).double(), torch.randn(N).double()
    plain, other = laid_out(FUNCTIONS["summed over components"], z, x)
    assert [n.meta["form"].stride[-1] for n in nodes(plain, "aten.div")] == [1]
    assert [n.meta["form"].stride for n in nodes(other, "aten.div")] == [(N * K, 1, N)]


def test_what_reads_another_layout_slowly_keeps_its_own():
    z, x = torch.rand(C, 2 * K).double(), torch.randn(N).double()
    for name in ("read from memory", "sorted"):
        _, other = laid_out(FUNCTIONS[name], z, x)
        assert [n.meta["form"].stride for n in nodes(other, "aten.div")] == [(N * K, K, 1)]


def test_few_numbers_stay_where_they_are():
    z, x = torch.rand(C, 2 * K).double(), torch.randn(50).double()
    _, other = laid_out(FUNCTIONS["summed over components"], z, x)
    assert not nodes(other, "aten.transpose")


def test_the_slope_of_a_logsumexp_is_a_softmax():
    z, x = torch.rand(C, 2 * K).double(), torch.randn(N).double()
    for name in ("shares", "shares along rows"):
        _, other = laid_out(FUNCTIONS[name], z, x)
        assert nodes(other, "aten._softmax")
        assert not nodes(other, "aten.exp.default")[1:]  # that of the scales alone
    never = x.clone()
    never[3] = torch.inf
    plain, other = laid_out(FUNCTIONS["shares"], z, never)
    torch.testing.assert_close(other(z, never), plain(z, never), equal_nan=True)


def test_products_of_a_regression_come_in_rows_and_read_columns():
    x, y = torch.randn(N, 3).double(), (torch.rand(N) < 0.3).double()

    def story(x, y):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weights + 0.5), obs=y)

    program = Program(story, x, y)
    weights = torch.randn(C, 3, dtype=torch.float64)
    gradient = program.gradient(weights)
    (recording,) = program._recordings.values()
    products = nodes(recording.body, "aten.mm")
    assert {n.meta["form"].stride for n in products} == {(N, 1), (3, 1)}
    kept = recording.kept()
    assert [k.stride() for k in kept if k.shape == (3, N)] == [(N, 1)]
    assert [k.stride() for k in kept if k.shape == (N, 3)] == [(1, N)]
    residual = y - torch.sigmoid(weights @ x.mT + 0.5)
    torch.testing.assert_close(gradient, residual @ x - weights)


def test_a_story_of_components_has_the_gradient_of_torch():
    def story(y):
        means = pyro.sample("means", dist.Normal(torch.zeros(3), 3.0).to_event(1))
        scales = pyro.sample("scales", dist.LogNormal(torch.zeros(3), 0.5).to_event(1))
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("rows", len(y)):
            parts = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, scales))
            pyro.sample("y", parts, obs=y)

    program = Program(story, torch.randn(900).double())
    z = torch.randn(6, program.dim, dtype=torch.float64)
    value, gradient = program.value_and_grad(z)
    torch.testing.assert_close(program.gradient(z), gradient)
    torch.testing.assert_close(program.value(z), value)
    torch.testing.assert_close((value[0], gradient[0]), value_and_slope(program, z[0]))
