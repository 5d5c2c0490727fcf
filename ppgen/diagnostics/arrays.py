"""What every diagnostic asks of its input, asked once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

_ROUNDING = 64 * float(np.finfo(np.float64).eps)  # of the largest of some numbers
_CHUNK = 2**20  # numbers worked on at a time: bounds the memory of ranks and transforms


def as_array(x: Any) -> Array:
    """`x` as float64; a tensor is detached and brought to the CPU."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
    return np.asarray(x, dtype=np.float64)


def as_chains(x: Any) -> Array:
    """`x` as (chains, draws, *shape).

    Raises:
        ValueError: when there is no chain or no draw axis.
    """
    x = as_array(x)
    if x.ndim < 2:
        raise ValueError(
            f"expected draws of shape (chains, draws, ...), got {x.shape}; "
            "for a single chain pass x[None]"
        )
    return x


def as_sample(x: Any, name: str = "x") -> Array:
    """`x` as (n, *shape), finite.

    Raises:
        ValueError: when it is empty, or naming the first row that is not finite.
    """
    x = as_array(x)
    if x.ndim < 1 or len(x) == 0:
        raise ValueError(f"{name}: expected a sample of shape (n, ...) with n >= 1, got {x.shape}")
    bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
    if bad.any():
        raise ValueError(
            f"{name}: {bad.sum()} of {len(x)} rows are not finite, first row {bad.argmax()}; "
            "a distance between samples needs finite numbers"
        )
    return x


def varies(x: Array, axis: int | tuple[int, ...] | None = None) -> Any:
    """Whether numbers differ along `axis` by more than rounding, as a matrix's ones do not."""
    spread, size = np.ptp(x, axis=axis), np.abs(x).max(axis=axis)
    return (spread != 0) & ~((spread <= _ROUNDING * size) & np.isfinite(size))


def thin(x: Array, limit: int) -> Array:
    """At most `limit` rows, evenly spaced: neighbours in a chain are the most alike."""
    if len(x) <= limit:
        return x
    return x[np.linspace(0, len(x) - 1, limit).round().astype(int)]


def per_scalar(x: Any, diagnostic: Callable[[Array], Array], rows: int = 1) -> Array:
    """Apply a function, (variables, chains, draws) -> (rows, variables), to each scalar of draws.

    Scalars that no diagnosis can stand on become NaN, which passes no threshold: fewer than four
    draws, a number that is not finite, or no variance at all.

    Shapes:
        ``x``: ``(chains, draws, *shape)``; result ``(rows, *shape)``.
    """
    x = as_chains(x)
    chains, draws, *shape = x.shape
    flat = x.reshape(chains, draws, int(np.prod(shape)))
    result = np.full((rows, flat.shape[2]), np.nan)
    if draws >= 4 and chains >= 1:
        step = max(1, _CHUNK // (chains * draws))
        for start in range(0, flat.shape[2], step):
            part = np.ascontiguousarray(flat[:, :, start : start + step].transpose(2, 0, 1))
            good = np.isfinite(part).all((1, 2)) & (part.max((1, 2)) > part.min((1, 2)))
            if good.any():
                chosen = part if good.all() else part[good]
                result[:, start : start + step][:, good] = diagnostic(chosen)
    return result.reshape(rows, *shape)
