"""What regressions of a binary outcome share: coefficients, their prior, and where chains start."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.arguments import require_positive
from ppgen.moments import square_length


@dataclass(frozen=True)
class BinaryRegression(ABC):
    """Coefficients; predictors `x`, ``(N, K)``, outcome `y` in {0, 1}, ``(N,)``.

    Args:
        scale: s, prior standard deviation of a coefficient.
    """

    scale: float = 2.5

    def __post_init__(self) -> None:
        require_positive(self, scale=self.scale)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), self.scale).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=self._logits(x @ w)), obs=y)

    @abstractmethod
    def _logits(self, predictor: Tensor) -> Tensor:
        """Of the outcomes, by the linear predictor, ``(..., N)`` each."""

    def start(self, count: int, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Coefficients from a narrow prior: far out, where outcomes are sure, sweeps move little.

        ``x . w`` is of order 1.
        """
        size = x.square().mean(0).clamp(min=1e-12).rsqrt() / math.sqrt(x.shape[1])
        return {"w": torch.randn(count, x.shape[1]).to(x) * size.clamp(max=self.scale)}

    def _prior_precision(self, x: Tensor) -> Tensor:
        return torch.eye(x.shape[1]).to(x) / self.scale**2

    def _expected_log_prior(self, w: TorchDistribution, x: Tensor) -> Tensor:
        """``E[log p(w)]``, nats."""
        constant = x.shape[1] * math.log(2 * math.pi * self.scale**2)
        return -0.5 * (constant + square_length(w) / self.scale**2)
