"""Bayesian stories with their data: bundled ones, and those in a user's file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppgen.cli.bundled import BUNDLED
from ppgen.cli.options import note
from ppgen.cli.trial import arguments_that_run

if TYPE_CHECKING:
    from torch import Tensor


def bayes_story(name: str, data: str | None) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """A Bayesian story and its keyword arguments, from a file or the bundled example.

    Raises:
        ValueError: where there is no such story, saying which there are.
        ppgen.data.DataError: where the file does not fit the story.
    """
    if name in BUNDLED:
        bundled = BUNDLED[name]
        if bundled.kind != "bayes":
            raise ValueError(f"{name} is trained, not fitted: ppgen train {name} --data digits")
        model = bundled.load()
        if data is None:
            return model, bundled.arguments()
    else:
        model = _from_file(name)
    if data is None:
        return model, arguments_that_run(model, _own_data(model), columns=False)
    from ppgen.data import arguments_for, read_table

    table = read_table(data)
    given = arguments_for(model, table)
    for name in given.keys() & table.categories.keys():
        codes = ", ".join(f"{text} = {code}" for code, text in enumerate(table.categories[name]))
        note(f"column {name} holds text: {codes}")
    return model, arguments_that_run(model, given, columns=True)


def _own_data(model: Callable[..., Any]) -> dict[str, Tensor]:
    """What the function ``data`` beside the story in its file returns, if there is one."""
    provide: Any = getattr(sys.modules.get(model.__module__), "data", None)
    found: Any = provide() if callable(provide) else {}
    return found


def _from_file(place: str) -> Callable[..., Any]:
    path, colon, name = place.rpartition(":")
    if not colon and place.endswith(".py"):
        raise ValueError(f"{place}: name the function in it that is the story, as {place}:model")
    if not path.endswith(".py"):
        known = [n for n, b in BUNDLED.items() if b.kind == "bayes"]
        near = get_close_matches(place, known, 1)
        which = f"did you mean {near[0]}?" if near else f"give one of {', '.join(known)}"
        yours = "a function in a file of yours is mystory.py:model"
        raise ValueError(f"no story {place!r}: {which}; {yours}")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    module_name = f"ppgen_story_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file} failed while it was imported: {error!r}") from error
    finally:
        sys.path.pop(0)
    story = getattr(module, name, None)
    if not callable(story):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ValueError(f"{file} has no function {name!r}; it has {', '.join(names)}")
    return story
