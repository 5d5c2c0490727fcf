"""Masked networks: output i sees only the inputs that come before i."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppgen.arguments import require_share, require_whole, require_widths


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

    The numbers of coordinate i depend on the coordinates before i in `order` alone, and on a
    context where it is told one. Every output also sees its permitted inputs directly, so that
    without hidden units this is the fully visible sigmoid belief network's logistic regression.
    It starts at zero output: a transform that is the identity at zero starts as the identity.

    Args:
        dim: coordinates, D.
        parameters: numbers per coordinate, P.
        hidden: widths of the hidden layers.
        order: a permutation of ``range(dim)``, the coordinates in the order of their
            generation; as they stand by default.
        dropout: probability of dropping a hidden unit while training.
        context: numbers that it is told besides, C; they reach all outputs by the hidden units.

    Shapes: ``(*, D), (*, C) -> (*, D, P)``, the batches broadcast against each other.

    Raises:
        ValueError: for an order that is no permutation, and a context without hidden units.

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
        context: int = 0,
    ) -> None:
        require_whole(self, dim=dim, parameters=parameters)
        require_whole(self, least=0, context=context)
        require_widths(self, hidden=hidden)
        require_widths(self, least=0, order=() if order is None else order)
        require_share(self, dropout=dropout)
        super().__init__()
        if context and not hidden:
            raise ValueError("a context needs hidden units, by which it reaches the outputs")
        chosen = list(range(dim)) if order is None else [int(i) for i in order]
        if sorted(chosen) != list(range(dim)):
            raise ValueError(f"order must be a permutation of range({dim}); got {chosen}")
        self.dim, self.parameters_each = dim, parameters
        self.register_buffer("order", torch.tensor(chosen))
        rank = torch.empty(dim, dtype=torch.long)
        rank[self.order] = torch.arange(1, dim + 1)
        below, layers, all_degrees = rank, [], [rank]
        first = 1 if context else 0  # units of degree 0 see the context and no coordinate
        for width in hidden:
            degrees = torch.arange(width) % (max(1, dim - 1) + first) + 1 - first
            layers += [MaskedLinear(degrees[:, None] >= below), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            below = degrees
            all_degrees.append(degrees)
        self.body = nn.Sequential(*layers)
        # inputs and hidden units by degree, and how many there are up to each
        self._sorted = [degrees.argsort(stable=True).tolist() for degrees in all_degrees]
        self._counts = [d.bincount(minlength=dim).cumsum(0)[:dim].tolist() for d in all_degrees]
        self.told = nn.Linear(context, hidden[0], bias=False) if context else None
        above = rank.repeat_interleave(parameters)[:, None]
        self.head = MaskedLinear(above > below) if hidden else None
        self.skip = MaskedLinear(above > rank)
        for layer in (self.skip, self.head):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self._check(context)
        out = self.skip(x)
        if self.head is not None:
            for i, layer in enumerate(self.body):
                x = layer(x)
                if i == 0 and self.told is not None:
                    x = x + self.told(context)
            out = out + self.head(x)
        return out.unflatten(-1, (self.dim, self.parameters_each))

    def generate(
        self,
        make: Callable[[int, Tensor], Tensor],
        batch: torch.Size,
        context: Tensor | None = None,
    ) -> None:
        """Coordinates one after the other, each by the numbers that those before it give.

        A hidden unit is computed once, as soon as the coordinates are there that it sees: all of
        them together take the arithmetic of one pass, where `dim` passes take `dim` times that.

        Args:
            make: is given a coordinate and its numbers, ``(*batch, P)``; what it returns,
                ``(*batch)``, the network sees of it from then on.
            batch: shape of the values; that of the context goes into it.
            context: as for a pass.
        """
        self._check(context)
        order, each = self._sorted[0], self.parameters_each
        told = None if self.told is None else self.told(context)[..., self._sorted[1]]
        layers = self._layers_by_degree()
        skip, head = self.skip.weight[:, order], None
        if self.head is not None:
            head = self.head.weight[:, self._sorted[-1]], self.head.bias
        known = [skip.new_zeros(*batch, 0) for _ in self._sorted]
        for degree, i in enumerate(order):
            for k, (weight, bias, rest) in enumerate(layers):
                new = slice(known[k + 1].shape[-1], self._counts[k + 1][degree])
                if new.start == new.stop:
                    continue
                units = F.linear(known[k], weight[new, : known[k].shape[-1]], bias[new])
                if k == 0 and told is not None:
                    units = units + told[..., new]
                known[k + 1] = torch.cat([known[k + 1], rest(units)], -1)
            rows = slice(i * each, (i + 1) * each)
            numbers = F.linear(known[0], skip[rows, :degree], self.skip.bias[rows])
            if head is not None:
                weight, bias = head
                numbers = numbers + F.linear(
                    known[-1], weight[rows, : known[-1].shape[-1]], bias[rows]
                )
            known[0] = torch.cat([known[0], make(i, numbers)[..., None]], -1)

    def _layers_by_degree(self) -> list[tuple[Tensor, Tensor, nn.Module]]:
        """Of each hidden layer weights and biases, units sorted, and what follows them."""
        linears = [layer for layer in self.body if isinstance(layer, MaskedLinear)]
        size = len(self.body) // max(1, len(linears))
        return [
            (
                layer.weight[above][:, below],
                layer.bias[above],
                self.body[size * k + 1 : size * (k + 1)],
            )
            for k, (layer, below, above) in enumerate(
                zip(linears, self._sorted, self._sorted[1:], strict=False)
            )
        ]

    def _check(self, context: Tensor | None) -> None:
        if (self.told is None) != (context is None):
            raise ValueError(
                "this network is told no context: build it with context="
                if self.told is None
                else f"this network is told a context of {self.told.in_features} numbers; got none"
            )
