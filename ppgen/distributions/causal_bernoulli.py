"""Binary images whose pixels are drawn one after the other."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn import functional as F

_ONE = Size()
_DRAWS = 16  # whose average is the mean, which has no formula


class CausalBernoulli(TorchDistribution):
    r"""Binary images, row by row: each pixel is told what is above it and to its left.

    .. math::
        \mathrm{logit}\, P(x_i = 1 \mid x_{<i}) = o_i + \sum_c w_c \,
            \mathrm{silu}\Big(h_{ic} + \sum_{j \in N(i)} k_{c, j - i} x_j\Big)

    N(i) are the pixels before i that are at most R rows and R columns away; what lies outside the
    image counts as 0. With ``w = 0`` the pixels are independent.

    Args:
        log_odds: o, ``(*, D)``, for D = height times width.
        hidden: h, ``(*, D, C)``.
        kernel: k, ``(C, R + 1, 2 R + 1)``, the pixel's own place in the middle of the last row;
            entries there and to its right are ignored.
        weight: w, ``(C,)``.
        image_shape: height and width.

    References:
        | Pixel Recurrent Neural Networks (van den Oord et al., 2016), for the masked convolution
        | https://arxiv.org/abs/1601.06759
        | PixelVAE (Gulrajani et al., 2017), for such a law given a code
        | https://arxiv.org/abs/1611.05013

    Example:
        >>> law = CausalBernoulli(
        ...     torch.zeros(6), torch.zeros(6, 4), torch.randn(4, 2, 3), torch.randn(4), (2, 3)
        ... )
        >>> law.sample().shape
        torch.Size([6])
    """

    has_rsample = False

    def __init__(
        self,
        log_odds: Tensor,
        hidden: Tensor,
        kernel: Tensor,
        weight: Tensor,
        image_shape: tuple[int, int],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.log_odds, self.hidden, self.weight = log_odds, hidden, weight
        self.image_shape, self.reach = image_shape, kernel.shape[1] - 1
        if log_odds.shape[-1] != math.prod(image_shape):
            raise ValueError(
                f"an image of {image_shape[0]} by {image_shape[1]} has {math.prod(image_shape)} "
                f"pixels; got log-odds of {log_odds.shape[-1]}"
            )
        self.kernel = kernel * _before(kernel)
        super().__init__(log_odds.shape[:-1], log_odds.shape[-1:], validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {"log_odds": constraints.real_vector}

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.boolean, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CausalBernoulli:
        shape = Size(batch_shape)
        return CausalBernoulli(
            self.log_odds.expand(shape + self.log_odds.shape[-1:]),
            self.hidden.expand(shape + self.hidden.shape[-2:]),
            self.kernel,
            self.weight,
            self.image_shape,
            validate_args=False,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits = self.conditional_logits(value)
        return -F.binary_cross_entropy_with_logits(
            logits, value.expand_as(logits), reduction="none"
        ).sum(-1)

    def conditional_logits(self, value: Tensor) -> Tensor:
        """``logit P(x_i = 1 | x_<i)`` of each pixel of `value`, ``(*, D)``."""
        return self.log_odds + F.silu(self.hidden + self._told(value)) @ self.weight

    @torch.no_grad()
    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        rows, columns = self.image_shape
        reach, kernel = self.reach, self.kernel.flatten(1).T
        flat = (-1, rows * columns)
        log_odds = self.log_odds.expand(shape).reshape(flat)
        hidden = self.hidden.expand(shape + self.hidden.shape[-1:])
        hidden = hidden.reshape(*log_odds.shape, -1)
        uniform = torch.rand(shape, dtype=log_odds.dtype, device=log_odds.device)
        # P(x = 1) = sigmoid(logit) exceeds u where the logit exceeds that of u
        threshold = torch.logit(uniform).reshape(flat)
        framed = log_odds.new_zeros(len(log_odds), rows + reach, columns + 2 * reach)
        for i in range(rows * columns):
            row, column = divmod(i, columns)
            seen = framed[:, row : row + reach + 1, column : column + 2 * reach + 1]
            told = F.silu(hidden[:, i] + seen.flatten(1) @ kernel) @ self.weight
            framed[:, row + reach, column + reach] = (log_odds[:, i] + told > threshold[:, i]).to(
                framed
            )
        return framed[:, reach:, reach : reach + columns].reshape(shape)

    @property
    def mean(self) -> Tensor:
        """The average of 16 draws: there is no formula."""
        return self.sample(Size([_DRAWS])).mean(0)

    def _told(self, value: Tensor) -> Tensor:
        """What the neighbours before each pixel add to its hidden units, ``(*, D, C)``."""
        reach = self.reach
        images = value.reshape(-1, 1, *self.image_shape)
        framed = F.pad(images, (reach, reach, reach, 0))
        told = F.conv2d(framed, self.kernel[:, None]).flatten(2).mT
        return told.reshape(*value.shape, -1)


def _before(kernel: Tensor) -> Tensor:
    """1 at the places of a kernel that come before the pixel itself."""
    mask = torch.ones_like(kernel)
    mask[:, -1, kernel.shape[2] // 2 :] = 0
    return mask
