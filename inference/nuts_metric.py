r"""Whitened coordinates, of each chain its own: where the metric of NUTS is the identity.

.. math:: z = a + L w, \quad L L^T = M^{-1}

With momenta :math:`r = L^T p` the kinetic energy is :math:`\tfrac12 r^T r` and the velocity of
`w` is `r` itself, whether the metric is diagonal or dense.
"""

from __future__ import annotations

import numpy as np
import torch

from ppgen.inference.nuts_tree import Array, Indices
from ppgen.inference.target import Target


class Whitened:
    """The target as a function of ``w``, all chains in one call.

    Args:
        target: log density and gradient of positions ``(C, D)``.
        origin: ``a``, ``(C, D)``; the metrics begin as the identity.
    """

    def __init__(self, target: Target, origin: Array) -> None:
        self.target, self.origin = target, origin
        # The diagonals of L, (C, D); or, once a chain has a dense metric, all L, (C, D, D).
        self.factor = np.ones_like(origin)

    def __call__(self, w: Array) -> tuple[Array, Array]:
        """``(C, D)`` -> log density ``(C,)`` in nats and its gradient by ``w``, ``(C, D)``."""
        z = torch.from_numpy(self.origin + _push(self.factor, w))
        value, gradient = self.target(z.to(self.target.program.device))
        return value.cpu().numpy(), _pull(self.factor, gradient.cpu().numpy())

    def positions(self, w: Array, chains: Indices | slice = slice(None)) -> Array:
        """``z`` of whitened ``w``, ``(N, D)``, one of each of the `chains`."""
        return self.origin[chains] + _push(self.factor[chains], w)

    def renew(self, chain: int, point: Array, spread: Array) -> None:
        """Change one chain's metric, and its draw to the new coordinates.

        Args:
            chain: which.
            point: position, momentum, gradient, ``(3, D)``; changed in place. The position is the
                new origin, so that nothing has to be solved for and nothing is rounded.
            spread: ``A`` where the new ``L`` is ``L A``: ``(D,)`` or ``(D, D)``.
        """
        self.origin[chain] = self.positions(point[:1], slice(chain, chain + 1))[0]
        if spread.ndim == 2 and self.factor.ndim == 2:
            self.factor = self.factor[..., None] * np.eye(len(spread), dtype=self.factor.dtype)
        factor = self.factor[chain]
        self.factor[chain] = factor @ spread if spread.ndim == 2 else factor * spread
        point[0] = 0.0
        point[2] = _pull(spread, point[2])


def _push(factor: Array, w: Array) -> Array:
    if factor.ndim == w.ndim:
        return factor * w
    return (factor @ w[..., None])[..., 0]


def _pull(factor: Array, gradient: Array) -> Array:
    if factor.ndim == gradient.ndim:
        return factor * gradient
    return (gradient[..., None, :] @ factor)[..., 0, :]
