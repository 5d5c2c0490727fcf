"""The base-rate model: independent pixels at their training frequencies."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppgen.data.errors import check_rows
from ppgen.data.levels import whole_levels as whole_levels


class BaseRate(nn.Module):
    r"""Independent Bernoulli pixels: what a model must beat to have learned anything.

    .. math:: p_d = \frac{\sum_i x_{id} + 1/2}{N + 1}

    The half keeps a pixel that never changes in training from making a test image impossible
    (it is the posterior mean under Jeffreys' prior). There is nothing else to train.

    Args:
        x: training data, ``(N, D)`` in {0, 1}, N >= 1.

    Shapes: ``x``: ``(*, D)``; ``log_prob(x)``: ``(*)`` in nats.

    Raises:
        ValueError: when `x` is not binary; the row and column are named.

    Example:
        >>> BaseRate(torch.tensor([[0.0, 1.0], [0.0, 1.0]])).rates
        tensor([0.1667, 0.8333])
    """

    rates: Tensor

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        x = whole_levels(x)
        if x.ndim != 2 or not len(x):
            raise ValueError(f"BaseRate needs data of shape (N, D), N >= 1; got {tuple(x.shape)}")
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        self.register_buffer("rates", (x.sum(0) + 0.5) / (len(x) + 1))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(check_rows(x))):
            pyro.sample("x", self.density(), obs=whole_levels(x, len(self.rates)).to(self.rates))

    def guide(self, x: Tensor) -> None:
        """Empty: nothing is latent."""

    def density(self) -> TorchDistribution:
        return dist.Bernoulli(self.rates).to_event(1)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.density().log_prob(whole_levels(x, len(self.rates)).to(self.rates))

    def sample(self, count: int) -> Tensor:
        """New examples, ``(count, D)``."""
        return self.density().sample(torch.Size([count]))
