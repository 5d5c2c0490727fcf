r"""NUTS: the familiar reference among samplers, all chains at once on the recorded program.

Every batched gradient advances each chain by one leapfrog. Chains do not wait for each other: one
that has finished its trajectory begins the next, so that only the tail of the slowest is lost.

Starts, metric and step size are those of `HMC`, whose warm-up takes a tenth of the time of one in
which each chain adapts by itself, with trees. A search of its own for the step size of trees pays
for itself only where it accepts so little that hard posteriors diverge (eight schools: 12 of 12,800
draws).

The trees live in whitened coordinates `w`, where the metric is the identity:

.. math:: z = a + L w, \quad L L^T = M^{-1}
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.inference.hmc_warmup import Tuned
from ppgen.inference.many_chains import ManyChains, show
from ppgen.inference.nuts_tree import POSITION, Array, Indices, Trees
from ppgen.inference.target import Target
from ppgen.progress import Interrupt, Progress

_DEEPEST = 30  # a tree of a thousand million gradients
_FIRST_LEAPFROGS = 256  # of a trajectory of the warm-up, at most
_BLOCK = 2**16  # random numbers that are drawn at once
_NUMBERS: tuple[str, ...] = ("lp", "acceptance_rate", "n_steps", "diverging", "energy")


@dataclass(frozen=True)
class NUTS(ManyChains):
    """The No-U-Turn sampler with the trees of Stan: multinomial, with checks across subtrees.

    Starts, metric and step size come from all chains together, and are frozen before the first
    draw; the starts are dispersed, so that R-hat keeps something to see.

    Args:
        chains: run side by side; where data are few, 64 cost little more than one.
        draws: kept of each chain.
        warmup: iterations of adaptation at most, discarded; fewer where nothing changes any more.
        target_accept: of whole trajectories of the warm-up, by the harmonic mean over chains, which
            trees then exceed; a little more than that of `HMC`, since a tree diverges by any of
            its leaves. Raise it towards 1 against divergences. Where chains mix and diverge at
            times, or few of them hardly move, the draws are taken again, once, with half the step.
        max_tree_depth: a trajectory has at most ``2**max_tree_depth - 1`` steps.
        metric: ``"diag"``, ``"dense"``, or ``"auto"``: dense where parameters are strongly
            correlated (up to 200 dimensions).
        max_draws: where R-hat or ESS do not hold after `draws`, sampling goes on until they do, if
            that takes at most so many; four times `draws` when None, never more if equal to it.

    References:
        | The No-U-Turn sampler (Hoffman & Gelman, 2014) | https://arxiv.org/abs/1111.4246
        | A conceptual introduction to Hamiltonian Monte Carlo (Betancourt, 2017)
          | https://arxiv.org/abs/1701.02434
    """

    target_accept: float = 0.85
    max_tree_depth: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, max_tree_depth=self.max_tree_depth)
        if self.max_tree_depth > _DEEPEST:
            raise self._wrong("max_tree_depth", f"at most {_DEEPEST}")

    @property
    def _leapfrogs(self) -> int:
        return min(_FIRST_LEAPFROGS, 2**self.max_tree_depth - 1)

    def _chains(
        self, tuned: Tuned, target: Target, interrupt: Interrupt, progress: Progress
    ) -> _Chains:
        return _Chains(self, tuned, target, interrupt, progress)


class _Chains:
    """Chains on their way, each at a transition of its own."""

    def __init__(
        self,
        options: NUTS,
        tuned: Tuned,
        target: Target,
        interrupt: Interrupt,
        progress: Progress,
    ) -> None:
        self.options, self.target = options, target
        self.interrupt, self.progress = interrupt, progress
        z, log_density, gradient = tuned.state
        self.metric, self.origin = tuned.metric, z.mean(0)
        self.trees = Trees(
            self.metric.whiten(z - self.origin).cpu().numpy(),
            log_density.cpu().numpy(),
            self.metric.pull(gradient).cpu().numpy(),
            max_depth=options.max_tree_depth,
        )
        chains, dim = z.shape
        self.noise = _Noise(chains, dim, z.dtype)
        self.kept = np.zeros(chains, np.int64)
        self.wanted = 0  # draws of each chain
        self.w = np.empty((chains, 0, dim), self.trees.draw.dtype)
        self.numbers = np.empty((chains, 0, len(_NUMBERS)))
        self.step_size = tuned.step_size
        self.trees.begin(np.arange(chains), self.noise.momenta(chains))

    def _whitened(self, w: Array) -> tuple[Array, Array]:
        """``(C, D)`` -> log density ``(C,)`` in nats and its gradient by ``w``, ``(C, D)``."""
        value, gradient = self.target(self._positions(w))
        return value.cpu().numpy(), self.metric.pull(gradient).cpu().numpy()

    def _positions(self, w: Array) -> Tensor:
        return self.origin + self.metric.push(torch.from_numpy(w).to(self.origin.device))

    def go_on(self, draws: int) -> None:
        """Run until every chain has so many more draws, or somebody stops it.

        No trajectory is broken off: where another one was the last to end, it is still under way.
        """
        trees = self.trees
        self.wanted += draws
        self.w, self.numbers = _longer(self.w, draws), _longer(self.numbers, draws)
        shown = slowest = int(self.kept.min())
        while not self.interrupt and slowest < self.wanted:
            over = trees.grow(self._whitened, self.step_size, self.noise.uniforms())
            ended = np.flatnonzero(over)
            record = ended[self.kept[ended] < self.wanted]
            at = (record, self.kept[record])
            self.w[at] = trees.draw[record, POSITION]
            self.numbers[at] = self._transitions(record)
            self.kept[record] += 1
            trees.begin(ended, self.noise.momenta(len(ended)))
            slowest = int(self.kept.min())
            for t in range(shown, slowest):
                show(self.progress, t, self.step_size, self._rates())
            shown = slowest

    def _transitions(self, chains: Indices) -> Array:
        """What `_NUMBERS` names, of trajectories that have ended, ``(N, 5)``."""
        trees = self.trees
        leaves = trees.leaves[chains]
        columns = (
            trees.log_density[chains],
            trees.acceptance[chains] / leaves,
            leaves,
            trees.diverging[chains],
            trees.energy(chains),
        )
        return np.stack(columns, 1, dtype=np.float64)

    def _rates(self) -> Tensor:
        """Acceptance on the way to the newest draw of each chain, ``(C,)``."""
        column = _NUMBERS.index("acceptance_rate")
        return torch.from_numpy(self.numbers[np.arange(len(self.kept)), self.kept - 1, column])

    def read(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Draws ``(chains, draws, D)`` that every chain has, and their statistics."""
        kept = int(self.kept.min())
        if kept < 1:
            raise KeyboardInterrupt("NUTS was stopped before every chain had its first draw")
        numbers = torch.from_numpy(self.numbers[:, :kept].copy()).to(self.origin.device)
        stats: dict[str, Tensor] = dict(zip(_NUMBERS, numbers.unbind(-1), strict=True))
        stats["diverging"] = stats["diverging"].bool()
        stats["n_steps"] = leaves = stats["n_steps"].long()
        # doublings, the last perhaps left half done
        stats["tree_depth"] = torch.frexp(leaves.double()).exponent.long()
        stats["reached_max_treedepth"] = leaves >= 2**self.options.max_tree_depth - 1
        stats["step_size"] = torch.full_like(stats["lp"], self.step_size)
        return self._positions(self.w[:, :kept].copy()), stats

    def messages(self, stats: dict[str, Tensor]) -> list[str]:
        deepest = int(stats["reached_max_treedepth"].sum())
        if not deepest:
            return []
        return [
            f"{deepest} draws reached max_tree_depth={self.options.max_tree_depth}: slow, not "
            "wrong; parameters of very different scales, or strongly correlated"
        ]


def _longer(values: np.ndarray, draws: int) -> np.ndarray:
    """With room for so many more draws, ``(chains, draws, ...)``."""
    room = np.zeros((values.shape[0], draws, *values.shape[2:]), values.dtype)
    return np.concatenate([values, room], 1)


class _Noise:
    """Random numbers of torch's global generator, drawn in blocks: one at a time is slow."""

    def __init__(self, chains: int, dim: int, dtype: torch.dtype) -> None:
        self._rows = max(1, _BLOCK // (3 * chains)), max(chains, _BLOCK // dim)
        self._chains, self._dim, self._dtype = chains, dim, dtype
        self._uniforms = self._momenta = np.empty(0)
        self._next, self._first = 0, 0

    def uniforms(self) -> Array:
        """``(3, C)`` in [0, 1)."""
        if self._next >= len(self._uniforms):
            shape = (self._rows[0], 3, self._chains)
            self._uniforms, self._next = torch.rand(shape, dtype=torch.float64).numpy(), 0
        self._next += 1
        return self._uniforms[self._next - 1]

    def momenta(self, count: int) -> Array:
        """``(count, D)``, standard normal; at most one a chain."""
        if self._first + count > len(self._momenta):
            shape = (self._rows[1], self._dim)
            self._momenta, self._first = torch.randn(shape, dtype=self._dtype).numpy(), 0
        self._first += count
        return self._momenta[self._first - count : self._first]
