"""The constants in a story's priors, checked when the story is made."""

from __future__ import annotations

import math


def require_positive(story: object, *names: str) -> None:
    """Refuse attributes of `story` that are not positive numbers.

    Stories run without Pyro's validation, as a recording needs; a negative rate would give NaN.

    Raises:
        ValueError: naming the story and the hyperparameter.
    """
    for name in names:
        value = getattr(story, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 < value < math.inf
        ):
            raise ValueError(
                f"{type(story).__name__}({name}=...) must be a positive number, got {value!r}"
            )


def require_finite(story: object, *names: str) -> None:
    """Refuse attributes of `story` that are no finite numbers.

    Raises:
        ValueError: naming the story and the hyperparameter.
    """
    for name in names:
        value = getattr(story, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise ValueError(
                f"{type(story).__name__}({name}=...) must be a finite number, got {value!r}"
            )
