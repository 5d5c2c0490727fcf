"""Convolutional encoder and decoder for images that come as rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ppgen.arguments import require_whole, require_widths
from ppgen.networks.initial import he_


class ConvolutionalEncoder(nn.Module):
    """Convolutions that halve the image at each layer, and a linear one at the end.

    Args:
        shape: of an image, ``(C, H, W)``; H and W divisible by two for each layer.
        features: numbers that come out, F.
        channels: of each layer.
        refine: convolutions before each that halves; with 0 it costs a fraction.
        activation: builds the nonlinearity.

    Shapes: ``(*, C H W) -> (*, F)``.

    Example:
        >>> import torch
        >>> ConvolutionalEncoder((1, 8, 8), features=100)(torch.zeros(5, 64)).shape
        torch.Size([5, 100])
    """

    def __init__(
        self,
        shape: Sequence[int],
        features: int = 256,
        channels: Sequence[int] = (32, 64),
        *,
        refine: int = 1,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        require_whole(self, features=features)
        require_widths(self, shape=shape, channels=channels)
        require_whole(self, least=0, refine=refine)
        super().__init__()
        self.shape, self.features = tuple(shape), features
        height, width = _smallest(shape, channels)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((shape[0], *channels)):
            for _ in range(refine):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), activation()]
                inputs = outputs
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), activation()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Sequential(nn.Linear(channels[-1] * height * width, features), activation())
        he_(*layers[1:], *self.head)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.body(x.reshape(math.prod(x.shape[:-1]), *self.shape))
        return self.head(rows).reshape(*x.shape[:-1], self.features)


class ConvolutionalDecoder(nn.Module):
    """The way back: a linear layer, and transposed convolutions that double the image.

    Args:
        shape: of an image, ``(C, H, W)``.
        latent: dimensions of the code, L.
        channels: of each layer, in the encoder's order; here the last comes first.
        refine: convolutions after each that doubles, and one at the end; with 0 it costs a
            fraction.
        parameters_each: numbers for each pixel, P: those of the likelihood.
        activation: builds the nonlinearity.

    Shapes: ``(*, L) -> (*, C H W P)``, the numbers of a pixel side by side.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent: int,
        channels: Sequence[int] = (32, 64),
        *,
        parameters_each: int = 1,
        refine: int = 1,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        require_whole(self, latent=latent, parameters_each=parameters_each)
        require_widths(self, shape=shape, channels=channels)
        require_whole(self, least=0, refine=refine)
        super().__init__()
        self.shape, self.parameters_each = tuple(shape), parameters_each
        height, width = _smallest(shape, channels)
        top = channels[-1] * height * width
        layers = [nn.Linear(latent, top), _Images(-1, (channels[-1], height, width))]
        numbers = parameters_each * shape[0]
        widths = (*reversed(channels), channels[0] if refine else numbers)
        for inputs, outputs in pairwise(widths):
            layers += [activation(), nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)]
            for _ in range(refine):
                layers += [activation(), nn.Conv2d(outputs, outputs, 3, padding=1)]
        if refine:
            layers += [activation(), nn.Conv2d(channels[0], numbers, 3, padding=1)]
        he_(*layers[1:-1])
        self.body = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        raw = self.body(z.reshape(math.prod(z.shape[:-1]), z.shape[-1]))
        # (N, P C, H, W): the numbers of a pixel come side by side; of one colour they already are
        raw = raw.unflatten(1, (self.parameters_each, self.shape[0])).movedim(1, -1).flatten(1)
        return raw.reshape(*z.shape[:-1], math.prod(self.shape) * self.parameters_each)


class _Images(nn.Unflatten):
    """Rows to images, laid out as convolutions of few channels are quickest with."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).contiguous(memory_format=torch.channels_last)


def _smallest(shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int]:
    """Height and width after all layers."""
    part = 2 ** len(channels)
    if len(shape) != 3 or not channels or any(size % part for size in shape[1:]):
        raise ValueError(
            f"{len(channels)} layers need images (C, H, W) with H and W divisible by {part}; got "
            f"{tuple(shape)}: pad the images or use fewer layers"
        )
    return shape[1] // part, shape[2] // part
