"""Sizes, scales and shares that a constructor is given: refused by name where they are nonsense.

A width of zero makes an empty parameter, a NaN a story that learns nothing: torch says so late,
in other words, or not at all.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def require_whole(owner: object, *, least: int = 1, **values: Any) -> None:
    """Refuse what is no whole number of at least `least`.

    Args:
        owner: what is made; the message begins with its class.
        least: the smallest that has a meaning.
        values: the arguments by their names.

    Raises:
        ValueError: naming the owner and the first such argument.

    Example:
        >>> require_whole("RBM", visible=784, hidden=0)
        Traceback (most recent call last):
        ...
        ValueError: RBM(hidden=...) must be a whole number of at least 1, got 0
    """
    _require(owner, values, f"a whole number of at least {least}", lambda n: _whole(n, least))


def require_widths(owner: object, *, least: int = 1, **values: Any) -> None:
    """Refuse what is no sequence of whole numbers of at least `least`; it may be empty."""

    def good(widths: Any) -> bool:
        listed = isinstance(widths, Sequence) or (isinstance(widths, Tensor) and widths.ndim == 1)
        return listed and all(_whole(width, least) for width in widths)

    _require(owner, values, f"a tuple of whole numbers of at least {least}", good)


def require_positive(owner: object, **values: Any) -> None:
    """Refuse what is no positive, finite number."""
    _require(owner, values, "a positive number", lambda value: 0 < _real(value) < math.inf)


def require_nonnegative(owner: object, **values: Any) -> None:
    """Refuse what is no finite number of at least 0."""
    _require(owner, values, "a number of at least 0", lambda value: 0 <= _real(value) < math.inf)


def require_share(owner: object, **values: Any) -> None:
    """Refuse what is no number from 0 to below 1."""
    _require(owner, values, "a number from 0 to below 1", lambda value: 0 <= _real(value) < 1)


def require_between(owner: object, **values: Any) -> None:
    """Refuse what is no number above 0 and below 1."""
    _require(owner, values, "a number between 0 and 1", lambda value: 0 < _real(value) < 1)


def require_finite(owner: object, **values: Any) -> None:
    """Refuse what is no finite number."""
    _require(owner, values, "a finite number", lambda value: math.isfinite(_real(value)))


def _require(
    owner: object, values: dict[str, Any], expected: str, good: Callable[[Any], bool]
) -> None:
    for name, value in values.items():
        if not good(value):
            title = owner if isinstance(owner, str) else type(owner).__name__
            raise ValueError(f"{title}({name}=...) must be {expected}, got {value!r}")


def _whole(value: Any, least: int) -> bool:
    try:
        return not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        return False


def _real(value: Any) -> float:
    """NaN, which lies in no range, for what is no single number."""
    if isinstance(value, bool | str) or (isinstance(value, Tensor) and value.ndim):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
