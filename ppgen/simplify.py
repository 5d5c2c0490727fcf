"""Algebraic clean-up of a recorded graph: the same values with fewer operations."""

from __future__ import annotations

from operator import getitem
from typing import Any, cast

import torch
from torch import fx

from ppgen.forms import Form, form_of, target_of

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
_RESHAPES = {_aten.unsqueeze.default, _aten.squeeze.dim, _aten.squeeze.dims}
_FILLED = {
    _aten.zeros_like.default: 0.0,
    _aten.ones_like.default: 1.0,
    _aten.new_zeros.default: 0.0,
    _aten.new_ones.default: 1.0,
}
_DRAWN = {  # what fills a new tensor, and what makes it filled, with the same numbers
    _aten.normal_.default: _aten.randn.default,
    _aten.uniform_.default: _aten.rand.default,
}


def mutates(node: fx.Node) -> bool:
    """Whether the operation writes into one of its arguments."""
    return node.op == "call_function" and mutates_schema(node.target)


def writes(graph: fx.Graph) -> bool:
    """Whether any of its operations writes into its arguments."""
    return any(mutates(node) for node in graph.nodes)


def mutates_schema(operation: Any) -> bool:
    """Whether the operation writes into one of its arguments."""
    schema = getattr(operation, "_schema", None)
    return schema is not None and schema.is_mutable


def tidy(graph: fx.Graph) -> None:
    """Drop what does nothing and compute equal things once; a graph that writes stays as it is."""
    for node in list(graph.nodes):
        _draw_at_once(graph, node)
    if writes(graph):
        return
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _FILLED and (form := form_of(node)) is not None and _in_order(form):
            node = _fill(graph, node, form)
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue  # each draws numbers of its own
        key = (node.target, _key(node.args), _key(node.kwargs))
        same = _same_value(node) or known.setdefault(key, node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    drop_unused(graph)
    _drop_idle_checks(graph)


def _drop_idle_checks(graph: fx.Graph) -> None:
    """Leave out whether a factorisation failed, where nothing is made of the factor."""
    checks = graph.find_nodes(op="call_function", target=_aten._linalg_check_errors.default)
    for check in reversed(list(checks)):  # a later factor may be the only use of an earlier one
        info = cast("fx.Node", check.args[0])
        if info.target is getitem and set(cast("fx.Node", info.args[0]).users) == {info}:
            _erase(graph, check)


def drop_unused(graph: fx.Graph) -> None:
    """Leave out what nobody uses; only that is asked whether it does anything besides."""
    for node in reversed(graph.nodes):
        if not node.users and not node.is_impure():
            graph.erase_node(node)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Leave out a node, and what nobody uses then."""
    left = [node]
    while left:
        one = left.pop()
        given = one.all_input_nodes
        graph.erase_node(one)
        left += [n for n in given if not n.users and not n.is_impure()]


def keep_apart(graph: fx.Graph) -> None:
    """Copy results that would be an input, or another result: who gets them may write to them."""
    taken: set[fx.Node] = set()

    def own(result: fx.Node) -> fx.Node:
        source = _source(result)
        if source not in taken and source.op == "call_function":
            taken.add(source)
            return result
        with graph.inserting_before(graph.output_node()):
            return graph.call_function(_aten.clone.default, (result,))

    output = graph.output_node()
    output.args = fx.map_arg(output.args, own)


def _source(node: fx.Node) -> fx.Node:
    """Whose memory a view looks at."""
    while node.op == "call_function" and (
        node.target is getitem or any(r.alias_info for r in target_of(node)._schema.returns)
    ):
        node = cast("fx.Node", node.args[0])
    return node


def _draw_at_once(graph: fx.Graph, node: fx.Node) -> None:
    """Write ``empty(...).normal_()`` as ``randn(...)``, which writes into nothing."""
    made = node.args[0] if node.target in _DRAWN and len(node.args) == 1 else None
    if not isinstance(made, fx.Node) or made.target is not _aten.empty.memory_format:
        return
    form = form_of(node)
    if node.kwargs or len(made.users) > 1 or form is None or not _in_order(form):
        return
    with graph.inserting_before(node):
        drawn = graph.call_function(
            _DRAWN[target_of(node)], made.args, {"dtype": form.dtype, "device": form.device}
        )
    drawn.meta.update(node.meta)
    node.replace_all_uses_with(drawn)
    graph.erase_node(node)
    graph.erase_node(made)


def _in_order(form: Form) -> bool:
    """Whether the tensor is laid out row by row, as a new one is."""
    return torch.empty(form.shape, device="meta").stride() == form.stride


def _alike(a: Any, b: Any) -> bool:
    form = form_of(a)
    return form is not None and form == form_of(b)


def _same_value(node: fx.Node) -> fx.Node | None:
    """The earlier node whose value `node` has unchanged, if there is one."""
    first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if first is None or node.target in _SAME_VALUE:
        return first
    if _alike(node, first) and node.target in _SAME_VALUE_IF_SAME_SHAPE:
        return first
    if node.target is _aten.t.default and first.target is _aten.t.default:
        return cast("fx.Node", first.args[0])
    if node.target is _aten.permute.default:
        order = list(cast("list[int]", node.args[1]))
        return first if order == sorted(order) and min(order, default=0) >= 0 else None
    if len(node.args) != 2 or node.kwargs:
        return None
    second = node.args[1]
    if isinstance(second, (int, float)):
        neutral = {_aten.pow.Tensor_Scalar: 1, _aten.add.Tensor: 0, _aten.mul.Tensor: 1}
        return first if _alike(node, first) and neutral.get(target_of(node)) == second else None
    is_neutral = {_aten.add.Tensor: is_zero, _aten.mul.Tensor: _is_one}.get(target_of(node))
    if is_neutral is not None:
        if is_neutral(second) and _alike(node, first):
            return first
        if is_neutral(first) and _alike(node, second) and isinstance(second, fx.Node):
            return second
    return None


def is_zero(node: Any) -> bool:
    """Whether a tensor is known to be zero everywhere, whatever the inputs."""
    source = _repeated_by(node, _aten.sum.dim_IntList, _aten.sum.default)
    if target_of(source) is _aten.scalar_tensor.default:
        return source.args[0] == 0
    return target_of(source) is _aten.zeros.default or _is_full(source, 0)


def _is_one(node: Any) -> bool:
    """Likewise one."""
    return _is_full(_repeated_by(node), 1)


def _is_full(node: Any, number: float) -> bool:
    return target_of(node) is _aten.full.default and node.args[1] == number


def _repeated_by(node: Any, *others: Any) -> Any:
    """Whose value stands everywhere in `node`, if it is the same everywhere."""
    while target_of(node) in {*_SAME_VALUE_IF_SAME_SHAPE, *_RESHAPES, *others}:
        node = node.args[0]
    return node


def _fill(graph: fx.Graph, node: fx.Node, form: Form) -> fx.Node:
    """A tensor of known shape and value does not depend on what it was shaped like."""
    with graph.inserting_before(node):
        full = graph.call_function(
            _aten.full.default,
            (list(form.shape), _FILLED[target_of(node)]),
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
