"""Data whose distribution is known: exact answers to compare estimates with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Patterns:
    """A distribution over finitely many binary patterns.

    Args:
        x: all patterns, each once, ``(K, D)``.
        log_prob: of each, ``(K,)``, nats.
        entropy: nats; no model can have a larger mean log-likelihood than ``-entropy``.
    """

    x: Tensor
    log_prob: Tensor
    entropy: float

    def sample(self, count: int) -> Tensor:
        """Independent draws, ``(count, D)``."""
        return self.x[torch.multinomial(self.log_prob.exp(), count, replacement=True)]


def bars_and_stripes(size: int) -> Patterns:
    r"""Images of ``size x size`` whose rows, or whose columns, are each on or off by a coin.

    A coin chooses between bars and stripes, then one coin for each row (or column). There are
    :math:`2^{n+1} - 2` patterns, since all on and all off come about both ways; the entropy is
    :math:`(n + 1 - 2^{1-n}) \log 2` nats.

    Args:
        size: the side n of the image, 1 to 16.

    References:
        | Information Theory, Inference and Learning Algorithms (MacKay, 2003), section 43.3

    Example:
        >>> bars_and_stripes(3).x.shape
        torch.Size([14, 9])
    """
    if not 1 <= size <= 16:
        raise ValueError(f"size {size}: expected 1 to 16")
    on = torch.arange(2**size)[:, None] >> torch.arange(size) & 1
    stripes = on[:, :, None].expand(-1, size, size)
    both = torch.cat([stripes, stripes.mT]).reshape(-1, size * size)
    x, ways = both.unique(dim=0, return_counts=True)
    dtype = torch.get_default_dtype()
    log_prob = ways.to(dtype).log() - (size + 1) * math.log(2)
    entropy = (size + 1 - 2.0 ** (1 - size)) * math.log(2)
    return Patterns(x.to(dtype), log_prob, entropy)


def banana(count: int, *, bend: float = 1.0) -> Tensor:
    """A bent normal distribution, ``(count, 2)``: see `banana_log_prob`."""
    first, noise = torch.randn(2, count)
    return torch.stack([first, bend * (first**2 - 1) + 0.5 * noise], -1)


def banana_log_prob(x: Tensor, *, bend: float = 1.0) -> Tensor:
    r"""Log density of `banana`, ``(..., 2) -> (...)``, nats.

    .. math:: x_1 \sim N(0, 1), \quad x_2 \mid x_1 \sim N(b (x_1^2 - 1), 1/4)
    """
    first, second = x.unbind(-1)
    residual = (second - bend * (first**2 - 1)) / 0.5
    return -0.5 * (first**2 + residual**2) - math.log(2 * math.pi * 0.5)


def checkerboard(count: int) -> Tensor:
    """Uniform on the eight dark squares of a 4x4 board over [-2, 2]^2, ``(count, 2)``."""
    column = torch.randint(0, 4, (count,))
    row = 2 * torch.randint(0, 2, (count,)) + column % 2
    corner = torch.stack([column, row], -1)
    return corner + torch.rand(count, 2) - 2


def checkerboard_log_prob(x: Tensor) -> Tensor:
    """Log density of `checkerboard`, ``(..., 2) -> (...)``: -log 8 nats, or -inf outside."""
    square = (x + 2).floor()
    dark = ((square >= 0) & (square < 4)).all(-1) & (square.sum(-1) % 2 == 0)
    return torch.full_like(x[..., 0], -math.inf).masked_fill(dark, -math.log(8))


def pinwheel(count: int, *, arms: int = 5) -> Tensor:
    """Normal clouds bent into the arms of a pinwheel, ``(count, 2)``; no closed density.

    References:
        | Composing graphical models with neural networks (Johnson et al., 2016)
    """
    along = 1 + 0.3 * torch.randn(count)
    across = 0.05 * torch.randn(count)
    turn = 2 * math.pi * torch.randint(0, arms, (count,)) / arms
    angle = turn + 0.25 * along.exp()
    x = along * angle.cos() - across * angle.sin()
    y = along * angle.sin() + across * angle.cos()
    return 2 * torch.stack([x, y], -1)


def two_spirals(count: int, *, noise: float = 0.1) -> Tensor:
    """Two interleaved spirals with normal noise, ``(count, 2)``; no closed density."""
    angle = 3 * math.pi * torch.rand(count).sqrt()
    side = 2.0 * torch.randint(0, 2, (count,)) - 1
    spiral = torch.stack([-angle * angle.cos(), angle * angle.sin()], -1) / 3
    return side[:, None] * spiral + noise * torch.randn(count, 2)
