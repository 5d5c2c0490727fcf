"""Running a story forward: its data drawn anew, at many values of its latent sites at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppgen.anatomy import Subsample, is_deterministic
from ppgen.supports import unconstrained_view
from ppgen.types import Story
from ppgen.writing import writable

_CHUNK = 1000  # simulations at once
_FLAT = ""  # no site is called so
_REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, StopIteration)


class _DrawAnew(UnconditionMessenger):
    """Pyro's own draws deterministic sites anew as well, once for each element of a plate."""

    def _pyro_sample(self, msg: Any) -> None:
        if not is_deterministic(msg):
            super()._pyro_sample(msg)


def simulate(
    model: Story,
    values: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    keep_data: bool = False,
) -> dict[str, Tensor]:
    """Run the story forward with `values` for its latent sites; call it inside :func:`sandbox`.

    Returns:
        The value of every other site; observed sites are drawn anew unless `keep_data`.
    """
    story = model if keep_data else _DrawAnew()(model)
    story = pyro.poutine.condition(story, data=dict(values))
    with torch.no_grad():
        trace: Any = pyro.poutine.trace(story).get_trace(*args, **kwargs)
    return {
        name: torch.as_tensor(node["value"])
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and name not in values
        and not isinstance(node["fn"], (Subsample, dist.Unit))
    }


def simulate_all(
    model: Story,
    values: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Tensor]:
    """:func:`simulate` for many `values`, ``(N, *shape)`` each; at once where vmap can do it."""
    return for_all(lambda row: simulate(model, row, args, kwargs), dict(values))


def for_all(one: Callable[[Any], dict[str, Tensor]], rows: Any) -> dict[str, Tensor]:
    """A random function of one row for all of them, ``(N, ...)`` each; by vmap where it can.

    Args:
        one: draws by torch's generator.
        rows: a tensor, or a dictionary of tensors.
    """
    # a whole number that `writable` made one of many can no longer be read
    for function in (writable(one), one):
        many = torch.func.vmap(function, randomness="different", chunk_size=_CHUNK)
        with suppress(*_REFUSALS), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of operations that vmap has to loop over
            return many(rows)
    leaves, spec = tree_flatten(rows)
    with torch.no_grad():
        found = [one(tree_unflatten(row, spec)) for row in zip(*leaves, strict=True)]
    return {name: torch.stack([row[name] for row in found]) for name in found[0]}


def unconstrained(
    model: Story, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The latent sites' values, ``(N, *shape)`` each, as flat vectors; call it inside `sandbox`.

    Returns: the vectors, ``(N, D)``; for each site, whether its value is in its support, ``(N,)``.
    """

    def one(row: dict[str, Tensor]) -> dict[str, Tensor]:
        with _Unconstrain(row) as found:
            simulate(model, row, args, kwargs, keep_data=True)
        return {_FLAT: torch.cat(found.parts), **found.inside}

    with torch.random.fork_rng(devices=[]):
        found = for_all(one, dict(values))
    return found.pop(_FLAT), found


class _Unconstrain(Messenger):
    """Note each latent site on the unconstrained scale: its support may depend on those before."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values, self.parts = values, []
        self.inside: dict[str, Tensor] = {}  # by site, whether its value is in the support, ()

    def _postprocess_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or msg["name"] not in self.values:
            return
        support, value = msg["fn"].support, self.values[msg["name"]]
        self.inside[msg["name"]] = torch.as_tensor(support.check(value)).all()
        self.parts.append(unconstrained_view(support).inv(value).flatten())
