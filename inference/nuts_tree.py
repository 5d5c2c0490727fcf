r"""The trees of NUTS: the trajectories of all chains, grown side by side.

Each call of `Trees.grow` advances every chain by one leapfrog with one batched gradient; no chain
waits for another, and each begins its next trajectory when its own has turned or is long enough.

A trajectory is a binary counter. The start is leaf 0; leaf `t` completes as many subtrees as `t`
ends in binary ones, and the whole trajectory has doubled where `t + 1` is a power of two. One
completed subtree is kept for each level: memory is logarithmic in the length, and every leaf costs
one merge on average. A (sub)tree with leaves :math:`i..j` has turned where

.. math:: r_i \cdot \rho \le 0 \text{ or } r_j \cdot \rho \le 0, \quad
          \rho = \sum_{k=i}^{j} r_k,

or where the same holds from either half of it to the first leaf of the other half: two halves that
are each closed would pass the test for the whole. Positions are whitened by the inverse mass matrix
(see `nuts`), so that the momenta `r` are standard normal and are their own velocities.

Leaves are drawn in proportion to :math:`e^{-H}`: uniformly so within a new subtree, and between the
old trajectory and the new subtree with a bias towards the new.

The state is NumPy's: on a few chains an operation costs a third of torch's.

References:
    | The No-U-Turn sampler (Hoffman & Gelman, 2014) | https://arxiv.org/abs/1111.4246
    | A conceptual introduction to Hamiltonian Monte Carlo (Betancourt, 2017)
      | https://arxiv.org/abs/1701.02434
    | Composable effects for flexible and accelerated probabilistic programming in NumPyro (Phan,
      Pradhan & Jankowiak, 2019) | https://arxiv.org/abs/1912.11554
    | Unrolled implementation of no-U-turn sampler (Lao & Dillon, 2019)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ppgen.inference.hmc import DIVERGENCE

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]
Indices = NDArray[np.integer]
ValueAndGrad = Callable[[Array], tuple[Array, Array]]
"""Whitened positions ``(C, D)`` -> log density ``(C,)`` in nats and its gradient ``(C, D)``."""

POSITION, MOMENTUM, GRADIENT = range(3)  # of a point in phase space, (3, D)
_FIRST, _LAST, _SUM = range(3)  # momenta of a subtree's first and last leaf; of all leaves


class Trees:
    """One trajectory a chain, with the draw that each would return if it ended now.

    Args:
        position: starts in whitened coordinates, ``(C, D)``.
        log_density: there, ``(C,)``, nats.
        gradient: there, whitened, ``(C, D)``.
        max_depth: room for trajectories of ``2**max_depth - 1`` leaves beyond their start.
    """

    def __init__(
        self, position: Array, log_density: Array, gradient: Array, *, max_depth: int
    ) -> None:
        chains, dim = position.shape
        self.draw = np.stack([position, np.zeros_like(position), gradient], 1)  # (C, 3, D)
        self.log_density = log_density.astype(np.float64)  # of the draw, (C,), nats
        self.acceptance = np.zeros(chains)  # min(1, exp(-energy error)), summed over the leaves
        self.leaves = np.zeros(chains, np.int64)  # beyond the start
        self.diverging = np.zeros(chains, np.bool_)
        self._most = 2**max_depth - 1  # leaves of a trajectory
        self._start = np.zeros(chains)  # energy that the trajectory starts with, nats
        self._weight = np.zeros(chains)  # log of the sum of exp(-energy error): of the trajectory
        self._branch_weight = np.zeros(chains)  # and of the subtree that grows
        self._branch = self.draw.copy()  # its draw
        self._branch_log_density = self.log_density.copy()
        self._point = self.draw.copy()  # the leaf at which it grows
        self._ends = np.stack([self.draw, self.draw])  # of the trajectory; backward, forward
        self._side = np.zeros(chains, np.int64)  # the end at which it grows
        self._sign = np.ones(chains, position.dtype)
        # Row 0 is the newest leaf, row j + 1 the last completed subtree of 2^j leaves.
        self._nodes = np.zeros((chains, max_depth + 2, 3, dim), position.dtype)
        self._all = np.arange(chains)

    def energy(self, chains: Indices) -> Array:
        """Energies of draws with their momenta, ``(N,)``, nats."""
        return _kinetic(self.draw[chains, MOMENTUM]) - self.log_density[chains]

    def begin(self, chains: Indices, momenta: Array) -> None:
        """Start new trajectories at the draws of the last.

        Args:
            chains: which, ``(N,)``.
            momenta: standard normal, ``(N, D)``.
        """
        self.draw[chains, MOMENTUM] = momenta
        self._ends[:, chains] = self.draw[chains]
        self._nodes[chains, 1, _SUM] = momenta
        self._start[chains] = _kinetic(momenta) - self.log_density[chains]
        self._weight[chains] = 0.0
        self._branch_weight[chains] = -np.inf
        self.acceptance[chains] = 0.0
        self.leaves[chains] = 0

    def grow(self, value_and_grad: ValueAndGrad, step_size: float, uniforms: Array) -> Mask:
        """One leapfrog of every chain.

        Args:
            value_and_grad: of the target, whitened.
            step_size: of all chains.
            uniforms: random numbers in [0, 1): for the direction where a trajectory is about to
                double, for the new leaf, and for a subtree that is complete, ``(3, C)``.

        Returns: whether the trajectory is complete, ``(C,)``; such chains must `begin` anew.
        """
        with np.errstate(all="ignore"):  # a step too long overflows, and that is no accident
            self._turn(uniforms[0] < 0.5)
            log_density = self._leapfrog(value_and_grad, self._sign * step_size)
            self._weigh(log_density, uniforms[1])
            self.leaves += 1
            doubled = (self.leaves & (self.leaves + 1)) == 0
            closed, turned = self._merge(doubled)
            self._join(doubled & ~closed & ~self.diverging, uniforms[2])
        return closed | turned | self.diverging | (self.leaves >= self._most)

    def _turn(self, forward: Mask) -> None:
        """Where a trajectory is about to double, go to the end at which it will grow."""
        new = np.flatnonzero((self.leaves & (self.leaves + 1)) == 0)
        if not new.size:
            return
        side = forward[new].astype(np.int64)
        self._side[new], self._sign[new] = side, 2 * side - 1
        self._point[new] = point = self._ends[side, new]
        # To the new subtree the trajectory so far is the half before it, from the far end.
        row = _bit_length(self.leaves[new]) + 1
        self._nodes[new, row, _FIRST] = self._ends[1 - side, new, MOMENTUM]
        self._nodes[new, row, _LAST] = point[:, MOMENTUM]

    def _leapfrog(self, value_and_grad: ValueAndGrad, step: Array) -> Array:
        z, r, gradient = (self._point[:, k] for k in (POSITION, MOMENTUM, GRADIENT))
        step = step[:, None]
        half = 0.5 * step
        r += half * gradient
        z += step * r
        log_density, gradient[:] = value_and_grad(z)
        r += half * gradient
        return log_density

    def _weigh(self, log_density: Array, uniform: Array) -> None:
        """Take the new leaf into the subtree's sum, and draw it with its share of that sum."""
        gain = self._start - _kinetic(self._point[:, MOMENTUM]) + log_density
        # An energy of -inf is as wrong as one of +inf: a chain would never leave it.
        gain = np.where(np.isfinite(gain), gain, -np.inf)
        self.diverging = gain < -DIVERGENCE
        self.acceptance += np.exp(np.minimum(gain, 0.0))
        self._branch_weight = np.logaddexp(self._branch_weight, gain)
        taken = uniform < np.exp(gain - self._branch_weight)
        np.copyto(self._branch, self._point, where=taken[:, None, None])
        np.copyto(self._branch_log_density, log_density, where=taken)

    def _merge(self, doubled: Mask) -> tuple[Mask, Mask]:
        """Close the subtrees that the newest leaf completes.

        Returns: where one within the growing subtree has turned, which makes that subtree void;
            and where the whole trajectory has. ``(C,)`` each.
        """
        t, momentum = self.leaves, self._point[:, MOMENTUM]
        merges = _bit_length(t & ~(t + 1))  # trailing ones of t
        levels = int(merges.max())
        nodes = self._nodes[:, : levels + 1]
        nodes[:, 0] = momentum[:, None]
        total = np.cumsum(nodes[:, :, _SUM], 1)
        turned = _turned(nodes, total, momentum)
        level = np.arange(levels)
        below = (merges - doubled)[:, None]  # levels within the growing subtree
        inside = np.any(turned & (level < below), 1)
        whole = np.any(turned & (level == below) & doubled[:, None], 1)
        new = (self._all, merges + 1)
        self._nodes[(*new, _FIRST)] = nodes[self._all, merges, _FIRST]
        self._nodes[(*new, _LAST)] = momentum
        self._nodes[(*new, _SUM)] = total[self._all, merges]
        return np.asarray(inside), np.asarray(whole)

    def _join(self, complete: Mask, uniform: Array) -> None:
        """Join complete subtrees to their trajectories, drawing from the new half if heavier."""
        new = np.flatnonzero(complete)
        if not new.size:
            return
        weight = self._branch_weight[new]
        taken = new[uniform[new] < np.exp(weight - self._weight[new])]
        self.draw[taken] = self._branch[taken]
        self.log_density[taken] = self._branch_log_density[taken]
        self._weight[new] = np.logaddexp(self._weight[new], weight)
        self._branch_weight[new] = -np.inf
        self._ends[self._side[new], new] = self._point[new]


def _turned(nodes: Array, total: Array, momentum: Array) -> Mask:
    """Whether the subtrees that end in a leaf have turned, ``(C, levels)``.

    Args:
        nodes: that leaf and the completed subtrees before it, ``(C, levels + 1, 3, D)``.
        total: momenta summed from the first leaf of each of them to the newest leaf.
        momentum: of the newest leaf, ``(C, D)``.
    """
    first, last, rho = nodes[:, :, _FIRST], nodes[:, 1:, _LAST], nodes[:, 1:, _SUM]
    left, right, r = first[:, 1:], first[:, :-1], momentum[:, None]
    onward, back = rho + right, last + total[:, :-1]
    products = (
        _dot(left, total[:, 1:]),
        _dot(r, total[:, 1:]),
        _dot(left, onward),
        _dot(right, onward),
        _dot(last, back),
        _dot(r, back),
    )
    return ~(np.minimum.reduce(products) > 0.0)


def _kinetic(momentum: Array) -> Array:
    return 0.5 * _dot(momentum, momentum).astype(np.float64)


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("...d,...d->...", a, b)


def _bit_length(x: Indices) -> Indices:
    return np.frexp(x)[1]
