"""Operations called the short way give the same numbers, types and shapes."""

import pytest
import torch
from torch import fx

from ppgen import quick_calls
from ppgen.quick_calls import FUNCTIONS, quick

X, Y = torch.rand(4, 6).double() + 0.1, torch.rand(4, 6).double() + 0.1
WHOLE = torch.arange(24).view(4, 6)
NUMBER = {"Tensor": (X, Y), "Scalar": (X, 2.5), "Tensor_Scalar": (X, 2)}
ARGUMENTS = {
    "amax": [(X, [1]), (X, [0, 1], True)],
    "bmm": [(X[None], Y.mT[None])],
    "cat": [([X, Y],), ([X, Y], 1)],
    "clamp": [(X, 0.2, 0.5), (X, None, 0.5), (X, 0.3)],
    "cumsum": [(X, 1), (WHOLE, -1)],
    "flip": [(X, [1])],
    "logical_and": [(X > 0.5, Y > 0.5)],
    "logsumexp": [(X, [1]), (X, [-1], True)],
    "mm": [(X, Y.mT)],
    "permute": [(X, [1, 0])],
    "select": [(X, 1, 2)],
    "squeeze": [(X[:, :1], 1)],
    "stack": [([X, Y],), ([X, Y], 1)],
    "sum": [(X,), (WHOLE,)],
    "sum.dim_IntList": [(X, [1]), (X, [0, 1], True), (WHOLE, [0])],
    "squeeze.dims": [(X[:, None, :1], [1, 2])],
    "t": [(X,)],
    "transpose": [(X, 0, 1)],
    "unsqueeze": [(X, -1)],
    "where": [(X > Y, X, Y)],
}


def arguments(operation):
    name, overload = operation._opname, operation._overloadname
    if f"{name}.{overload}" in ARGUMENTS:
        return ARGUMENTS[f"{name}.{overload}"]
    return ARGUMENTS.get(name) or [NUMBER.get(overload, (X,))]


def module(target, args):
    """A graph of one operation on as many inputs as there are tensors."""
    graph, values = fx.Graph(), []

    def placed(value):
        if isinstance(value, torch.Tensor):
            values.append(value)
            return graph.placeholder(f"x{len(values)}")
        return value

    node_args = tuple(
        [placed(v) for v in value] if isinstance(value, list) else placed(value) for value in args
    )
    graph.output(graph.call_function(target, node_args))
    return fx.GraphModule(torch.nn.Module(), graph), values


@pytest.mark.parametrize("operation", FUNCTIONS, ids=str)
def test_each_operation_is_the_same(operation):
    for args in arguments(operation):
        graph, values = module(operation, args)
        called = quick(graph)
        assert "torch.ops" not in graph_code(called)
        found, expected = called(*values), graph(*values)
        assert found.dtype == expected.dtype
        assert found.stride() == expected.stride()
        assert torch.equal(found, expected)


def graph_code(forward):
    return forward.__self__.code


CUTS = [(), (1,), (1, 2), (0, 1, 3), (1, -3, 2**63 - 1), (1, 0, 6, 2), (-1, 2), (1, None, 3)]


@pytest.mark.parametrize("cut", CUTS)
def test_slices_and_views(cut):
    aten = torch.ops.aten
    for target, some in ((aten.slice.Tensor, (X, *cut)), (aten.view.default, (X, [2, 12]))):
        graph, values = module(target, some)
        assert torch.equal(quick(graph)(*values), graph(*values))
    graph, values = module(aten.expand.default, (X[:, None], [4, 3, 6]))
    assert torch.equal(quick(graph)(*values), graph(*values))


def test_what_has_no_short_way_is_called_as_it_was():
    graph, values = module(torch.ops.aten.erfinv.default, (X / 2,))
    assert torch.ops.aten.erfinv.default not in quick_calls.FUNCTIONS
    assert torch.equal(quick(graph)(*values), torch.erfinv(X / 2))
    assert "erfinv" in str(list(graph.graph.nodes)[1].target)  # the graph itself stays
