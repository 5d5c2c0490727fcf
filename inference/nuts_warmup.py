r"""Warm-up of one chain of NUTS: step size throughout, metric in windows that double.

As in Stan. The first iterations fall into the typical set; then the draws of each window make the
next metric, after which the step size is sought anew; the last iterations settle it. Nothing is
shared between chains, so that R-hat stays honest. Other than in Stan, the last metric does not
throw the step size away: fifty iterations of fresh dual averaging swing so wide that their average
was accepted with .87 on a 25-dimensional Gaussian and .90 on eight schools where .8 was asked for;
as the iterations from 100 on, .84 and .85, for a fifth more effective draws a gradient.

The metric is the regularised (co)variance of a window's `n` draws,

.. math:: \frac{n}{n + 5} \hat\Sigma + 10^{-3} \frac{5}{n + 5} I,

in the coordinates that the metric in force whitens: after the first window units do not matter.
Other than in Stan, it is dense as soon as a window shows strong correlations (`from_covariance`):
a regression on raw predictors then takes trees of a few leaves instead of a thousand.

References:
    | Stan reference manual, MCMC sampling, automatic parameter tuning
      | https://mc-stan.org/docs/reference-manual/mcmc.html
    | The No-U-Turn sampler (Hoffman & Gelman, 2014), section 3.2 | https://arxiv.org/abs/1111.4246
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ppgen.inference.chees import StepSize, update_step_size
from ppgen.inference.hmc_warmup import DENSE_LIMIT, MetricName, from_covariance
from ppgen.inference.nuts_tree import Array

_FIRST, _WINDOW, _LAST = 75, 25, 50  # iterations
_SHORTEST = 20  # iterations from which a metric is estimated at all
_ACCEPTED = 0.8  # of a single leapfrog with the step size that dual averaging starts from
_TRIALS = 60  # doublings or halvings of the step size
_EARLY_DEPTH = 8  # of trees before the first metric: 2^10 leaves would be lost on bad scales
_SETTLED = 100  # iteration of dual averaging from which the last window goes on
_ENOUGH = 10  # draws a dimension; fewer show strong correlations where there are none
_OPTIMISM = math.log(10.0)  # dual averaging is pulled towards ten times its start


def windows(warmup: int) -> list[int]:
    """Iterations at which windows begin and end: 75, 100, 150, 250, 450, 950 of 1000."""
    if warmup < _SHORTEST:
        return []
    first, size, last = _FIRST, _WINDOW, _LAST
    if warmup < first + size + last:
        first, last = int(0.15 * warmup), int(0.1 * warmup)
        size = warmup - first - last
    edges = [first]
    while edges[-1] < warmup - last:
        end = edges[-1] + size
        size *= 2  # a window that would leave less than this takes the rest
        edges.append(end if end + size <= warmup - last else warmup - last)
    return edges


class Spread:
    """Running mean and (co)variance (Welford).

    Args:
        dim: D.
        metric: ``"diag"``, ``"dense"``, or ``"auto"``: dense where the correlations ask for it.
    """

    def __init__(self, dim: int, *, metric: MetricName) -> None:
        self.metric: MetricName = metric
        self.count = 0
        dense = metric == "dense" or (metric == "auto" and dim <= DENSE_LIMIT)
        self.mean = np.zeros(dim)
        self.squares = np.zeros((dim, dim) if dense else dim)  # of deviations, summed

    def add(self, x: Array) -> None:
        """One more draw, ``(D,)``."""
        self.count += 1
        before = x - self.mean
        self.mean = self.mean + before / self.count
        after = x - self.mean
        self.squares += np.outer(after, before) if self.squares.ndim == 2 else after * before

    def factor(self) -> Array:
        """``A`` with ``A A^T`` the regularised covariance: its diagonal, or lower triangular."""
        weight = self.count / (self.count + 5.0)
        floor = 1e-3 * (1.0 - weight)
        covariance = weight * self.squares / max(self.count - 1, 1)
        if covariance.ndim == 1:
            return np.sqrt(covariance + floor)
        if self.metric == "auto" and self.count < _ENOUGH * len(self.mean):
            return np.sqrt(covariance.diagonal() + floor)
        whole = torch.from_numpy(covariance + floor * np.eye(len(self.mean)))
        return from_covariance(whole, self.metric, self.count).factor.numpy()


class Tuner:
    """Adaptation of one chain.

    Args:
        warmup: iterations.
        dim: D.
        target_accept: for the mean acceptance over a trajectory's leaves.
        metric: ``"diag"``, ``"dense"`` or ``"auto"``.
    """

    def __init__(self, warmup: int, dim: int, *, target_accept: float, metric: MetricName) -> None:
        self.step_size = 1.0
        self.iteration = 0
        self.warmup, self.target_accept = warmup, target_accept
        self._edges = windows(warmup)
        self._spread = Spread(dim, metric=metric)
        self._seek()

    @property
    def trying(self) -> bool:
        """Whether the next trajectory is a single leapfrog that tries the step size."""
        return self._steps is None

    @property
    def depth(self) -> int:
        """Largest depth worth while for the next tree."""
        if self.trying:
            return 1
        early = len(self._edges) > 2 and self.iteration < self._edges[1]
        return _EARLY_DEPTH if early else 62  # no limit: leaves are counted in 64 bits

    @property
    def done(self) -> bool:
        """Whether the next trajectory counts."""
        return self.iteration >= self.warmup

    def hear(self, acceptance: float, position: Array) -> Array | None:
        """Learn from a trajectory.

        Args:
            acceptance: mean over its leaves.
            position: the draw, whitened, ``(D,)``.

        Returns: where a window ends, the factor by which the metric's own changes.
        """
        if self._steps is None:
            self._try(acceptance)
            return None
        self._steps = update_step_size(self._steps, acceptance, self.target_accept)
        self.step_size = math.exp(self._steps.log)
        edges = self._edges
        if edges and edges[0] <= self.iteration < edges[-1]:
            self._spread.add(position)
        self.iteration += 1
        factor = None
        if self.iteration in edges[1:]:
            factor = self._spread.factor()
            self._spread = Spread(len(position), metric=self._spread.metric)
        if self.done:
            self.step_size = math.exp(self._steps.log_average)
        elif factor is not None:
            if len(edges) > 2 and self.iteration == edges[-1]:
                self._settle(self._steps.log_average)
            else:
                self._seek()
        return factor

    def _seek(self) -> None:
        self._steps: StepSize | None = None
        self._direction, self._trials = 0, 0

    def _settle(self, log: float) -> None:
        self.step_size = math.exp(log)
        self._steps = StepSize(log, log, log, 0.0, _SETTLED)

    def _try(self, acceptance: float) -> None:
        """Double or halve the step size until its acceptance crosses the line."""
        wanted = 1 if acceptance > _ACCEPTED else -1
        self._trials += 1
        if self._direction == -wanted or self._trials > _TRIALS:
            if wanted < 0:
                self.step_size *= 0.5
            log = math.log(self.step_size)
            # Too few iterations cannot come back from where optimism leads.
            optimism = _OPTIMISM if self.warmup - self.iteration >= _LAST else 0.0
            self._steps = StepSize(log, log, log + optimism, 0.0, 0)
        else:
            self._direction = wanted
            self.step_size *= 2.0**wanted
