r"""Operations on a repeated tensor, done once and repeated afterwards.

A scale that all rows of a plate share arrives at its density expanded to as many rows, and
its logarithm is taken of every copy. In a recorded graph

.. math:: f(\mathrm{expand}(a), \mathrm{expand}(b)) = \mathrm{expand}(f(a, b))

for functions of each element, and what is the same along a dimension comes out of a sum over it:
:math:`\sum_n c\, x_n = c \sum_n x_n`. Terms and signs of smaller tensors come together first. The
operations that are left pass over the data; those of the parameters alone do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import fx
from torch.fx.node import map_arg

from ppgen.forms import (
    Form,
    attempt,
    call,
    empty,
    form_of,
    pointwise,
    shape_of,
    source_of,
    target_of,
)
from ppgen.simplify import drop_unused, is_zero, writes

_aten = torch.ops.aten
_SOFTMAX, _SOFTMAX_BACK = _aten._log_softmax.default, _aten._log_softmax_backward_data.default
_WHERE, _SCATTER = _aten.where.self, _aten.scatter_add.default
_PERMUTE, _RESHAPE = _aten.permute.default, _aten.reshape.default
_LINEAR = {  # derivatives: a slope times a function of what follows
    _aten.softplus_backward.default,
    _aten.sigmoid_backward.default,
    _aten.tanh_backward.default,
}
_ADD, _SUB = _aten.add.Tensor, _aten.sub.Tensor
_MUL, _DIV, _NEG = _aten.mul.Tensor, _aten.div.Tensor, _aten.neg.default
# A loop over time multiplies thousands of factors, each in many sums, and nests sums in products
# as deep: taken apart wholly, the work and the graph would grow with the square of its length.
_MOST, _DEEPEST = 20, 50


def shrink(graph: fx.Graph) -> None:
    """Let expansions follow the operations on what they expand; a graph that writes stays."""
    if writes(graph):
        return
    for node in list(graph.nodes):
        if node.op == "call_function" and (pointwise(node) or node.target is _SOFTMAX):
            _expand_later(graph, node)
    for node in list(graph.nodes):
        if node.target in (_ADD, _SUB):
            _join_terms(graph, node)
        elif node.target in (_MUL, _DIV):
            _negate_smaller(graph, node)
    drop_unused(graph)  # what is left over counts as a user
    for node in reversed(list(graph.nodes)):
        if node.target is _aten.sum.dim_IntList and node.args[1]:
            _sum_earlier(graph, node)
    drop_unused(graph)


def _expand_later(graph: fx.Graph, node: fx.Node) -> None:
    form = form_of(node)
    sources: Any = map_arg(node.args, source_of)
    if form is None or sources == node.args or not all(map(form_of, node.all_input_nodes)):
        return
    if node.target is _SOFTMAX:
        inner, dim, *rest = cast("tuple[fx.Node, int, Any]", sources)
        dim = dim % len(form.shape) - len(form.shape)
        shape = shape_of(inner)
        if len(shape) < -dim or shape[dim] != form.shape[dim]:
            return
        sources = (inner, dim, *rest)
    small = attempt(node.target, sources, node.kwargs)
    if small is None or small.dtype != form.dtype:  # of a number and a tensor the tensor's rules
        return
    if math.prod(small.shape) >= math.prod(form.shape):
        return
    repeated = form._replace(stride=empty(small).expand(form.shape).stride())
    if not all(_indifferent(user, node, repeated) for user in node.users):
        return
    with graph.inserting_before(node):
        once = call(graph, node.target, sources, node.kwargs, small)
        later = call(graph, _aten.expand.default, (once, list(form.shape)), form=repeated)
    node.replace_all_uses_with(later)
    graph.erase_node(node)


def _indifferent(user: fx.Node, node: fx.Node, repeated: Form) -> bool:
    """Whether `user` takes the repeated tensor for `node`, and its result is laid out the same."""
    form = form_of(user)
    if form is None or user.op != "call_function" or user.target is _aten.as_strided.default:
        return False
    return form == attempt(user.target, user.args, user.kwargs, {node: repeated})


def _join_terms(graph: fx.Graph, node: fx.Node) -> None:
    """``(x + a) - b`` as ``x + (a - b)``, where the terms are smaller than x."""
    inner, outer_term = _whole_and_smaller(node)
    x, inner_term = _whole_and_smaller(inner)
    if x is None or len(inner.users) > 1:
        return
    terms = [(inner.target, inner_term), (node.target, outer_term)]
    terms.sort(key=lambda term: not isinstance(term[1], fx.Node))
    (first, a), (second, b) = terms
    with graph.inserting_before(node):
        if isinstance(a, fx.Node):
            joint = call(graph, _ADD if first is second else _SUB, (a, b))
        else:
            joint = a + b if first is second else a - b
        args = (x, joint)
        form = attempt(first, args, {})
        if form != form_of(node):
            return
        node.replace_all_uses_with(call(graph, first, args, form=form))
    graph.erase_node(node)


def _whole_and_smaller(node: Any) -> tuple[Any, Any]:
    """Of a sum or difference what has its size, and the term that has not; else None twice."""
    if target_of(node) not in (_ADD, _SUB) or node.kwargs or form_of(node) is None:
        return None, None
    pairs = [node.args, node.args[::-1]][: 2 if node.target is _ADD else 1]
    for whole, term in pairs:
        if _same_kind(whole, node) and _smaller(term, node):
            return whole, source_of(term)
    return None, None


def _negate_smaller(graph: fx.Graph, node: fx.Node) -> None:
    """``-x * a`` as ``x * -a``, where a is smaller than x."""
    x, a = node.args
    if target_of(x) is not _NEG or not (isinstance(a, fx.Node) and _smaller(a, node)):
        return
    with graph.inserting_before(node):
        args = (cast("fx.Node", x).args[0], call(graph, _NEG, (source_of(a),)))
    if attempt(node.target, args, {}) == form_of(node):
        node.args = args


def _smaller(term: Any, node: fx.Node) -> bool:
    """Whether `term` is a number, or repeats something of fewer elements than the result."""
    if not isinstance(term, fx.Node):
        return isinstance(term, (int, float))
    if form_of(source_of(term)) is None:
        return False
    return shape_of(source_of(term)).numel() < shape_of(node).numel()


def _same_kind(a: Any, b: fx.Node) -> bool:
    form, other = form_of(a), form_of(b)
    if form is None or other is None:
        return False
    return (form.shape, form.dtype) == (other.shape, other.dtype)


def _sum_earlier(graph: fx.Graph, node: fx.Node) -> None:
    """Take out of a sum what is the same along its dimensions."""
    inner, dims, *keep = cast("tuple[Any, ...]", node.args)
    form, whole = form_of(node), form_of(inner)
    if form is None or whole is None or node.kwargs:
        return
    dims = sorted(d % len(whole.shape) for d in dims)
    if inner.op != "call_function":
        return
    with graph.inserting_before(node):
        sums = _Sums(graph, dims)
        pulled = sums.of(inner)
        if pulled is not None and not (keep and keep[0]):
            pulled = call(graph, _aten.squeeze.dims, (pulled, dims))
    if pulled is None or form_of(pulled) != form:
        return
    node.replace_all_uses_with(pulled)
    graph.erase_node(node)


class _Factor(NamedTuple):
    value: Any  # a node or a number
    below: bool = False  # it divides


class _Sums:
    """Sums over some dimensions, kept as dimensions of one."""

    def __init__(self, graph: fx.Graph, dims: list[int]) -> None:
        self.graph, self.dims = graph, dims
        self.depth = 0  # sums of products of sums

    def of(self, x: Any) -> fx.Node | None:
        """The sum of `x`; None where nothing comes out of it."""
        found: dict[fx.Node, fx.Node] = {}
        waiting = [x]  # in place of recursion: a loop over time adds up thousands of terms
        while waiting:
            terms = self._terms(waiting[-1])
            if missing := [term for term in terms if term not in found]:
                waiting.extend(reversed(missing))
                continue
            node = waiting.pop()
            if terms:
                found[node] = call(self.graph, _ADD, tuple(found[term] for term in terms))
            elif (pulled := self._term(node)) is not None:
                found[node] = pulled
            else:
                return None
        return found[x]

    def _terms(self, x: fx.Node) -> tuple[Any, ...]:
        """Of a sum of two tensors of its own form that nothing else uses; else none."""
        if target_of(x) is not _ADD or x.kwargs or len(x.users) != 1:
            return ()
        return x.args if all(_same_kind(a, x) for a in x.args) else ()

    def _term(self, x: fx.Node) -> fx.Node | None:
        if x.op != "call_function" or x.kwargs or self.depth > _DEEPEST:
            return None
        if x.target is _WHERE and len(x.users) == 1:
            return self._chosen(x)
        if x.target is _SCATTER and len(x.users) == 1:
            return self._scattered(x)
        if x.target in _LINEAR and self._still(x.args[1], x):
            slope, at, *rest = cast("tuple[Any, ...]", x.args)
            return call(self.graph, x.target, (self.total(slope), source_of(at), *rest))
        if x.target is not _SOFTMAX_BACK or len(x.users) != 1:
            factors = list(islice(self._factors(x), _MOST + 1))
            return self._product(factors, x) if len(factors) <= _MOST else None
        args = cast("tuple[Any, ...]", x.args)
        output = source_of(args[1])
        if args[2] % len(shape_of(x)) in self.dims or not self._still(output, x):
            return None
        small = self.total(args[0])
        if shape_of(output) != shape_of(small):
            return None
        return call(self.graph, _SOFTMAX_BACK, (small, output, *args[2:]))

    def _chosen(self, x: fx.Node) -> fx.Node | None:
        """Of what is zero under a mask, as behind a clamp, where the mask does not change."""
        mask, a, b = x.args
        if not (self._still(mask, x) and (is_zero(a) or is_zero(b))):
            return None
        sums = [v if is_zero(v) and not shape_of(v) else self.total(v) for v in (a, b)]
        return call(self.graph, _WHERE, (source_of(mask), *sums))

    def _scattered(self, x: fx.Node) -> fx.Node | None:
        """What is picked from the same numbers along the sum is added up where it came from."""
        zeros, dim, index, values = cast("tuple[Any, ...]", x.args)
        shape, form = shape_of(x), form_of(x)
        dim %= len(shape)
        if not is_zero(zeros) or dim in self.dims or shape_of(index) != shape_of(values):
            return None
        rest = [d for d in range(len(shape)) if d not in self.dims and d != dim]
        if form is None or any(shape_of(index)[d] != shape[d] for d in (*rest, *self.dims)):
            return None
        together = [*rest, *self.dims, dim]
        size = [shape[d] for d in rest]
        flat = [
            call(self.graph, _RESHAPE, (call(self.graph, _PERMUTE, (n, together)), [*size, -1]))
            for n in (index, values)
        ]
        kind = {"dtype": form.dtype, "device": form.device}
        base = call(self.graph, _aten.full.default, ([*size, shape[dim]], 0.0), kind)
        found = call(self.graph, _SCATTER, (base, len(rest), *flat))
        axes = [*rest, dim]
        found = call(self.graph, _PERMUTE, (found, [axes.index(d) for d in sorted(axes)]))
        for d in self.dims:
            found = call(self.graph, _aten.unsqueeze.default, (found, d))
        return found

    def total(self, x: Any) -> fx.Node:
        """The sum of `x`, with all that comes out of it taken out."""
        self.depth += 1
        pulled = self.of(x)
        self.depth -= 1
        return pulled or call(self.graph, _aten.sum.dim_IntList, (x, self.dims, True))

    def _factors(self, x: Any) -> Iterator[_Factor]:
        """Whose product `x` is; what has other uses is taken apart where that costs nothing."""
        waiting = [x]
        while waiting:
            x = waiting.pop()
            target, args = target_of(x), cast("Any", getattr(x, "args", None))
            if isinstance(x, _Factor):
                yield x
            elif getattr(x, "kwargs", None):
                yield _Factor(x)
            elif target is _NEG:
                waiting += [_Factor(-1), args[0]]
            elif target in (_aten.mul.Scalar, _MUL, _DIV):
                a, b = args
                if target is _MUL and self._still(a, x) and not self._still(b, x):
                    a, b = b, a
                if not _same_kind(a, x):
                    yield _Factor(x)
                elif self._still(b, x) and b != 0:
                    waiting += [_Factor(b, target is _DIV), a]
                elif len(x.users) == 1 and _same_kind(b, x):
                    waiting += [_Factor(b, below=True) if target is _DIV else b, a]
                else:
                    yield _Factor(x)
            else:
                yield _Factor(x)

    def _product(self, factors: list[_Factor], x: fx.Node) -> fx.Node | None:
        """The sum of the product of those that change, times the others."""
        moves = [not self._still(f.value, x) for f in factors]
        if not any(moves):  # then one of them is added up
            whole = [not f.below and _same_kind(f.value, x) for f in factors]
            moves[whole.index(True) if True in whole else 0] = True
        moving = [f for f, moved in zip(factors, moves, strict=True) if moved]
        still = [f for f, moved in zip(factors, moves, strict=True) if not moved]
        if not still or moving[0].below or not _same_kind(moving[0].value, x):
            return None
        product = moving[0].value
        for value, below in moving[1:]:
            product = call(self.graph, _DIV if below else _MUL, (product, value))
        result, number = self.total(product), 1
        for value, below in still:
            if isinstance(value, fx.Node):
                result = call(self.graph, _DIV if below else _MUL, (result, source_of(value)))
            else:
                number = number / value if below else number * value
        if number == -1:
            return call(self.graph, _NEG, (result,))
        return result if number == 1 else call(self.graph, _MUL, (result, number))

    def _still(self, a: Any, product: fx.Node) -> bool:
        """Whether `a` is the same along the dimensions of the sum."""
        if not isinstance(a, fx.Node):
            return isinstance(a, (int, float))
        if form_of(source_of(a)) is None:
            return False
        shape, count = shape_of(source_of(a)), len(shape_of(product))
        return all(d - count < -len(shape) or shape[d - count] == 1 for d in self.dims)
