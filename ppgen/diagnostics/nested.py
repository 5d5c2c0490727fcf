r"""Nested R-hat: convergence of many short chains.

Chains that share a start form a superchain. With :math:`B` the variance of the superchain means
and :math:`W` the mean over superchains of (variance between their chains + mean variance within),

.. math:: \mathfrak{n}\hat R = \sqrt{1 + B / W}

References:
    | Nested R-hat: assessing the convergence of MCMC when running many short chains
    | (Margossian et al., 2024) | https://arxiv.org/abs/2110.13017
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ppgen.diagnostics.arrays import Array, as_chains


def nested_rhat(x: Any, superchains: Any) -> Array:
    """Nested R-hat of each scalar; one draw a chain is enough.

    Starts must be shared within and dispersed between superchains: from one common start it sees
    nothing. Compare with `nested_rhat_limit`, not with 1.01.

    Args:
        x: draws, ``(chains, draws, *shape)``.
        superchains: the number of superchains of consecutive chains, or each chain's label.

    Shapes:
        result ``(*shape)``; NaN where it cannot be known.

    Raises:
        ValueError: when the superchains are fewer than two or of unequal size.
    """
    x = as_chains(x)
    chains, draws = x.shape[:2]
    order, count = _consecutive(superchains, chains)
    grouped = x[order].reshape(count, chains // count, draws, *x.shape[2:])
    with np.errstate(divide="ignore", invalid="ignore"):
        means = grouped.mean(2)
        within = np.zeros(x.shape[2:])
        if means.shape[1] > 1:
            within = within + means.var(1, ddof=1).mean(0)
        if draws > 1:
            within = within + grouped.var(2, ddof=1).mean((0, 1))
        value = np.sqrt(1 + means.mean(1).var(0, ddof=1) / within)
    known = np.isfinite(x).all((0, 1)) & (x.max((0, 1)) > x.min((0, 1))) & (chains * draws > count)
    return np.where(known, value, np.nan)[()]


def nested_rhat_limit(superchains: int, chains_each: int, level: float = 0.99) -> float:
    r"""What one draw a chain, stationary, independent and normal, exceeds with 1 - `level`.

    There :math:`M B / W` is F distributed with (K - 1, K (M - 1)) degrees of freedom. With more
    draws a stationary run lies lower, so that the limit stays safe.

    Raises:
        ValueError: when there are fewer than two superchains or two chains in each.
    """
    from scipy.special import fdtri

    if superchains < 2 or chains_each < 2:
        raise ValueError(
            "the limit needs two superchains of two chains or more, "
            f"got {superchains} of {chains_each}"
        )
    ratio = fdtri(superchains - 1, superchains * (chains_each - 1), level) / chains_each
    return float(1 + ratio) ** 0.5


def _consecutive(superchains: Any, chains: int) -> tuple[np.ndarray, int]:
    """The order that puts superchains side by side, and their number."""
    labels = np.asarray(superchains)
    if labels.ndim == 0:
        labels = np.arange(chains) * int(superchains) // chains
    if labels.shape != (chains,):
        raise ValueError(
            f"superchains: expected one label for each of {chains} chains, got shape {labels.shape}"
        )
    sizes = np.unique(labels, return_counts=True)[1]
    if len(sizes) < 2 or len(set(sizes.tolist())) > 1:
        raise ValueError(
            f"superchains: expected at least two, of equal size, got sizes {sizes.tolist()} "
            f"from {chains} chains"
        )
    return np.argsort(labels, kind="stable"), len(sizes)
