"""A Pyro pair, run once, with one light record of each program."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn


class Site(NamedTuple):
    """What the bound needs to know of a ``pyro.sample`` statement."""

    fn: Any  # the distribution
    value: Tensor
    scale: Any  # of plates and ``poutine.scale``: a number or a tensor
    mask: Any  # of ``poutine.mask``: None, a bool or a tensor
    observed: bool
    options: dict[str, Any]  # the statement's ``infer=``
    plates: tuple[Any, ...] = ()  # those around it, as Pyro's frames

    @property
    def base(self) -> Any:
        """The distribution without the layers that turn batch dimensions into event ones."""
        fn = self.fn
        while isinstance(fn, dist.Independent):
            fn = fn.base_dist
        return fn


Sites = dict[str, Site]


class Record(Messenger):
    """Keeps the sample sites; replays the values that it is given, those of subsamples too."""

    def __init__(self, given: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.sites: Sites = {}
        self.values: dict[str, Tensor] = {}  # also the indices of plates
        self.given = given or {}

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.given:
            msg["value"], msg["done"] = self.given[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        name, options = msg["name"], msg["infer"] or {}
        if options.get("_do_not_trace"):
            return
        if name in self.values:
            raise ValueError(f"two sample sites are named {name!r}: site names must be unique")
        self.values[name] = msg["value"]
        if site_is_subsample(msg):
            return
        observed = msg["is_observed"]
        self.sites[name] = Site(
            msg["fn"],
            msg["value"],
            msg["scale"],
            msg["mask"],
            observed,
            options,
            tuple(msg["cond_indep_stack"]),
        )


def run_pair(
    model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[Sites, Sites]:
    """The sites of the guide, and those of the model under its draws."""
    lean_guide, lean_model = lean(guide, model)
    drawn = Record()
    with pyro.validation_enabled(False):
        with drawn:
            lean_guide(*args, **kwargs)
        scored = Record(drawn.values)
        with scored:
            lean_model(*args, **kwargs)
    return drawn.sites, scored.sites


def lean(*stories: Callable) -> list[Callable]:
    """The same programs without the registration of plain parameters in Pyro's store.

    Where nobody listens for parameters (a torch optimizer holds them), the statements that
    `pyro_method` makes of them change no value and take a twentieth of a small VAE's step.
    Constrained parameters and random modules do depend on them: those keep them.
    """
    if am_i_wrapped():
        return list(stories)
    plain: dict[int, bool] = {}  # of each module that owns a story
    leaner = []
    for story in stories:
        owner, method = getattr(story, "__self__", None), getattr(story, "__wrapped__", None)
        if isinstance(owner, PyroModule) and id(owner) not in plain:
            plain[id(owner)] = _plain(owner)
        leaner.append(partial(method, owner) if method and plain.get(id(owner)) else story)
    return leaner


def _plain(module: nn.Module) -> bool:
    """Whether no part of it has a constrained parameter or a random attribute."""
    if isinstance(module, PyroModule) and (module._pyro_params or module._pyro_samples):
        return False
    return all(_plain(part) for part in module._modules.values() if part is not None)
