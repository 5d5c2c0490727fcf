"""Whether draws can be trusted, by their own diagnostics: what `Posterior.diagnosis` answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ppgen import diagnostics
from ppgen.diagnostics import EBFMI_LIMIT, ESS_LIMIT, RHAT_LIMIT

if TYPE_CHECKING:
    from ppgen.posterior import Posterior

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


def _of_chains(posterior: Posterior) -> dict[str, float]:
    stacked = posterior.stacked()
    varies = np.ptp(stacked.reshape(-1, stacked.shape[-1]), axis=0) != 0
    # a deterministic site may hold constants; a posterior of constants only is stuck
    state = diagnostics.convergence(stacked[..., varies] if varies.any() else stacked)
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
