"""Whether draws can be trusted, by their own diagnostics: what `Posterior.diagnosis` answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ppgen import diagnostics
from ppgen.diagnostics import EBFMI_LIMIT, ESS_LIMIT, RHAT_LIMIT
from ppgen.diagnostics.arrays import varies

if TYPE_CHECKING:
    from ppgen.posterior import Posterior

WEIGHT_ESS_LIMIT = 0.1  # of the draws: a large k-hat is no alarm where weights are worth as much
_FEWEST = 25  # weights of which a k-hat is computed

_CHECKS: tuple[tuple[str, str, float, Callable[[float], bool]], ...] = (
    ("rhat", "the largest R-hat", RHAT_LIMIT, lambda v: v <= RHAT_LIMIT),
    ("ess_bulk", "the smallest bulk ESS", ESS_LIMIT, lambda v: v >= ESS_LIMIT),
    ("ess_tail", "the smallest tail ESS", ESS_LIMIT, lambda v: v >= ESS_LIMIT),
    ("divergences", "the number of divergences", 0, lambda v: v == 0),
    ("ebfmi", "E-BFMI", EBFMI_LIMIT, lambda v: v >= EBFMI_LIMIT),
)


def diagnosis(posterior: Posterior) -> dict[str, float]:
    """The worst R-hat and ESS, divergences and E-BFMI of chains; k-hat of approximations."""
    found = _of_chains(posterior) if posterior.kind == "chains" else {}
    weights = posterior.log_weights
    if weights is not None:
        khat = diagnostics.pareto_k(weights)
        found["elbo"] = float(weights.mean())
        found["khat"], found["khat_limit"] = float(khat.k), float(khat.threshold)
        found["relative_is_ess"] = float(khat.ess) / weights.size
    return found


def distrust(posterior: Posterior) -> str | None:
    """Why the importance weights of an approximation speak against it as a whole, in words.

    Whoever says whether an approximation is to be trusted asks here.

    Returns:
        None where they do not, or where there are no weights.
    """
    weights = posterior.log_weights
    if posterior.kind != "independent" or weights is None:
        return None
    found = diagnostics.pareto_k(weights)
    if weights.size >= _FEWEST and math.isnan(found.k):
        return f"{_not_numbers(weights)} of its {weights.size} importance weights are not finite"
    if weights.size < _FEWEST or trustworthy(found, weights.size):
        return None
    return (
        f"its importance weights are worth {found.ess:.0f} of {weights.size} draws (k-hat "
        f"{found.k:.2f}, limit {found.threshold:.2f})"
    )


def heavy_tail(posterior: Posterior) -> str | None:
    """That k-hat is above its limit where weights do not speak against the approximation."""
    weights = posterior.log_weights
    resampled = "log_weights" in posterior.history  # then its messages say so
    if posterior.kind != "independent" or weights is None or resampled:
        return None
    found = diagnostics.pareto_k(weights)
    if not found.k > found.threshold or not trustworthy(found, weights.size):
        return None
    return (
        f"k-hat {found.k:.2f} (limit {found.threshold:.2f}): the posterior has heavier tails, "
        f"though the weights are worth {found.ess:.0f} of {weights.size} draws"
    )


def trustworthy(found: diagnostics.ParetoK, size: int) -> bool:
    """Whether these `size` weights will do: k-hat is in order, or they vary little."""
    return (found.ok and found.ess >= ESS_LIMIT) or found.ess / size >= WEIGHT_ESS_LIMIT


def _not_numbers(weights: np.ndarray) -> int:
    """How many are neither numbers nor zero on the natural scale, as outside the support."""
    return int((np.isnan(weights) | np.isposinf(weights)).sum()) or weights.size


def _of_chains(posterior: Posterior) -> dict[str, float]:
    stacked = posterior.stacked()
    moving = varies(stacked, (0, 1))
    # a deterministic site may hold constants; a posterior of constants only is stuck
    state = diagnostics.convergence(stacked[..., moving] if moving.any() else stacked)
    found = {
        "rhat": float(np.max(state.rhat)),
        "ess_bulk": float(np.min(state.ess_bulk)),
        "ess_tail": float(np.min(state.ess_tail)),
    }
    stats = posterior.stats
    if "diverging" in stats:
        found["divergences"] = float(stats["diverging"].sum())
    if "energy" in stats and stacked.shape[1] >= 4:
        found["ebfmi"] = float(np.mean(diagnostics.ebfmi(stats["energy"])))
    return found


def complaints(posterior: Posterior) -> list[str]:
    """The checks of a Markov chain that its draws do not pass, in words."""
    found = diagnosis(posterior)
    said = [
        f"{what} is {found[name]:.4g} (limit {limit:g})"
        for name, what, limit, passes in _CHECKS
        if name in found and not passes(found[name])  # what is unknown does not pass
    ]
    if math.isinf(found.get("rhat", 1.0)) and (still := _standing_still(posterior)):
        said[0] += f": {still} of {posterior.chains} chains never moved"
    return said


def _standing_still(posterior: Posterior) -> int:
    """Chains whose draws are all alike."""
    return int((np.ptp(posterior.stacked(), axis=1) == 0).all(-1).sum())
