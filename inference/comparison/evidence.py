r"""The log evidence, bounded from below by an approximation and from above by a reference.

For log p the unnormalised posterior and q the approximation, both on the unconstrained scale,

.. math:: E_q[\log w] \le E_q\Big[\log \frac1K \sum_{k=1}^K w_k\Big] \le \log Z \le E_p[\log w],
          \quad w = p / q,

and the gap between the ends is :math:`\mathrm{KL}(q \,\|\, p) + \mathrm{KL}(p \,\|\, q)`. Only the
upper side, the EUBO, sees a mode that q has missed: its draws come from the reference.

References:
    | Beyond ELBOs (Blessing et al., 2024): the EUBO | https://arxiv.org/abs/2406.07423
    | Importance Weighted Autoencoders (Burda et al., 2016) | https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ppgen import diagnostics
from ppgen.components import AnyOrder
from ppgen.diagnostics.arrays import Array, as_array
from ppgen.inference.comparison.coordinates import Coordinates
from ppgen.inference.point import ROWS
from ppgen.inference.target import InPieces, Target
from ppgen.posterior import Posterior
from ppgen.program import Program

EVALUATED = 2000  # reference draws at which densities are evaluated
_GROUPS = 100  # of weights: the importance weighted bound of each, and their error


class Sandwich(NamedTuple):
    """Bounds of the log evidence, nats, with their Monte Carlo errors; NaN where unknown."""

    elbo: float
    elbo_error: float
    eubo: float
    eubo_error: float
    weighted: float = math.nan  # the importance weighted bound of `each` draws
    weighted_error: float = math.nan
    each: int = 0

    @property
    def gap(self) -> float:
        """KL(q || p) + KL(p || q)."""
        return self.eubo - self.elbo

    def __str__(self) -> str:
        lower = f"{self.elbo:.2f} +- {self.elbo_error:.2f} (ELBO)"
        if self.each:
            lower += (
                f", {self.weighted:.2f} +- {self.weighted_error:.2f} (importance weighted, "
                f"{self.each} draws)"
            )
        if math.isnan(self.eubo):
            return f"log evidence at least: {lower}"
        return (
            f"log evidence: {lower} to {self.eubo:.2f} +- {self.eubo_error:.2f} nats (EUBO); "
            f"EUBO - ELBO, {self.gap:z.2f}, is KL both ways"
        )


def sandwich(
    posterior: Posterior,
    reference: Posterior,
    both: Coordinates,
    program: Program | None,
    missing: list[str],
) -> Sandwich | None:
    """Lower bounds from the draws of q, the EUBO from those of the reference.

    Args:
        posterior: q.
        reference: draws to be trusted.
        both: the coordinates that they have in common.
        program: the story with its data, where the reference has no densities of its own.
        missing: takes the reason for each bound that is not known.
    """
    log_q = posterior.guide_log_prob
    if posterior.log_weights is None:
        missing.append("log q is not known at its own draws: no bounds of the evidence")
        return None
    if not posterior.converged:
        missing.append("bounds of the evidence: it has not converged")
        return None
    try:
        weights = _own_weights(posterior, log_q)
        lower = _lower(weights)
        upper = _upper(posterior, reference, both, program, missing)
    except ValueError as reason:
        missing.append(f"{reason}: no bounds of the evidence")
        return None
    return Sandwich(*_mean(weights.ravel()), *upper, *lower)


def _upper(
    posterior: Posterior,
    reference: Posterior,
    both: Coordinates,
    program: Program | None,
    missing: list[str],
) -> tuple[float, float]:
    """The EUBO and its error."""
    unknown, log_q = (math.nan, math.nan), posterior.guide_log_prob
    if log_q is None:
        missing.append(
            "log q is not known at the reference's draws: no upper bound of the evidence"
        )
        return unknown
    if not both.unconstrained or reference.unconstrained is None:
        missing.append("the reference was drawn in other coordinates: no upper bound")
        return unknown
    if not reference.converged:
        missing.append("the reference has not converged: no upper bound of the evidence")
        return unknown
    step = max(1, reference.count // EVALUATED)
    z, log_p = reference.unconstrained[:, ::step], reference.log_density
    if log_p is not None:
        log_p = log_p[:, ::step]
    elif program is not None:
        log_p = InPieces(Target(program), ROWS).value(z.flatten(0, 1)).reshape(z.shape[:2])
    else:
        missing.append("log p is not known at the reference's draws: no upper bound")
        return unknown
    above = as_array(log_p) - as_array(log_q(z.flatten(0, 1)).reshape(z.shape[:2]))
    mean, error = _mean(above.ravel())
    if reference.kind == "chains":
        error = float(np.nan_to_num(diagnostics.mcse_mean(above), nan=error))
    return mean, error


def _lower(weights: Array) -> tuple[float, float, int]:
    """The importance weighted bound, its error, and of how many draws it is.

    Args:
        weights: log weights, ``(S, K)`` where the guide proposes K, else ``(S,)``.
    """
    if not np.isfinite(weights).all():
        outside = int((~np.isfinite(weights)).sum())
        raise ValueError(f"{outside} of {weights.size} importance weights are not finite")
    if weights.ndim == 1:
        each = len(weights) // _GROUPS
        if each < 2:
            return math.nan, math.nan, 0
        weights = weights[: each * _GROUPS].reshape(each, _GROUPS).T  # draws may come in pairs
    each = weights.shape[1]
    if each < 2:
        return math.nan, math.nan, 0
    return *_mean(np.logaddexp.reduce(weights, axis=1) - math.log(each)), each


def _mean(values: Array) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(values.size))


def _own_weights(posterior: Posterior, log_q: Callable[[Tensor], Tensor] | None) -> Array:
    """Log weights at draws of q, with components in any order where the story has no numbers.

    Raises:
        ValueError: where draws of q are gone, or its components have too many orders.
    """
    known, z, log_p = posterior.log_weights, posterior.unconstrained, posterior.log_density
    assert known is not None
    kept = posterior.history.get("log_weights")
    if not isinstance(log_q, AnyOrder):
        return known if kept is None else as_array(kept)
    if kept is not None or z is None or log_p is None:
        raise ValueError("resampled draws are not those of a guide with components in any order")
    some = slice(0, None, max(1, posterior.count // EVALUATED))
    return as_array(log_p.flatten()[some] - log_q(z.flatten(0, 1)[some]))
