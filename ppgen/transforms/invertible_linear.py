"""Invertible linear maps of channels; on images, Glow's 1 x 1 convolution."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

from ppgen.transforms.bijection import Bijection, per_channel


class InvertibleLinear(Bijection, TransformModule):
    r"""The same invertible matrix at each pixel, in LU form: ``x = W y, W = P L (U + diag(s))``.

    P is a fixed permutation, L unit lower and U strictly upper triangular, and the signs of s
    are fixed, so that the log-determinant is the sum of ``log |s|`` over channels and pixels and
    never degenerates. It starts as a random rotation. Data to base is one product, base to data
    two triangular solutions. Nothing is cached.

    Args:
        channels: C.
        event_dim: 1 for vectors ``(*, C)``; 3 for images ``(*, C, H, W)``.

    Shapes: as the data; log-determinants ``(*)``.

    References:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039
    """

    domain: Any
    codomain: Any
    order: Tensor
    signs: Tensor

    def __init__(self, channels: int, *, event_dim: int = 1) -> None:
        super().__init__()
        self.domain = self.codomain = per_channel(self, channels, event_dim)
        rotation = torch.linalg.qr(torch.randn(channels, channels)).Q
        P, L, U = torch.linalg.lu(rotation)
        self.register_buffer("order", P.argmax(1))  # row i of P L is row order[i] of L
        self.register_buffer("signs", U.diagonal().sign())
        self.lower = nn.Parameter(L.tril(-1))
        self.upper = nn.Parameter(U.triu(1))
        self.log_diagonal = nn.Parameter(U.diagonal().abs().log())

    def weight(self) -> Tensor:
        """W, ``(C, C)``."""
        L, U = self._factors()
        return (L @ U)[self.order]

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        columns = y.movedim(self._axis, -1)
        return (columns @ self.weight().mT).movedim(-1, self._axis), self._log_det(y)

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        L, U = self._factors()
        columns = x.movedim(self._axis, -1)[..., self.order.argsort()]
        flat = columns.reshape(-1, columns.shape[-1]).mT
        y = torch.linalg.solve_triangular(L, flat, upper=False, unitriangular=True)
        y = torch.linalg.solve_triangular(U, y, upper=True).mT.reshape(columns.shape)
        return y.movedim(-1, self._axis), -self._log_det(x)

    @property
    def _axis(self) -> int:
        """Of the channels."""
        return -self.domain.event_dim

    def _factors(self) -> tuple[Tensor, Tensor]:
        L = self.lower.tril(-1) + torch.eye(len(self.lower)).to(self.lower)
        return L, self.upper.triu(1) + torch.diag(self.signs * self.log_diagonal.exp())

    def _log_det(self, value: Tensor) -> Tensor:
        """Of W, data to base."""
        event = self.domain.event_dim
        pixels = math.prod(value.shape[value.ndim - event + 1 :])
        return (pixels * self.log_diagonal.sum()).expand(value.shape[: value.ndim - event])
