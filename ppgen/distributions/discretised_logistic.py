"""A logistic density, summed over the cells of whole levels."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from ppgen.arguments import require_whole

_ONE = Size()


class DiscretisedLogistic(TorchDistribution):
    r"""Whole levels 0 to L - 1, each with the mass that a logistic density has around it.

    .. math:: P(x) = \sigma\Big(\frac{x + 1/2 - m}{s}\Big) - \sigma\Big(\frac{x - 1/2 - m}{s}\Big)

    The two outer levels take the tails. Near levels have near probabilities, which a categorical
    would have to learn.

    Args:
        loc: m, in levels.
        scale: s, in levels; positive.
        levels: L >= 2.

    References:
        | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934
    """

    has_rsample = False

    def __init__(
        self, loc: Tensor, scale: Tensor, levels: int = 256, *, validate_args: bool | None = None
    ) -> None:
        require_whole(self, least=2, levels=levels)
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {"loc": constraints.real, "scale": constraints.positive}

    @property
    def support(self) -> Any:
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretisedLogistic:
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return DiscretisedLogistic(loc, scale, self.levels, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        above = logsigmoid((value + 0.5 - self.loc) / self.scale)  # log P(X <= x)
        below = logsigmoid((self.loc - value + 0.5) / self.scale)  # log P(X >= x)
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - exp(a - b)): no difference of near numbers
        inner = above + below + torch.log(-torch.expm1(-1 / self.scale))
        outer = torch.where(value < 0.5, above, below)
        return torch.where((value > 0.5) & (value < self.levels - 1.5), inner, outer)

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            tiny = torch.finfo(u.dtype).eps
            x = self.loc + self.scale * torch.logit(u, eps=tiny)
            return x.round().clamp(0, self.levels - 1)

    @property
    def mean(self) -> Tensor:
        """``sum_j P(X >= j)``, j = 1 to L - 1."""
        return sum(
            (torch.sigmoid((self.loc - j + 0.5) / self.scale) for j in range(1, self.levels)),
            torch.zeros_like(self.loc),
        )
