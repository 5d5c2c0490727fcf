"""Codes of data, their neighbours, and what becomes of them when they are decoded."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ppgen.latent.paths import Path, spherical
from ppgen.types import Autoencoder, ImportanceWeighted

_AT_ONCE = 1000  # examples, so that a convolution's images fit into memory
_DRAWS = 64  # whose average is the code where the encoder's law has no mean in closed form


@torch.no_grad()
def codes(model: Autoencoder, x: Tensor) -> Tensor:
    """The mean of ``q(z | x)``, ``(N, D) -> (N, L)``; of draws where it is no formula."""
    return torch.cat([_centre(model.encode(part)) for part in x.split(_AT_ONCE)])


def _centre(law: Distribution) -> Tensor:
    try:
        return law.mean
    except NotImplementedError:
        return law.sample(torch.Size([_DRAWS])).mean(0)


@torch.no_grad()
def reconstruct(model: Autoencoder, x: Tensor) -> Tensor:
    """What the mean code of each example decodes to, in the mean: ``(N, D) -> (N, D)``.

    Raises:
        ValueError: for a model whose examples have no mean, as sentences.
    """
    law = model.decode(codes(model, x))
    try:
        return law.mean
    except NotImplementedError:
        raise ValueError(
            f"reconstruct: {type(law).__name__}, which {type(model).__name__} decodes to, has no "
            "mean; ask the model itself, reconstruct(x)"
        ) from None


class Neighbours(NamedTuple):
    """For each query the nearest codes, nearest first."""

    rows: Tensor  # of the codes, (Q, count)
    distance: Tensor  # Euclidean, (Q, count)


def nearest(query: Tensor, among: Tensor, count: int = 1) -> Neighbours:
    """The `count` nearest of the codes `among`, ``(N, L)``, to each `query`, ``(Q, L)``.

    Raises:
        ValueError: where there are fewer codes, or they have other dimensions.
    """
    if query.ndim != 2 or among.ndim != 2 or query.shape[1] != among.shape[1]:
        raise ValueError(
            f"nearest: expected codes (Q, L) and (N, L), got {tuple(query.shape)} and "
            f"{tuple(among.shape)}"
        )
    if not 1 <= count <= len(among):
        raise ValueError(f"nearest: count must be from 1 to {len(among)}, got {count}")
    distance, rows = torch.cdist(query, among).topk(count, largest=False)
    return Neighbours(rows, distance)


class Midpoints(NamedTuple):
    """Log-likelihoods of decoded codes, nats: lower bounds by importance sampling."""

    ends: Tensor  # at the codes of both ends, (2, N)
    middle: Tensor  # half way between them, (N,)

    @property
    def lost(self) -> Tensor:
        """Nats by which the middle is less probable than its ends on average, (N,)."""
        return self.ends.mean(0) - self.middle


@torch.no_grad()
def midpoint_likelihood(
    model: Autoencoder, a: Tensor, b: Tensor, *, path: Path = spherical, samples: int = 100
) -> Midpoints:
    """How probable the model finds what it decodes half way between two examples.

    Examples are drawn from ``p(x | z)`` at both codes and at the middle, and scored by the model
    itself; all three are draws of the decoder, so that sharper data do not tip the balance.

    Args:
        model: encodes, decodes and has importance weights.
        a: examples, ``(N, D)``.
        b: as many others.
        path: `linear` or `spherical`.
        samples: of importance sampling.

    Raises:
        ValueError: for a model without ``log_weights``.
    """
    if not isinstance(model, ImportanceWeighted):
        raise ValueError(
            f"{type(model).__name__} has no log_weights(x, samples), and so no likelihood of what "
            "it decodes; see ppgen.types.ImportanceWeighted"
        )
    way = path(codes(model, a), codes(model, b), 3)
    x = model.decode(way).sample()
    weights = torch.stack([model.log_weights(part, samples) for part in x])
    scores = weights.logsumexp(1) - math.log(samples)
    return Midpoints(scores[[0, 2]], scores[1])
