"""Markov chains over discrete sites, as engine `Gibbs` runs them and hands them over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor


class Reading(NamedTuple):
    """A state as draws of sites."""

    sites: dict[str, Tensor]  # the latent ones, (chains, *shape)
    lp: Tensor  # log density of all sites, up to a constant, (chains,), nats
    stats: Mapping[str, Tensor] = MappingProxyType({})  # of the sweep, ArviZ's names, (chains,)


class Chains(NamedTuple):
    """Where the chains are, how they move, how they are read."""

    state: Any
    sweep: Callable[[Any], Any]  # a state to the next
    read: Callable[[Any], Reading]
    observes: bool  # whether anything is data
    given: Mapping[str, Tensor] = MappingProxyType({})  # what of a latent site is data, (*shape)
    deterministic: tuple[str, ...] = ()  # of the sites read, those that follow from the others


def said_of(draws: dict[str, Tensor], chains: Chains) -> tuple[str, ...]:
    """What is to be known of draws ``(chains, draws, *shape)`` that no diagnosis tells, in words.

    A unit that never changes is certain or stuck: without variance it has no R-hat, ESS or error.
    """
    messages = () if chains.observes else ("nothing is observed: draws of the story itself",)
    for name, values in draws.items():
        still = (values == values[:1, :1]).flatten(0, 1).all(0)
        if name in chains.given:
            still = still & ~chains.given[name]
        if count := int(still.sum()):
            said = f"{count} of {still.numel()} units of {name} never change: no diagnosis of them"
            messages = (*messages, said)
    return messages
