"""The variational autoencoder, of parts that are passed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppgen.arguments import require_whole, require_widths
from ppgen.data.errors import check_rows
from ppgen.diagnostics.latent import LatentUse, latent_use, unit_divergences
from ppgen.latent.paths import linear
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
_DRAWS_AT_ONCE = 10
_AT_ONCE = 1000  # examples, so that a mixture prior's components fit into memory


class VAE(PyroModule):
    r"""Variational autoencoder; by default with a Gaussian code and Bernoulli pixels.

    .. math::
        z \sim p(z) = N(0, I), \quad x \mid z \sim \mathrm{Bernoulli}(\sigma(f(z))), \quad
        q(z \mid x) = N(\mu(x), \mathrm{diag}\, \sigma^2(x))

    Args:
        visible: pixels of an example, D.
        latent: dimensions of the code, L.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: the nonlinearity of both networks.
        encoder: another network, ``(*, D) -> (*, F)`` features; `posterior` takes as many, by
            default ``hidden[-1]``.
        decoder: another network, ``(*, L) -> (*, D P)``, P the likelihood's ``parameters_each``.
        posterior: features to q(z | x), a part of `ppgen.networks.posteriors` or one like them;
            None: `DiagonalNormal`.
        prior: p(z), a part of `ppgen.networks.priors`; None: `StandardNormal`.
        likelihood: p(x | decoder's output), a part of `ppgen.networks.likelihoods`; None:
            `BernoulliLikelihood`.

    Shapes: ``x``: ``(B, D)``, by default in {0, 1}; ``z``: ``(B, L)``.

    Raises:
        ValueError: when the likelihood has no density at some entry of `x`; its row and column are
            named. When the parts do not fit together, by their widths.

    References:
        | Auto-Encoding Variational Bayes (Kingma and Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Example:
        >>> vae = VAE(visible=64, latent=8, hidden=(100,))
        >>> vae.sample(3).shape
        torch.Size([3, 64])
    """

    zero: Tensor

    def __init__(
        self,
        visible: int,
        latent: int = 20,
        hidden: Sequence[int] = (400,),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        posterior: nn.Module | None = None,
        prior: nn.Module | None = None,
        likelihood: PixelLikelihood | None = None,
    ) -> None:
        require_whole(self, visible=visible, latent=latent)
        require_widths(self, hidden=hidden)
        super().__init__()
        self.visible, self.latent = visible, latent
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self.likelihood = likelihood or BernoulliLikelihood()
        if encoder is None:  # and not where it is false: an empty nn.Sequential is the identity
            encoder = hidden_layers((visible, *hidden), activation)
        self.encoder = encoder
        self.posterior = posterior or DiagonalNormal([visible, *hidden][-1], latent)
        outputs = visible * self.likelihood.parameters_each
        if decoder is None:
            decoder = MLP((latent, *reversed(hidden), outputs), activation)
        self.decoder = decoder
        self.code_prior = prior or StandardNormal(latent)

    @pyro_method
    def model(self, x: Tensor) -> None:
        x = self._data(self.likelihood.check(check_rows(x)))
        prior = self.prior()
        data = pyro.plate("data", len(x))
        with data:
            z = pyro.sample("z", prior)
        # outside the plate, so that Pyro passes the networks' parameters by no plate
        pixels = self.decode(z)
        with data:
            pyro.sample("x", pixels, obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        code = scored(self.encode(check_rows(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", code)

    def prior(self) -> TorchDistribution:
        """p(z), of shape ``(L,)``."""
        return of_width(self.code_prior(self.encode), self.latent, "prior")

    def encode(self, x: Tensor) -> TorchDistribution:
        """The recognition distribution q(z | x)."""
        features = self.encoder(self.likelihood.network_input(self._data(x)))
        expected = getattr(self.posterior, "features", features.shape[-1])
        if features.shape[-1] != expected:
            raise ValueError(
                f"the encoder gives {features.shape[-1]} features and the posterior takes "
                f"{expected}: set hidden=(..., {features.shape[-1]}) or pass posterior="
            )
        return of_width(self.posterior(features), self.latent, "posterior")

    def decode(self, z: Tensor) -> TorchDistribution:
        """The generating distribution p(x | z)."""
        return pixel_law(self.likelihood, self.decoder(z), self.visible)

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(x, z) - log q(z | x)``, z ~ q: ``(B, D) -> (samples, B)``, nats."""
        x = self._data(self.likelihood.check(x))
        code = scored(self.encode(x))
        z = code.rsample(torch.Size([samples]))
        return self.decode(z).log_prob(x) + self.prior().log_prob(z) - code.log_prob(z)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """New examples, ``(count, D)``."""
        z = self.prior().sample(torch.Size([count]))
        return self.decode(z).sample().to(self.zero.dtype)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Mean pixels at the mean code of `x`, ``(*, D)``."""
        return self.decode(self.code(x)).mean

    @torch.no_grad()
    def code(self, x: Tensor) -> Tensor:
        """The mean code of `x`, ``(*, D) -> (*, L)``."""
        return centre(self.encode(x))

    @torch.no_grad()
    def latent_use(self, x: Tensor) -> LatentUse:
        """Which units of the code follow `x`, ``(N, D)``, and how far from the prior."""
        prior, means, noises, divergences = self.prior(), [], [], []
        for part in check_rows(x).split(_AT_ONCE):
            code = scored(self.encode(part))
            each = unit_divergences(code, prior)
            if each is None:  # no formula: the mean over draws
                ratios = [_log_ratio(code, prior) for _ in range(DRAWS // _DRAWS_AT_ONCE)]
                each = torch.cat(ratios).mean(0)
            mean, noise = centre_and_noise(code)
            means.append(mean)
            noises.append(noise)
            divergences.append(each)
        return latent_use(torch.cat(means), torch.cat(divergences), noise=torch.cat(noises))

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int = 9) -> Tensor:
        """Mean pixels on the line between the mean codes of `a` and `b`.

        Args:
            a: where the line begins, ``(*, D)``.
            b: where it ends, ``(*, D)``.
            steps: points on the line, both ends included.

        Returns:
            ``(steps, *, D)``; the ends are the reconstructions of `a` and `b`.
        """
        return self.decode(linear(self.code(a), self.code(b), steps)).mean

    def _data(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.visible:
            raise ValueError(f"this VAE has {self.visible} pixels; got data {tuple(x.shape)}")
        return x.to(self.zero.dtype)


def _log_ratio(code: TorchDistribution, prior: TorchDistribution) -> Tensor:
    """``log q(z | x) - log p(z)`` at some draws of each code, ``(_DRAWS_AT_ONCE, B)``."""
    z = code.rsample(torch.Size([_DRAWS_AT_ONCE]))
    return code.log_prob(z) - prior.log_prob(z)
