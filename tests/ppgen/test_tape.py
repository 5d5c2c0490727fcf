"""Recordings of single functions, against the functions at points that they were not made at."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.simplify import keep_apart, mutates, tidy
from ppgen.tape import Unrecordable, trace, trace_step

DATA = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)


def writes_to_its_own(z):
    x = z + 1
    x.mul_(2).masked_fill_(z < 0, -1.0)
    return x


def writes_to_a_view(z):
    x = z * 1
    x[0].add_(z[1])
    return x.exp()


def writes_a_narrow_kind(z):
    x = (z > 0).float()
    return x.add_(z)  # float32, where x + z is float64


def several_results(z):
    values, places = (z @ DATA).sort(-1)
    left, right = values.chunk(2, -1)
    return {"left": left, "places": places, "right": [right.logsumexp(0), z]}


def constants(z):
    table = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    return z * table + torch.from_numpy(DATA.numpy())[:, :3]


def masked_data(z):
    return z[:, DATA[:, 0] > 1].sum() + float(DATA[0, 1])


def powers_in_place(z):
    return (z * 1).pow_(2).add_(DATA[:, :3])  # pow.Scalar is another operation than pow_.Scalar


def writes_to_a_constant(z):
    table = torch.from_numpy(np.ones(3))
    table += 1
    return (table * z).sum() * table


def sparse_product(z):
    table = torch.sparse_coo_tensor(
        torch.tensor([[0, 1], [1, 2]]), torch.ones(2), (3, 3), check_invariants=True
    )
    return torch.sparse.mm(table, z)


CASES = [
    *(writes_to_its_own, writes_to_a_view, writes_a_narrow_kind, powers_in_place),
    *(several_results, constants, masked_data, writes_to_a_constant, sparse_product),
]


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_the_graph_computes_what_the_function_does(function):
    graph, _ = trace(function, torch.randn(3, 3), [DATA])
    for _ in range(2):  # and leaves nothing behind
        z = torch.randn(3, 3)
        torch.testing.assert_close(graph(z, DATA), function(z))


def test_a_copy_that_a_view_needs_survives_the_tidying():
    def function(z):  # the view needs the layout that the copy has
        return z.t().clone(memory_format=torch.contiguous_format).view(-1)

    graph, _ = trace(function, torch.randn(3, 4), [])
    tidy(graph.graph)
    graph.recompile()
    z = torch.randn(3, 4)
    torch.testing.assert_close(graph(z), function(z))


def test_a_factor_that_nothing_is_made_of_need_not_exist():
    def function(z):
        torch.linalg.cholesky(torch.linalg.cholesky(z))
        return z.exp()

    good, bad = torch.eye(3), -torch.eye(3)
    graph, _ = trace(function, good, [])
    tidy(graph.graph)
    graph.recompile()
    torch.testing.assert_close(graph(bad), bad.exp())
    kept, _ = trace(torch.linalg.cholesky, good, [])
    tidy(kept.graph)
    kept.recompile()
    with pytest.raises(RuntimeError, match="positive-definite"):
        kept(bad)


def test_writing_to_a_tensor_of_ones_own_is_written_down_as_making_another():
    assert not any(
        mutates(n) for n in trace(writes_to_its_own, torch.ones(3, 3), [])[0].graph.nodes
    )
    assert any(mutates(n) for n in trace(writes_to_a_view, torch.ones(3, 3), [])[0].graph.nodes)


def test_gradients_of_a_batch_are_recorded_with_their_saved_values():
    def single(z):
        return (z.exp() * z.tanh() * DATA[0, :3]).sum()  # both save what they return

    def function(z):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(vmap(single)(z).sum(), z)[0].detach()

    graph, _ = trace(function, torch.randn(5, 3), [DATA])
    z = torch.randn(5, 3)
    torch.testing.assert_close(graph(z, DATA), function(z))
    assert "constant" not in graph.code


@pytest.mark.parametrize(
    "look",
    [
        lambda z: z * float(z.sum()),
        lambda z: z[z > 0],
        lambda z: z if torch.equal(z, DATA) else -z,
        lambda z: z.nonzero(),
    ],
    ids=["float", "mask", "equal", "nonzero"],
)
def test_a_look_at_the_point_is_refused(look):
    with pytest.raises(Unrecordable, match="looks at a value"):
        trace(look, torch.randn(3, 3), [DATA])


def test_tidying_keeps_the_layout_that_views_rest_on():
    def function(z):
        rows = z.transpose(0, 1).clone(memory_format=torch.contiguous_format).view(-1)
        return rows + torch.zeros_like(z.t()).t().view(-1) + (z.t() * 1).t().view(-1)

    graph, _ = trace(function, torch.randn(3, 4), [])
    tidy(graph.graph)
    graph.recompile()
    z = torch.randn(3, 4)
    torch.testing.assert_close(graph(z), function(z))


def test_a_graph_that_writes_is_left_as_it_is():
    """To compute equal things once would take what was written for what was there before."""

    def function(z):
        double = z * 2
        double.add_(1.0)
        return double + z * 2

    z = torch.randn(3)
    graph = make_fx(function)(z)
    tidy(graph.graph)
    graph.recompile()
    torch.testing.assert_close(graph(z), 4 * z + 1)


def test_tidying_draws_the_same_numbers_and_leaves_no_write():
    def function():
        noise = torch.empty(3, 4).normal_() * torch.ones_like(DATA)
        return (noise + torch.rand(4)).t().t() * DATA

    graph, _ = trace_step(function, [DATA])
    tidy(graph.graph)
    graph.recompile()
    assert not any(mutates(n) for n in graph.graph.nodes)
    assert sum(n.op == "call_function" for n in graph.graph.nodes) == 4  # two draws, add, mul
    torch.manual_seed(0)
    expected = function()
    torch.manual_seed(0)
    assert torch.equal(graph(DATA)[0], expected)


def test_results_of_a_step_are_neither_inputs_nor_each_other():
    def step():
        double = DATA * 2
        return DATA * 1, DATA + DATA, double, double.t(), (DATA * 2).exp(), double.chunk(2)

    graph, _ = trace_step(step, [DATA])
    tidy(graph.graph)
    keep_apart(graph.graph)
    graph.recompile()
    found, expected = graph(DATA)[0], step()
    for a, b in zip((*found[:5], *found[5]), (*expected[:5], *expected[5]), strict=True):
        assert torch.equal(a, b)
    places = {t.untyped_storage().data_ptr() for t in (*found[:5], *found[5], DATA)}
    assert len(places) == 8


def test_a_look_at_the_data_is_noted():
    assert trace(masked_data, torch.randn(3, 3), [DATA])[1]
    assert not trace(several_results, torch.randn(3, 3), [DATA])[1]


@pytest.mark.parametrize(
    "export", [torch.Tensor.tolist, torch.Tensor.numpy, np.asarray], ids=["list", "numpy", "array"]
)
def test_data_that_become_a_list_or_an_array_are_looked_at(export):
    assert trace(lambda z: z * float(export(DATA)[0][1]), torch.ones(3), [DATA])[1]


def test_a_check_inside_an_operation_is_kept():
    graph, _ = trace(lambda z: 0 * torch.linalg.cholesky(z).sum(), torch.eye(3), [])
    with pytest.raises(torch.linalg.LinAlgError):
        graph(-torch.eye(3))


@pytest.mark.slow
def test_recording_a_gradient_does_not_import_the_compiler():
    story = (
        "import sys, torch, pyro, pyro.distributions as dist\n"
        "from ppgen.program import Program\n"
        "p = Program(lambda: pyro.sample('s', dist.HalfCauchy(1.0)))\n"
        "p.value_and_grad(torch.ones(4, 1))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", story], check=True, timeout=300)


def test_a_graph_that_has_been_called_is_written_anew_where_it_changes():
    graph, _ = trace(lambda z: z + 1.0, torch.zeros(3), [])
    assert graph(torch.ones(3)).tolist() == [2.0] * 3
    (node,) = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
    node.args = (node.args[0], 5.0)
    graph.recompile()
    assert graph(torch.ones(3)).tolist() == [6.0] * 3
    assert "5.0" in graph.code
