"""Glow: flows of images from invertible convolutions and couplings, on several scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen.arguments import require_whole, require_widths
from ppgen.transforms.actnorm import ActNorm
from ppgen.transforms.bijection import Bijection
from ppgen.transforms.invertible_linear import InvertibleLinear
from ppgen.transforms.scalar import Affine, ScalarMap

_IMAGE = constraints.independent(constraints.real, 3)
_STEEPEST = 2.0  # nats: the largest |log scale| of one coupling


class Glow(Bijection, TransformModule):
    r"""Multi-scale flow between a flat vector of noise and an image.

    At each scale, from the image down: squeeze (2 x 2 pixels become 4 channels), some steps of
    ActNorm, invertible 1 x 1 convolution and coupling, and then half of the channels leave for
    the noise; the last scale leaves whole. Those that leave early are standard normal, as in
    Real NVP, and not conditioned on the others.

    An image is data, so :class:`ActNorm` takes its start from the first batch that is scored
    in training mode; score one before you sample. Nothing is cached.

    Args:
        shape: channels, height and width, the last two divisible by ``2 ** scales``.
        scales: squeezes.
        steps: on each scale.
        hidden: channels of each coupling's network.
        scalar_map: of the couplings; affine by default.

    Shapes: ``(*, C H W) -> (*, C, H, W)``, log-determinants ``(*)``.

    References:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039

    Example:
        >>> glow = Glow((1, 8, 8), scales=2, steps=2)
        >>> x, log_det = glow.inverse_with_log_det(torch.randn(5, 1, 8, 8))
        >>> x.shape, log_det.shape
        (torch.Size([5, 64]), torch.Size([5]))
    """

    domain = constraints.real_vector
    codomain: Any = _IMAGE

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        scales: int = 2,
        steps: int = 4,
        hidden: int = 64,
        scalar_map: ScalarMap | None = None,
    ) -> None:
        require_whole(self, scales=scales, steps=steps, hidden=hidden)
        require_widths(self, shape=shape)
        super().__init__()
        if len(shape) != 3 or shape[1] % 2**scales or shape[2] % 2**scales:
            raise ValueError(
                f"{scales} scales need images (channels, height, width) of heights and widths "
                f"divisible by {2**scales}; got shape {tuple(shape)}"
            )
        channels, height, width = shape
        self.shape = torch.Size(shape)
        self.scales = nn.ModuleList()
        self.noise_shapes: list[torch.Size] = []  # of what leaves at each scale
        for scale in range(scales):
            channels, height, width = 4 * channels, height // 2, width // 2
            layers: list[nn.Module] = []
            for _ in range(steps):
                coupling = ImageCoupling(channels, hidden, scalar_map or Affine(_STEEPEST))
                layers += [coupling, InvertibleLinear(channels, event_dim=3)]
                layers += [ActNorm(channels, event_dim=3)]
            self.scales.append(nn.ModuleList(layers))
            channels = channels if scale == scales - 1 else channels // 2
            self.noise_shapes.append(torch.Size([channels, height, width]))

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """``(*, C H W) -> (*, C, H, W)``."""
        return torch.Size([*shape[:-1], *self.shape])

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """``(*, C, H, W) -> (*, C H W)``."""
        return torch.Size([*shape[:-3], self.shape.numel()])

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image ``y`` of noise `x`, and ``log |det dy/dx|``."""
        _require(x, torch.Size([self.shape.numel()]), "noise")
        sizes = [s.numel() for s in self.noise_shapes]
        left = [
            part.unflatten(-1, s)
            for part, s in zip(x.split(sizes, -1), self.noise_shapes, strict=True)
        ]
        h, total = left.pop(), x.new_zeros(())
        for layers in reversed(list(self.scales)):
            if layers is not self.scales[-1]:
                h = torch.cat([h, left.pop()], -3)
            for layer in layers:  # type: ignore[attr-defined]
                h, log_det = layer.forward_with_log_det(h)
                total = total + log_det
            h = unsqueeze(h)
        return h, total

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The noise ``x`` of image `y`, and ``log |det dx/dy|``."""
        _require(y, self.shape, "image")
        left, total = [], y.new_zeros(())
        for layers in self.scales:
            y = squeeze(y)
            for layer in reversed(list(layers)):  # type: ignore[call-overload]
                y, log_det = layer.inverse_with_log_det(y)
                total = total + log_det
            if layers is not self.scales[-1]:
                y, out = y.chunk(2, -3)
                left.append(out.flatten(-3))
        return torch.cat([*left, y.flatten(-3)], -1), total


class ImageCoupling(nn.Module):
    """Half of the channels move, told how by a small convolutional network of the others.

    Args:
        channels: C, even.
        hidden: channels of the network.
        scalar_map: how they move.

    Shapes: images ``(*, C, H, W)``, log-determinants ``(*)``.
    """

    def __init__(self, channels: int, hidden: int, scalar_map: ScalarMap) -> None:
        require_whole(self, channels=channels, hidden=hidden)
        super().__init__()
        if channels % 2:
            raise ValueError(f"a coupling of channels needs an even number of them, got {channels}")
        self.scalar_map = scalar_map
        moving = channels // 2
        self.network = nn.Sequential(
            nn.Conv2d(channels - moving, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, moving * scalar_map.parameters, 3, padding=1),
        )
        for values in self.network[-1].parameters():  # zeros: the layer starts as the identity
            nn.init.zeros_(values)

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The data side of `x`, and its log-determinant."""
        stay, move = x.chunk(2, -3)
        moved, slope = self.scalar_map.to_data(move, self._raw(stay))
        return torch.cat([stay, moved], -3), slope.flatten(-3).sum(-1)

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The base side of `y`, and its log-determinant."""
        stay, move = y.chunk(2, -3)
        moved, slope = self.scalar_map.to_base(move, self._raw(stay))
        return torch.cat([stay, moved], -3), slope.flatten(-3).sum(-1)

    def _raw(self, stay: Tensor) -> Tensor:
        """``(*, C / 2, H, W, parameters)``."""
        numbers = self.network(stay.reshape(-1, *stay.shape[-3:]))
        numbers = numbers.unflatten(1, (-1, self.scalar_map.parameters)).movedim(2, -1)
        return numbers.reshape(*stay.shape, self.scalar_map.parameters)


def squeeze(x: Tensor) -> Tensor:
    """Blocks of 2 x 2 pixels as channels, ``(*, C, H, W) -> (*, 4 C, H / 2, W / 2)``."""
    x = x.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))  # (*, C, H/2, 2, W/2, 2)
    return x.movedim((-3, -1), (-4, -3)).flatten(-5, -3)


def unsqueeze(x: Tensor) -> Tensor:
    """The inverse of :func:`squeeze`."""
    x = x.unflatten(-3, (-1, 2, 2))  # (*, C, 2, 2, H/2, W/2)
    return x.movedim((-4, -3), (-3, -1)).flatten(-4, -3).flatten(-2)


def _require(value: Tensor, event: torch.Size, what: str) -> None:
    if value.shape[value.ndim - len(event) :] != event:
        raise ValueError(
            f"Glow was built for {what} of shape {tuple(event)}, the last axes; "
            f"got {tuple(value.shape)}"
        )
