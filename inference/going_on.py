"""Markov chains that go on by themselves, where more draws are all that is missing."""

from __future__ import annotations

import math

from ppgen.posterior import Posterior

LONGER = 4  # times the draws that were asked for, at most, where nothing else is said
_RHAT_EXCESS = 0.01  # of the limit
_ESS = 400.0
_SURE = 1.2  # times the draws that would do if estimates were exact


def longest(draws: int, max_draws: int | None, engine: str) -> int:
    """The draws that chains may go on to.

    Raises:
        ValueError: where `max_draws` is no whole number of at least `draws`.
    """
    most = LONGER * draws if max_draws is None else max_draws
    if not isinstance(most, int) or isinstance(most, bool) or most < draws:
        raise ValueError(
            f"{engine}(max_draws=...) must be a whole number of at least draws={draws}, "
            f"got {max_draws!r}"
        )
    return most


def length(kept: int, draws: int, why: str = "") -> list[str]:
    """What is to be said where a chain has fewer or more draws than were asked for."""
    if kept < draws:
        return [f"stopped after {kept} of {draws} draws{why}"]
    return [f"{kept} draws of each chain: {draws} had not converged"] if kept > draws else []


def missing(posterior: Posterior, most: int) -> int:
    """Draws to add to each chain, or none: it has converged, or would not within `most`.

    Where chains mix, R-hat - 1 falls as 1 / N and the ESS grows as N.
    """
    if posterior.converged:
        return 0
    found = posterior.diagnosis()
    kept = posterior.count // posterior.chains
    ess = min(found["ess_bulk"], found["ess_tail"])
    need = max((found["rhat"] - 1.0) / _RHAT_EXCESS, _ESS / ess) if ess > 0 else math.inf
    if not 1.0 < need * kept <= most or found["divergences"]:
        return 0
    return min(math.ceil(kept * (_SURE * need - 1.0)), most - kept)
