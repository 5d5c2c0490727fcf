"""Multilayer perceptrons, plain and with a Gaussian head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Fully connected layers with a nonlinearity between them.

    Args:
        widths: ``(inputs, hidden, ..., outputs)``; at least two numbers.
        activation: builds the nonlinearity, e.g. ``nn.ReLU``.

    Shapes: ``(*, widths[0]) -> (*, widths[-1])``.

    Example:
        >>> MLP((3, 8, 2))(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, widths: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(
                f"an MLP needs at least an input and an output width, all positive; got {widths}"
            )
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), activation()]
        super().__init__(*layers[:-1])


class GaussianMLP(nn.Module):
    r"""An MLP whose output is the mean and standard deviation of a diagonal Gaussian.

    The log variance is bounded smoothly, ``bound * tanh(raw / bound)``: it cannot overflow, and
    near 0 it is the raw number.

    Args:
        widths: ``(inputs, hidden, ..., dimensions of the Gaussian)``.
        log_variance_bound: the largest absolute log variance.

    Shapes: ``(*, widths[0]) -> (*, widths[-1])`` twice: mean and standard deviation.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: Callable[[], nn.Module] = nn.ReLU,
        *,
        log_variance_bound: float = 10.0,
    ) -> None:
        super().__init__()
        self.body = MLP((*widths[:-1], 2 * widths[-1]), activation)
        self.log_variance_bound = log_variance_bound

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.body(x).chunk(2, -1)
        bound = self.log_variance_bound
        return loc, torch.exp(0.5 * bound * torch.tanh(raw / bound))
