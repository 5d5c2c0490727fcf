"""The variational autoencoder of molecules: strings to codes, codes to strings and properties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppgen.networks.mlp import MLP
from ppgen.networks.posteriors import DiagonalNormal

END = 0  # ends a string, and fills the places after it
_ONE = torch.Size()


class MoleculeVAE(PyroModule):
    r"""Strings of tokens with a Gaussian code that also predicts the molecule's properties.

    .. math::
        z \sim N(0, I), \quad x_t \mid x_{<t}, z \sim \mathrm{Categorical}(f_t(x_{<t}, z)), \quad
        y \mid z \sim N(m + s\, g(z), \mathrm{diag}(s \sigma)^2)

    f is a recurrent network and g a perceptron; q(z | x) is a diagonal Gaussian whose mean and
    scale come from convolutions over the one-hot tokens. The properties are a site of the same
    story, so that its ELBO trains the code to tell of them. A code that is to give back the very
    molecule needs the divergence weighted down, ``ELBO(beta=...)``: name that number.

    Args:
        vocabulary: numbers that a token can have, V; number 0 ends the string.
        length: tokens of a row at most, T.
        latent: dimensions of the code, L.
        hidden: units of the recurrent decoder.
        channels: of each convolution of the encoder.
        properties: location m and scale s of each property, ``(P,)`` each, as the training data's
            mean and standard deviation; None: the story has no properties.

    Shapes: ``x``: ``(B, T)`` numbers of tokens, zeros after the first zero; ``y``: ``(B, P)``, in
        its own units; ``z``: ``(B, L)``.

    Raises:
        ValueError: for what is no number of a token, or follows an end, by row and column; for
            properties of another shape or infinite.

    References:
        | Automatic Chemical Design (Gomez-Bombarelli et al., 2018) | https://arxiv.org/abs/1610.02415
        | SELFIES (Krenn et al., 2020) | https://arxiv.org/abs/1905.13741

    Example:
        >>> vae = MoleculeVAE(vocabulary=6, length=10, latent=4)
        >>> vae.sample(3).shape
        torch.Size([3, 10])
    """

    location: Tensor
    scale: Tensor

    def __init__(
        self,
        vocabulary: int,
        length: int,
        latent: int = 64,
        hidden: int = 256,
        *,
        channels: Sequence[int] = (64, 64, 64),
        properties: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary, self.length, self.latent = vocabulary, length, latent
        location, scale = (torch.zeros(0), torch.ones(0)) if properties is None else properties
        dtype = torch.get_default_dtype()
        self.register_buffer("location", location.to(dtype))
        self.register_buffer("scale", scale.to(dtype))
        widths = [vocabulary, *channels]
        layers = [
            layer
            for i, o in pairwise(widths)
            for layer in (nn.Conv1d(i, o, 5, padding=2), nn.ReLU())
        ]
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * length, hidden))
        self.posterior = DiagonalNormal(hidden, latent)
        self.decoder = RecurrentDecoder(vocabulary, length, latent, hidden)
        if len(location):
            self.head = MLP((latent, 64, len(location)), nn.Tanh)
            self.log_noise = nn.Parameter(torch.zeros(len(location)))

    @pyro_method
    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        x = self._tokens(x)
        data = pyro.plate("data", len(x))
        with data:
            z = pyro.sample("z", self.prior())
        # outside the plate, so that Pyro passes the networks' parameters by no plate
        strings = self.decode(z)
        properties = None if y is None else self.properties_given_code(z)
        with data:
            pyro.sample("x", strings, obs=x)
            if properties is not None and y is not None:
                pyro.sample("y", properties, obs=self._properties(y, len(x)))

    @pyro_method
    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        code = self.encode(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", code)

    def prior(self) -> TorchDistribution:
        """p(z), of event shape ``(L,)``."""
        zero = self.location.new_zeros(self.latent)
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def encode(self, x: Tensor) -> TorchDistribution:
        """The recognition distribution q(z | x)."""
        one_hot = nn.functional.one_hot(self._tokens(x), self.vocabulary).to(self.location.dtype)
        return self.posterior(self.encoder(one_hot.mT).relu())

    def decode(self, z: Tensor) -> TokenSequence:
        """The generating distribution p(x | z) of strings."""
        return TokenSequence(self.decoder, z)

    def properties_given_code(self, z: Tensor) -> TorchDistribution:
        """p(y | z), in the units of the properties, ``(*, L)`` -> laws of ``(P,)``."""
        if not len(self.location):
            raise ValueError(
                "this story has no properties: make it with properties=(y.mean(0), y.std(0))"
            )
        mean = self.location + self.scale * self.head(z)
        noise = (self.scale * self.log_noise.exp()).expand_as(mean)
        return dist.Normal(mean, noise).to_event(1)

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(x, z) - log q(z | x)``, z ~ q: ``(B, T) -> (samples, B)``, nats.

        Of the strings alone: the properties are summed out.
        """
        code = self.encode(x)
        z = code.rsample(torch.Size([samples]))
        x = self._tokens(x)
        return self.decode(z).log_prob(x) + self.prior().log_prob(z) - code.log_prob(z)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """New strings, ``(count, T)``."""
        return self.decode(self.prior().sample(torch.Size([count]))).sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """What the mean code of each string decodes to, token by likeliest token, ``(B, T)``."""
        return self.decode(self.encode(x).mean).greedy()

    def _tokens(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.length:
            raise ValueError(
                f"expected strings (B, {self.length}) as numbers of tokens; got {tuple(x.shape)}"
            )
        bad = (x < 0) | (x >= self.vocabulary) | (x != x.round())
        _refuse(bad, x, f"expected a whole number from 0 to {self.vocabulary - 1}")
        x = x.long()
        _refuse((x != END) & _ended(x), x, "a token after the end of its string; expected 0")
        return x

    def _properties(self, y: Tensor, rows: int) -> Tensor:
        if y.shape != (rows, len(self.location)):
            raise ValueError(
                f"expected properties {(rows, len(self.location))}; got {tuple(y.shape)}"
            )
        _refuse(~y.isfinite(), y, "expected finite properties")
        return y.to(self.location.dtype)


class RecurrentDecoder(nn.Module):
    """Logits of each token given those before it and the code.

    The recurrence starts from the code and reads it at each step. A perceptron from the code to
    the logits of every place is added: it learns what stands where long before the recurrence has
    learnt to keep the code in mind.

    Args:
        vocabulary: V.
        length: T.
        latent: L.
        hidden: units of the gated recurrence and of the perceptron.
        embedding: width of a token before the recurrence.

    References:
        | Learning Phrase Representations using RNN Encoder-Decoder (Cho et al., 2014)
        | https://arxiv.org/abs/1406.1078
    """

    def __init__(
        self, vocabulary: int, length: int, latent: int, hidden: int, embedding: int = 32
    ) -> None:
        super().__init__()
        self.vocabulary, self.length = vocabulary, length
        self.embedding = nn.Embedding(vocabulary, embedding)  # of the end: also of the beginning
        self.start = nn.Linear(latent, hidden)
        self.recurrence = nn.GRU(embedding + latent, hidden, batch_first=True)
        self.logits = nn.Linear(hidden, vocabulary)
        self.places = MLP((latent, hidden, length * vocabulary))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Codes ``(N, L)`` and tokens ``(N, T)`` -> logits ``(N, T, V)``."""
        before = nn.functional.pad(x[:, :-1], (1, 0), value=END)
        return self.by_place(z) + self.step(before, z, self.begin(z))[0]

    def by_place(self, z: Tensor) -> Tensor:
        """The perceptron's part of the logits, ``(N, T, V)``, which no token changes."""
        return self.places(z).unflatten(-1, (self.length, self.vocabulary))

    def begin(self, z: Tensor) -> Tensor:
        """The state before the first token, ``(1, N, hidden)``."""
        return self.start(z).tanh()[None]

    def step(self, before: Tensor, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The recurrence's part of the logits, S places at once.

        Args:
            before: the token before each place, ``(N, S)``.
            z: codes, ``(N, L)``.
            state: before them.

        Returns:
            Logits ``(N, S, V)`` and the state after them.
        """
        code = z[:, None].expand(-1, before.shape[1], -1)
        states, state = self.recurrence(torch.cat([self.embedding(before), code], -1), state)
        return self.logits(states), state


class TokenSequence(TorchDistribution):
    r"""Law of strings of at most T tokens, each given those before it.

    .. math:: \log p(x) = \sum_{t \le e} \log \mathrm{softmax}(f_t(x_{<t}, z))_{x_t}

    with e the place of the first end, or T. It is normalised over rows whose places after the
    first end hold zeros; any other row has probability 0.

    Args:
        decoder: f.
        z: codes, ``(*, L)``, whose leading shape is the batch shape.
    """

    arg_constraints: ClassVar[dict] = {}  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, decoder: RecurrentDecoder, z: Tensor) -> None:
        self.decoder, self.z = decoder, z
        super().__init__(z.shape[:-1], torch.Size([decoder.length]), validate_args=False)

    @constraints.dependent_property(event_dim=1)
    def support(self) -> constraints.Constraint:  # pyright: ignore
        return constraints.independent(
            constraints.integer_interval(0, self.decoder.vocabulary - 1), 1
        )

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> TokenSequence:
        return TokenSequence(self.decoder, self.z.expand(*batch_shape, -1))

    def log_prob(self, value: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        x = value.long().expand(*batch, -1).reshape(-1, value.shape[-1])
        z = self.z.expand(*batch, -1).reshape(-1, self.z.shape[-1])
        each = self.decoder(z, x).log_softmax(-1).gather(-1, x[..., None])[..., 0]
        ended = _ended(x)
        impossible = (ended & (x != END)).any(-1)
        total = each.masked_fill(ended, 0.0).sum(-1)
        return total.masked_fill(impossible, -torch.inf).reshape(batch)

    @torch.no_grad()
    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        z = self.z.expand(*sample_shape, *self.z.shape)
        return self._written(z, lambda logits: logits.softmax(-1).multinomial(1))

    @torch.no_grad()
    def greedy(self) -> Tensor:
        """The likeliest token at each place given those chosen before it, ``(*, T)``."""
        return self._written(self.z, lambda logits: logits.argmax(-1, keepdim=True))

    def _written(self, z: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Strings token by token, each chosen by its logits, ``(N, V) -> (N, 1)``."""
        shape, z = z.shape[:-1], z.reshape(-1, z.shape[-1])
        x = torch.full((len(z), self.decoder.length), END, device=z.device)
        token, state, by_place = x[:, :1], self.decoder.begin(z), self.decoder.by_place(z)
        alive = torch.ones_like(token, dtype=torch.bool)
        for place in range(self.decoder.length):
            logits, state = self.decoder.step(token, z, state)
            token = choose(by_place[:, place] + logits[:, 0]) * alive
            x[:, place : place + 1] = token
            alive = alive & (token != END)
            if not bool(alive.any()):
                break
        return x.reshape(*shape, -1)


def _refuse(bad: Tensor, x: Tensor, expected: str) -> None:
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(f"row {row}, column {column} is {x[row, column].item():g}: {expected}")


def _ended(x: Tensor) -> Tensor:
    """Whether an end stands before each place of ``(*, T)``."""
    ends = (x == END).long()
    return (ends.cumsum(-1) - ends) > 0
