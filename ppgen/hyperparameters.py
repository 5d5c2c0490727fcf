"""The constants in a story's priors, checked when the story is made."""

from __future__ import annotations

import math
from collections.abc import Callable


def require_positive(story: object, *names: str) -> None:
    """Refuse attributes of `story` that are not positive numbers.

    Stories run without Pyro's validation, as a recording needs; a negative rate would give NaN.

    Raises:
        ValueError: naming the story and the hyperparameter.
    """
    _require(story, names, "positive", lambda value: 0 < value < math.inf)


def require_finite(story: object, *names: str) -> None:
    """Refuse attributes of `story` that are no finite numbers.

    Raises:
        ValueError: naming the story and the hyperparameter.
    """
    _require(story, names, "finite", math.isfinite)


def _require(
    story: object, names: tuple[str, ...], kind: str, good: Callable[[float], bool]
) -> None:
    for name in names:
        value = getattr(story, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not good(value):
            raise ValueError(
                f"{type(story).__name__}({name}=...) must be a {kind} number, got {value!r}"
            )
