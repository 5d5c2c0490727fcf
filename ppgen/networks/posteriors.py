"""Recognition distributions: what an encoder's features say of the code.

A posterior is a module ``features (*, F) -> distribution`` with batch ``(*)`` and event ``(L,)``.
Where a draw and its density come cheaper together, as from a flow, the distribution offers
``rsample_with_log_prob(shape) -> (z, log q(z))``, which `scored` uses.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn
from torch.nn.functional import softplus

from ppgen.arguments import require_nonnegative, require_positive, require_whole

_ONE = Size()


class DiagonalNormal(nn.Module):
    r"""``N(mu, diag(sigma^2))``.

    The log variance is bounded smoothly, ``bound * tanh(raw / bound)``: it cannot overflow, and
    near 0 it is the raw number.

    Args:
        features: numbers from the encoder, F.
        latent: dimensions of the code, L.
        log_variance_bound: the largest absolute log variance.
    """

    def __init__(self, features: int, latent: int, *, log_variance_bound: float = 10.0) -> None:
        require_whole(self, features=features, latent=latent)
        require_positive(self, log_variance_bound=log_variance_bound)
        super().__init__()
        self.features, self.log_variance_bound = features, log_variance_bound
        self.head = nn.Linear(features, 2 * latent)

    def forward(self, features: Tensor) -> TorchDistribution:
        loc, raw = self.head(features).chunk(2, -1)
        bound = self.log_variance_bound
        return dist.Normal(loc, torch.exp(0.5 * bound * torch.tanh(raw / bound))).to_event(1)


class SharedScale(nn.Module):
    r"""``N(features, diag(sigma^2))``: the encoder gives the mean, sigma is that of all examples.

    Args:
        latent: dimensions of the code, and of the features, L.
        scale: sigma at first.
    """

    def __init__(self, latent: int, *, scale: float = 0.1) -> None:
        require_whole(self, latent=latent)
        require_positive(self, scale=scale)
        super().__init__()
        self.features = latent
        self.log_scale = nn.Parameter(torch.full((latent,), math.log(scale)))

    def forward(self, features: Tensor) -> TorchDistribution:
        return dist.Normal(features, self.log_scale.exp().expand_as(features)).to_event(1)


class FullNormal(nn.Module):
    r"""``N(mu, C C^T)``, C lower triangular with a positive diagonal.

    Args:
        features: numbers from the encoder, F.
        latent: dimensions of the code, L.
        smallest: added to C's diagonal, so that it cannot become singular.
    """

    below: Tensor

    def __init__(self, features: int, latent: int, *, smallest: float = 1e-3) -> None:
        require_whole(self, features=features, latent=latent)
        require_nonnegative(self, smallest=smallest)
        super().__init__()
        self.features, self.latent, self.smallest = features, latent, smallest
        rows, columns = torch.tril_indices(latent, latent, -1)
        self.register_buffer("below", rows * latent + columns, persistent=False)
        self.head = nn.Linear(features, 2 * latent + len(rows))

    def forward(self, features: Tensor) -> TorchDistribution:
        L = self.latent
        loc, diagonal, below = self.head(features).split([L, L, len(self.below)], -1)
        factor = torch.diag_embed(softplus(diagonal) + self.smallest).flatten(-2)
        factor = factor.index_add(-1, self.below, below).unflatten(-1, (L, L))
        return dist.MultivariateNormal(loc, scale_tril=factor)


class OneCall(TorchDistribution):
    """A distribution that scores its own last draw with what came with the draw."""

    has_rsample = True

    def __init__(self, code: Any) -> None:
        self.code = code
        self.draw: Tensor | None = None
        super().__init__(code.batch_shape, code.event_shape, validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {}

    @property
    def support(self) -> Any:
        return self.code.support

    @property
    def mean(self) -> Tensor:
        return self.code.mean

    def expand(self, batch_shape: Any, _instance: Any = None) -> OneCall:
        return OneCall(self.code.expand(batch_shape))

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        z, self.log_q = self.code.rsample_with_log_prob(sample_shape)
        self.draw = z
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_q if value is self.draw else self.code.log_prob(value)


def scored(code: TorchDistribution) -> TorchDistribution:
    """`code`, whose draws bring their density along where it offers ``rsample_with_log_prob``."""
    return OneCall(code) if hasattr(code, "rsample_with_log_prob") else code


def of_width(law: TorchDistribution, latent: int, part: str) -> TorchDistribution:
    """`law` itself; ValueError where it is not one of codes of `latent` dimensions."""
    if law.event_shape != (latent,):  # a width of one would broadcast, and be scored wrongly
        raise ValueError(
            f"the code has {latent} dimensions and the {part} {tuple(law.event_shape)}: they must "
            "agree"
        )
    return law


def centre(code: TorchDistribution, draws: int = 100) -> Tensor:
    """The mean of a recognition distribution, ``(*, L)``; of its draws where it has no formula."""
    return centre_and_noise(code, draws)[0]


def centre_and_noise(code: TorchDistribution, draws: int = 100) -> tuple[Tensor, Tensor]:
    """The same, and the variance of its error: that of a mean of draws, zero of a formula."""
    try:
        return code.mean, torch.zeros_like(code.mean)
    except NotImplementedError:
        z = code.sample(torch.Size([draws]))
        return z.mean(0), z.var(0) / draws
