r"""Ways through a latent space: from code to code, along its axes, over its plane.

In L dimensions a standard normal code has length :math:`\sqrt L \pm 0.7`, and the middle of two of
them on a line is shorter by :math:`\sqrt 2`: codes that the prior hardly ever draws. The great
circle keeps the length.

References:
    | Sampling Generative Networks (White, 2016) | https://arxiv.org/abs/1609.04468
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import Distribution

Path = Callable[[Tensor, Tensor, int], Tensor]
"""From two codes ``(*, L)`` and a number of steps to ``(steps, *, L)``, both ends included."""


def linear(a: Tensor, b: Tensor, steps: int = 9) -> Tensor:
    """The straight line between codes: ``(*, L)`` twice -> ``(steps, *, L)``.

    Example:
        >>> linear(torch.zeros(1), torch.ones(1), 3).flatten()
        tensor([0.0000, 0.5000, 1.0000])
    """
    return torch.lerp(a, b, _shares(a, b, steps))


def spherical(a: Tensor, b: Tensor, steps: int = 9) -> Tensor:
    r"""The great circle between codes, and the line where they have the same direction.

    .. math:: \frac{\sin((1 - t) \omega)}{\sin \omega} a + \frac{\sin(t \omega)}{\sin \omega} b

    with :math:`\omega` the angle between a and b.

    Raises:
        ValueError: for codes of opposite directions, between which there is no shortest circle,
            and for a code of length 0, which has no direction.
    """
    t = _shares(a, b, steps)
    lengths = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    if bool((lengths[0] == 0).any() or (lengths[1] == 0).any()):
        raise ValueError("spherical: a code of length 0 has no direction; use linear")
    # half the angle by the chord: accurate for small angles, where arccos is not
    u, v = a / lengths[0], b / lengths[1]
    half = torch.atan2((u - v).norm(dim=-1, keepdim=True), (u + v).norm(dim=-1, keepdim=True))
    omega, sine = 2 * half, torch.sin(2 * half)
    tiny = torch.finfo(a.dtype).eps ** 0.5
    if bool(((sine < tiny) & (omega > 1)).any()):
        raise ValueError(
            "spherical: two codes have opposite directions, and every great circle through them "
            "is as short as any other; use linear, or other ends"
        )
    safe = torch.where(sine < tiny, torch.ones_like(sine), sine)
    circle = torch.sin((1 - t) * omega) / safe * a + torch.sin(t * omega) / safe * b
    return torch.where(sine < tiny, torch.lerp(a, b, t), circle)


def traverse(z: Tensor, dimensions: Sequence[int], values: Sequence[float] | Tensor) -> Tensor:
    """One code with one dimension at a time set to each value.

    Args:
        z: the code, ``(L,)``.
        dimensions: which, D of them.
        values: V of them.

    Returns:
        ``(D, V, L)``.
    """
    if z.ndim != 1:
        raise ValueError(f"traverse: expected one code (L,), got shape {tuple(z.shape)}")
    wrong = [d for d in dimensions if not -len(z) <= d < len(z)]
    if wrong or not dimensions:
        raise ValueError(f"traverse: the code has dimensions 0 to {len(z) - 1}, got {dimensions}")
    given = torch.as_tensor(values, dtype=z.dtype, device=z.device)
    found = z.expand(len(dimensions), len(given), -1).clone()
    for row, dimension in zip(found, dimensions, strict=True):
        row[:, dimension] = given
    return found


def manifold(side: int = 20, prior: Distribution | None = None) -> Tensor:
    """Codes ``(side^2, 2)`` that cut the prior of a plane into cells of equal mass.

    Row by row from the top: the first number grows to the right, the second upwards.

    Args:
        side: codes in a row.
        prior: of each number, with an ``icdf``; standard normal when None.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), figure 4
    """
    if side < 1:
        raise ValueError(f"manifold: side must be at least 1, got {side}")
    law = Normal(torch.zeros(()), torch.ones(())) if prior is None else prior
    at = law.icdf((torch.arange(side) + 0.5) / side)
    return torch.stack([at.repeat(side), at.flip(0).repeat_interleave(side)], -1)


def _shares(a: Tensor, b: Tensor, steps: int) -> Tensor:
    if a.shape != b.shape or a.ndim < 1:
        raise ValueError(
            f"expected two codes of one shape (*, L), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if steps < 2:
        raise ValueError(f"steps must be at least 2, for both ends, got {steps}")
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)
    return t.reshape(-1, *[1] * a.ndim)
