"""Glow as a model of images of discrete levels."""

from __future__ import annotations

from ppgen.models.dequantized_flow import DequantizedFlow
from ppgen.transforms.cube import ToCube
from ppgen.transforms.glow import Glow
from ppgen.transforms.scalar import ScalarMap


class ImageFlow(DequantizedFlow):
    r"""Glow on dequantised images: normal noise, a multi-scale flow, and the unit cube.

    The probability of an image is the flow's mass in its cell, as for every `DequantizedFlow`,
    whose nats and bounds these are. Both directions cost one pass, where autoregressive layers
    draw an image in as many as it has pixels. Images come flat, as data sets here have them.

    Args:
        shape: channels, height and width, the last two divisible by ``2 ** scales``.
        levels: the values are 0 to ``levels - 1``, L.
        scales: squeezes.
        steps: of ActNorm, convolution and coupling on each scale.
        hidden: channels of each coupling's network.
        scalar_map: of the couplings; affine by default.

    Shapes: ``x``: ``(B, C H W)``.

    Raises:
        ValueError: when `x` is not whole numbers in range; the row and column are named.

    References:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039

    Example:
        >>> import torch
        >>> flow = ImageFlow((1, 8, 8), levels=17, steps=2, hidden=8)
        >>> flow.log_weights(torch.zeros(5, 64), samples=3).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int = 2,
        *,
        scales: int = 2,
        steps: int = 4,
        hidden: int = 64,
        scalar_map: ScalarMap | None = None,
    ) -> None:
        glow = Glow(shape, scales=scales, steps=steps, hidden=hidden, scalar_map=scalar_map)
        super().__init__(glow.shape.numel(), levels, transforms=[glow])
        self.into_cube = ToCube(glow.shape)
