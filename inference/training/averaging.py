"""Exponential moving averages of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class ParameterAverage:
    r"""An exponential moving average that forgets its start quickly.

    .. math:: \bar\theta_t = d_t \bar\theta_{t-1} + (1 - d_t) \theta_t, \quad
        d_t = \min(d, (1 + t) / (10 + t))

    Args:
        parameters: the tensors to follow; the optimizer goes on changing them.
        decay: ``d`` in (0, 1); 0.999 remembers about a thousand steps.

    References:
        | Acceleration of Stochastic Approximation by Averaging (Polyak and Juditsky, 1992)
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.steps = 0
        self.averages = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters as they are now into the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages, in place."""
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            current = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(current)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the parameters are the averages."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
