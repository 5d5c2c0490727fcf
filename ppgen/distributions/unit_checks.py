"""What is no data of the units of a Boltzmann machine is refused, by row and column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ppgen.distributions.units import Units


def require_binary(x: Tensor, units: int) -> None:
    """Refuse what is not ``(*, units)`` in {0, 1}.

    The unnormalised log density is convex in x: a grey image scores at most the mean over its
    binarizations, a number about no distribution over images.
    """
    require_shape(x, units)
    refuse_where(x, (x != 0) & (x != 1), "0 or 1", "binarize the data first and say how")


def require_levels(x: Tensor, units: Units, owner: str) -> None:
    """Refuse rows ``(N, D)`` that are neither states of discrete `units` nor means of states.

    Args:
        owner: what asks, to begin the message with.
    """
    if not units.support.is_discrete:
        return
    outside = ((x < 0) | (x > 1)).nonzero()
    if len(outside):
        row, column = outside[0].tolist()
        raise ValueError(
            f"{owner}: {units} take values from 0 to 1, got {x[row, column].item():g} in row "
            f"{row}, column {column}: binarize the data first; for real numbers use GaussianRBM"
        )
    variables = units.variables(x.shape[1]).to(x.device)
    grouped = variables.bincount() > 1
    if not grouped.any():
        return
    shares = x.new_zeros(len(x), len(grouped)).index_add_(1, variables, x)
    off = (((shares - 1).abs() > 1e-4) & grouped).nonzero()
    if len(off):
        row, group = off[0].tolist()
        places = (variables == group).nonzero().flatten().tolist()
        raise ValueError(
            f"{owner}: units {places[0]} to {places[-1]} are one variable, and must sum to 1, got "
            f"{shares[row, group].item():g} in row {row}: give one-hot rows, as "
            "torch.nn.functional.one_hot makes them"
        )


def require_shape(x: Tensor, units: int) -> None:
    """Refuse what is not ``(*, units)``."""
    if x.dim() == 0 or x.shape[-1] != units:
        raise ValueError(f"x: expected shape (..., {units}), got {tuple(x.shape)}")


def refuse_where(x: Tensor, wrong: Tensor, expected: str, remedy: str) -> None:
    """Refuse `x` where any entry is `wrong`, a mask of its shape, and name the first one."""
    bad = wrong.nonzero()
    if len(bad):
        *row, column = bad[0].tolist()
        value = x[tuple(bad[0])].item()
        raise ValueError(
            f"x: expected {expected}, got {value:g} in row {', '.join(map(str, row)) or 0}, column "
            f"{column} ({len(bad)} such entries): {remedy}"
        )
