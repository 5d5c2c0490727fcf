r"""Operations on a repeated tensor, done once and repeated afterwards.

A scale that all rows of a plate share arrives at its density expanded to as many rows, and
its logarithm is taken of every copy. In a recorded graph

.. math:: f(\mathrm{expand}(a), \mathrm{expand}(b)) = \mathrm{expand}(f(a, b))

for functions of each element, and what is the same along a dimension comes out of a sum over it:
:math:`\sum_n c\, x_n = c \sum_n x_n`. The operations that are left pass over the data; those of the
parameters alone do not.

The gradient of :math:`X \beta` arrives as the transpose of :math:`X^T G^T`, which takes a library
up to twenty times as long as :math:`G X`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ppgen.simplify import Form, mutates

_aten = torch.ops.aten
_SOFTMAX, _SOFTMAX_BACK = _aten._log_softmax.default, _aten._log_softmax_backward_data.default
_PRODUCTS = {_aten.mul.Tensor, _aten.div.Tensor}
_TRANSPOSITIONS = {_aten.permute.default, _aten.transpose.int, _aten.t.default}
_SCALED = {_aten.neg.default, _aten.mul.Scalar}


def shrink(graph: fx.Graph) -> None:
    """Let expansions follow the operations on what they expand; a graph that writes stays."""
    if any(mutates(n) for n in graph.nodes):
        return
    for node in list(graph.nodes):
        if node.op == "call_function" and (_pointwise(node) or node.target is _SOFTMAX):
            _expand_later(graph, node)
    for node in reversed(list(graph.nodes)):
        if node.target is _aten.sum.dim_IntList and node.args[1]:
            _sum_earlier(graph, node)
        elif _transposed(node) and _target(node.args[0]) is _aten.mm.default:
            _multiply_untransposed(graph, node)
    graph.eliminate_dead_code()


def _expand_later(graph: fx.Graph, node: fx.Node) -> None:
    form = _form(node)
    sources: Any = map_arg(node.args, _source)
    if form is None or sources == node.args or not all(map(_form, node.all_input_nodes)):
        return
    if node.target is _SOFTMAX:
        inner, dim, *rest = cast("tuple[fx.Node, int, Any]", sources)
        dim = dim % len(form.shape) - len(form.shape)
        shape = _shape(inner)
        if len(shape) < -dim or shape[dim] != form.shape[dim]:
            return
        sources = (inner, dim, *rest)
    small = _attempt(node.target, sources, node.kwargs)
    if small is None or small.dtype != form.dtype:  # of a number and a tensor the tensor's rules
        return
    if math.prod(small.shape) >= math.prod(form.shape):
        return
    repeated = form._replace(stride=_empty(small).expand(form.shape).stride())
    if not all(_indifferent(user, node, repeated) for user in node.users):
        return
    with graph.inserting_before(node):
        once = _call(graph, node.target, sources, node.kwargs, small)
        later = _call(graph, _aten.expand.default, (once, list(form.shape)), {}, repeated)
    node.replace_all_uses_with(later)
    graph.erase_node(node)


def _indifferent(user: fx.Node, node: fx.Node, repeated: Form) -> bool:
    """Whether `user` takes the repeated tensor for `node`, and its result is laid out the same."""
    form = _form(user)
    if form is None or user.op != "call_function" or user.target is _aten.as_strided.default:
        return False
    return form == _attempt(user.target, user.args, user.kwargs, {node: repeated})


def _sum_earlier(graph: fx.Graph, node: fx.Node) -> None:
    """Take out of a sum what is the same along its dimensions."""
    inner, dims, *keep = cast("tuple[Any, ...]", node.args)
    form, whole = _form(node), _form(inner)
    if form is None or whole is None or node.kwargs:
        return
    dims = sorted(d % len(whole.shape) for d in dims)
    if inner.target not in {*_PRODUCTS, *_SCALED, _aten.add.Tensor, _SOFTMAX_BACK}:
        return
    with graph.inserting_before(node):
        sums = _Sums(graph, dims)
        pulled = sums.of(inner)
        if pulled is not None and not (keep and keep[0]):
            pulled = sums.call(_aten.squeeze.dims, (pulled, dims))
    if pulled is None or _form(pulled) != form:
        return
    node.replace_all_uses_with(pulled)
    graph.erase_node(node)


def _multiply_untransposed(graph: fx.Graph, node: fx.Node) -> None:
    """``(A^T B^T)^T`` as ``B A``."""
    product: Any = node.args[0]
    if len(product.users) > 1 or not all(map(_transposed, product.args)):
        return
    a, b = (factor.args[0] for factor in product.args)
    found = _attempt(_aten.mm.default, (b, a), {})
    if found is None or not all(_indifferent(user, node, found) for user in node.users):
        return
    with graph.inserting_before(node):
        node.replace_all_uses_with(_call(graph, _aten.mm.default, (b, a), {}, found))
    graph.erase_node(node)


class _Sums:
    """Sums over some dimensions, kept as dimensions of one, of what has no other use."""

    def __init__(self, graph: fx.Graph, dims: list[int]) -> None:
        self.graph, self.dims = graph, dims

    def of(self, x: Any) -> fx.Node | None:
        """The sum of `x`; None where nothing comes out of it."""
        if len(x.users) > 1 or x.op != "call_function" or x.kwargs:
            return None
        target, args = x.target, x.args
        if target in _SCALED:
            inner = self.of(args[0])
            return None if inner is None else self.call(target, (inner, *args[1:]))
        if target is _aten.add.Tensor:
            if not all(self._whole(a, x) for a in args):
                return None
            left, right = map(self.of, args)
            return None if left is None or right is None else self.call(target, (left, right))
        if target is _SOFTMAX_BACK:
            gradient, output = args[0], _source(args[1])
            if args[2] % len(_shape(x)) in self.dims or not self._still(output, x):
                return None
            small = self.total(gradient)
            if _shape(output) != _shape(small):
                return None
            return self.call(target, (small, output, *args[2:]))
        if target in _PRODUCTS and self._whole(args[0], x) and self._still(args[1], x):
            return self.call(target, (self.total(args[0]), _source(args[1])))
        if target is _aten.mul.Tensor and self._whole(args[1], x) and self._still(args[0], x):
            return self.call(target, (_source(args[0]), self.total(args[1])))
        return None

    def total(self, x: Any) -> fx.Node:
        """The sum of `x`, with all that comes out of it taken out."""
        return self.of(x) or self.call(_aten.sum.dim_IntList, (x, self.dims, True))

    def _whole(self, a: Any, product: fx.Node) -> bool:
        form, whole = _form(a), _form(product)
        if form is None or whole is None:
            return False
        return (form.shape, form.dtype) == (whole.shape, whole.dtype)

    def _still(self, a: Any, product: fx.Node) -> bool:
        """Whether `a` is the same along the dimensions of the sum."""
        if not isinstance(a, fx.Node):
            return isinstance(a, (int, float))
        if _form(_source(a)) is None:
            return False
        shape, count = _shape(_source(a)), len(_shape(product))
        return all(d - count < -len(shape) or shape[d - count] == 1 for d in self.dims)

    def call(self, target: Any, args: tuple[Any, ...]) -> fx.Node:
        return _call(self.graph, target, args, {}, _attempt(target, args, {}))


def _pointwise(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def _target(node: Any) -> Any:
    return getattr(node, "target", None)


def _transposed(node: Any) -> bool:
    if _target(node) not in _TRANSPOSITIONS:
        return False
    after, before = _form(node), _form(node.args[0])
    if after is None or before is None or len(after.shape) != 2:
        return False
    return (after.shape, after.stride) == (before.shape[::-1], before.stride[::-1])


def _source(value: Any) -> Any:
    """What an expanded tensor repeats."""
    while isinstance(value, fx.Node) and value.target is _aten.expand.default:
        value = value.args[0]
    return value


def _form(node: Any) -> Form | None:
    return getattr(node, "meta", {}).get("form")


def _shape(node: Any) -> torch.Size:
    form = _form(node)
    assert form is not None
    return form.shape


def _empty(form: Form | None) -> Tensor:
    """A tensor of that form; its numbers are what was there."""
    assert form is not None
    return torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device=form.device)


def _attempt(
    target: Any,
    args: Any,
    kwargs: Any,
    swapped: Mapping[fx.Node, Form] | None = None,
) -> Form | None:
    """The form of a result; some nodes may be given other forms.

    Found by doing it: tensors without memory (``device="meta"``) import torch's compiler.
    """
    forms = swapped or {}
    tensor = lambda n: _empty(forms.get(n, _form(n)))  # noqa: E731
    try:
        result = target(*map_arg(args, tensor), **map_arg(kwargs, tensor))
    except (RuntimeError, NotImplementedError):
        return None
    return Form.of(result) if isinstance(result, Tensor) else None


def _call(graph: fx.Graph, target: Any, args: Any, kwargs: Any, form: Form | None) -> fx.Node:
    node = graph.call_function(target, args, dict(kwargs))
    node.meta["form"] = form
    return node
