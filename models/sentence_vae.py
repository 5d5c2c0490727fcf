"""The variational autoencoder of sentences."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ppgen.data.tokens import check_tokens
from ppgen.models.token_vae import TokenVAE
from ppgen.networks.posteriors import DiagonalNormal
from ppgen.networks.recurrent import RecurrentDecoder, RecurrentEncoder


class SentenceVAE(TokenVAE):
    r"""Variational autoencoder whose networks read and write token by token.

    .. math::
        z \sim N(0, I), \quad p(x \mid z) = \prod_t p(x_t \mid x_{<t}, z), \quad
        q(z \mid x) = N(\mu(x), \mathrm{diag}\, \sigma^2(x))

    A decoder that sees the tokens before can do without the code, and under the plain ELBO it
    does: the posterior collapses onto the prior. Remedies are `word_dropout`, and
    ``ELBO(beta=WarmUp(...))`` or ``ELBO(free_bits=...)``.

    Args:
        vocabulary: V, the special tokens counted: ``tokenizer.vocabulary``.
        length: T, numbers in a row of data, and the limit of what is generated.
        latent: dimensions of the code, L.
        hidden: units of the recurrent state, of both networks.
        embedding: numbers that stand for a token.
        word_dropout: in training mode alone, the share of tokens that the decoder reads as UNK.

    Shapes: ``x``: ``(B, T)``, whole numbers, see `ppgen.data.Tokenizer`; ``z``: ``(B, L)``.

    Raises:
        ValueError: for rows that are no sentences, by row and column.

    References:
        | Generating Sentences from a Continuous Space (Bowman et al., 2016)
        | https://arxiv.org/abs/1511.06349

    Example:
        >>> story = SentenceVAE(vocabulary=30, length=8, latent=4, hidden=16)
        >>> story.sample(3).shape
        torch.Size([3, 8])
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        latent: int = 16,
        hidden: int = 128,
        *,
        embedding: int = 64,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__(vocabulary, length, latent, word_dropout=word_dropout)
        self.encoder = RecurrentEncoder(vocabulary, embedding, hidden)
        self.posterior = DiagonalNormal(hidden, latent)
        self.decoder = RecurrentDecoder(vocabulary, embedding, hidden, latent)

    def encode(self, x: Tensor) -> TorchDistribution:
        return self.posterior(self.encoder(check_tokens(x, self.vocabulary)))
