"""``torch.compile`` without what it does to everybody else."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.distributions import Distribution

_aten = torch.ops.aten


@contextmanager
def compiling() -> Iterator[None]:
    """Around the first run of what is compiled; its warnings are about its own code.

    The first of a process switches the validation of all distributions off: here it comes back.
    """
    validated = Distribution._validate_args
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Distribution.set_default_validate_args(validated)


def compiled(
    function: Callable[..., Any], inputs: Sequence[Any], what: str
) -> Callable[..., Any] | None:
    """`function` by ``torch.compile``, if on these `inputs` it gives what it did before.

    Else None and a warning, which says `what` is not compiled and why.
    """
    floats = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
    tolerance = 1e-6 if floats[0].dtype == torch.float64 else 1e-2
    try:
        with compiling():
            fast = torch.compile(function, dynamic=False)
            torch.testing.assert_close(
                fast(*inputs), function(*inputs), rtol=tolerance, atol=tolerance, equal_nan=True
            )
    except (RuntimeError, AssertionError) as error:
        said = str(error).strip().split("\n")[0]
        warnings.warn(f"{what} are not compiled: {said}", stacklevel=2)
        return None
    return fast


def apart(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The same values without shared memory, which compiled loops refuse."""
    seen: set[int] = set()
    found = []
    for tensor in tensors:
        memory = tensor.untyped_storage().data_ptr()
        found.append(tensor.clone() if memory in seen else tensor)
        seen.add(memory)
    return found


def unchecked(module: Any) -> fx.GraphModule:
    """The same graph, where a factorisation that fails gives NaN in its row and no error.

    The error would be one for all chains, and what is compiled leaves it out: the chain would go on
    with whatever the factorisation left.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for check in graph.find_nodes(op="call_function", target=_aten._linalg_check_errors.default):
        info = check.args[0]
        results = info.args[0].users
        first = next(n for n in results if n.target is operator.getitem and n.args[1] == 0)
        with graph.inserting_before(check):
            failed = graph.call_function(_aten.ne.Scalar, (info, 0))
            for _ in range(2):
                failed = graph.call_function(_aten.unsqueeze.default, (failed, -1))
            marked = graph.call_function(_aten.masked_fill.Scalar, (first, failed, math.nan))
        first.replace_all_uses_with(
            marked, delete_user_cb=lambda user, marked=marked: user is not marked
        )
        graph.erase_node(check)
    return fx.GraphModule(module, graph)
