"""The recurrent language model: what a decoder of sentences does without a code."""

from __future__ import annotations

import pyro
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.data.errors import check_rows
from ppgen.data.tokens import SPECIAL, check_tokens
from ppgen.distributions.sentence import Sentence
from ppgen.networks.recurrent import RecurrentDecoder


class LanguageModel(PyroModule):
    r"""Each token given those before it.

    .. math:: p(x) = \prod_t p(x_t \mid x_{<t})

    The decoder is that of `SentenceVAE` without its code, and the likelihood is exact: the baseline
    beside which a bound with a code shows what the code buys.

    Args:
        vocabulary: V, the special tokens counted: ``tokenizer.vocabulary``.
        length: T, numbers in a row of data, and the limit of what is generated.
        hidden: units of the recurrent state.
        embedding: numbers that stand for a token.

    Shapes: ``x``: ``(B, T)``, whole numbers, see `ppgen.data.Tokenizer`.

    Raises:
        ValueError: for rows that are no sentences, by row and column.

    References:
        | Recurrent neural network based language model (Mikolov et al., 2010)

    Example:
        >>> LanguageModel(vocabulary=30, length=8, hidden=16).sample(3).shape
        torch.Size([3, 8])
    """

    zero: Tensor

    def __init__(
        self, vocabulary: int, length: int, hidden: int = 128, *, embedding: int = 64
    ) -> None:
        require_whole(self, least=len(SPECIAL), vocabulary=vocabulary)
        require_whole(self, length=length)
        super().__init__()
        self.vocabulary, self.length = vocabulary, length
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self.decoder = RecurrentDecoder(vocabulary, embedding, hidden)

    @pyro_method
    def model(self, x: Tensor) -> None:
        x = check_rows(check_tokens(x, self.vocabulary))
        law = self._law(x.shape[:1])
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """Nothing is latent."""

    def log_prob(self, x: Tensor) -> Tensor:
        x = check_tokens(x, self.vocabulary)
        return self._law(x.shape[:-1]).log_prob(x)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """New sentences, ``(count, T)``; one without EOS was cut at the limit."""
        return self._law(torch.Size([count])).sample()

    def _law(self, batch: torch.Size) -> Sentence:
        return Sentence(self.decoder, self.zero.expand(*batch, 0), self.length)
