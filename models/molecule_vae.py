"""The variational autoencoder of molecules: strings to codes, codes to strings and properties."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor, nn

from ppgen.data.errors import refuse_where
from ppgen.data.tokens import check_tokens
from ppgen.models.token_vae import TokenVAE
from ppgen.networks.additive import AdditiveCode, SubtractingDecoder
from ppgen.networks.mlp import MLP
from ppgen.networks.posteriors import SharedScale


class MoleculeVAE(TokenVAE):
    r"""Strings of symbols with a Gaussian code that also predicts the molecule's properties.

    .. math::
        z \sim N(0, I), \quad x_t \mid x_{<t}, z \sim \mathrm{Categorical}(f_t(x_{<t}, z)), \quad
        y \mid z \sim N(m + s\, g(z), \mathrm{diag}(s \sigma)^2)

    f is a `SubtractingDecoder` and g a perceptron; q(z | x) is a Gaussian around an
    `AdditiveCode` of the string. (A recurrent decoder, as in the paper, learns to read a code
    many hours later.) The properties are a site of the same story, so that its ELBO trains the
    code to tell of them. A code that is to give back the very molecule needs the divergence
    weighted down, ``ELBO(beta=...)``: name that number.

    Args:
        vocabulary: V, the special tokens counted: ``tokenizer.vocabulary``.
        length: T, numbers in a row of data, and the limit of what is generated.
        latent: dimensions of the code, L.
        hidden: units of the layers of the decoder and of the properties' perceptron.
        properties: location m and scale s of each property, ``(P,)`` each, as the training data's
            mean and standard deviation; None: the story has no properties.

    Shapes: ``x``: ``(B, T)``, rows of a `ppgen.data.Vocabulary`; ``y``: ``(B, P)``, in its own
        units; ``z``: ``(B, L)``.

    Raises:
        ValueError: for rows that are no strings, by row and column; for properties of another
            shape, infinite or without a scale.

    References:
        | Automatic Chemical Design (Gomez-Bombarelli et al., 2018) | https://arxiv.org/abs/1610.02415
        | SELFIES (Krenn et al., 2020) | https://arxiv.org/abs/1905.13741

    Example:
        >>> vae = MoleculeVAE(vocabulary=9, length=10, latent=4)
        >>> vae.sample(3).shape
        torch.Size([3, 10])
    """

    location: Tensor
    scale: Tensor
    decoder: SubtractingDecoder

    def __init__(
        self,
        vocabulary: int,
        length: int,
        latent: int = 128,
        hidden: int = 256,
        *,
        properties: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(vocabulary, length, latent)
        location, scale = (torch.zeros(0), torch.ones(0)) if properties is None else properties
        if not (scale > 0).all():
            raise ValueError(
                f"properties: their scales must be positive; got {scale.tolist()}. One that is the "
                "same for all molecules tells nothing: leave it out"
            )
        dtype = torch.get_default_dtype()
        self.register_buffer("location", location.to(dtype))
        self.register_buffer("scale", scale.to(dtype))
        self.posterior = SharedScale(latent)
        self.decoder = SubtractingDecoder(AdditiveCode(vocabulary, length, latent), hidden)
        if len(location):
            self.head = MLP((latent, hidden, len(location)), nn.SiLU)
            self.log_noise = nn.Parameter(torch.zeros(len(location)))

    @pyro_method
    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        data, z = self._generate(x)
        if y is not None:
            properties = self.properties_given_code(z)
            with data:
                pyro.sample("y", properties, obs=self._properties(y, len(x)))

    @pyro_method
    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        super().guide(x)

    def encode(self, x: Tensor) -> TorchDistribution:
        return self.posterior(self.decoder.code(check_tokens(x, self.vocabulary)))

    def properties_given_code(self, z: Tensor) -> TorchDistribution:
        """p(y | z), in the units of the properties, ``(*, L)`` -> laws of ``(P,)``."""
        if not len(self.location):
            raise ValueError(
                "this story has no properties: make it with properties=(y.mean(0), y.std(0))"
            )
        mean = self.location + self.scale * self.head(z)
        noise = (self.scale * self.log_noise.exp()).expand_as(mean)
        return dist.Normal(mean, noise).to_event(1)

    def _properties(self, y: Tensor, rows: int) -> Tensor:
        if y.shape != (rows, len(self.location)):
            raise ValueError(
                f"expected properties {(rows, len(self.location))}; got {tuple(y.shape)}"
            )
        refuse_where(~y.isfinite(), "expected finite properties", "y")
        return y.to(self.location.dtype)
