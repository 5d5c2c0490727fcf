"""Algebraic clean-up of a recorded graph: the same values with fewer operations."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import fx

_aten = torch.ops.aten
_SAME_VALUE = {
    _aten.detach.default,
    _aten.alias.default,
    _aten.lift_fresh_copy.default,
    _aten.lift_fresh.default,
}
_SAME_VALUE_IF_SAME_SHAPE = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.reshape.default,
    _aten.expand.default,
    _aten._to_copy.default,
    _aten.clone.default,
}
_FILLED = {
    _aten.zeros_like.default: 0.0,
    _aten.ones_like.default: 1.0,
    _aten.new_zeros.default: 0.0,
    _aten.new_ones.default: 1.0,
}


class Form(NamedTuple):
    """What a tensor is like; each node that stands for a tensor has one in its ``meta``."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    stride: tuple[int, ...]  # a view of what is laid out otherwise fails, or reads other numbers

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Form:
        strided = tensor.layout == torch.strided
        stride = tensor.stride() if strided else ()
        return cls(tensor.shape, tensor.dtype, tensor.device, stride)


def mutates(node: fx.Node) -> bool:
    """Whether the operation writes into one of its arguments."""
    return node.op == "call_function" and mutates_schema(node.target)


def mutates_schema(operation: Any) -> bool:
    """Whether the operation writes into one of its arguments."""
    schema = getattr(operation, "_schema", None)
    return schema is not None and schema.is_mutable


def tidy(graph: fx.Graph) -> None:
    """Drop what does nothing and compute equal things once; a graph that writes stays as it is."""
    if any(mutates(n) for n in graph.nodes):
        return
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _FILLED and (form := _form(node)) is not None and _in_order(form):
            node = _fill(graph, node, form)
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue  # each draws numbers of its own
        key = (node.target, _key(node.args), _key(node.kwargs))
        same = _same_value(node) or known.setdefault(key, node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _form(node: Any) -> Form | None:
    return getattr(node, "meta", {}).get("form")


def _in_order(form: Form) -> bool:
    """Whether the tensor is laid out row by row, as a new one is."""
    return torch.empty(form.shape, device="meta").stride() == form.stride


def _alike(a: Any, b: Any) -> bool:
    form = _form(a)
    return form is not None and form == _form(b)


def _same_value(node: fx.Node) -> fx.Node | None:
    """The argument of `node` that it returns unchanged, if it does."""
    first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if first is None or node.target in _SAME_VALUE:
        return first
    if _alike(node, first) and node.target in _SAME_VALUE_IF_SAME_SHAPE:
        return first
    if node.target is _aten.permute.default:
        order = list(cast("list[int]", node.args[1]))
        return first if order == sorted(order) and min(order, default=0) >= 0 else None
    if len(node.args) != 2 or node.kwargs:
        return None
    second = node.args[1]
    if isinstance(second, (int, float)):
        neutral = {_aten.pow.Tensor_Scalar: 1, _aten.add.Tensor: 0, _aten.mul.Tensor: 1}
        return first if _alike(node, first) and neutral.get(_target(node)) == second else None
    if node.target is _aten.add.Tensor:
        if _is_zero(second) and _alike(node, first):
            return first
        if _is_zero(first) and _alike(node, second) and isinstance(second, fx.Node):
            return second
    return None


def _target(node: fx.Node) -> Any:
    return node.target


def _is_zero(node: Any) -> bool:
    """Whether a tensor is known to be zero everywhere, whatever the inputs."""
    while isinstance(node, fx.Node) and node.target in (
        *_SAME_VALUE_IF_SAME_SHAPE,
        _aten.unsqueeze.default,
        _aten.sum.dim_IntList,
        _aten.sum.default,
    ):
        node = node.args[0]
    if not isinstance(node, fx.Node):
        return False
    filled = node.target is _aten.full.default and node.args[1] in (0, 0.0, False)
    return filled or node.target is _aten.zeros.default


def _fill(graph: fx.Graph, node: fx.Node, form: Form) -> fx.Node:
    """A tensor of known shape and value does not depend on what it was shaped like."""
    with graph.inserting_before(node):
        full = graph.call_function(
            _aten.full.default,
            (list(form.shape), _FILLED[_target(node)]),
            {"dtype": form.dtype, "device": form.device},
        )
    full.meta.update(node.meta)
    node.replace_all_uses_with(full)
    graph.erase_node(node)
    return full


def _key(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *(_key(v) for v in value))
    if isinstance(value, dict):
        return tuple((k, _key(v)) for k, v in value.items())
    return (type(value), repr(value)) if isinstance(value, float) else (type(value), value)
