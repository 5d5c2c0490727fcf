"""What each method cost, and what its draws were worth for it."""

from __future__ import annotations

import math

from ppgen.posterior import Posterior


def cost(posterior: Posterior) -> dict[str, float | int | str | None]:
    """One row of the table; None where a column does not apply.

    ESS is the smallest bulk or tail ESS of Markov chains, and for approximations that of their
    importance weights: what their draws are worth as draws from the posterior.
    """
    spent, ess = posterior.cost, _worth(posterior)
    return {
        "seconds": spent.seconds,
        "recording": spent.recording + spent.compiling,  # of the seconds
        "gradients": spent.gradients,
        "draws": posterior.count,
        "ESS": None if ess is None else round(ess),
        "ESS/s": None if ess is None or spent.seconds <= 0 else ess / spent.seconds,
        "converged": "NO" if not posterior.converged else "yes" if posterior.trusted else "far off",
    }


def _worth(posterior: Posterior) -> float | None:
    found = posterior.diagnosis()
    if posterior.kind == "chains":
        ess = min(found["ess_bulk"], found["ess_tail"])
        return ess if math.isfinite(ess) else None
    share = found.get("relative_is_ess", math.nan)
    weights = posterior.log_weights
    if weights is None or not math.isfinite(share):
        return None
    return min(share * weights.size, posterior.count)  # each draw may be one of several weighed
