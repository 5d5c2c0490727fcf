"""What the variational autoencoders of sentences and of molecules have in common."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from ppgen.arguments import require_share, require_whole
from ppgen.data.errors import check_rows
from ppgen.data.tokens import SPECIAL, check_tokens
from ppgen.diagnostics.latent import LatentUse, latent_use, unit_divergences
from ppgen.distributions.sentence import Sentence
from ppgen.latent.paths import linear
from ppgen.networks.priors import StandardNormal

ROWS = 8192  # rows that are scored at a time, so that many draws need no more memory


class TokenVAE(PyroModule):
    r"""Variational autoencoder of rows of tokens; a subclass brings its networks along.

    .. math::
        z \sim N(0, I), \quad p(x \mid z) = \prod_t p(x_t \mid x_{<t}, z), \quad
        q(z \mid x) = N(\mu(x), \mathrm{diag}\, \sigma^2(x))

    It sets `decoder` and has `encode`.

    Args:
        vocabulary: V, the special tokens counted: ``tokenizer.vocabulary``.
        length: T, numbers in a row of data, and the limit of what is generated.
        latent: dimensions of the code, L.
        word_dropout: in training mode alone, the share of tokens that the decoder reads as UNK.

    Shapes: ``x``: ``(B, T)``, whole numbers, see `ppgen.data.Tokenizer`; ``z``: ``(B, L)``.

    Raises:
        ValueError: for rows that are no sentences, by row and column.
    """

    decoder: Any  # a TokenDecoder; a subclass names its own class
    zero: Tensor

    def __init__(
        self, vocabulary: int, length: int, latent: int, *, word_dropout: float = 0.0
    ) -> None:
        require_whole(self, least=len(SPECIAL), vocabulary=vocabulary)
        require_whole(self, length=length, latent=latent)
        # at 1 no token would be learned, and all are read later
        require_share(self, word_dropout=word_dropout)
        super().__init__()
        self.vocabulary, self.length, self.latent = vocabulary, length, latent
        self.word_dropout = word_dropout
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self.code_prior = StandardNormal(latent)

    @pyro_method
    def model(self, x: Tensor) -> None:
        self._generate(x)

    def _generate(self, x: Tensor) -> tuple[Any, Tensor]:
        """The sites of code and rows; the plate that they stand in, and the code."""
        x = check_rows(check_tokens(x, self.vocabulary))
        prior = self.prior()
        data = pyro.plate("data", len(x))
        with data:
            z = pyro.sample("z", prior)
        # outside the plate, so that Pyro passes the networks' parameters by no plate
        dropout = self.word_dropout if self.training else 0.0
        row = Sentence(self.decoder, z, x.shape[-1], word_dropout=dropout)
        with data:
            pyro.sample("x", row, obs=x)
        return data, z

    @pyro_method
    def guide(self, x: Tensor) -> None:
        code = self.encode(check_rows(x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", code)

    def prior(self) -> TorchDistribution:
        """p(z), of shape ``(L,)``."""
        return self.code_prior(self.encode)

    def encode(self, x: Tensor) -> TorchDistribution:
        """The recognition distribution q(z | x), which reads the whole row."""
        raise NotImplementedError(f"{type(self).__name__} has no encoder")

    def decode(self, z: Tensor) -> Sentence:
        """The generating distribution p(x | z), without word dropout."""
        return Sentence(self.decoder, z, self.length)

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(x, z) - log q(z | x)``, z ~ q: ``(B, T) -> (samples, B)``, nats."""
        x = check_tokens(x, self.vocabulary)
        code, prior = self.encode(x), self.prior()
        found, at_once = [], max(1, ROWS // max(1, len(x)))
        for done in range(0, samples, at_once):
            z = code.rsample(torch.Size([min(at_once, samples - done)]))
            found.append(self.decode(z).log_prob(x) + prior.log_prob(z) - code.log_prob(z))
        return torch.cat(found)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """New rows, ``(count, T)``; one without EOS was cut at the limit."""
        return self.decode(self.prior().sample(torch.Size([count]))).sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, draws: int | None = None) -> Tensor:
        """Rows at the mean code of `x`.

        Args:
            x: ``(N, T)``.
            draws: of p(x | z) for each row; None: the most probable next token each time.

        Returns:
            ``(N, T)``, or ``(draws, N, T)``.
        """
        law = self.decode(self.code(x))
        return law.greedy() if draws is None else law.sample(torch.Size([draws]))

    @torch.no_grad()
    def code(self, x: Tensor) -> Tensor:
        """The mean code of `x`, ``(*, T) -> (*, L)``."""
        return self.encode(x).mean

    @torch.no_grad()
    def latent_use(self, x: Tensor) -> LatentUse:
        """Which units of the code follow `x`, ``(N, T)``, and how far from the prior."""
        code = self.encode(x)
        return latent_use(code.mean, unit_divergences(code, self.prior()))

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int = 9) -> Tensor:
        """Most probable tokens on the line between the mean codes of `a` and `b`.

        Args:
            a: where the line begins, ``(*, T)``.
            b: where it ends, ``(*, T)``.
            steps: points on the line, both ends included.

        Returns:
            ``(steps, *, T)``; the ends are the reconstructions of `a` and `b`.
        """
        return self.decode(linear(self.code(a), self.code(b), steps)).greedy()
