r"""Parallel tempering of a Boltzmann machine, as a kernel for ``pyro.infer.MCMC``.

Replicas at inverse temperatures ``0 = beta_0 < ... < beta_K = 1`` stand on the path from a base of
independent units that annealed importance sampling also takes. Each makes block Gibbs updates, and
neighbours swap their states with probability

.. math:: \min\Big(1, \frac{p^*_{\beta_i}(s_j)\, p^*_{\beta_j}(s_i)}
          {p^*_{\beta_i}(s_i)\, p^*_{\beta_j}(s_j)}\Big)

on the *tempered marginals* ``p*_beta(s)``, hidden side summed out at that temperature. Swapping on
``beta F(s)``, the free energy at temperature 1 times beta, would be no Markov chain of any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ppgen.inference.annealed_importance_sampling import (
    Schedule,
    base_biases,
    base_log_partition,
    increment,
    move,
    schedule,
)
from ppgen.inference.gibbs import BlockGibbs, Clamp
from ppgen.inference.ladder import Info, LadderKernel, State, init
from ppgen.types import BoltzmannMachine


@torch.no_grad()
def step(
    state: State,
    *,
    machine: BoltzmannMachine,
    base: Tensor,
    betas: list[float],
    sweeps: int = 1,
    clamp: Clamp | None = None,
) -> tuple[State, Info]:
    """`sweeps` Gibbs updates of every replica, then swaps of the even and of the odd pairs.

    Units of `clamp` stay; all replicas of a chain have the same ones.
    """
    ladder = state.ladder
    beta = torch.stack([ladder.new_full((1, 1), b) for b in betas])  # made on the device
    for _ in range(sweeps):
        ladder = move(machine, base, machine.hidden_logits(ladder), beta)
        if clamp is not None:
            ladder = torch.where(*clamp, ladder)
    logits = machine.hidden_logits(ladder)
    accepted = ladder.new_zeros(len(betas) - 1)
    for parity in (0, 1):
        for i in range(parity, len(betas) - 1, 2):
            pair = slice(i, i + 2)
            ratio = swap_log_ratio(
                machine, base, ladder[pair], logits[pair], betas[i], betas[i + 1]
            )
            swap = torch.rand_like(ratio).log() < ratio
            accepted[i] = swap.to(accepted).mean()
            for states in (ladder, logits):
                states[pair] = torch.where(swap[:, None], states[pair].flip(0), states[pair])
    return State(ladder), Info(accepted)


def swap_log_ratio(
    machine: BoltzmannMachine, base: Tensor, sides: Tensor, logits: Tensor, hot: float, cold: float
) -> Tensor:
    """Log of the ratio above for ``sides = (s_hot, s_cold)``: ``(2, C, D) -> (C,)``, float64."""
    up = increment(machine, base, sides[0], logits[0], hot, cold)
    down = increment(machine, base, sides[1], logits[1], cold, hot)
    return up + down


@dataclass(frozen=True)
class Tempered:
    """Parallel tempering as the negative phase of `ContrastiveDivergence`.

    Its gradient is taken from the replicas at temperature 1; the whole ladder goes on across steps
    under ``persistent=True``, which it is made for.

    Args:
        temperatures: as of `ParallelTempering`.
        base: as of `ParallelTempering`.

    References:
        | Parallel tempering for training of restricted Boltzmann machines (Desjardins et al., 2010)
    """

    temperatures: Schedule = 10
    base: Tensor | None = None
    capturable: ClassVar[bool] = True  # its swaps are chosen by `where` (``train(compile=True)``)

    def __post_init__(self) -> None:
        schedule(self.temperatures)  # complains at once

    def start(self, machine: BoltzmannMachine, visible: Tensor) -> Tensor:
        base_biases(machine, self.base)  # likewise
        return init(visible, len(schedule(self.temperatures))).ladder

    def move(self, machine: BoltzmannMachine, kept: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        state, betas = State(kept.clone()), schedule(self.temperatures)
        base = base_biases(machine, None) if self.base is None else self.base
        base = base.detach().to(machine.visible_natural())
        for _ in range(steps):
            state, _ = step(state, machine=machine, base=base, betas=betas)
        return state.ladder, state.ladder[-1].clone()


class ParallelTempering(LadderKernel):
    """Block Gibbs at several temperatures, whose swaps carry a chain from mode to mode.

    The draws are those at temperature 1: a whole visible side for each chain, as `BlockGibbs` has
    it. The other replicas stay in the kernel (`state`).

    Args:
        machine: what is sampled; its parameters stay as they are.
        start: visible sides to start from, ``(chains, D)`` in {0, 1}.
        temperatures: number of equal steps of beta, or the betas: increasing, from 0 to 1 exactly.
        base: biases of the visible side at beta = 0, ``(D,)`` (natural parameters of units that
            are not binary); uniform if None, or for real units the machine's own. Log-odds of the
            data's base rates make do with fewer temperatures.
        sweeps: block Gibbs updates of every replica for each draw.
        site: name of the draws.
        clamp: as of `BlockGibbs`.

    References:
        | Replica Monte Carlo simulation of spin-glasses (Swendsen, Wang, 1986)
        | Parallel tempering for training of restricted Boltzmann machines (Desjardins et al., 2010)

    Example:
        >>> from pyro.infer import MCMC; from ppgen.models.rbm import RBM
        >>> kernel = ParallelTempering(RBM(6, 4), start=torch.zeros(10, 6), temperatures=5)
        >>> mcmc = MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["x"].shape), len(kernel.diagnostics()["swap acceptance"])
        ((3, 10, 6), 5)
    """

    def __init__(
        self,
        machine: BoltzmannMachine,
        start: Tensor,
        *,
        temperatures: Schedule = 10,
        base: Tensor | None = None,
        sweeps: int = 1,
        site: str = "x",
        clamp: Tensor | None = None,
    ) -> None:
        inner = BlockGibbs(machine, start, sweeps=sweeps, site=site, clamp=clamp)  # checks them
        self.machine, self.sweeps = machine, sweeps
        self.betas = schedule(temperatures)
        self.base = base_biases(machine, base).detach()
        super().__init__(site, inner.initial_params[site], len(self.betas), inner.clamp)

    def step(self, state: State) -> tuple[State, Info]:
        return step(
            state,
            machine=self.machine,
            base=self.base,
            betas=self.betas,
            sweeps=self.sweeps,
            clamp=self.clamp,
        )

    def base_log_partition(self) -> float:
        return base_log_partition(self.machine, self.base)

    @torch.no_grad()
    def log_ratios(self) -> Tensor:
        ladder, ratios = self.state.ladder, []
        logits = self.machine.hidden_logits(ladder)
        for k, (hot, cold) in enumerate(pairwise(self.betas)):
            pair = slice(k, k + 2)
            ratios.append(increment(self.machine, self.base, ladder[pair], logits[pair], hot, cold))
        return torch.stack(ratios)
