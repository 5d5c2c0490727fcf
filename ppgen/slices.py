"""The gradient of what was cut out of one tensor, put together at once.

Each piece arrives inside zeros of the whole tensor's size, and the wholes are added up. Pieces that
do not overlap lie side by side instead.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import fx

from ppgen.forms import Form, call, form_of, target_of
from ppgen.simplify import drop_unused, writes

_aten = torch.ops.aten
_ADD, _PIECE = _aten.add.Tensor, _aten.slice_backward.default


class _Place(NamedTuple):
    start: int
    stop: int
    dim: int


def join_slices(graph: fx.Graph) -> None:
    """Put pieces side by side where they are added up; a graph that writes stays as it is."""
    if writes(graph):
        return
    for node in reversed(list(graph.nodes)):
        if _adds(node) and not (len(node.users) == 1 and _adds(next(iter(node.users)))):
            _join(graph, node)
    drop_unused(graph)


def _join(graph: fx.Graph, node: fx.Node) -> None:
    pieces: dict[_Place, list[fx.Node]] = {}
    others = []
    for leaf in _leaves(node):
        place = _place(leaf)
        if place is None or any(_clash(place, other) for other in pieces):
            others.append(leaf)
        else:
            pieces.setdefault(place, []).append(cast("fx.Node", leaf.args[0]))
    if len(pieces) < 2:
        return
    with graph.inserting_before(node):
        whole = _side_by_side(graph, pieces, form_of(node))
        total = functools.reduce(lambda a, b: call(graph, _ADD, (a, b)), [whole, *others])
    if form_of(total) == form_of(node):
        node.replace_all_uses_with(total)


def _adds(node: Any) -> bool:
    """Whether it is a sum of two tensors of its own form."""
    if target_of(node) is not _ADD or node.kwargs or form_of(node) is None:
        return False
    return all(form_of(x) == form_of(node) for x in node.args)


def _leaves(top: fx.Node) -> Iterator[fx.Node]:
    """The terms of a sum of sums, left to right, without recursion: a loop adds up thousands."""
    waiting: list[Any] = [top]
    while waiting:
        node = waiting.pop()
        if _adds(node) and (node is top or len(node.users) == 1):
            waiting.extend(reversed(node.args))
        else:
            yield node


def _place(leaf: fx.Node) -> _Place | None:
    """Which part of the whole it fills; None where it is no piece, or not in one piece."""
    if leaf.target is not _PIECE:
        return None
    _, shape, dim, start, stop, step = cast("tuple[Any, ...]", leaf.args)
    start, stop, step = slice(start, stop, step).indices(shape[dim])
    return _Place(start, stop, dim % len(shape)) if step == 1 and start < stop else None


def _clash(one: _Place, other: _Place) -> bool:
    """Whether they overlap and are not the same, or cut another dimension."""
    if one == other:
        return False
    return one.dim != other.dim or (one.start < other.stop and other.start < one.stop)


def _side_by_side(
    graph: fx.Graph, pieces: dict[_Place, list[fx.Node]], form: Form | None
) -> fx.Node:
    """The pieces in their order, with zeros between them where nothing is."""
    assert form is not None
    dim = next(iter(pieces)).dim
    parts, reached = [], 0

    def fill(stop: int) -> None:
        if stop > reached:
            shape = [*form.shape[:dim], stop - reached, *form.shape[dim + 1 :]]
            options = {"dtype": form.dtype, "device": form.device}
            parts.append(call(graph, _aten.full.default, (shape, 0.0), options))

    for place in sorted(pieces):
        fill(place.start)
        parts.append(functools.reduce(lambda a, b: call(graph, _ADD, (a, b)), pieces[place]))
        reached = place.stop
    fill(form.shape[dim])
    return call(graph, _aten.cat.default, (parts, dim))
