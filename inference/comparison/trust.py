"""Is the reference trustworthy, and did the others' optimisers settle? In words, first of all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ppgen.diagnosis import distrust
from ppgen.diagnostics.arrays import as_array
from ppgen.inference.verdict import Marginal
from ppgen.posterior import Posterior
from ppgen.summary import Summary

FALSE_ALARM = 0.01  # of the check that two samplers agree
_LAST = 0.2  # the part of an ELBO's history whose slope is looked at
_BATCHES = 20  # whose means are nearly independent
_STEADY = 0.1  # nats that a slope may still promise over as many steps again


@dataclass(frozen=True)
class Trust:
    """Whether a run can be relied on, and the sentences that say why."""

    ok: bool
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.sentences)


def reference_trust(
    label: str,
    posteriors: Mapping[str, Posterior],
    marginals: Mapping[str, tuple[Marginal, ...]],
) -> Trust:
    """The reference's own diagnosis, and whether other samplers agree with it.

    Args:
        label: of the reference.
        posteriors: all of them, by label.
        marginals: of each against the reference.
    """
    reference = posteriors[label]
    said = [_own(reference)]
    ok = reference.trusted
    others = [n for n, p in posteriors.items() if n != label and p.kind == "chains" and p.converged]
    for other in others:
        agrees, sentence = _agreement(other, marginals[other])
        ok = ok and agrees
        said.append(sentence)
    if reference.kind == "chains" and not others:
        said.append("no second sampler confirms it")
    return Trust(ok, tuple(said))


def _own(reference: Posterior) -> str:
    """The diagnosis in numbers."""
    if reference.kind == "independent":
        if reference.engine == "Exact":
            return f"{reference.count} independent draws from the exact posterior"
        found = reference.diagnosis()
        known = f"k-hat {found['khat']:.2f} is all that vouches for it" if "khat" in found else ""
        said = [distrust(reference) or known] if reference.converged else ["NOT CONVERGED"]
        return ": ".join([f"an approximation itself ({reference.engine})", *filter(None, said)])
    found = reference.diagnosis()
    parts = [
        "converged" if reference.converged else "NOT CONVERGED",
        f"R-hat at most {found['rhat']:.3f}",
        f"ESS at least {found['ess_bulk']:,.0f} bulk and {found['ess_tail']:,.0f} tail",
        f"means known to {_worst_error(reference.summary()):.3f} sd",
    ]
    if "divergences" in found:
        parts.append(f"{found['divergences']:.0f} divergences")
    if "ebfmi" in found:
        parts.append(f"E-BFMI {found['ebfmi']:.2f}")
    if "reached_max_treedepth" in reference.stats:
        share = float(reference.stats["reached_max_treedepth"].double().mean())
        parts.append(f"{share:.1%} of trees at their largest depth")
    return ", ".join(parts)


def _worst_error(summary: Summary) -> float:
    ratios = [row.mcse / row.sd for row in summary.rows if row.sd > 0]
    return max((r for r in ratios if math.isfinite(r)), default=math.nan)


def _agreement(other: str, rows: tuple[Marginal, ...]) -> tuple[bool, str]:
    """The largest difference of means in Monte Carlo errors, against that of so many normals."""
    from scipy.special import ndtri

    z = [abs(row.shift_z) for row in rows if math.isfinite(row.shift_z)]
    if not z:
        return True, f"{other} has no scalar to compare"
    limit = float(-ndtri(FALSE_ALARM / (2 * len(z))))
    agrees = max(z) <= limit
    verb = "agrees" if agrees else "DISAGREES"
    return agrees, (
        f"{other} {verb}: the largest of {len(z)} differences of means is {max(z):.1f} Monte "
        f"Carlo errors (limit {limit:.1f})"
    )


def optimiser_trust(posterior: Posterior) -> Trust | None:
    """Whether an optimiser settled: a bad fit of a good family is no fault of the family.

    The slope of the ELBO over its last steps, with the error of means of batches; what it would
    gain over as many steps again has to be little, or within its error. None for engines
    without an ELBO.
    """
    history = posterior.history.get("elbo")
    if history is None or len(history) < 2 * _BATCHES:
        if posterior.kind != "independent":
            return None
        own = "it says of itself that it settled" if posterior.converged else _complaint(posterior)
        return Trust(posterior.converged, (own,))
    tail = as_array(history)[-max(2 * _BATCHES, int(_LAST * len(history))) :]
    gain, error = _promise(tail[np.isfinite(tail)])
    steady = gain <= _STEADY or gain <= 2 * error
    said = [
        "settled" if steady and posterior.converged else "NOT SETTLED",
        f"the last {len(tail)} steps gained {gain:+.2g} +- {error:.2g} nats",
    ]
    if not posterior.converged:
        said.append(_complaint(posterior))
    restarts = posterior.options.get("restarts")
    if restarts == 1:
        said.append("one start: restarts=3 would show whether others end elsewhere")
    elif isinstance(restarts, int):
        said.append(f"best of {restarts} starts")
    return Trust(steady and posterior.converged, tuple(said))


def _promise(elbo: np.ndarray) -> tuple[float, float]:
    """The rise of a line through batch medians over the whole stretch, and its error."""
    batches = np.array_split(elbo, min(_BATCHES, len(elbo)))
    y = np.array([np.median(batch) for batch in batches])
    x = (np.arange(len(y)) + 0.5) / len(y) - 0.5
    slope = float((x * y).sum() / (x**2).sum())
    left = y - y.mean() - slope * x
    error = math.sqrt(float((left**2).sum()) / max(len(y) - 2, 1) / float((x**2).sum()))
    return slope, error


def _complaint(posterior: Posterior) -> str:
    return "; ".join(posterior.messages) or "it says that it has not converged"
