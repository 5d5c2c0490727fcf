"""The conditional variational autoencoder: images of a class that is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppgen.arguments import require_whole, require_widths
from ppgen.data.errors import check_rows, refuse_where
from ppgen.networks.likelihoods import BernoulliLikelihood, PixelLikelihood, pixel_law
from ppgen.networks.mlp import MLP, hidden_layers
from ppgen.networks.posteriors import DiagonalNormal, centre, of_width, scored
from ppgen.networks.priors import StandardNormal


class ConditionalVAE(PyroModule):
    r"""Variational autoencoder whose two networks are told the class.

    .. math:: z \sim p(z), \quad x \mid z, y \sim p(x \mid f(z, y)), \quad q(z \mid x, y)

    The code holds what the class leaves open: style, where the class is a digit. Train it with
    ``train(story, (x, y))``.

    Args:
        visible: pixels of an example, D.
        classes: y is 0 to ``classes - 1``, C.
        latent: dimensions of the code, L.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: the nonlinearity of both networks.
        encoder: another network, ``(*, D + C) -> (*, F)`` features; the class comes as one of C.
        decoder: another network, ``(*, L + C) -> (*, D P)``.
        posterior: features to q(z | x, y); None: `DiagonalNormal` of ``hidden[-1]`` features.
        likelihood: p(x | decoder's output); None: `BernoulliLikelihood`.

    Shapes: ``x``: ``(B, D)``; ``y``: ``(B,)`` whole numbers.

    Raises:
        ValueError: for labels out of range and data without density, by row.

    References:
        | Learning Structured Output Representation (Sohn et al., 2015)

    Example:
        >>> vae = ConditionalVAE(64, classes=10, latent=8, hidden=(100,))
        >>> vae.sample(torch.tensor([3, 3, 7])).shape
        torch.Size([3, 64])
    """

    zero: Tensor

    def __init__(
        self,
        visible: int,
        classes: int,
        latent: int = 20,
        hidden: Sequence[int] = (400,),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        posterior: nn.Module | None = None,
        likelihood: PixelLikelihood | None = None,
    ) -> None:
        require_whole(self, visible=visible, classes=classes, latent=latent)
        require_widths(self, hidden=hidden)
        super().__init__()
        self.visible, self.classes, self.latent = visible, classes, latent
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self.likelihood = likelihood or BernoulliLikelihood()
        widths = (visible + classes, *hidden)
        self.encoder = hidden_layers(widths, activation) if encoder is None else encoder
        self.posterior = posterior or DiagonalNormal(widths[-1], latent)
        outputs = visible * self.likelihood.parameters_each
        if decoder is None:
            decoder = MLP((latent + classes, *reversed(hidden), outputs), activation)
        self.decoder = decoder
        self.code_prior = StandardNormal(latent)

    @pyro_method
    def model(self, x: Tensor, y: Tensor) -> None:
        x = self._data(self.likelihood.check(check_rows(x)))
        label = self._label(x, y)
        prior = self.prior()
        data = pyro.plate("data", len(x))
        with data:
            z = pyro.sample("z", prior)
        pixels = self.decode(z, label)
        with data:
            pyro.sample("x", pixels, obs=x)

    @pyro_method
    def guide(self, x: Tensor, y: Tensor) -> None:
        code = scored(self.encode(check_rows(x), self._label(x, y)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", code)

    def prior(self) -> TorchDistribution:
        """p(z), of shape ``(L,)``; the same for all classes."""
        return self.code_prior(None)

    def encode(self, x: Tensor, label: Tensor) -> TorchDistribution:
        """q(z | x, y); `label` is one of C, ``(*, C)``, up to broadcasting."""
        x = self.likelihood.network_input(self._data(x))
        return of_width(self.posterior(self.encoder(joined(x, label))), self.latent, "posterior")

    def decode(self, z: Tensor, label: Tensor) -> TorchDistribution:
        """p(x | z, y); `label` is one of C, ``(*, C)``, up to broadcasting."""
        return pixel_law(self.likelihood, self.decoder(joined(z, label)), self.visible)

    def log_weights(self, x: Tensor, y: Tensor, samples: int) -> Tensor:
        """``log p(x, z | y) - log q(z | x, y)``, z ~ q: ``(samples, B)``, nats."""
        x = self._data(self.likelihood.check(x))
        label = self._label(x, y)
        code = scored(self.encode(x, label))
        z = code.rsample(torch.Size([samples]))
        return self.decode(z, label).log_prob(x) + self.prior().log_prob(z) - code.log_prob(z)

    @torch.no_grad()
    def sample(self, y: Tensor) -> Tensor:
        """A new example of each class in `y`, ``(B,) -> (B, D)``."""
        z = self.prior().sample(y.shape)
        return self.decode(z, one_of(y, self.classes).to(z)).sample().to(self.zero.dtype)

    @torch.no_grad()
    def translate(self, x: Tensor, y: Tensor, other: Tensor) -> Tensor:
        """Mean pixels of `x` in the style that it has, as members of the classes `other`."""
        z = centre(self.encode(x, self._label(x, y)))
        return self.decode(z, one_of(other, self.classes).to(z)).mean

    def _label(self, x: Tensor, y: Tensor) -> Tensor:
        """The class of each example as one of C."""
        if y.shape != x.shape[:-1]:  # a column of them would be every class for every example
            raise ValueError(
                f"expected a class for each of the examples {tuple(x.shape[:-1])}; got labels of "
                f"shape {tuple(y.shape)}"
            )
        return one_of(y, self.classes).to(self.zero)

    def _data(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.visible:
            raise ValueError(f"this VAE has {self.visible} pixels; got data {tuple(x.shape)}")
        return x.to(self.zero.dtype)


def one_of(y: Tensor, classes: int) -> Tensor:
    """Labels ``(*)`` as one of C, ``(*, C)``.

    Raises:
        ValueError: by row, for a label that is not 0, 1, ..., C - 1.
    """
    numbers = torch.arange(classes, device=y.device)
    found = y[..., None] == numbers
    lacking = ~found.any(-1)
    if lacking.any().item():
        message = f"{y[lacking][0].item():g} is not one of the classes 0, 1, ..., {classes - 1}"
        refuse_where(lacking, message, "y")
    return found


def joined(a: Tensor, b: Tensor) -> Tensor:
    """Two vectors as one, ``(*, A), (*, B) -> (*, A + B)``, batches broadcast."""
    batch = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([a.expand(*batch, -1), b.expand(*batch, -1)], -1)
