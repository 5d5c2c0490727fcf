"""Normalisation by a learned shift and scale that starts from the data."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

from ppgen.transforms.bijection import Bijection, per_channel

_NARROWEST = 1e-6  # the least scale: a channel that is constant has none


class ActNorm(Bijection, TransformModule):
    r"""A shift and scale for each channel: ``y = loc + exp(log_scale) x``.

    The first batch of data that is scored in training mode sets them, so that the base side of
    that batch has mean 0 and variance 1 in each channel; from then on they are ordinary
    parameters. Whether that has happened is part of the state, so that a model that is loaded
    does not start again. Before, it is the identity; a single number of a channel starts nothing,
    and neither do data where the parameters have been trained already, as by reverse KL.

    Args:
        channels: C.
        event_dim: 1 for vectors ``(*, C)``; 3 for images ``(*, C, H, W)``.

    Shapes: as the data; log-determinants ``(*)``.

    Raises:
        ValueError: for a value of other channels, over which a single one would broadcast.

    References:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039
    """

    domain: Any
    codomain: Any
    started: Tensor

    def __init__(self, channels: int, *, event_dim: int = 1) -> None:
        super().__init__()
        self.domain = self.codomain = per_channel(self, channels, event_dim)
        self.spread = (channels, *[1] * (event_dim - 1))  # against the axes after the channels
        self.loc = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("started", torch.tensor(False))

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._require(x)
        loc, log_scale = self.loc.view(self.spread), self.log_scale.view(self.spread)
        return loc + log_scale.exp() * x, self._log_det(x)

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self._require(y)
        if self.training and y.numel() and not self.started:
            self._start(y.detach())
        loc, log_scale = self.loc.view(self.spread), self.log_scale.view(self.spread)
        return (y - loc) * (-log_scale).exp(), -self._log_det(y)

    def _log_det(self, value: Tensor) -> Tensor:
        event = len(self.spread)
        pixels = math.prod(value.shape[value.ndim - event + 1 :])
        return (pixels * self.log_scale.sum()).expand(value.shape[: value.ndim - event])

    def _require(self, value: Tensor) -> None:
        axis = -len(self.spread)
        if value.ndim < -axis or value.shape[axis] != self.spread[0]:
            raise ValueError(
                f"ActNorm of {self.spread[0]} channels, axis {axis}; got a value of shape "
                f"{tuple(value.shape)}"
            )

    @torch.no_grad()
    def _start(self, y: Tensor) -> None:
        columns = y.movedim(-len(self.spread), 0).flatten(1)
        if columns.shape[1] < 2:
            return
        if not (self.loc.any() or self.log_scale.any()):
            self.loc.copy_(columns.mean(1))
            self.log_scale.copy_(columns.std(1, correction=0).clamp(min=_NARROWEST).log())
        self.started.fill_(True)
