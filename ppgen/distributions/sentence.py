"""The law of a sentence that a decoder writes token by token."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.nn.functional import cross_entropy

from ppgen.arguments import require_share, require_whole
from ppgen.data.tokens import BOS, EOS, PAD, UNK

_NONE = Size()


class TokenDecoder(Protocol):
    """Logits of the next token, of EOS (2), UNK (3) and the vocabulary; PAD and BOS never come."""

    def __call__(self, z: Tensor, inputs: Tensor) -> Tensor:
        """Codes ``(B, L)`` and tokens read so far ``(B, T)`` -> ``(B, T, V - 2)``."""
        ...

    def begin(self, z: Tensor) -> Any:
        """The state before the first token; only `step` looks into it."""
        ...

    def step(self, z: Tensor, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits ``(B, V - 2)`` after `token`, ``(B,)``, and the next state."""
        ...


class Sentence(TorchDistribution):
    r"""The first T tokens of a sentence, PAD after its end.

    .. math:: \log p(x \mid z) = \sum_{t=1}^{n} \log p(x_t \mid x_{<t}, z)

    with n the place of EOS, which counts, or T where there is none: then x is the beginning of a
    longer sentence. Over all such rows the probabilities sum to one.

    Args:
        decoder: of the logits.
        z: codes, ``(*, L)``; ``(*)`` is the batch shape.
        length: T, of draws; what is scored may have another one.
        word_dropout: the share of tokens that the decoder reads as UNK while it scores. Training
            with it makes the code worth reading; the score is then random, and is no likelihood.

    References:
        | Generating Sentences from a Continuous Space (Bowman et al., 2016)
        | https://arxiv.org/abs/1511.06349
    """

    def __init__(
        self, decoder: TokenDecoder, z: Tensor, length: int, *, word_dropout: float = 0.0
    ) -> None:
        require_whole(self, length=length)
        require_share(self, word_dropout=word_dropout)
        self.decoder, self.z, self.length, self.word_dropout = decoder, z, length, word_dropout
        super().__init__(z.shape[:-1], Size([length]), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {}

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.nonnegative_integer, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Sentence:
        z = self.z.expand(*batch_shape, self.z.shape[-1])
        return Sentence(self.decoder, z, self.length, word_dropout=self.word_dropout)

    def log_prob(self, value: Tensor) -> Tensor:
        x = value.long()
        shape = torch.broadcast_shapes(x.shape[:-1], self.batch_shape)
        x = x.expand(*shape, -1).reshape(-1, x.shape[-1])
        z = self.z.expand(*shape, -1).reshape(len(x), -1)
        logits = self.decoder(z, self._inputs(x))
        # PAD, and it alone, is left out of the sum
        each = cross_entropy(
            logits.flatten(0, 1), x.flatten() - EOS, ignore_index=PAD - EOS, reduction="none"
        )
        return -each.view(x.shape).sum(-1).view(shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = _NONE) -> Tensor:
        """Tokens drawn one after another, ``(*sample_shape, *batch, T)``."""
        return self._write(
            sample_shape, lambda logits: torch.multinomial(logits.softmax(-1), 1)[:, 0]
        )

    @torch.no_grad()
    def greedy(self) -> Tensor:
        """The most probable next token each time, ``(*batch, T)``; the mode it need not be."""
        return self._write(_NONE, lambda logits: logits.argmax(-1))

    def _inputs(self, x: Tensor) -> Tensor:
        """What the decoder reads at each place: the tokens before, BOS first."""
        before = torch.cat([torch.full_like(x[:, :1], BOS), x[:, :-1]], 1)
        if not self.word_dropout:
            return before
        dropped = torch.rand(before.shape, device=x.device) < self.word_dropout
        return before.masked_fill(dropped & (before != BOS) & (before != PAD), UNK)

    def _write(self, sample_shape: Any, choose: Any) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape])
        z = self.z.expand(*shape, -1).reshape(shape.numel(), -1)
        state, token = self.decoder.begin(z), torch.full((len(z),), BOS, device=z.device)
        rows = token.new_full((len(z), self.length), PAD)
        for place in range(self.length):
            logits, state = self.decoder.step(z, token, state)
            ended = (token == EOS) | (token == PAD)
            token = (choose(logits) + EOS).masked_fill(ended, PAD)
            rows[:, place] = token
            if bool((token == PAD).all()):
                break
        return rows.view(*shape, self.length)
