"""What a story reads from outside: its data, parameters, closures, and where they are kept."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from ppgen.tape import Exports, Mode

Getter = Callable[[], Tensor]


def inputs(
    function: Callable[[Tensor], Any], z: Tensor, roots: tuple[Any, ...], inner: Collection[Tensor]
) -> list[tuple[Getter, Tensor]]:
    """Every tensor that `function` reads from outside at `z`, each with where to find it later.

    Args:
        function: is run.
        z: its argument.
        roots: the story, its arguments and keyword arguments: where the tensors may be kept.
        inner: tensors that are no inputs.
    """
    read = externals(function, z) + tensors(roots[1:])
    known = {id(t) for t in inner}
    places = {id(t): getter for getter, t in slots(*roots)}
    store = pyro.get_param_store()
    for name, tensor in store._params.items():
        places.setdefault(id(tensor), lambda name=name, t=tensor: store._params.get(name, t))
    found = []
    for tensor in read:
        if id(tensor) not in known:
            known.add(id(tensor))
            found.append((places.get(id(tensor), lambda t=tensor: t), tensor))
    return found


def tensors(*trees: Any) -> list[Tensor]:
    """The tensors in nested containers."""
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]


def plain(tree: Any) -> tuple[Any, ...]:
    """What is no tensor, in comparable form: numbers and texts by value, the rest by identity."""
    leaves, form = tree_flatten(tree)
    words = (bool, int, float, complex, str, type(None))
    return form, *(
        None if isinstance(v, Tensor) else (type(v), v if isinstance(v, words) else id(v))
        for v in leaves
    )


def notes_on_foreign(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """What to do about lists, arrays and columns of a data frame, which stories stumble over."""
    return [
        f"argument {place} is a {type(value).__name__}: stories compute with tensors; "
        "give it torch.as_tensor(...), of a data frame's column "
        "torch.as_tensor(column.to_numpy())"
        for place, value in [*enumerate(args, start=1), *kwargs.items()]
        if not isinstance(value, Tensor)
        and (isinstance(value, (list, tuple)) or hasattr(value, "__array__"))
    ]


class _Externals(Mode):
    """Collect the tensors that are read but were not made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, Tensor] = {}  # kept alive, so that no id is used twice
        self.read: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "lift_fresh" not in str(func):
            for leaf in tree_leaves((args, kwargs or {})):
                if isinstance(leaf, Tensor):
                    self.note(leaf)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf) not in self.read:
                self.made[id(leaf)] = leaf
        return result

    def note(self, tensor: Tensor) -> None:
        if id(tensor) not in self.made:
            self.read[id(tensor)] = tensor


def externals(function: Callable[[Tensor], Any], z: Tensor) -> list[Tensor]:
    """The tensors that `function` reads from outside, `z` apart, in the order of first use."""
    runs = []
    for _ in range(2):  # a tensor made anew in each run is no input
        with torch.no_grad(), _Externals() as mode, Exports(mode.note):
            function(z)
        runs.append(mode)
    return [t for key, t in runs[0].read.items() if key in runs[1].read and t is not z]


def slots(*roots: Any) -> Iterator[tuple[Getter, Tensor]]:
    """Every place reachable from `roots` that holds a tensor: modules, closures, globals."""
    seen: set[int] = set()
    stack = list(roots)
    while stack and len(seen) < 20_000:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.nn.Module):
            for table in (item._parameters, item._buffers, item.__dict__):
                yield from _entries(table)
            stack += [*item._modules.values(), *item.__dict__.values()]
        elif isinstance(item, functools.partial):
            stack += [item.func, item.args, item.keywords]
        elif isinstance(item, types.MethodType):
            stack += [item.__self__, item.__func__]
        elif isinstance(item, types.FunctionType):
            cells = dict(zip(item.__code__.co_freevars, item.__closure__ or (), strict=True))
            for cell in cells.values():
                stack += _contents(cell)
                yield from _cell(cell)
            stack += [item.__defaults__, item.__kwdefaults__, getattr(item, "__wrapped__", None)]
            used = {n: item.__globals__[n] for n in _names(item.__code__) if n in item.__globals__}
            stack += [v for v in used.values() if not isinstance(v, types.ModuleType)]
            yield from _entries(item.__globals__, used)
        elif isinstance(item, dict):
            yield from _entries(item)
            stack += list(item.values())
        elif isinstance(item, (list, tuple, set)):
            stack += list(item)
        elif isinstance(item, pyro.poutine.messenger.Messenger) or (
            hasattr(item, "__dict__") and type(item).__module__.split(".")[0] not in _LIBRARIES
        ):
            yield from _entries(vars(item))
            stack += list(vars(item).values())


_LIBRARIES = {"torch", "pyro", "numpy", "scipy", "builtins", "pandas", "matplotlib", "types"}


def _names(code: types.CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*(_names(c) for c in inner))


def _contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # not yet filled
        return []


def _cell(cell: types.CellType) -> Iterator[tuple[Getter, Tensor]]:
    for content in _contents(cell):
        if isinstance(content, Tensor):
            yield (lambda: cell.cell_contents), content


def _entries(
    table: Mapping[str, Any], chosen: Mapping[str, Any] | None = None
) -> Iterator[tuple[Getter, Tensor]]:
    for key, value in (table if chosen is None else chosen).items():
        if isinstance(value, Tensor):
            yield functools.partial(table.__getitem__, key), value
