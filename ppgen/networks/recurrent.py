"""Recurrent networks over rows of tokens, as `ppgen.data.tokens` makes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppgen.arguments import require_whole
from ppgen.data.tokens import EOS, SPECIAL, token_counts


class RecurrentEncoder(nn.Module):
    """A gated recurrent unit's state after the last token of a sentence.

    Args:
        vocabulary: V, the special tokens counted.
        embedding: numbers that stand for a token.
        hidden: units of the state, F.

    Shapes: ``(*, T) -> (*, F)``; padding has no influence.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int) -> None:
        require_whole(self, vocabulary=vocabulary, embedding=embedding, hidden=hidden)
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.unit = nn.GRU(embedding, hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        states, _ = self.unit(self.embedding(rows))
        last = (token_counts(rows) - 1).clamp(min=0)[:, None, None]
        end = states.gather(1, last.expand(-1, 1, states.shape[-1]))
        return end.reshape(*x.shape[:-1], -1)


class RecurrentDecoder(nn.Module):
    r"""Logits of the next token, given the tokens before it and a code.

    The code sets the first state, :math:`\tanh(W z)`, and is read again with every token. PAD and
    BOS are never a next token: logits are those of tokens 2 (EOS) to V - 1.

    Args:
        vocabulary: V, the special tokens counted.
        embedding: numbers that stand for a token.
        hidden: units of the state.
        code: dimensions of the code, L; 0: a language model.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int, code: int = 0) -> None:
        require_whole(self, embedding=embedding, hidden=hidden)
        require_whole(self, least=len(SPECIAL), vocabulary=vocabulary)
        require_whole(self, least=0, code=code)
        super().__init__()
        self.vocabulary, self.hidden, self.code = vocabulary, hidden, code
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.first = nn.Linear(code, hidden) if code else None
        self.unit = nn.GRU(embedding + code, hidden, batch_first=True)
        self.output = nn.Linear(hidden, vocabulary - EOS)

    def forward(self, z: Tensor, inputs: Tensor) -> Tensor:
        """All logits at once: ``(B, L)`` and inputs ``(B, T)`` -> ``(B, T, V - 2)``."""
        states, _ = self._advance(z, inputs, self.begin(z))
        return self.output(states)

    def begin(self, z: Tensor) -> Tensor:
        """The state before the first token, ``(B, L) -> (1, B, hidden)``."""
        if self.first is None:
            return z.new_zeros(1, len(z), self.hidden)
        return torch.tanh(self.first(z))[None]

    def step(self, z: Tensor, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, V - 2)`` after one more `token`, ``(B,)``, and the next state."""
        states, state = self._advance(z, token[:, None], state)
        return self.output(states[:, 0]), state

    def _advance(self, z: Tensor, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        each = z[:, None].expand(-1, inputs.shape[1], -1)
        return self.unit(torch.cat([self.embedding(inputs), each], -1), state)
