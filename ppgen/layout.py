r"""How the tensors of a recorded graph lie in memory: what is long lies side by side.

An operation on tensors runs along the last dimension in memory. Where that is the two components of
a mixture, and one operand repeats itself along the rows, it takes up to ten times as long as with
the rows last; where its operands lie in different orders, two to three times as long. In a recorded
graph

- a product of matrices whose transpose is wanted, :math:`(X \beta^T)^T`, is made as
  :math:`\beta X^T`;
- data of many rows and few columns are kept column by column for both products, with the parameters
  and with their gradient;
- operations of each element over many rows and a few components keep the rows last;
- the derivative of a logsumexp, which asks for every exponential once more, is a softmax, along the
  dimension's own place in memory.

Only where numbers lie changes, not the shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, cast

import torch
from torch import fx
from torch.fx.node import map_arg

from ppgen.forms import Form, attempt, call, depending, empty, form_of, pointwise, target_of
from ppgen.simplify import drop_unused, writes

_aten = torch.ops.aten
_MM = _aten.mm.default
_TRANSPOSITIONS = {_aten.permute.default, _aten.transpose.int, _aten.t.default}
_ANY_LAYOUT = {  # besides operations of each element: what is as fast on any, or only looks
    *_TRANSPOSITIONS,
    _aten.sum.dim_IntList,
    _aten.amax.default,
    _aten.logsumexp.default,
    _aten.view.default,
    _aten.expand.default,
    _aten.unsqueeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.softplus_backward.default,
    _aten.sigmoid_backward.default,
    _aten.tanh_backward.default,
}
_READS_MEMORY = {_aten.as_strided.default, _aten.view_as_complex.default, _aten.view.dtype}
_SHORT = 16  # the longest last dimension that counts as short
_LARGE = 2**13  # elements from which on it matters
_COPIED = 2**24  # elements of data that may be kept twice


def lay_out(graph: fx.Graph) -> None:
    """Order dimensions in memory by what operations do with them; a graph that writes stays."""
    if writes(graph):
        return
    for node in list(graph.nodes):
        if _transposed(node) and target_of(node.args[0]) is _MM:
            _multiply_untransposed(graph, node)
    moving = depending(graph)
    for node in list(graph.nodes):
        if node.target is _MM:
            _keep_columns(graph, node, moving)
    for node in list(graph.nodes):
        if node.op == "call_function" and pointwise(node):
            _long_last(graph, node)
    for node in list(graph.nodes):
        if node.target is _aten.exp.default:
            _as_softmax(graph, node)
    drop_unused(graph)


def _multiply_untransposed(graph: fx.Graph, node: fx.Node) -> None:
    """``(A B)^T`` as ``B^T A^T``, where one of them is a transpose itself."""
    product = cast("fx.Node", node.args[0])
    if len(product.users) > 1 or not any(map(_transposed, product.args)):
        return
    with graph.inserting_before(node):
        factors = tuple(_transpose(graph, x) for x in reversed(product.args))
        form = attempt(_MM, factors, {})
        if form is None or not _take(graph, node, form, any_layout=lambda user: True):
            return
        node.replace_all_uses_with(call(graph, _MM, factors, form=form))
    graph.erase_node(node)


def _transpose(graph: fx.Graph, matrix: Any) -> fx.Node:
    if _transposed(matrix):
        return matrix.args[0]
    return call(graph, _aten.t.default, (matrix,))


def _keep_columns(graph: fx.Graph, node: fx.Node, moving: set[fx.Node]) -> None:
    """Multiply by data that are kept column by column."""
    left, right = cast("tuple[fx.Node, fx.Node]", node.args)
    data = right.args[0] if _transposed(right) else right
    form = form_of(data)
    if data in moving or left not in moving or not isinstance(data, fx.Node) or form is None:
        return
    rows, columns = form.shape
    if rows <= columns or form.stride != (columns, 1) or rows * columns > _COPIED:
        return
    with graph.inserting_before(_after_inputs(graph, data)):
        contiguous = {"memory_format": torch.contiguous_format}
        kept = call(graph, _aten.clone.default, (_transpose(graph, data),), contiguous)
        factor = kept if right is not data else _transpose(graph, kept)
    node.args = (left, factor)


def _after_inputs(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A place after `node` and after all inputs of the graph."""
    after = node.next
    while after.op == "placeholder":
        after = after.next
    return after


def _long_last(graph: fx.Graph, node: fx.Node) -> None:
    """Compute with the longest dimension last, where the last is short and something repeats."""
    form = form_of(node)
    if form is None or len(form.shape) < 2 or prod(form.shape) < _LARGE:
        return
    last = len(form.shape) - 1
    longest = max(range(last), key=lambda d: form.shape[d])
    if not 1 < form.shape[last] <= _SHORT or form.stride[last] != 1:
        return
    if form.shape[longest] < 4 * _SHORT or not _repeats(node, form):
        return

    with graph.inserting_before(node):

        def turned(x: fx.Node) -> fx.Node:
            x = call(graph, _aten.expand.default, (x, list(form.shape)))
            return call(graph, _aten.transpose.int, (x, longest, last))

        args = map_arg(node.args, turned)
        across = attempt(node.target, args, node.kwargs)
        if across is None:
            return
        back = Form.of(empty(across).transpose(longest, last))
        if back.shape != form.shape or back == form or not _take(graph, node, back):
            return
        result = call(graph, node.target, args, node.kwargs, across)
        node.replace_all_uses_with(
            call(graph, _aten.transpose.int, (result, longest, last), form=back)
        )
    graph.erase_node(node)


def _as_softmax(graph: fx.Graph, node: fx.Node) -> None:
    """``exp(x - logsumexp(x))`` in one operation."""
    gap: Any = node.args[0]
    if target_of(gap) is not _aten.sub.Tensor or gap.kwargs:
        return
    x, total = gap.args
    if target_of(total) is not _aten.unsqueeze.default:
        return
    summed, dim = total.args
    form, before = form_of(x), form_of(node)
    if form is None or before is None or form.shape != before.shape or prod(form.shape) < _LARGE:
        return
    if target_of(summed) is not _aten.logsumexp.default or summed.args[0] is not x:
        return
    rank = len(form.shape)
    if [d % rank for d in summed.args[1]] != [dim % rank]:
        return
    order = sorted(range(rank), key=lambda d: -form.stride[d])
    steps = [
        (_aten.permute.default, order),
        (_aten._softmax.default, order.index(dim % rank), False),
        (_aten.permute.default, [order.index(d) for d in range(rank)]),
    ]
    with graph.inserting_before(node):
        for target, *options in steps:
            x = call(graph, target, (x, *options))
    after = form_of(x)
    if after is not None and (after == before or _take(graph, node, after)):
        node.replace_all_uses_with(x)


def _repeats(node: fx.Node, form: Form) -> bool:
    """Whether an operand is laid out otherwise than the result: a broadcast, for one."""
    forms = [form_of(x) for x in node.all_input_nodes]
    return None not in forms and any(x.stride != form.stride for x in forms if x and x.shape)


def _indifferent(node: fx.Node) -> bool:
    """Whether the operation is as fast on any layout of its operands, if it is the same of all."""
    return pointwise(node) or node.target in _ANY_LAYOUT


def _take(
    graph: fx.Graph,
    node: fx.Node,
    form: Form,
    any_layout: Callable[[fx.Node], bool] = _indifferent,
) -> bool:
    """Give `node` another layout, and all that follows; False, and nothing, where it cannot be."""
    found = {node: form}
    for user in graph.nodes:
        if user is node or not any(i in found for i in user.all_input_nodes):
            continue
        before = form_of(user)
        if before is None or user.target in _READS_MEMORY or not any_layout(user):
            return False
        after = attempt(user.target, user.args, user.kwargs, found)
        if after is None or (after.shape, after.dtype) != (before.shape, before.dtype):
            return False
        if after != before:
            found[user] = after
    for changed, after in found.items():
        changed.meta["form"] = after
    return True


def _transposed(node: Any) -> bool:
    if target_of(node) not in _TRANSPOSITIONS:
        return False
    after, before = form_of(node), form_of(node.args[0])
    if after is None or before is None or len(after.shape) != 2:
        return False
    return (after.shape, after.stride) == (before.shape[::-1], before.stride[::-1])
