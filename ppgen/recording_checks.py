"""Whether a recording is the story that was recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppgen.recording import reason
from ppgen.tape import Unrecordable

ROWS = 2  # of the first batch that are compared with Pyro's own values


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
    some = fresh[:ROWS]
    expected = direct(some)
    try:
        recorded = recording(fresh)
    except RuntimeError as error:
        direct(fresh)  # raises where it is not the recording's fault
        raise Unrecordable(reason(error)) from error
    tolerance = 1e-6 if rows.dtype == torch.float64 else 1e-3

    def compare(a: Tensor, b: Tensor) -> None:
        if not torch.allclose(a[: len(some)], b, tolerance, tolerance, equal_nan=True):
            raise Unrecordable("its recording disagrees with Pyro")

    tree_map(compare, recorded, expected)


def refuse_noise(direct: Callable[[Tensor], Any], rows: Tensor) -> None:
    """Run the story twice at the same point: what differs there is no density.

    Raises:
        ValueError: where the two runs differ.
    """

    def compare(a: Tensor, b: Tensor) -> None:
        if not torch.equal(a.nan_to_num(), b.nan_to_num()):
            raise ValueError(
                "two runs of the story at the same point differ: it draws random numbers "
                "outside pyro.sample (numpy.random, random), or keeps something from run to "
                "run (a counter, a tensor that it writes to); take that out of the story"
            )

    tree_map(compare, *(direct(rows[:1]) for _ in range(2)))


def refuse_lost_gradient(
    value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]], rows: Tensor
) -> None:
    """Compare a gradient with differences of the value, along one direction.

    A lost gradient is wrong over every distance. Over a short one a right gradient may disagree as
    well, by rounding: that of a nearly singular Cholesky factor is much larger than that of a sum.

    Args:
        value_and_slope: value ``(N,)`` and gradient ``(N, D)`` at rows ``(N, D)``.
        rows: points.

    Raises:
        ValueError: where the story's gradient is not that of its values.
    """
    eps = torch.finfo(rows.dtype).eps
    direction = torch.cos(torch.arange(rows.shape[-1], dtype=rows.dtype, device=rows.device))
    direction /= direction.norm()
    value, slope = value_and_slope(rows)

    def wrong(reach: float) -> bool:
        shift = reach * direction
        difference = value_and_slope(rows + shift)[0] - value_and_slope(rows - shift)[0]
        error = (difference - 2 * slope @ shift).abs()
        # rounding may hide a small slope
        rows_wrong = error > 0.01 * difference.abs() + 1e4 * eps * (1 + value.abs())
        there = error.isfinite()
        # a branch may jump at one point; NaN where no value is finite
        return float(rows_wrong[there].double().mean()) > 0.5

    short = eps ** (1 / 3)
    if wrong(short) and wrong(30 * short):
        raise ValueError(
            "the gradient of the log density is not that of its values: the story turns what "
            "it has drawn into plain numbers (.item(), float(), math.sqrt, numpy) or "
            "detaches it; use torch's functions there, such as torch.sqrt"
        )
