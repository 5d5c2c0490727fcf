"""A first run of a user's story with their data, so that what is wrong is said in their words."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def arguments_that_run(
    model: Callable[..., Any], arguments: dict[str, Any], columns: bool
) -> dict[str, Any]:
    """The arguments as the story can use them.

    A CSV file does not say which of its columns are indices: where the story refuses numbers
    with a fraction as an index, columns of whole numbers become int64.

    Args:
        model: the story.
        arguments: what it is called with.
        columns: whether they come from a file.

    Raises:
        ValueError: when arguments are missing or the story fails, with the line of the story
            and the sites before it.
    """
    try:
        inspect.signature(model).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{_name(model)} was given {', '.join(arguments) or 'no data'}: {error}. Give "
            "--data FILE.csv with a column of each parameter's name, or define data() beside the "
            "story, which returns a dictionary of them"
        ) from error
    failure = _failure(model, arguments)
    if columns and isinstance(failure, IndexError):
        arguments = {name: _as_index(value) for name, value in arguments.items()}
        failure = _failure(model, arguments)
    if failure is not None:
        raise _explained(failure, model, arguments) from failure
    return arguments


def _failure(model: Callable[..., Any], arguments: dict[str, Any]) -> Exception | None:
    from ppgen.program import Program

    try:
        Program(model, **arguments)
    except Exception as error:
        return error
    return None


def _as_index(value: Tensor) -> Tensor:
    whole = value.is_floating_point() and bool((value == value.round()).all())
    return value.long() if whole else value


def _explained(error: Exception, model: Callable[..., Any], arguments: dict[str, Any]) -> Exception:
    """The error with the story's line, the arguments' shapes and the sites before it."""
    own = inspect.unwrap(model).__code__.co_filename if hasattr(model, "__code__") else None
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == own]
    if not lines:
        return error
    where = f"{own}, line {lines[-1].lineno}: {lines[-1].line}"
    given = _shapes(arguments)
    sites = _shapes(_sites(model, arguments))
    return ValueError(
        f"{where}: {type(error).__name__}: {error}; arguments: {given or 'none'}; sites before: "
        f"{sites or 'none'}"
    )


def _sites(model: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the sites that a forward run of the story reaches before it fails."""
    import torch
    from pyro.poutine import trace

    from ppgen.anatomy import Subsample
    from ppgen.story import sandbox

    with sandbox(torch.get_default_dtype()), torch.random.fork_rng(devices=[]):
        reached = trace()
        with suppress(Exception), reached:  # it is being explained
            model(**arguments)
    nodes: dict[str, Any] = dict(reached.trace.nodes)
    return {
        name: node["value"]
        for name, node in nodes.items()
        if node["type"] == "sample" and not isinstance(node["fn"], Subsample)
    }


def _shapes(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(getattr(v, 'shape', ()))}" for name, v in values.items())


def _name(model: Callable[..., Any]) -> str:
    return getattr(model, "__name__", type(model).__name__)
