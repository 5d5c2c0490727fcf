"""The length of a vector of two independent normals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints, register_kl
from torch.distributions.utils import broadcast_all

_EULER = 0.57721566490153286  # Euler's constant
_ONE = Size()


class Rayleigh(TorchDistribution):
    r"""Rayleigh distribution, on the positive numbers.

    .. math:: p(x) = \frac{x}{\sigma^2} e^{-x^2 / 2 \sigma^2}, \quad
              x = \sigma \sqrt{-2 \ln u}, \; u \sim U(0, 1)

    It is Weibull's with scale :math:`\sqrt 2 \sigma` and shape 2, with a closed KL divergence,
    :math:`2 \ln(\sigma_2 / \sigma_1) + \sigma_1^2 / \sigma_2^2 - 1`. Its mean is
    :math:`\sigma \sqrt{\pi / 2}`, its mode :math:`\sigma`.

    Args:
        scale: :math:`\sigma`, positive.

    Raises:
        ValueError: where `scale` is not positive, or, under validation, a value is not.

    Example:
        >>> from torch.distributions import kl_divergence
        >>> float(kl_divergence(Rayleigh(2.0), Rayleigh(2.0)))
        0.0
    """

    arg_constraints: ClassVar[dict] = {"scale": constraints.positive}  # pyright: ignore
    support = constraints.positive  # type: ignore[assignment]
    has_rsample = True

    def __init__(self, scale: Tensor | float, validate_args: bool | None = None) -> None:
        (self.scale,) = broadcast_all(scale)
        super().__init__(self.scale.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Rayleigh:
        return Rayleigh(self.scale.expand(Size(batch_shape)), validate_args=False)

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.scale.dtype, device=self.scale.device)
        # 1 - u is never 0; where it is 1 the draw would be 0, outside the support
        noise = (-2 * torch.log1p(-u)).sqrt().clamp(min=torch.finfo(u.dtype).tiny)
        return self.scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        ratio = value / self.scale
        return ratio.log() - self.scale.log() - 0.5 * ratio.square()

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return -torch.expm1(-0.5 * (value / self.scale).square())

    def icdf(self, value: Tensor) -> Tensor:
        return self.scale * (-2 * torch.log1p(-value)).sqrt()

    @property
    def mean(self) -> Tensor:
        return self.scale * math.sqrt(math.pi / 2)

    @property
    def mode(self) -> Tensor:
        return self.scale

    @property
    def variance(self) -> Tensor:
        return self.scale.square() * (2 - math.pi / 2)

    def entropy(self) -> Tensor:
        return self.scale.log() + (1 + 0.5 * _EULER - 0.5 * math.log(2))


@register_kl(Rayleigh, Rayleigh)
def _kl_rayleigh_rayleigh(p: Rayleigh, q: Rayleigh) -> Tensor:
    log_ratio = p.scale.log() - q.scale.log()
    return torch.expm1(2 * log_ratio) - 2 * log_ratio
