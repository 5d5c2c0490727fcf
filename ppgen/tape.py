"""Writing down, operation by operation, what a function of tensors does.

``torch.fx``'s own tracer, ``make_fx``, keeps a fake tensor for every operation: at 1 to 2 ms each
that is most of the time that a short run takes. A tape needs some 30 us.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from ppgen.forms import Form
from ppgen.lean import Lean
from ppgen.simplify import mutates_schema

_aten = torch.ops.aten
_EXPORTS = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__}
_LOOK = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class Unrecordable(Exception):
    """The function cannot be recorded; the message says why, in the user's words."""


def trace(
    function: Callable[[Tensor], Any], z: Tensor, inputs: list[Tensor]
) -> tuple[fx.GraphModule, bool]:
    """The operations of ``function(z)`` as a graph of ``(z, *inputs)``.

    Other tensors from outside become constants of the graph.

    Returns:
        The graph, and whether Python looked at a value that does not depend on `z`.

    Raises:
        Unrecordable: where Python looks at a value that does.
    """
    tape = _Tape([z, *inputs])
    tape.moving.add(tape.nodes[z])
    with tape, Exports(tape.look), Lean():
        result = function(z)
    return tape.module(result), tape.exported or bool(tape.looks)


def trace_step(
    function: Callable[[], Any], inputs: list[Tensor]
) -> tuple[fx.GraphModule, list[float]]:
    """The operations of a step that reads `inputs` alone, random numbers among them.

    Numbers at which Python looks on the way (a check of the data) are results too: a replay in
    which they differ from what the trace saw would have gone another way.

    Returns:
        The graph, ``inputs -> (results, numbers looked at)``, and the numbers that the trace saw.

    Raises:
        Unrecordable: where the step writes to an input, reads another tensor, or looks at more
            than a number.
    """
    tape = _Tape(inputs, closed=True)
    with tape, Exports(tape.look):
        result = function()
    return tape.module((result, [node for node, _ in tape.looks])), [v for _, v in tape.looks]


class Unwritten(fx.GraphModule):
    """A graph with its constants, whose Python is written when it is first called.

    Most graphs are only read: of a loop of a thousand steps each writing takes half a second.
    """

    def recompile(self) -> Any:
        type(self).forward = Unwritten.forward

    def forward(self, *args: Any) -> Any:
        super().recompile()
        return type(self).forward(self, *args)


class Mode(TorchDispatchMode):
    """A mode whose first use does not import the compiler, which takes a second."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Exports(TorchFunctionMode):
    """Tells which tensors become arrays or lists, which is no operation of torch's."""

    def __init__(self, tell: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _EXPORTS:
            self.tell(args[0])
        return func(*args, **(kwargs or {}))


class _Tape(Mode):
    def __init__(self, inputs: list[Tensor], *, closed: bool = False) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.root = torch.nn.Module()  # holds the constants
        self.nodes: Any = WeakTensorKeyDictionary()
        self.sharing: dict[int, Any] = {}  # of each storage, the tensors on it
        self.looks: list[tuple[fx.Node, Any]] = []
        self.exported = False  # whether Python has had values as arrays or lists
        self.moving: set[fx.Node] = set()  # what depends on the point
        for index, tensor in enumerate(inputs):
            self._know(tensor, self.graph.placeholder(f"input_{index}"))
        self.closed = closed  # whether nothing but the inputs may be read, and they not written
        self.given = set(self.sharing)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.closed:
            self._refuse_outside(func, args, kwargs)
        given = tree_map_only(Tensor, self.node, (args, kwargs))
        moves = self._moves(given)
        sight = _looked_at(func, args)
        if sight is not None and self._moves(tree_map_only(Tensor, self.node, sight)):
            raise Unrecordable(
                "it looks at a value that it has drawn or computed (a branch, .item(), float(...))"
            )
        result = func(*args, **kwargs)
        if sight is not None:
            self.looks.append((given[0][0], result))
        if result is not None and not tree_any(_is_tensor, result):
            return result
        node = self.graph.call_function(self._target(func, args), *given)
        if moves:
            self.moving.add(node)
        if isinstance(result, Tensor):
            self._know(result, node)
        elif isinstance(result, (tuple, list)):
            for index, part in enumerate(result):
                if isinstance(part, Tensor):
                    item = self.graph.call_function(getitem, (node, index))
                    self._know(part, item)
                    if moves:
                        self.moving.add(item)
        return result

    def module(self, result: Any) -> fx.GraphModule:
        """The graph with these results, tensors or nodes."""
        self.graph.output(tree_map_only(Tensor, self.node, result))
        return Unwritten(self.root, self.graph)

    def _refuse_outside(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func is not _aten.lift_fresh.default and not all(t in self.nodes for t in tensors):
            raise Unrecordable("it reads a tensor that is no parameter, buffer or argument")
        strided = [t for t in tensors if t.layout == torch.strided]
        places = {t.untyped_storage()._cdata for t in strided}
        if mutates_schema(func) and places & self.given:
            raise Unrecordable("it writes to its parameters, buffers or arguments")
        if func is not _aten._local_scalar_dense.default and _looked_at(func, args) is not None:
            raise Unrecordable("it looks at more than a number")

    def look(self, _: Tensor) -> None:
        """Python has a value of the data (those of the point it cannot have: vmap refuses)."""
        if self.closed:
            raise Unrecordable("it turns a tensor into an array or a list")
        self.exported = True

    def _target(self, func: Any, args: tuple[Any, ...]) -> Any:
        """The operation to write down for `func`, which makes a new tensor where that is all."""
        if func is _aten.lift_fresh.default:
            # what a number of Python's became may be written to: each replay takes its own copy
            return _aten.lift_fresh_copy.default
        packet, overload = func.name().removeprefix("aten::").partition(".")[::2]
        if not (mutates_schema(func) and packet.endswith("_") and isinstance(args[0], Tensor)):
            return func
        if args[0].layout != torch.strided:
            return func
        alone = len(self.sharing[args[0].untyped_storage()._cdata]) == 1
        made = self.nodes[args[0]].op == "call_function"
        kinds = {t.dtype for t in tree_leaves(args) if isinstance(t, Tensor)} - {torch.bool}
        pure = getattr(getattr(_aten, packet[:-1], None), overload or "default", None)
        # one kind of number: between two, writing keeps the first where a new tensor gets the wider
        fitting = pure is not None and _arguments(pure) == _arguments(func)
        return pure if alone and made and len(kinds) < 2 and fitting else func

    def _moves(self, nodes: Any) -> bool:
        return any(isinstance(n, fx.Node) and n in self.moving for n in tree_leaves(nodes))

    def node(self, tensor: Tensor) -> fx.Node:
        """The node that made the tensor; a constant where none did."""
        known = self.nodes.get(tensor)
        if known is None:
            name = f"constant_{len(self.nodes)}_{len(self.graph.nodes)}"
            setattr(self.root, name, tensor.detach().clone())  # the function may write to its own
            known = self.graph.get_attr(name)
            self._know(tensor, known)
        return known

    def _know(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta["form"] = Form.of(tensor)
        self.nodes[tensor] = node
        if tensor.layout == torch.strided:  # a sparse one is never written to
            place = tensor.untyped_storage()._cdata
            self.sharing.setdefault(place, WeakTensorKeyDictionary())[tensor] = None


def _arguments(func: Any) -> list[tuple[str, str]]:
    """Names and types: ``pow_.Scalar`` takes (Tensor, number), ``pow.Scalar`` (number, Tensor)."""
    return [(a.name, str(a.type)) for a in func._schema.arguments]


def _looked_at(func: Any, args: tuple[Any, ...]) -> Any:
    """The values that decide what Python gets, or None."""
    if not any(tag in func.tags for tag in _LOOK):
        return None
    if func is not _aten.index.Tensor:
        return args
    return [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)] or None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
