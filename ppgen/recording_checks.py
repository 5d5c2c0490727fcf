"""Whether a recording is the story that was recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppgen.tape import Unrecordable

_ROWS = 2  # of the first batch that are compared with Pyro's own values


def refuse_disagreement(
    recording: Callable[[Tensor], Any], direct: Callable[[Tensor], Any], rows: Tensor
) -> None:
    """Compare a recording with direct runs of the story at points it was not made at.

    Args:
        recording: of the story, over rows ``(N, D)``.
        direct: the same by running the story.
        rows: the points that it was made at.

    Raises:
        Unrecordable: where they disagree.
    """
    fresh = 0.97 * rows.roll(1, 0)
    recorded = recording(fresh)
    some = fresh[:_ROWS]
    tolerance = 1e-6 if rows.dtype == torch.float64 else 1e-3

    def compare(a: Tensor, b: Tensor) -> None:
        if not torch.allclose(a[: len(some)], b, tolerance, tolerance, equal_nan=True):
            raise Unrecordable("its recording disagrees with Pyro (random numbers inside it?)")

    tree_map(compare, recorded, direct(some))


def refuse_lost_gradient(
    value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]], rows: Tensor
) -> None:
    """Compare a gradient with differences of the value, along one direction.

    Args:
        value_and_slope: value ``(N,)`` and gradient ``(N, D)`` at rows ``(N, D)``.
        rows: points.

    Raises:
        ValueError: where the story's gradient is not that of its values.
    """
    eps = torch.finfo(rows.dtype).eps
    reach = eps ** (1 / 3)
    direction = torch.cos(torch.arange(rows.shape[-1], dtype=rows.dtype, device=rows.device))
    shift = reach * direction / direction.norm()
    some = rows[:_ROWS]
    value, slope = value_and_slope(some)
    difference = value_and_slope(some + shift)[0] - value_and_slope(some - shift)[0]
    error = (difference - 2 * slope @ shift).abs()
    # a branch may jump at one point, and rounding may hide a small slope
    if bool((error > 0.01 * difference.abs() + 100 * eps * (1 + value.abs())).all()):
        raise ValueError(
            "the gradient of the log density is not that of its values: the story turns what "
            "it has drawn into plain numbers (.item(), float(), math.sqrt, numpy) or "
            "detaches it; use torch's functions there, such as torch.sqrt"
        )
