r"""Parallel trajectory tempering: replicas at the machines that training has gone through.

A machine that is trained from zero weights has itself passed from independent units, of which
draws are exact, to what it is now. So its own past takes the place of temperatures: replicas stand
at machines ``theta_0, ..., theta_K`` along the way, each makes block Gibbs updates, and neighbours
swap their states with probability

.. math:: \min\big(1, \exp\{F_i(s_i) + F_j(s_j) - F_i(s_j) - F_j(s_i)\}\big)

F being the free energies with the hidden side summed out. Modes between which a temperature would
have to jump have parted from each other in training, and there the replicas cross.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ppgen.arguments import require_positive, require_share, require_whole
from ppgen.distributions.restricted_boltzmann import RestrictedBoltzmann, shifted
from ppgen.inference.gibbs import Clamp, clamped, known
from ppgen.inference.ladder import Info, LadderKernel, State
from ppgen.types import BoltzmannMachine

LOST = 0.1  # share of swaps below which two rungs are too far apart
_BRIDGES = 12  # rungs that one update may need


class FreeEnergy(Protocol):
    """A machine, or the law of its visible side."""

    def free_energy(self, x: Tensor, /) -> Tensor: ...


@torch.no_grad()
def step(
    state: State,
    *,
    laws: Sequence[RestrictedBoltzmann],
    sweeps: int = 1,
    clamp: Clamp | None = None,
) -> tuple[State, Info]:
    """`sweeps` Gibbs updates of every replica, then swaps of the even and of the odd pairs.

    Units of `clamp` stay; all replicas of a chain have the same ones.
    """
    ladder = state.ladder.clone()
    for law, side in zip(laws, ladder, strict=True):
        for _ in range(sweeps):
            new = sweep(law, side)
            side.copy_(new if clamp is None else torch.where(*clamp, new))
    accepted = ladder.new_zeros(len(laws) - 1)
    for parity in (0, 1):
        for i in range(parity, len(laws) - 1, 2):
            ladder[i], ladder[i + 1], accepted[i] = swap(*laws[i : i + 2], *ladder[i : i + 2])
    return State(ladder), Info(accepted)


def swap(
    early: FreeEnergy, late: FreeEnergy, s: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """States s of the one and t of the other after a swap of each pair, and the share accepted."""
    ratio = swap_log_ratio(early, late, s, t)
    swapped = torch.rand_like(ratio).log() < ratio
    rows = swapped[:, None]
    return torch.where(rows, t, s), torch.where(rows, s, t), swapped.to(ratio).mean()


def swap_log_ratio(early: FreeEnergy, late: FreeEnergy, s: Tensor, t: Tensor) -> Tensor:
    """Log of the ratio above, ``(chains,)``."""
    gained = early.free_energy(s) - early.free_energy(t)
    return gained + late.free_energy(t) - late.free_energy(s)


def sweep(law: RestrictedBoltzmann, side: Tensor) -> Tensor:
    """One block Gibbs update; without couplings an independent, exact draw."""
    hidden = law.hidden_units.sample(torch.addmm(law.hidden_bias, side, law.weight))
    return law.units.sample(shifted(law.visible_bias, hidden @ law.weight.T))


def frozen(machine: BoltzmannMachine | RestrictedBoltzmann) -> RestrictedBoltzmann:
    """The law of a machine's visible side as it is now, which later updates do not move."""
    law = machine if isinstance(machine, RestrictedBoltzmann) else machine.marginal()
    parts = (law.weight, law.visible_bias, law.hidden_bias)
    weight, visible, hidden = (part.detach().clone() for part in parts)
    return _law(law, weight, visible, hidden)


def uncoupled(law: RestrictedBoltzmann) -> RestrictedBoltzmann:
    """The same biases without weights: where a trajectory begins, with a known log Z."""
    return _law(law, torch.zeros_like(law.weight), law.visible_bias, law.hidden_bias)


def _law(
    like: BoltzmannMachine | RestrictedBoltzmann, weight: Tensor, visible: Tensor, hidden: Tensor
) -> RestrictedBoltzmann:
    """With these parameters, of the same kinds of units."""
    kinds: Any = {"units": like.units, "hidden_units": like.hidden_units}
    return RestrictedBoltzmann(weight, visible, hidden, **kinds, validate_args=False)


class TrajectoryTempering(LadderKernel):
    """Replicas at the machines of a training run, as a kernel for ``pyro.infer.MCMC``.

    The draws are those of the last machine: a whole visible side for each chain, as `BlockGibbs`
    has it. An uncoupled copy of the first machine is put before it where it has weights, so that
    every ladder starts at exact draws and at a known log Z (see `ladder_log_partition`).

    Args:
        trajectory: machines, or laws of their visible sides, from the earliest to the one that is
            sampled: copies made in the course of training, or what `Trajectory` has frozen. Close
            enough for `diagnostics` to show that neighbours swap: a share of 0.2 and more.
        start: visible sides to start from, ``(chains, D)``.
        sweeps: block Gibbs updates of every replica for each draw.
        site: name of the draws.
        clamp: as of `BlockGibbs`.

    References:
        | Fast training and sampling of restricted Boltzmann machines (Béreux, Decelle, Furtlehner,
          Rosset, Seoane, 2025) | https://arxiv.org/abs/2405.15376

    Example:
        >>> from pyro.infer import MCMC; from ppgen.models.rbm import RBM
        >>> past = [RBM(6, 4, weight_scale=scale) for scale in (0.1, 0.2)]
        >>> kernel = TrajectoryTempering(past, start=torch.zeros(10, 6))
        >>> mcmc = MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["x"].shape), len(kernel.diagnostics()["swap acceptance"])
        ((3, 10, 6), 2)
    """

    def __init__(
        self,
        trajectory: Sequence[BoltzmannMachine | RestrictedBoltzmann],
        start: Tensor,
        *,
        sweeps: int = 1,
        site: str = "x",
        clamp: Tensor | None = None,
    ) -> None:
        if not trajectory:
            raise ValueError("trajectory: expected at least one machine")
        laws = [frozen(machine) for machine in trajectory]
        shape, units = laws[-1].weight.shape, (laws[-1].units, laws[-1].hidden_units)
        for k, law in enumerate(laws):
            if law.weight.shape != shape or (law.units, law.hidden_units) != units:
                raise ValueError(
                    f"trajectory: expected copies of one machine, {tuple(shape)} units, and number "
                    f"{k} has {tuple(law.weight.shape)}"
                )
        if start.dim() != 2 or start.shape[1] != shape[0] or len(start) == 0:
            raise ValueError(
                f"start: expected shape (chains, {shape[0]}) with chains > 0, got "
                f"{tuple(start.shape)}"
            )
        require_whole(self, sweeps=sweeps)
        self.laws = [uncoupled(laws[0]), *laws] if laws[0].weight.any() else laws
        self.sweeps = sweeps
        start = start.to(laws[0].weight)
        held = None if clamp is None else clamped(clamp, start, laws[0].units)
        super().__init__(site, known(start, clamp), len(self.laws), held)

    def step(self, state: State) -> tuple[State, Info]:
        return step(state, laws=self.laws, sweeps=self.sweeps, clamp=self.clamp)

    def base_log_partition(self) -> float:
        first = self.laws[0]  # without couplings
        hidden = first.hidden_units.log_normaliser(first.hidden_bias.double())
        return (first.units.log_normaliser(first.visible_bias.double()) + hidden).item()

    def log_ratios(self) -> Tensor:
        ratios = []
        for k, (early, late) in enumerate(pairwise(self.laws)):
            pair = self.state.ladder[k : k + 2]
            ratios.append(early.free_energy(pair).double() - late.free_energy(pair).double())
        return torch.stack(ratios)


Kept = dict[str, Tensor]
_PARTS = ("weight", "visible_bias", "hidden_bias")


@dataclass(frozen=True)
class Trajectory:
    """Parallel trajectory tempering as the negative phase of `ContrastiveDivergence`.

    The chains swap with a reservoir of draws from the last frozen machine, and then make their
    block Gibbs updates. When too few swaps are accepted, the machine as it is now is frozen as the
    next rung, and its reservoir is filled by tempering along all rungs. It is made for
    ``persistent=True`` and for training that starts at small weights. Narrow basins that form
    between two rungs stay unseen.

    An update so large that less than a tenth of the chains swap would tear the ladder. The rule of
    rejecting it and halving the rate needs the optimizer, momentum and all, to be set back. Here
    the gap is bridged instead: rungs halfway between the two machines are put in until neighbours
    swap again. Any machines serve as rungs, as the swaps are exact.

    Args:
        reservoir: draws kept for each rung, as a multiple of the chains.
        freeze: the running share of accepted swaps below which a rung is added.
        rounds: steps of the whole ladder that fill a new reservoir.

    References:
        | Fast training and sampling of restricted Boltzmann machines (Béreux et al., 2025)
        | https://arxiv.org/abs/2405.15376
    """

    reservoir: int = 10
    freeze: float = 0.3
    rounds: int = 20

    def __post_init__(self) -> None:
        require_whole(self, reservoir=self.reservoir, rounds=self.rounds)
        require_positive(self, freeze=self.freeze)
        require_share(self, freeze=self.freeze)

    def laws(self, machine: BoltzmannMachine, kept: Kept) -> list[RestrictedBoltzmann]:
        """The rungs, the first without couplings: ``sampler.laws(rbm, loss.state.chains)``.

        With the trained machine behind them they are a trajectory for `TrajectoryTempering`.
        """
        return [
            _law(machine, *(kept[f"{k}/{part}"] for part in _PARTS)) for k in range(_rungs(kept))
        ]

    def start(self, machine: BoltzmannMachine, visible: Tensor) -> Kept:
        """Chains and the first reservoir, exact draws from a machine without couplings."""
        law = uncoupled(frozen(machine))
        states = torch.zeros((1 + self.reservoir) * len(visible), visible.shape[1]).to(visible)
        chains, reservoir = sweep(law, states).tensor_split([len(visible)])
        kept = {"chains": chains, "accepted": chains.new_ones(())}
        return {**kept, **_rung(0, law, reservoir)}

    @torch.no_grad()
    def move(self, machine: BoltzmannMachine, kept: Kept, steps: int) -> tuple[Kept, Tensor]:
        last, chains = _rungs(kept) - 1, kept["chains"]
        law, reservoir = self.laws(machine, kept)[-1], kept[f"{last}/reservoir"]
        drawn = torch.randperm(len(reservoir), device=reservoir.device)[: len(chains)]
        returned, chains, share = swap(law, machine, reservoir[drawn], chains)
        for _ in range(steps):
            chains = machine.sweep(chains)
        kept = {
            **kept,
            "chains": chains,
            "accepted": torch.lerp(kept["accepted"], share, 0.2),
            f"{last}/reservoir": reservoir.index_copy(0, drawn, returned),
        }
        if kept["accepted"] < self.freeze or share < LOST:
            kept = self._with_rung(machine, kept)
        return kept, kept["chains"]

    def _with_rung(self, machine: BoltzmannMachine, kept: Kept) -> Kept:
        """The machine frozen as it is, its reservoir filled from the chains by tempering."""
        laws, new = [*self.laws(machine, kept), frozen(machine)], _rungs(kept)
        ladder = [kept[f"{k}/reservoir"] for k in range(new)]
        state = State(torch.stack([*ladder, kept["chains"].repeat(self.reservoir, 1)]))
        state, accepted = self._tempered(state, laws)
        for _ in range(_BRIDGES):
            gap = int(accepted.argmin())
            if accepted[gap] >= LOST:
                break
            laws.insert(gap + 1, between(*laws[gap : gap + 2]))
            state = State(torch.cat([state.ladder[: gap + 1], state.ladder[gap:]]))
            state, accepted = self._tempered(state, laws)
        if accepted.min() < LOST:
            warnings.warn(
                f"Trajectory: only {float(accepted.min()):.0%} of the chains swap between two "
                f"rungs, and {_BRIDGES} more do not bridge the gap: updates this large leave the "
                "trajectory behind. Use a smaller learning rate, and start at small weights",
                RuntimeWarning,
                stacklevel=2,
            )
        found = {**kept, "accepted": torch.ones_like(kept["accepted"])}
        for k, law in enumerate(laws):
            found |= _rung(k, law, state.ladder[k].clone())
        return found

    def _tempered(self, state: State, laws: list[RestrictedBoltzmann]) -> tuple[State, Tensor]:
        """After `rounds` steps, and the mean share of swaps between neighbours."""
        shares = []
        for _ in range(self.rounds):
            state, info = step(state, laws=laws)
            shares.append(info.accepted)
        return state, torch.stack(shares).mean(0)


def between(early: RestrictedBoltzmann, late: RestrictedBoltzmann) -> RestrictedBoltzmann:
    """The machine halfway between two, in their natural parameters."""
    parts = (torch.lerp(getattr(early, name), getattr(late, name), 0.5) for name in _PARTS)
    return _law(late, *parts)


def _rung(k: int, law: RestrictedBoltzmann, reservoir: Tensor) -> Kept:
    parts = (law.weight, law.visible_bias, law.hidden_bias, reservoir)
    names = (*_PARTS, "reservoir")
    return {f"{k}/{name}": part for name, part in zip(names, parts, strict=True)}


def _rungs(kept: Kept) -> int:
    return sum(name.endswith("/reservoir") for name in kept)
