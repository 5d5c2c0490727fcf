"""Replicas of a Boltzmann machine that stand on a ladder of laws and swap with their neighbours."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.inference.gibbs import Clamp, UntransformedKernel


class State(NamedTuple):
    """What the next step needs."""

    ladder: Tensor  # visible sides, that of the sampled law last, (rungs, chains, D)


class Info(NamedTuple):
    """What a caller may log."""

    accepted: Tensor  # share of the chains that swapped, between neighbours, (rungs - 1,)


class LadderKernel(UntransformedKernel):
    """A kernel of ``pyro.infer.MCMC`` whose draws are the last rung's; the others stay in it.

    Args:
        site: name of the draws.
        start: visible sides to start every rung from, ``(chains, D)``.
        rungs: how many.
        clamp: units that stay, the same ones in all replicas of a chain.
    """

    def __init__(self, site: str, start: Tensor, rungs: int, clamp: Clamp | None = None) -> None:
        super().__init__({site: start})
        self.site, self.clamp = site, clamp
        self.state = init(start, rungs)
        self._accepted, self._steps = torch.zeros(rungs - 1), 0

    @abstractmethod
    def step(self, state: State) -> tuple[State, Info]:
        """Updates within the rungs, then swaps."""

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        self.state.ladder[-1] = params[self.site]
        self.state, info = self.step(self.state)
        self._accepted += info.accepted.to(self._accepted)
        self._steps += 1
        return self.kept({self.site: self.state.ladder[-1].clone()})

    def diagnostics(self) -> dict[str, list[float]]:
        """Mean share of accepted swaps between neighbours, from the first rung on."""
        return {"swap acceptance": (self._accepted / max(self._steps, 1)).tolist()}

    @abstractmethod
    def base_log_partition(self) -> float:
        """Log Z of the first rung, nats."""

    @abstractmethod
    def log_ratios(self) -> Tensor:
        """``log p*_{k+1} - log p*_k`` at replicas k and k + 1: ``(rungs - 1, 2, chains)``, nats."""


def init(start: Tensor, rungs: int) -> State:
    """Every replica at `start`, ``(chains, D)``."""
    return State(start.expand(rungs, *start.shape).clone())
