"""What the tensors of a recorded graph are like, and what operations make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

_aten = torch.ops.aten


class Form(NamedTuple):
    """What a tensor is like; each node that stands for a tensor has one in its ``meta``."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    stride: tuple[int, ...]  # a view of what is laid out otherwise fails, or reads other numbers

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        strided = tensor.layout == torch.strided
        stride = tensor.stride() if strided else ()
        return cls(tensor.shape, tensor.dtype, tensor.device, stride)


def form_of(node: Any) -> Form | None:
    """The form of the tensor that a node stands for; None where it stands for something else."""
    return getattr(node, "meta", {}).get("form")


def shape_of(node: Any) -> torch.Size:
    """The shape of the tensor that a node stands for."""
    form = form_of(node)
    assert form is not None
    return form.shape


def target_of(node: Any) -> Any:
    """The operation of a node; None of what is no node."""
    return getattr(node, "target", None)


def source_of(value: Any) -> Any:
    """What an expanded tensor repeats."""
    while isinstance(value, fx.Node) and value.target is _aten.expand.default:
        value = value.args[0]
    return value


def pointwise(node: fx.Node) -> bool:
    """Whether each element of the result has its own arguments, and always the same."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def depending(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on the first input, itself among them."""
    first = next(iter(graph.nodes))
    found = {first}
    for node in graph.nodes:
        if any(i in found for i in node.all_input_nodes):
            found.add(node)
    return found


def empty(form: Form | None) -> Tensor:
    """A tensor of that form; its numbers are what was there, and zero where they may be indices."""
    assert form is not None
    made = torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device=form.device)
    return made if made.is_floating_point() or made.is_complex() else made.zero_()


def attempt(
    target: Any,
    args: Any,
    kwargs: Any,
    swapped: Mapping[fx.Node, Form] | None = None,
) -> Form | None:
    """The form of a result; some nodes may be given other forms.

    Found by doing it: tensors without memory (``device="meta"``) import torch's compiler.
    """
    forms = swapped or {}
    tensor = lambda n: empty(forms.get(n, form_of(n)))  # noqa: E731
    try:
        result = target(*map_arg(args, tensor), **map_arg(kwargs, tensor))
    except (RuntimeError, NotImplementedError, IndexError):
        return None
    return Form.of(result) if isinstance(result, Tensor) else None


def call(
    graph: fx.Graph,
    target: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    form: Form | None = None,
) -> fx.Node:
    """A new operation in the graph; its form is found out where it is not known yet."""
    options = dict(kwargs or {})
    node = graph.call_function(target, args, options)
    node.meta["form"] = form or attempt(target, args, options)
    return node
