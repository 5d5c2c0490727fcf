"""Whether data are whole levels: binary images, or grey ones before any rescaling."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.data.errors import check_binary, refuse_where


def whole_levels(x: Tensor, columns: int | None = None, levels: int = 2, name: str = "x") -> Tensor:
    """`x` itself, if its entries are the whole numbers 0 to ``levels - 1``.

    Args:
        x: data, ``(*, D)``.
        columns: the D that is expected.
        name: of the data, for the message.

    Raises:
        ValueError: otherwise, with the row and column of the first wrong entry.
    """
    if x.ndim == 0 or columns not in (None, x.shape[-1]):
        expected = "(*, D)" if columns is None else f"(*, {columns})"
        raise ValueError(f"expected data of shape {expected}; got {tuple(x.shape)}")
    if levels == 2:
        return x if _binary(x) else check_binary(x, name)  # which is slower, and says what is wrong
    allowed = x.floor().clamp(0, levels - 1)
    wrong = x != allowed  # NaN equals nothing
    if not wrong.any().item():
        return x
    message = f"{x[wrong][0].item():.6g} is not one of 0, 1, ..., {levels - 1}"
    refuse_where(wrong, f"{message}: give the raw levels, not rescaled ones", name)
    return x


def _binary(x: Tensor) -> bool:
    """Whether `x` is 0 and 1 and nothing else, in two passes: ``x - x^2`` is 0 for no other number.

    (Below 1e-22 in float32 its square is 0 too; so small a grey value is 0 to every likelihood.)
    """
    if not x.is_floating_point() or not x.numel():
        return False
    grey = torch.addcmul(x, x, x, value=-1).reshape(-1)
    return torch.dot(grey, grey).item() == 0  # NaN, for NaN and infinity, is not
