"""Codes that are sums over places, and a decoder that takes off what it has read.

A recurrent decoder has to learn to keep a code in mind while it writes; that takes it many hours.
Here the code of a row is a sum of one learned vector for each token at its place. Once the tokens
before are known, what they added can be taken off exactly, and what is left tells of the next
token and those after it: the decoder is told what a recurrence would have to remember. So a minute
on one core is enough for codes that give back the very row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

from ppgen.arguments import require_whole
from ppgen.data.tokens import EOS, PAD, SPECIAL
from ppgen.networks.mlp import MLP

RECENT = 3  # tokens before that are read one by one
_WIDTH = 16  # numbers that stand for each of them


class AdditiveCode(nn.Module):
    r"""The code of a row of tokens, :math:`c + \sum_t E_{t, x_t}`; padding adds nothing.

    Args:
        vocabulary: V, the special tokens counted.
        length: places, T; shorter rows have codes too.
        latent: dimensions of the code, L.

    Shapes: ``(*, T) -> (*, L)``.
    """

    def __init__(self, vocabulary: int, length: int, latent: int) -> None:
        require_whole(self, least=len(SPECIAL), vocabulary=vocabulary)
        require_whole(self, length=length, latent=latent)
        super().__init__()
        self.vocabulary, self.length, self.latent = vocabulary, length, latent
        self.parts = nn.Parameter(torch.randn(length, vocabulary, latent) / math.sqrt(length))
        self.centre = nn.Parameter(torch.zeros(latent))

    def forward(self, x: Tensor) -> Tensor:
        return self.centre + self.summands(x).sum(-2)

    def summands(self, x: Tensor, start: int = 0) -> Tensor:
        """What each token adds, ``(*, S) -> (*, S, L)``, the first one at place `start`."""
        end = start + x.shape[-1]
        if end > self.length:
            raise ValueError(f"rows of {end} tokens, where this code has {self.length} places")
        rows = x + self.vocabulary * torch.arange(start, end, device=x.device)
        return embedding(rows, self.parts.flatten(0, 1)) * (x != PAD)[..., None]


class State(NamedTuple):
    """What a decoder knows in the middle of a row."""

    left: Tensor  # of the code, (B, L)
    recent: Tensor  # tokens read last, the last one first, (B, RECENT)
    counts: Tensor  # the sum over all tokens read, wherever they stood, (B, C)
    place: int  # of the next token


class SubtractingDecoder(nn.Module):
    r"""Logits of the next token, given the tokens before it and a code that was a sum.

    .. math:: r_t = z - c - \sum_{s < t} E_{s, x_s}, \quad
        f_t = R_t r_t + b_t + \mathrm{MLP}(r_t, R_t r_t, R_{t+1} r_t, \dots, x_{t-3}, x_{t-2},
        x_{t-1}, \textstyle\sum_{s<t} C_{x_s}, t)

    The readouts :math:`R_t` have a row for each token; the perceptron, which is the same at all
    places, sees those of the next places too, the last three tokens, and a sum over all tokens
    before, in which it can count open brackets. All places are computed at once in training.

    PAD and BOS are never a next token: logits are those of tokens 2 (EOS) to V - 1.

    Args:
        code: E and c, trained together with the decoder.
        hidden: units of each of the perceptron's two layers.
        ahead: places after the next one whose readout is seen.
        counts: width of the sum over the tokens before, C.
    """

    def __init__(
        self, code: AdditiveCode, hidden: int = 256, *, ahead: int = 2, counts: int = 64
    ) -> None:
        require_whole(self, hidden=hidden, counts=counts)
        require_whole(self, least=0, ahead=ahead)
        super().__init__()
        self.code, self.ahead = code, ahead
        self.outputs = outputs = code.vocabulary - EOS
        # the places after the last are read as well, and mean nothing
        places = code.length + ahead
        self.readout = nn.Parameter(torch.randn(places, outputs, code.latent) / code.latent**0.5)
        self.bias = nn.Parameter(torch.zeros(code.length, outputs))
        # each of the last tokens has numbers of its own for how long ago it was
        self.recent = nn.Embedding(RECENT * code.vocabulary, _WIDTH)
        self.counted = nn.Embedding(code.vocabulary, counts)
        inputs = code.latent + (1 + ahead) * outputs + RECENT * _WIDTH + counts
        self.first = nn.Linear(inputs, hidden)
        self.place = nn.Parameter(torch.zeros(code.length, hidden))
        self.rest = nn.Sequential(nn.ReLU(), MLP((hidden, hidden, outputs)))

    def forward(self, z: Tensor, inputs: Tensor) -> Tensor:
        """All logits at once: ``(B, L)`` and inputs ``(B, T)``, BOS first -> ``(B, T, V - 2)``."""
        taken = pad(self.code.summands(inputs[:, 1:]).cumsum(1), (0, 0, 1, 0))
        left = (z - self.code.centre)[:, None] - taken
        before = pad(inputs, (RECENT - 1, 0), value=PAD).unfold(1, RECENT, 1).flip(-1)
        return self._logits(left, before, self._counts(inputs).cumsum(1), 0)

    def begin(self, z: Tensor) -> State:
        """The state before the first token."""
        recent = torch.full((len(z), RECENT), PAD, device=z.device)
        counts = z.new_zeros(len(z), self.counted.embedding_dim)
        return State(z - self.code.centre, recent, counts, 0)

    def step(self, z: Tensor, token: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits ``(B, V - 2)`` after one more `token`, ``(B,)``, BOS first; the next state."""
        left, recent, counts, place = state
        if place:  # BOS added nothing
            left = left - self.code.summands(token[:, None], place - 1)[:, 0]
        recent = torch.cat([token[:, None], recent[:, :-1]], 1)
        counts = counts + self._counts(token)
        logits = self._logits(left[:, None], recent[:, None], counts[:, None], place)
        return logits[:, 0], State(left, recent, counts, place + 1)

    def _counts(self, tokens: Tensor) -> Tensor:
        return 0.1 * self.counted(tokens)

    def _logits(self, left: Tensor, recent: Tensor, counts: Tensor, start: int) -> Tensor:
        """Of S places from `start` on: ``(B, S, L)``, ``(B, S, 3)``, ``(B, S, C)``."""
        end = start + left.shape[1]
        read = [
            torch.einsum("bsl,svl->bsv", left, self.readout[start + k : end + k])
            for k in range(1 + self.ahead)
        ]
        ago = self.code.vocabulary * torch.arange(RECENT, device=recent.device)
        each = self.recent(recent + ago).flatten(-2)
        seen = self.first(torch.cat([left, *read, each, counts], -1)) + self.place[start:end]
        return read[0] + self.bias[start:end] + self.rest(seen)
