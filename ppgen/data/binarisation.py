"""Grey levels to zeros and ones, and the random streams that make each draw reproducible."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import torch
from torch import Tensor

Binarisation = Literal["static", "dynamic", "threshold", "none"]
BINARISATIONS: tuple[Binarisation, ...] = get_args(Binarisation)
_CHUNK = 1 << 22  # grey levels drawn at a time


def stream(*key: object) -> torch.Generator:
    """A generator whose numbers are a function of `key` alone, the same on every machine.

    Different keys, as ``("binarise", 0, "train")`` and ``("binarise", 0, "test")``, give unrelated
    streams; torch's global generator is neither read nor moved.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def bernoulli(grey: Tensor, generator: torch.Generator) -> Tensor:
    """One Bernoulli draw of each grey level.

    The uniforms are float32, whatever the dtype of `grey`, and are taken in order: the draw is the
    same in float32 and float64, and that of the first rows does not depend on the rows after them.

    Args:
        grey: probabilities of a one, ``(...)`` in [0, 1].
        generator: from `stream`.
    """
    drawn = torch.empty_like(grey)
    levels, out = grey.reshape(-1), drawn.view(-1)
    for start in range(0, len(levels), _CHUNK):
        level = levels[start : start + _CHUNK].to(torch.float32)
        uniform = torch.rand(len(level), generator=generator, dtype=torch.float32)
        out[start : start + _CHUNK] = uniform.to(level.device) < level
    return drawn


def threshold(grey: Tensor) -> Tensor:
    """One where the grey level is above 0.5: ``(...)`` to ``(...)``."""
    return (grey > 0.5).to(grey.dtype)
