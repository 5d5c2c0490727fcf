"""A recorded graph's operations, called the short way.

A graph names its operations as the dispatcher does (``torch.ops.aten.mul.Tensor``). Called by that
name each takes some 2 us longer than as ``torch.mul``: for the small tensors of most posteriors
half of the operation.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten
_SAME_NAME = """
    abs add.Tensor add.Scalar amax bmm cat clamp cos cumsum digamma div.Tensor div.Scalar eq.Scalar
    erf exp expm1 flip ge.Scalar gt.Scalar le.Scalar lgamma log log1p logical_and logsumexp
    lt.Scalar mm mul.Tensor mul.Scalar neg permute pow.Tensor_Scalar reciprocal rsqrt rsub.Scalar
    select.int sigmoid sin sqrt squeeze.dim squeeze.dims stack sub.Tensor sub.Scalar sum
    sum.dim_IntList t tanh transpose.int unsqueeze where.self
"""
_WHOLE = (None, 0, None, None, 1)  # x, dimension, start, stop, step of a slice that is not given
_METHODS = {_aten.view.default: "view", _aten.expand.default: "expand"}


def _table() -> dict[Any, Callable[..., Any]]:
    found = {}
    for name in _SAME_NAME.split():
        function, _, overload = name.partition(".")
        found[getattr(getattr(_aten, function), overload or "default")] = getattr(torch, function)
    return found


FUNCTIONS = _table()


def quick(module: fx.GraphModule) -> Callable[..., Any]:
    """The same function of the same inputs."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in FUNCTIONS:
            node.target = FUNCTIONS[node.target]
        elif node.target in _METHODS and not node.kwargs:
            node.op, node.target = "call_method", _METHODS[node.target]
        elif node.target is _aten.slice.Tensor and not node.kwargs:
            _index(node)
    return fx.GraphModule(module, graph).forward


def _index(node: fx.Node) -> None:
    """``x[:, start:stop]``."""
    x, dim, *limits = (*node.args, *_WHOLE[len(node.args) :])
    if isinstance(dim, int) and dim >= 0 and not any(isinstance(i, fx.Node) for i in limits):
        node.target, node.args = getitem, (x, (slice(None),) * dim + (slice(*limits),))
