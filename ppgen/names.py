"""Arguments of a story that have the name of an option of the function that runs it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def refuse_taken(caller: Callable[..., Any], model: Any, args: tuple[Any, ...], seed: Any) -> None:
    """An option takes what may have been meant for the story's argument of that name.

    Args:
        caller: the function whose keyword-only arguments are its options, ``seed`` among them.
        model: the story.
        args: its arguments by position.
        seed: as the caller was given it; 0 where it was not.

    Raises:
        ValueError: where the story waits for such an argument, or a seed was given that it may
            have been meant for; it says how to pass it.
    """
    bound = model.keywords if isinstance(model, functools.partial) else {}
    try:
        signature = inspect.signature(model)
        bound = {**bound, **signature.bind_partial(*args).arguments}
    except (TypeError, ValueError):  # no signature; too many arguments, which the call will say
        return
    options = inspect.signature(caller).parameters
    seeded = not isinstance(seed, int) or seed != 0
    for name, parameter in signature.parameters.items():
        taken = name in options and options[name].kind is inspect.Parameter.KEYWORD_ONLY
        waits = parameter.default is inspect.Parameter.empty or (name == "seed" and seeded)
        if taken and waits and name not in bound:
            called = caller.__name__
            raise ValueError(
                f"the story and {called} both have an argument {name!r}, which {called} takes: "
                f"pass the story's by position, or as functools.partial(story, {name}=...)"
            )
