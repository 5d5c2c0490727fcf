"""Recording a function of tensors once, as a graph of tensor operations that is then replayed.

Every tensor that the function reads from outside (data, parameters, constants of the user's) is
an input of the graph, found by identity: an optimizer's step in place and a tensor put in another
one's place are both seen. What does not depend on the point is computed once and kept until an
input changes.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import getitem
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.func import functionalize, grad_and_value, vmap
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from ppgen.allocation import keep_freed_memory
from ppgen.compiling import unchecked
from ppgen.expansion import shrink
from ppgen.forms import depending, form_of
from ppgen.inputs import Getter
from ppgen.layout import lay_out
from ppgen.quick_calls import quick
from ppgen.simplify import drop_unused, tidy, writes
from ppgen.slices import join_slices
from ppgen.tape import Unrecordable, Unwritten, trace
from ppgen.writing import writable

Batch = Callable[[Callable[..., Any]], Callable[..., Any]]  # of a point -> of many


@dataclass
class Recording:
    """A recorded function of ``(z, *inputs)``."""

    prefix: fx.GraphModule  # inputs -> what does not depend on z
    body: Callable[..., Any]  # (z, *kept values) -> results
    getters: list[Getter]
    signature: tuple[Any, ...]  # shapes and dtypes of the inputs
    nodes: int
    constants: list[tuple[Getter, Tensor, int]]  # baked in, each with its version
    # value and gradient of a Slope, each alone, once they are asked for; None where they cannot be
    halves: dict[Literal[0, 1], fx.GraphModule] | None = None
    by_default: bool = True  # whether types in it depend on torch's default type
    seconds: float = 0.0  # that it took
    _seen: list[Tensor] = field(default_factory=list)
    _versions: list[int] = field(default_factory=list)
    _kept: Any = None
    _calls: dict[str, Callable[..., Any]] = field(default_factory=dict)  # quick ways into graphs

    def fits(self) -> bool:
        """Whether the inputs still have the shapes and types of the recording."""
        try:
            return _signature([g() for g in self.getters]) == self.signature and all(
                get() is tensor and tensor._version == version
                for get, tensor, version in self.constants
            )
        except (KeyError, ValueError):
            return False

    def rebound(self, swap: Mapping[int, Tensor]) -> Recording | None:
        """The same recording with other tensors in the place of some inputs, where it can be."""
        if any(id(tensor) in swap for _, tensor, _ in self.constants):
            return None
        getters = [
            functools.partial(_constant, swap[id(t)]) if id(t) in swap else getter
            for getter, t in ((g, g()) for g in self.getters)
        ]
        return dataclasses.replace(self, getters=getters, seconds=0.0, _seen=[], _kept=None)

    def __call__(self, z: Tensor) -> Any:
        return self._called("body", self.body)(z, *self.kept())

    def half(self, z: Tensor, which: Literal[0, 1]) -> Tensor:
        """Of a :class:`Slope` the value alone, or the gradient alone."""
        return self.half_now(which)(z)

    def half_now(self, which: Literal[0, 1]) -> Callable[[Tensor], Tensor]:
        """That half for the inputs as they are now; out of both where only both can be had."""
        alone = self.alone(which)
        if alone is None:
            return lambda z: self(z)[which]
        call, kept = self._called(f"half {which}", alone), self.kept()
        return lambda z: call(z, *kept)

    def alone(self, which: Literal[0, 1]) -> fx.GraphModule | None:
        """The body of that half; None where only both can be had."""
        if self.halves is None or not isinstance(self.body, fx.GraphModule):
            return None
        if which not in self.halves:
            self.halves[which] = _alone_in(self.body, which)
        return self.halves[which]

    def kept(self) -> Any:
        """What does not depend on z, for the inputs as they are now."""
        inputs = [g() for g in self.getters]
        versions = [t._version for t in inputs]
        if (
            self._kept is None
            or versions != self._versions
            or any(a is not b for a, b in zip(inputs, self._seen, strict=True))
        ):
            self._kept = self._called("prefix", self.prefix)(*inputs)
            self._seen, self._versions = inputs, versions
        return self._kept

    def _called(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if name not in self._calls:
            is_graph = isinstance(function, fx.GraphModule)
            self._calls[name] = quick(function) if is_graph else function
        return self._calls[name]


def _constant(tensor: Tensor) -> Tensor:
    return tensor


def _signature(tensors: list[Tensor]) -> tuple[Any, ...]:
    return tuple((t.shape, t.dtype, t.device) for t in tensors)


class Slope:
    """A function of a point whose value and gradient are asked for."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, point: Tensor) -> Tensor:
        return self.function(point)


def over_rows(single: Callable[[Tensor], Any], batch: Batch) -> Callable[[Tensor], Any]:
    """`single` of each row, by `batch`; of a :class:`Slope`, values (N,) and gradients (N, D).

    Rows do not touch each other: the gradient of the sum has each row's gradient. (The gradient
    of ``torch.func`` does the same and imports the compiler, which takes a second.)
    """
    if not isinstance(single, Slope):
        return batch(single)
    if batch is one_by_one:  # each gradient before the next run, which may write to what it saved
        each = over_rows(single, _alone)
        return lambda rows: tuple(map(torch.cat, zip(*map(each, rows.split(1)), strict=True)))

    def with_slope(rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            values = batch(single)(rows)
            slope = None
            if values.requires_grad:
                # with a graph of its own it sums in new tensors: the recording writes to none
                (slope,) = torch.autograd.grad(
                    values.sum(), rows, create_graph=True, allow_unused=True
                )
        return values.detach(), torch.zeros_like(rows) if slope is None else slope.detach()

    return with_slope


def one_by_one(single: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """``vmap`` by a loop: for what vmap cannot do, and to check it."""

    def run(rows: Tensor) -> Any:
        return tree_map(lambda *leaves: torch.stack(leaves), *[single(row) for row in rows])

    return run


def _alone(single: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda rows: tree_map(lambda leaf: leaf[None], single(rows[0]))


def record(
    single: Callable[[Tensor], Any],
    rows: Tensor,
    inputs: list[tuple[Getter, Tensor]],
    compile: bool = False,
) -> Recording:
    """Record `single`, or value and gradient of a :class:`Slope`, over all rows at once.

    Args:
        single: a function of one point, which reads tensors from outside too.
        rows: points of the shape to record for, ``(N, D)``.
        inputs: the tensors from outside, each with where to find it later. Where Python looks
            at one of their values (a branch on the data), their values belong to the recording.
        compile: hand the graph to ``torch.compile``.

    Raises:
        Unrecordable: where Python looks at the point, or an operation has no batched form.
        ValueError: where the function draws random numbers.
    """
    keep_freed_memory()
    tensors = [t for _, t in inputs]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # some operations are looped over the rows: nothing that the user could change
            warnings.filterwarnings("ignore", "There is a performance drop")
            traced, looked = _trace(single, rows, tensors)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        if "random operation" in str(error):
            raise ValueError(_NOISE) from error
        raise Unrecordable(reason(error)) from error
    if any(torch.Tag.nondeterministic_seeded in _tags(n) for n in traced.graph.nodes):
        raise ValueError(_NOISE)
    for improve in (tidy, shrink, join_slices, tidy, lay_out, tidy):
        improve(traced.graph)
    prefix, body = _split(traced)
    nodes = sum(n.op == "call_function" for n in body.graph.nodes)
    return Recording(
        prefix=prefix,
        body=torch.compile(unchecked(body), dynamic=False) if compile else body,
        getters=[g for g, _ in inputs],
        signature=_signature(tensors),
        nodes=nodes,
        constants=[(g, t, t._version) for g, t in inputs] if looked else [],
        by_default=any(map(_typed_by_default, traced.graph.nodes)),
        halves={} if isinstance(single, Slope) and not (compile or writes(body.graph)) else None,
    )


def _typed_by_default(node: fx.Node) -> bool:
    """Whether a result has torch's default type, as the logarithm of a whole number has."""
    form = form_of(node)
    if node.op != "call_function" or node.target is getitem or node.kwargs.get("dtype"):
        return False
    if form is None and not node.users:  # a check, which gives nothing
        return False
    kinds = [x and x.dtype.is_floating_point for x in map(form_of, node.all_input_nodes)]
    return not any(kinds) and (form is None or form.dtype.is_floating_point)


def _alone_in(body: fx.GraphModule, which: int) -> fx.GraphModule:
    graph = fx.Graph()
    result: Any = graph.graph_copy(body.graph, {})
    graph.output(result[which])
    drop_unused(graph)
    return Unwritten(body, graph)


def _trace(
    single: Callable[[Tensor], Any], rows: Tensor, tensors: list[Tensor]
) -> tuple[fx.GraphModule, bool]:
    """The graph over all rows; without writes, where it has any, and with slow writes last."""
    try:
        return _trace_with(vmap, single, rows, tensors)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return _trace_with(lambda f: vmap(writable(f)), single, rows, tensors)


def _trace_with(
    batch: Batch, single: Callable[[Tensor], Any], rows: Tensor, tensors: list[Tensor]
) -> tuple[fx.GraphModule, bool]:
    traced, looked = trace(over_rows(single, batch), rows, tensors)
    if not writes(traced.graph):
        return traced, looked

    def value_and_slope(point: Tensor) -> tuple[Tensor, Tensor]:
        slope, value = grad_and_value(single)(point)
        return value, slope

    # functional forms have no derivatives: they come below those, which torch.func alone can do
    function = batch(value_and_slope if isinstance(single, Slope) else single)
    return trace(functionalize(function, remove="mutations"), rows, tensors)


_NOISE = (
    "the story draws random numbers outside pyro.sample (torch.rand, dropout, ...), or in a site "
    "that poutine.block hides: its log density would be noise; draw them in a sample site that "
    "can be seen, or call .eval() on the module"
)


def _tags(node: fx.Node) -> Any:
    return getattr(node.target, "tags", ())


def reason(error: Exception) -> str:
    """Why something could not be recorded, in the user's words."""
    text = str(error).strip().split("\n")[0]
    lowered = text.lower()
    if any(
        s in lowered
        for s in (
            "data-dependent",
            "value out of a tracing",
            "item()",
            "control flow",
            "boolean value",
        )
    ):
        return "it looks at a value that it has drawn or computed (a branch, .item(), float(...))"
    return f"{type(error).__name__}: {text[:300]}"


def _split(traced: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Part the graph into what depends on the first input and what does not."""
    graph = traced.graph
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    moving = depending(graph) - {graph.output_node()}
    if writes(graph):
        moving |= {n for n in graph.nodes if n.op == "call_function"}
    still = [n for n in graph.nodes if n not in moving and n.op not in ("output",)]
    needed = [n for n in still if any(user in moving or user.op == "output" for user in n.users)]
    first, second = fx.Graph(), fx.Graph()
    old_to_first: dict[fx.Node, fx.Node] = {}
    for node in still:
        old_to_first[node] = first.node_copy(node, lambda n: old_to_first[n])
    first.output(tuple(old_to_first[n] for n in needed))
    old_to_second = {placeholders[0]: second.placeholder("z")}
    for index, node in enumerate(needed):
        old_to_second[node] = second.placeholder(f"kept_{index}")
    for node in graph.nodes:
        if node in moving and node is not placeholders[0]:
            old_to_second[node] = second.node_copy(node, lambda n: old_to_second[n])
        elif node.op == "output":
            second.output(map_arg(node.args[0], lambda n: old_to_second[n]))
    drop_unused(first)
    return Unwritten(traced, first), Unwritten(traced, second)
