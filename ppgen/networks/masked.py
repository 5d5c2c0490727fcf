"""Masked networks: output i sees only the inputs that come before i."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedLinear(nn.Linear):
    """A linear layer some of whose weights are held at zero.

    Args:
        mask: ``(outputs, inputs)``, True where a weight lives.

    Shapes: ``(*, inputs) -> (*, outputs)``.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    r"""Autoregressive network: ``parameters`` numbers for each of ``dim`` coordinates.

    The numbers of coordinate i depend on the coordinates before i in `order` alone. Every
    output also sees its permitted inputs directly, so that without hidden units this is the
    fully visible sigmoid belief network's logistic regression. It starts at zero output: a
    transform that is the identity at zero starts as the identity.

    Args:
        dim: coordinates, D.
        parameters: numbers per coordinate, P.
        hidden: widths of the hidden layers.
        order: a permutation of ``range(dim)``, the coordinates in the order of their
            generation; as they stand by default.
        dropout: probability of dropping a hidden unit while training.

    Shapes: ``(*, D) -> (*, D, P)``.

    References:
        | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015)
        | https://arxiv.org/abs/1502.03509
    """

    order: Tensor

    def __init__(
        self,
        dim: int,
        parameters: int,
        hidden: Sequence[int] = (256,),
        *,
        order: Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        chosen = list(range(dim)) if order is None else [int(i) for i in order]
        if sorted(chosen) != list(range(dim)):
            raise ValueError(f"order must be a permutation of range({dim}); got {chosen}")
        self.dim, self.parameters_each = dim, parameters
        self.register_buffer("order", torch.tensor(chosen))
        rank = torch.empty(dim, dtype=torch.long)
        rank[self.order] = torch.arange(1, dim + 1)
        below, layers = rank, []
        for width in hidden:
            degrees = torch.arange(width) % max(1, dim - 1) + 1
            layers += [MaskedLinear(degrees[:, None] >= below), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            below = degrees
        self.body = nn.Sequential(*layers)
        above = rank.repeat_interleave(parameters)[:, None]
        self.head = MaskedLinear(above > below) if hidden else None
        self.skip = MaskedLinear(above > rank)
        for layer in (self.skip, self.head):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.skip(x)
        if self.head is not None:
            out = out + self.head(self.body(x))
        return out.unflatten(-1, (self.dim, self.parameters_each))
