"""Findings as JSON knows them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Records as dictionaries, arrays as lists, numbers that are not finite as None.

    Example:
        >>> from ppgen.diagnostics import KernelTest
        >>> plain({"mmd": KernelTest(0.25, float("nan")), "sizes": np.array([1, 2])})
        {'mmd': {'squared': 0.25, 'p': None}, 'sizes': [1, 2]}
    """
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    fields = getattr(value, "_fields", None)
    if isinstance(value, tuple) and fields is not None:
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
