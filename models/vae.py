"""The variational autoencoder for binary data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppgen.models.base_rate import whole_levels
from ppgen.networks.mlp import MLP, GaussianMLP


class VAE(PyroModule):
    r"""Variational autoencoder with a Gaussian code and Bernoulli pixels.

    .. math::
        z \sim N(0, I), \quad x \mid z \sim \mathrm{Bernoulli}(\sigma(f(z))), \quad
        q(z \mid x) = N(\mu(x), \mathrm{diag}\, \sigma^2(x))

    Args:
        visible: pixels of an example, D.
        latent: dimensions of the code, L.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: the nonlinearity of both networks.
        encoder: another recognition network, ``(*, D) -> (loc, scale)``, each ``(*, L)``.
        decoder: another generating network, ``(*, L) -> (*, D)`` logits.

    Shapes: ``x``: ``(B, D)`` in {0, 1}; ``z``: ``(B, L)``.

    Raises:
        ValueError: when `x` is not binary; the row and column are named. A Bernoulli has no
            density at grey values: binarise them first.

    References:
        | Auto-Encoding Variational Bayes (Kingma and Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Example:
        >>> vae = VAE(visible=64, latent=8, hidden=(100,))
        >>> vae.sample(3).shape
        torch.Size([3, 64])
    """

    zeros: Tensor
    ones: Tensor

    def __init__(
        self,
        visible: int,
        latent: int = 20,
        hidden: Sequence[int] = (400,),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.visible, self.latent = visible, latent
        self.register_buffer("zeros", torch.zeros(latent), persistent=False)
        self.register_buffer("ones", torch.ones(latent), persistent=False)
        self.encoder = encoder or GaussianMLP((visible, *hidden, latent), activation)
        self.decoder = decoder or MLP((latent, *reversed(hidden), visible), activation)

    @pyro_method
    def model(self, x: Tensor) -> None:
        x = self._data(whole_levels(x, self.visible))
        data = pyro.plate("data", len(x))
        with data:
            z = pyro.sample("z", self.prior())
        # outside the plate, so that Pyro passes the networks' parameters by no plate
        pixels = self.decode(z)
        with data:
            pyro.sample("x", pixels, obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        code = self.encode(self._data(x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", code)

    def prior(self) -> TorchDistribution:
        """p(z), a standard normal of shape ``(L,)``."""
        return dist.Normal(self.zeros, self.ones).to_event(1)

    def encode(self, x: Tensor) -> TorchDistribution:
        """The recognition distribution q(z | x)."""
        return dist.Normal(*self.encoder(x)).to_event(1)

    def decode(self, z: Tensor) -> TorchDistribution:
        """The generating distribution p(x | z)."""
        return dist.Bernoulli(logits=self.decoder(z)).to_event(1)

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(x, z) - log q(z | x)``, z ~ q: ``(B, D) -> (samples, B)``, nats."""
        x = self._data(whole_levels(x, self.visible))
        code = self.encode(x)
        z = code.rsample(torch.Size([samples]))
        return self.decode(z).log_prob(x) + self.prior().log_prob(z) - code.log_prob(z)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """New binary examples, ``(count, D)``."""
        return self.decode(self.prior().sample(torch.Size([count]))).sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Pixel probabilities at the mean code of `x`, ``(*, D)``."""
        return self.decode(self.encode(self._data(x)).mean).mean

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int = 9) -> Tensor:
        """Pixel probabilities on the line between the mean codes of `a` and `b`.

        Args:
            a: where the line begins, ``(*, D)``.
            b: where it ends, ``(*, D)``.
            steps: points on the line, both ends included.

        Returns:
            ``(steps, *, D)``; the ends are the reconstructions of `a` and `b`.
        """
        start, end = (self.encode(self._data(x)).mean for x in (a, b))
        share = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
        return self.decode(torch.lerp(start, end, share.view(-1, *[1] * start.ndim))).mean

    def _data(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.visible:
            raise ValueError(f"this VAE has {self.visible} pixels; got data {tuple(x.shape)}")
        return x.to(self.zeros.dtype)
