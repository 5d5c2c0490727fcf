"""Whether a decoder uses its code: active units, divergence of each, posterior collapse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen.diagnostics.arrays import Array, as_sample

if TYPE_CHECKING:
    from torch import Tensor

ACTIVE = 0.01  # variance of the mean code over the data, after Burda et al. (2016)


@dataclass(frozen=True)
class LatentUse:
    """What the data move in the code.

    Args:
        variance: over the data, of each unit's posterior mean, ``(L,)``.
        divergence: KL(q(z | x) || p(z)), mean over the data, nats.
        units: the same of each unit, ``(L,)``; None where the two laws have dependent units.
        threshold: of the variance of an active unit.
    """

    variance: Array
    divergence: float
    units: Array | None
    threshold: float = ACTIVE

    @property
    def active(self) -> np.ndarray:
        """Which units follow the data, ``(L,)``, bool."""
        return self.variance > self.threshold

    @property
    def collapsed(self) -> bool:
        """Whether no unit follows the data."""
        return not self.active.any()

    def __str__(self) -> str:
        total, count = len(self.variance), int(self.active.sum())
        text = f"{count} of {total} units active, divergence {self.divergence:.2f} nats"
        if self.collapsed:
            return (
                f"posterior collapse: {text}: the decoder ignores the code, so that samples do not "
                "depend on it; train with ELBO(beta=WarmUp(...)) or ELBO(free_bits=...), in a "
                "shell --warm-up or --free-bits"
            )
        if 2 * count < total:
            return f"{text}: the other units have collapsed onto the prior"
        return text


class LayeredUse(dict[str, LatentUse]):
    """That of each layer of a code, by the name of its site; printed, a line each."""

    def __str__(self) -> str:
        return "\n".join(f"{name}: {use}" for name, use in self.items())


def latent_use(
    means: Any, divergences: Any, *, noise: Any = None, threshold: float = ACTIVE
) -> LatentUse:
    """Active units and divergence of an encoder on data.

    A low negative ELBO with a divergence near zero is that of a decoder without a code; neither
    number says so alone.

    Args:
        means: posterior mean of each example, ``(N, L)``, N >= 2.
        divergences: KL(q(z | x) || p(z)) of each example, ``(N, L)`` by unit or ``(N,)``, nats.
        noise: variance of each mean's own error, ``(N, L)``, where it is one of draws; without
            it a unit that does not follow the data moves with them by this much.
        threshold: variance over the data from which on a unit is active.

    Raises:
        ValueError: for other shapes, or values that are not finite.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), section 5.2

    Example:
        >>> use = latent_use([[0.0, 1.0], [0.0, -1.0]], [[0.0, 0.6], [0.0, 0.6]])
        >>> print(use)
        1 of 2 units active, divergence 0.60 nats
    """
    means, divergences = as_sample(means, "means"), as_sample(divergences, "divergences")
    if means.ndim != 2 or len(means) < 2 or divergences.shape not in (means.shape, means.shape[:1]):
        raise ValueError(
            "expected means of shape (N, L), N >= 2, and divergences of shape (N, L) or (N,); got "
            f"{means.shape} and {divergences.shape}"
        )
    units = divergences.mean(0) if divergences.ndim == 2 else None
    divergence = float(divergences.mean(0).sum())
    variance = means.var(0, ddof=1)
    if noise is not None:
        variance = np.maximum(variance - as_sample(noise, "noise").mean(0), 0)
    return LatentUse(variance, divergence, units, threshold)


def unit_divergences(q: Any, p: Any) -> Tensor | None:
    """KL of each coordinate, ``(*batch, *event)``; None where coordinates are dependent.

    Args:
        q: a distribution; those that `Independent` wraps have independent coordinates.
        p: another, of the same event shape.
    """
    from torch.distributions import Independent, kl_divergence

    event = q.event_shape
    while isinstance(q, Independent):
        q = q.base_dist
    while isinstance(p, Independent):
        p = p.base_dist
    rank = len(event)
    units = [law.batch_shape[len(law.batch_shape) - rank :] for law in (q, p)]
    if q.event_shape or p.event_shape or units != [event, event]:
        return None
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None
