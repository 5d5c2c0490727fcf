"""The base-rate model: independent pixels at their training frequencies."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppgen.data.errors import check_binary, refuse_where


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
        with pyro.plate("data", len(x)):
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


def whole_levels(x: Tensor, columns: int | None = None, levels: int = 2) -> Tensor:
    """`x` itself, if its entries are the whole numbers 0 to ``levels - 1``.

    Args:
        x: data, ``(*, D)``.
        columns: the D that is expected.

    Raises:
        ValueError: otherwise, with the row and column of the first wrong entry.
    """
    if x.ndim == 0 or columns not in (None, x.shape[-1]):
        expected = "(*, D)" if columns is None else f"(*, {columns})"
        raise ValueError(f"expected data of shape {expected}; got {tuple(x.shape)}")
    if levels == 2:
        return x if _binary(x) else check_binary(x)  # which is slower, and says what is wrong
    allowed = x.floor().clamp(0, levels - 1)
    if torch.equal(x, allowed):  # NaN equals nothing
        return x
    wrong = x != allowed
    message = f"{x[wrong][0].item():.6g} is not one of 0, 1, ..., {levels - 1}"
    refuse_where(wrong, f"{message}: give the raw levels, not rescaled ones", "x")
    return x


def _binary(x: Tensor) -> bool:
    """Whether `x` is 0 and 1 and nothing else, in two passes: ``x - x^2`` is 0 for no other number.

    (Below 1e-22 in float32 its square is 0 too; so small a grey value is 0 to every likelihood.)
    """
    if not x.is_floating_point() or not x.numel():
        return False
    grey = torch.addcmul(x, x, x, value=-1).reshape(-1)
    return torch.dot(grey, grey).item() == 0  # NaN, for NaN and infinity, is not
