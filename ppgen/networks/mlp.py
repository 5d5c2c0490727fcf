"""Multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn


class MLP(nn.Sequential):
    """Fully connected layers with a nonlinearity between them.

    Args:
        widths: ``(inputs, hidden, ..., outputs)``; at least two numbers.
        activation: builds the nonlinearity, e.g. ``nn.ReLU``.

    Shapes: ``(*, widths[0]) -> (*, widths[-1])``.

    Example:
        >>> import torch
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


def hidden_layers(
    widths: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Module:
    """An MLP whose last layer has its nonlinearity too; the identity where there is none."""
    return (
        nn.Sequential(MLP(widths, activation), activation()) if len(widths) > 1 else nn.Identity()
    )
