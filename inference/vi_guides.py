"""What a user may call a guide, and what it becomes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from pyro.infer import autoguide

from ppgen.inference.flow_guides import flow_guide
from ppgen.inference.guides import (
    Family,
    full_rank_guide,
    low_rank_guide,
    mean_field_guide,
)

Guide = Callable[..., Any]


class GuideFactory:
    """From the story to a Pyro guide: a class of autoguides, or a function of `model`."""

    def __init__(self, build: Guide) -> None:
        self.build = build


def choose(guide: Any) -> Family | GuideFactory | Guide:
    """The family, factory or Pyro guide that the user means.

    Raises:
        TypeError: for what is none of them.
        ValueError: for autoguides that are engines of their own here.
    """
    if guide is None:
        return mean_field_guide()
    if isinstance(guide, Family):
        return guide
    bare, given = _unwrap(guide)
    if inspect.isclass(bare):
        return _from_class(bare, given, guide)
    if not callable(guide):
        raise TypeError(
            f"guide must be None, a family such as flow_guide(), an autoguide class or a guide "
            f"function, got {type(guide).__name__}"
        )
    if not isinstance(guide, autoguide.AutoGuide) and _takes_the_model(guide):
        return GuideFactory(guide)
    return guide


def describe(guide: Any) -> str:
    """A guide's name, for reports."""
    if guide is None or isinstance(guide, Family):
        return str(guide or mean_field_guide())
    bare, given = _unwrap(guide)
    name = getattr(bare, "__qualname__", None) or type(bare).__name__
    inside = ", ".join(f"{k}={v}" for k, v in given.items())
    return f"{name}({inside})" if inside else name


def _unwrap(guide: Any) -> tuple[Any, dict[str, Any]]:
    given: dict[str, Any] = {}
    while isinstance(guide, functools.partial) and not guide.args:
        given = {**guide.keywords, **given}
        guide = guide.func
    return guide, given


def _from_class(bare: type, given: dict[str, Any], guide: Any) -> Family | GuideFactory:
    if issubclass(bare, autoguide.AutoDelta):
        raise ValueError("AutoDelta is a point, not a density: use the engine MAP")
    if issubclass(bare, autoguide.AutoLaplaceApproximation):
        raise ValueError("AutoLaplaceApproximation is the engine Laplace: use that")
    if not issubclass(bare, autoguide.AutoGuide):
        raise TypeError(
            f"guide is the class {bare.__name__}, which is none of Pyro's autoguides: pass an "
            "object or a function"
        )
    if bare in (autoguide.AutoNormal, autoguide.AutoDiagonalNormal) and not given:
        return mean_field_guide()
    if bare is autoguide.AutoMultivariateNormal and not given:
        return full_rank_guide()
    if bare is autoguide.AutoLowRankMultivariateNormal and set(given) <= {"rank"}:
        return low_rank_guide(given.get("rank"))
    if bare is autoguide.AutoIAFNormal and set(given) <= {"hidden_dim", "num_transforms"}:
        hidden = given.get("hidden_dim") or 32
        layers = given.get("num_transforms", 1)
        return flow_guide(
            "autoregressive",
            layers=layers,
            hidden=[hidden] if isinstance(hidden, int) else list(hidden),
        )
    return GuideFactory(guide)


def _takes_the_model(guide: Guide) -> bool:
    """Whether the only parameter is called `model`: a function that builds a guide for it."""
    try:
        names = list(inspect.signature(guide).parameters)
    except (TypeError, ValueError):
        return False
    return names == ["model"]
