"""Block Gibbs of the two sides of a Boltzmann machine, given data: how engine `Gibbs` runs one."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.inference import ladder
from ppgen.inference import parallel_tempering as tempering
from ppgen.inference.annealed_importance_sampling import base_biases, schedule
from ppgen.inference.discrete_chains import Chains, Reading
from ppgen.inference.gibbs import Clamp, clamped
from ppgen.types import MachineStory


class State(NamedTuple):
    """What the next sweep needs, and a draw of both sides."""

    visible: Tensor  # (chains * examples, D)
    hidden: Tensor  # of the sweep that drew `visible`, (chains * examples, H)


def machine_chains(
    story: MachineStory,
    chains: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    temperatures: int | None = None,
) -> Chains:
    """Chains over the latent sites of a machine's ``model(x)``, dispersed.

    `x` is clamped; entries of it that are NaN are not observed, and are drawn. With `temperatures`
    each chain has replicas at so many more, with which it swaps.

    Raises:
        ValueError: where x is no data of this machine.
    """
    given = inspect.signature(story.model).bind(*args, **kwargs)
    given.apply_defaults()
    x, examples = given.arguments["x"], given.arguments["examples"]
    if x is not None and (x.dim() != 2 or x.shape[1] != story.visible or not len(x)):
        raise ValueError(
            f"x: expected examples of shape (N, {story.visible}) with N > 0, got {tuple(x.shape)}"
        )
    rows = chains * (examples if x is None else len(x))
    start = story.units.sample(base_biases(story, None).expand(rows, -1).clone())
    clamp, given = None, {}
    if x is not None:
        clamp = _clamp(story, start, x.repeat(chains, 1))
        given = {"x": clamp.units[: len(x), : story.visible]}
    start = start if clamp is None else torch.where(*clamp, start)
    if temperatures is None:
        state, sweep = State(start, story.sample_hidden(start)), step  # replaced in the first sweep
    else:
        betas = schedule(temperatures)
        state = ladder.init(start, len(betas))
        sweep = partial(tempered_step, base=base_biases(story, None), betas=betas)
    return Chains(
        state,
        partial(sweep, machine=story, clamp=clamp),
        partial(read, machine=story, chains=chains, clamp=clamp),
        observes=clamp is not None and bool(clamp.units.any()),
        given=given,
    )


@torch.no_grad()
def step(state: State, *, machine: MachineStory, clamp: Clamp | None) -> State:
    """The hidden side given the visible, then what is not clamped of the visible side anew."""
    hidden = machine.sample_hidden(state.visible)
    visible = machine.sample_visible(hidden)
    return State(visible if clamp is None else torch.where(*clamp, visible), hidden)


def tempered_step(
    state: ladder.State,
    *,
    machine: MachineStory,
    clamp: Clamp | None,
    base: Tensor,
    betas: list[float],
) -> ladder.State:
    """The same at every temperature, then swaps."""
    return tempering.step(state, machine=machine, base=base, betas=betas, clamp=clamp)[0]


@torch.no_grad()
def read(
    state: State | ladder.State, *, machine: MachineStory, chains: int, clamp: Clamp | None
) -> Reading:
    """Latent sites; with x in full where a part of it is latent."""
    if isinstance(state, ladder.State):
        visible = state.ladder[-1].clone()
        state = State(visible, machine.sample_hidden(visible))
    sites = machine.sites(state.visible, state.hidden)
    if clamp is not None and bool(clamp.units[:, : machine.visible].all()):
        del sites["x"]
    found = {name: value.unflatten(0, (chains, -1)) for name, value in sites.items()}
    lp = -machine.energy(state.visible, state.hidden)
    return Reading(found, lp.unflatten(0, (chains, -1)).sum(-1))


def _clamp(story: MachineStory, start: Tensor, x: Tensor) -> Clamp:
    observed, values = ~x.isnan(), start.clone()
    values[:, : story.visible] = torch.where(observed, x.to(start), start[:, : story.visible])
    units = torch.zeros_like(start, dtype=torch.bool)
    units[:, : story.visible] = observed.to(start.device)
    return clamped(units, values, story.units)
