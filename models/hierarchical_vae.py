"""The variational autoencoder with two stochastic layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen.arguments import require_whole, require_widths
from ppgen.data.errors import check_rows
from ppgen.diagnostics.latent import LayeredUse, latent_use
from ppgen.networks.likelihoods import BernoulliLikelihood, PixelLikelihood, pixel_law
from ppgen.networks.mlp import MLP, hidden_layers
from ppgen.networks.posteriors import (
    DiagonalNormal,
    centre,
    centre_and_noise,
    of_width,
    scored,
)
from ppgen.networks.priors import StandardNormal

DRAWS = 100  # for a divergence without a formula
_AT_ONCE = 100  # examples, each with all draws


class HierarchicalVAE(PyroModule):
    r"""Variational autoencoder whose code has a code.

    .. math::
        z_2 \sim p(z_2), \quad z_1 \mid z_2 \sim N(\mu(z_2), \sigma^2(z_2)), \quad
        x \mid z_1 \sim p(x \mid f(z_1)), \quad
        q(z_1, z_2 \mid x) = q(z_1 \mid x) \, q(z_2 \mid z_1)

    Args:
        visible: pixels of an example, D.
        latent: dimensions of z1, next to the data, and of z2, ``(L1, L2)``.
        hidden: width of the two hidden layers of each network: next to the data, and between the
            codes.
        activation: the nonlinearity of all networks. With tanh, which Burda et al. have, both
            codes stay unused for tens of epochs on MNIST.
        encoder: another network for q(z1 | x), ``(*, D) -> (*, F)`` features.
        decoder: another network, ``(*, L1) -> (*, D P)``.
        posterior: features to q(z1 | x); None: `DiagonalNormal` of ``hidden[0]`` features.
        prior: p(z2); None: `StandardNormal`.
        likelihood: p(x | decoder's output); None: `BernoulliLikelihood`.

    Shapes: ``x``: ``(B, D)``; ``z1``: ``(B, L1)``; ``z2``: ``(B, L2)``.

    Raises:
        ValueError: when the likelihood has no density at some entry of `x`, by row and column.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), table 1, two layers
        | https://arxiv.org/abs/1509.00519

    Example:
        >>> vae = HierarchicalVAE(64, latent=(8, 4), hidden=(50, 20))
        >>> vae.sample(3).shape
        torch.Size([3, 64])
    """

    zero: Tensor

    def __init__(
        self,
        visible: int,
        latent: Sequence[int] = (100, 50),
        hidden: Sequence[int] = (200, 100),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        posterior: nn.Module | None = None,
        prior: nn.Module | None = None,
        likelihood: PixelLikelihood | None = None,
    ) -> None:
        require_whole(self, visible=visible)
        require_widths(self, latent=latent, hidden=hidden)
        super().__init__()
        if len(latent) != 2 or len(hidden) != 2:
            raise ValueError(
                f"two stochastic layers have two sizes each; got latent={tuple(latent)}, "
                f"hidden={tuple(hidden)}"
            )
        (lower, upper), (wide, narrow) = latent, hidden
        self.visible, self.latent = visible, (lower, upper)
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self.likelihood = likelihood or BernoulliLikelihood()
        if encoder is None:
            encoder = hidden_layers((visible, wide, wide), activation)
        self.encoder = encoder
        self.posterior = posterior or DiagonalNormal(wide, lower)
        self.upper_encoder = nn.Sequential(
            hidden_layers((lower, narrow, narrow), activation), DiagonalNormal(narrow, upper)
        )
        self.upper_decoder = nn.Sequential(
            hidden_layers((upper, narrow, narrow), activation), DiagonalNormal(narrow, lower)
        )
        outputs = visible * self.likelihood.parameters_each
        if decoder is None:
            decoder = MLP((lower, wide, wide, outputs), activation)
        self.decoder = decoder
        self.code_prior = prior or StandardNormal(upper)

    @pyro_method
    def model(self, x: Tensor) -> None:
        x = self._data(self.likelihood.check(check_rows(x)))
        prior = self.upper_prior()
        data = pyro.plate("data", len(x))
        with data:
            z2 = pyro.sample("z2", prior)
        # networks outside the plate, which Pyro then need not put around their parameters
        lower = self.upper_decoder(z2)
        with data:
            z1 = pyro.sample("z1", lower)
        pixels = self.decode(z1)
        with data:
            pyro.sample("x", pixels, obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        lower = scored(self.encode(check_rows(x)))
        data = pyro.plate("data", len(x))
        with data:
            z1 = pyro.sample("z1", lower)
        upper = self.upper_encoder(z1)
        with data:
            pyro.sample("z2", upper)

    def upper_prior(self) -> TorchDistribution:
        """p(z2), of shape ``(L2,)``; a VampPrior's pseudo-inputs are codes z1."""
        return of_width(self.code_prior(self.upper_encoder), self.latent[1], "prior")

    def encode(self, x: Tensor) -> TorchDistribution:
        """The recognition distribution q(z1 | x)."""
        features = self.encoder(self.likelihood.network_input(self._data(x)))
        return of_width(self.posterior(features), self.latent[0], "posterior")

    def decode(self, z1: Tensor) -> TorchDistribution:
        """The generating distribution p(x | z1)."""
        return pixel_law(self.likelihood, self.decoder(z1), self.visible)

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(x, z1, z2) - log q(z1, z2 | x)``, z ~ q: ``(B, D) -> (samples, B)``, nats."""
        x = self._data(self.likelihood.check(x))
        lower = scored(self.encode(x))
        z1 = lower.rsample(torch.Size([samples]))
        upper = self.upper_encoder(z1)
        z2 = upper.rsample()
        generated = self.upper_decoder(z2).log_prob(z1) + self.upper_prior().log_prob(z2)
        return self.decode(z1).log_prob(x) + generated - lower.log_prob(z1) - upper.log_prob(z2)

    def flat(self) -> FlatCode:
        """The same story with one code, both layers side by side: what annealing moves."""
        return FlatCode(self)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """New examples, ``(count, D)``."""
        z2 = self.upper_prior().sample(torch.Size([count]))
        return self.decode(self.upper_decoder(z2).sample()).sample().to(self.zero.dtype)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Mean pixels at the mean of q(z1 | x), ``(*, D)``."""
        return self.decode(centre(self.encode(x))).mean

    @torch.no_grad()
    def latent_use(self, x: Tensor) -> LayeredUse:
        """Of each layer, which units follow `x`, ``(N, D)``, and how far from what is above it."""
        parts = [self._use(part) for part in check_rows(x).split(_AT_ONCE)]
        mean, noise, below, above = (torch.cat(column) for column in zip(*parts, strict=True))
        return LayeredUse(
            z1=latent_use(mean, below, noise=noise),
            # at the mean of z1: a mean over draws would add their noise to its variance
            z2=latent_use(centre(self.upper_encoder(mean)), above),
        )

    def _use(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of z1, the variance of their errors, ``(B, L1)``; nats of z1 and z2, ``(B,)``."""
        lower = scored(self.encode(x))
        z1 = lower.rsample(torch.Size([DRAWS]))
        upper = self.upper_encoder(z1)
        z2 = upper.rsample()
        below = lower.log_prob(z1) - self.upper_decoder(z2).log_prob(z1)
        above = upper.log_prob(z2) - self.upper_prior().log_prob(z2)
        return *centre_and_noise(lower), below.mean(0), above.mean(0)

    def _data(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.visible:
            raise ValueError(f"this VAE has {self.visible} pixels; got data {tuple(x.shape)}")
        return x.to(self.zero.dtype)


class FlatCode:
    """A `HierarchicalVAE` as a decoder of the code ``(z1, z2)``, ``(*, L1 + L2)``."""

    def __init__(self, story: HierarchicalVAE) -> None:
        self.story = story

    def prior(self) -> TorchDistribution:
        """``p(z2) p(z1 | z2)``."""
        return CodeOfCode(self.story.upper_prior(), self.story.upper_decoder, self.story.latent)

    def decode(self, z: Tensor) -> TorchDistribution:
        """p(x | z1)."""
        return self.story.decode(z[..., : self.story.latent[0]])


class CodeOfCode(TorchDistribution):
    """The law of ``(z1, z2)`` where z2 is drawn first.

    Args:
        upper: p(z2).
        lower: from z2 to p(z1 | z2).
        sizes: dimensions of z1 and z2.
    """

    support = constraints.real_vector  # type: ignore[assignment]

    def __init__(self, upper: TorchDistribution, lower: Callable, sizes: tuple[int, int]) -> None:
        self.upper, self.lower, self.sizes = upper, lower, sizes
        super().__init__(torch.Size(), torch.Size([sum(sizes)]), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {}

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            z2 = self.upper.sample(sample_shape)
            return torch.cat([self.lower(z2).sample(), z2], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        z1, z2 = value.split(self.sizes, -1)
        return self.lower(z2).log_prob(z1) + self.upper.log_prob(z2)
