"""What a story consists of: its sites, found by running it once under a handler of our own."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample as Subsample
from torch import Size, Tensor
from torch.distributions import constraints

from ppgen.observations import check_observed
from ppgen.supports import unconstrained_view
from ppgen.types import Story

_NO_SHAPE = Size()
Kind = Literal["latent", "enumerated", "observed", "factor", "deterministic"]


class Subsampling(ValueError):
    """A plate of the story takes some of its rows only, so that its log density is noise."""


@dataclass(frozen=True)
class Site:
    """One ``pyro.sample`` statement.

    Args:
        name: its name in the story.
        kind: what becomes of it.
        distribution: its distribution, in words.
        support: its constraint, in words.
        shape: shape of its value: batch, then event.
        event_dim: how many of the rightmost dimensions belong to one event.
        plates: the vectorised plates around it, outermost first, with their sizes.
        plate_dims: the name of the plate of each of the rightmost dimensions of `batch_shape`,
            None where it is no plate's.
        unconstrained_shape: shape on the unconstrained scale; latent sites only.
        start: where it begins in the flat vector; latent sites only.
    """

    name: str
    kind: Kind
    distribution: str
    support: str
    shape: Size
    event_dim: int
    plates: tuple[tuple[str, int], ...]
    plate_dims: tuple[str | None, ...] = ()
    unconstrained_shape: Size = _NO_SHAPE
    start: int = 0

    @property
    def batch_shape(self) -> Size:
        return self.shape[: len(self.shape) - self.event_dim]

    @property
    def stop(self) -> int:
        return self.start + prod(self.unconstrained_shape)


@dataclass(frozen=True)
class Anatomy:
    """All sites of a story in the order of execution, and the room its plates take."""

    sites: dict[str, Site]
    plate_nesting: int
    prototype: Tensor = field(repr=False)  # an unconstrained point where the story ran, (D,)
    indices: dict[str, Tensor] = field(repr=False)  # of each plate: all of it

    def of_kind(self, *kinds: Kind) -> dict[str, Site]:
        return {name: site for name, site in self.sites.items() if site.kind in kinds}

    @cached_property
    def dim(self) -> int:
        return sum(prod(s.unconstrained_shape) for s in self.of_kind("latent").values())


def dissect(model: Story, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Anatomy:
    """Run the story once at a random unconstrained point and list its sites.

    Takes no random number from the caller's generator. Call it inside
    :func:`ppgen.story.sandbox`.

    Raises:
        ValueError: where a site has no unconstrained view, naming it and what to use instead;
            where a plate is empty, naming the argument.
    """
    handler = _Dissect()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            with handler:
                model(*args, **kwargs)
        except ZeroDivisionError as error:
            _refuse_empty(error, args, kwargs)
            raise
    points = [p.flatten() for p in handler.points]
    return Anatomy(
        sites=handler.sites,
        plate_nesting=handler.plate_nesting,
        prototype=torch.cat(points) if points else torch.zeros(0),
        indices=handler.indices,
    )


class _Dissect(Messenger):
    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, Site] = {}
        self.points: list[Tensor] = []
        self.plate_nesting = 0
        self.indices: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        is_plate = isinstance(msg["fn"], Subsample)
        if msg["name"] in (self.sites if is_plate else self.indices):
            raise ValueError(
                f"'{msg['name']}' names a site and a plate, which Pyro cannot tell apart: give "
                "each its own name"
            )
        if is_plate:
            if msg["done"]:
                return  # rows that a handler inside has chosen
            _refuse_subsampling(msg)
            self.indices[msg["name"]] = msg["value"] = torch.arange(msg["fn"].size)
            msg["done"] = True
            return
        if msg["name"] in self.sites:
            raise ValueError(f"site '{msg['name']}' occurs twice: give each site its own name")
        around = [f for f in msg["cond_indep_stack"] if f.vectorized]
        of_dim = {f.dim: f.name for f in around}
        fn = msg["fn"]
        self.plate_nesting = max(
            [self.plate_nesting, len(fn.batch_shape)] + [-(f.dim or 0) for f in around]
        )
        if is_deterministic(msg):
            kind: Kind = "deterministic"
        elif msg["is_observed"]:
            kind = "factor" if isinstance(fn, dist.Unit) else "observed"
            _refuse_missing(msg)
            if kind == "observed":
                check_observed(msg, _describe(fn), _support(fn))
        elif isinstance(innermost(fn), dist.Delta):
            kind = "deterministic"
        elif _can_be_summed_out(msg):
            kind = "enumerated"
        else:
            kind = "latent"
        shape, start = Size(fn.shape()), sum(p.numel() for p in self.points)
        unconstrained = Size()
        if kind == "latent":
            point, msg["value"] = _unconstrained_draw(msg["name"], fn)
            unconstrained, shape = point.shape, msg["value"].shape
            self.points.append(point)
            msg["done"] = True
        event_dim = fn.event_dim
        if kind == "deterministic" and isinstance(msg["value"], Tensor):
            shape, event_dim = msg["value"].shape, 0
        self.sites[msg["name"]] = Site(
            name=msg["name"],
            kind=kind,
            distribution=_describe(fn),
            support=_support(fn),
            shape=shape,
            event_dim=event_dim,
            plates=tuple((f.name, f.size) for f in around),
            plate_dims=tuple(of_dim.get(d) for d in range(min(of_dim, default=0), 0)),
            unconstrained_shape=unconstrained,
            start=start,
        )


def weighs_rows(msg: Any) -> bool:
    """Whether the site is a ``pyro.factor`` with a value for each of several rows."""
    return isinstance(msg["fn"], dist.Unit) and msg["fn"].batch_shape.numel() > 1


def is_deterministic(msg: Any) -> bool:
    """Whether the site is computed: ``pyro.deterministic``, or what a ``Reparam`` has replaced."""
    fn = msg["fn"]
    replaced = getattr(fn, "_mask", None) is False and isinstance(innermost(fn), dist.Delta)
    return bool((msg["infer"] or {}).get("_deterministic")) or (msg["is_observed"] and replaced)


def innermost(fn: Any) -> Any:
    """The distribution inside ``.to_event``, ``.expand`` and ``.mask``."""
    while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
        fn = fn.base_dist
    return fn


def _describe(fn: Any) -> str:
    inner = innermost(fn)
    name = type(inner).__name__.removeprefix("_")
    if name != "TransformedDistribution":
        return name
    parts = (_describe(inner.base_dist), *(type(t).__name__ for t in inner.transforms))
    return " -> ".join(parts)


def _support(fn: Any) -> str:
    try:
        text = re.sub(r"tensor\(.*?\)", "...", str(fn.support), flags=re.DOTALL)
        return text.removesuffix("()")
    except (NotImplementedError, AttributeError):
        return "unknown"


def is_discrete(fn: Any) -> bool:
    """Whether a distribution's values are; of one that names no support, no."""
    try:
        return bool(fn.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return False


def _can_be_summed_out(msg: Any) -> bool:
    """Whether the site is discrete; with values that cannot be listed it is refused."""
    fn = msg["fn"]
    discrete = is_discrete(fn)
    if discrete and not fn.has_enumerate_support:
        raise ValueError(
            f"site '{msg['name']}' is {_describe(fn)}: discrete with infinitely many values, or "
            "more than can be listed, so it can neither be summed out nor moved by gradients; "
            f"observe it or marginalise it by hand{_instead(fn)}"
        )
    return discrete


def _instead(fn: Any) -> str:
    """What else there is for a discrete site of too many values to be summed out."""
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.boolean:
        return ", or use Gibbs(), which draws its units one by one"
    if innermost(fn).event_shape:
        return ""
    name = _describe(fn)
    return (
        f", or cut it off where no mass is left: pyro.sample('...', Categorical(logits={name}(...)"
        ".log_prob(torch.arange(100.0)))), whose parameters take one more dimension, [..., None]"
    )


def rows_taken(plate: Subsample) -> int | None:
    """How many rows a plate takes, where they are not all."""
    taken = plate.subsample_size
    return taken if taken is not None and taken < plate.size else None


def _refuse_subsampling(msg: Any) -> None:
    if (taken := rows_taken(msg["fn"])) is not None:
        raise Subsampling(
            f"plate '{msg['name']}' is subsampled ({taken} of {msg['fn'].size}): the log density "
            "would be noise, and MCMC would sample from the wrong distribution; give it all data, "
            "or fit with VI, which draws the rows itself"
        )


def _refuse_empty(
    error: ZeroDivisionError, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Pyro says of a plate without elements only that its size cannot be zero."""
    given = [*enumerate(args, start=1), *kwargs.items()]
    empty = [f"{n!r}" for n, v in given if isinstance(v, Tensor) and not v.numel()]
    if "size cannot be zero" in str(error):
        raise ValueError(
            "a pyro.plate of the story has no elements"
            + (f": argument {' and '.join(empty)} is empty" if empty else "")
            + "; give it data, or leave the plate out where there are none"
        ) from error


def _refuse_missing(msg: Any) -> None:
    value = msg["value"]
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        return
    bad = ~torch.isfinite(value)
    if torch.any(bad):
        where = bad.nonzero()[0].tolist()
        raise ValueError(
            f"observed site '{msg['name']}' is {value[tuple(where)].item()} at index {where} "
            f"({int(bad.sum())} of {value.numel()} values are not finite): drop those rows, or "
            "make the missing values a latent site"
        )


def _unconstrained_draw(name: str, fn: Any) -> tuple[Tensor, Tensor]:
    """A point of the site drawn uniformly from (-2, 2), unconstrained and constrained."""
    if not hasattr(fn, "support"):
        raise ValueError(f"site '{name}' is not a distribution but {type(fn).__name__}")
    try:
        transform = unconstrained_view(fn.support)
        shape = transform.inverse_shape(fn.shape())
        point = torch.empty(shape).uniform_(-2, 2)
        value = transform(point)
    except NotImplementedError as error:
        if isinstance(innermost(fn), dist.MixtureSameFamily):
            hint = (
                "its components have bounds of their own; draw the component by a Categorical, "
                "which is summed out, and stretch a site on [0, 1] to its bounds"
            )
        elif "sphere" in _support(fn).lower():
            hint = "sample a standard normal vector and divide it by its norm"
        else:
            hint = "write the site as a transformed distribution on an unconstrained one"
        raise ValueError(
            f"site '{name}' ({_describe(fn)}) has support {_support(fn)}, which has no "
            f"unconstrained view: {hint}"
        ) from error
    if not isinstance(value, Tensor) or value.shape != Size(fn.shape()):
        value = value.expand(fn.shape())
    return point, value
