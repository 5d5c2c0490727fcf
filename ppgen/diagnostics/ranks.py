"""Ranks of draws, for diagnostics that know no scale."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ppgen.diagnostics.arrays import Array


class Ranked(NamedTuple):
    """Draws ``(variables, chains, draws)``, all of a variable in the order of their values."""

    order: np.ndarray  # (variables, chains * draws): where each stood
    values: Array  # (variables, chains * draws), ascending
    shape: tuple[int, ...]

    @classmethod
    def of(cls, v: Array) -> Ranked:
        flat = v.reshape(len(v), -1)
        return cls._sorted(flat, flat.argsort(1), v.shape)

    @classmethod
    def _sorted(cls, flat: Array, order: np.ndarray, shape: tuple[int, ...]) -> Ranked:
        return cls(order, np.take_along_axis(flat, order, 1), shape)

    def folded(self) -> Ranked:
        """Their distances from the median."""
        size = self.values.shape[1]
        median = self.values[:, (size - 1) // 2 : size // 2 + 1].mean(1, keepdims=True)
        distance = np.abs(self.values - median)
        # one run down and one up: a stable sort merges them
        order = distance.argsort(1, kind="stable")
        found = Ranked._sorted(distance, order, self.shape)
        return found._replace(order=np.take_along_axis(self.order, order, 1))

    def normal_scores(self) -> Array:
        """Normal quantiles of the average ranks (Blom's offset), in the draws' own shape."""
        from scipy.special import ndtri

        size = self.values.shape[1]
        starts = np.ones(self.values.shape, dtype=bool)  # of a run of ties
        np.not_equal(self.values[:, 1:], self.values[:, :-1], out=starts[:, 1:])
        begin = np.flatnonzero(starts)
        length = np.diff(begin, append=starts.size)
        twice = (2 * begin + length - 1).repeat(length).reshape(starts.shape)
        twice -= 2 * size * np.arange(len(twice))[:, None]  # average ranks, from 0
        table = ndtri((np.arange(2 * size - 1) / 2 + 1 - 0.375) / (size + 0.25))
        scores = np.empty_like(self.values)
        np.put_along_axis(scores, self.order, table[twice], 1)
        return scores.reshape(self.shape)
