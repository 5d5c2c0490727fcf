r"""How far a posterior is from reference draws of the same quantities, in reference units.

Every error of a scalar is in units of its standard deviation under the reference, and is
:math:`|\hat m - m| / s` for the mean, :math:`\hat s / s` for the spread and :math:`W_1 / s` for the
whole margin. Between independent samples of n and m draws that agree, the first is about
:math:`\sqrt{1/n + 1/m}` and the last :math:`1.28 \sqrt{1/n + 1/m}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ppgen import diagnostics
from ppgen.posterior import Posterior


@dataclass(frozen=True)
class Accuracy:
    """The worst scalar of each kind of error, and what the draws were worth.

    Args:
        shift: largest \\|mean - reference mean\\|, reference sd.
        shift_at: the scalar that has it.
        low_ratio: smallest sd / reference sd.
        high_ratio: largest.
        ratio_at: the scalar whose sd is off by the largest factor.
        w1: largest Wasserstein-1 distance of a margin, reference sd.
        mcse: largest Monte Carlo error of a mean, reference sd.
        rhat: largest R-hat, over every scalar of the posterior; NaN for independent draws.
        ess: smallest bulk or tail ESS of Markov chains; importance-sampling ESS of draws of an
            approximation with known density; NaN for a point.
        k_hat: Pareto shape of the importance weights; NaN where there are none.
    """

    shift: float
    shift_at: str
    low_ratio: float
    high_ratio: float
    ratio_at: str
    w1: float
    mcse: float
    rhat: float
    ess: float
    k_hat: float

    @property
    def passed(self) -> bool:
        """R-hat <= 1.01, MCSE <= .02 sd, means within .05 sd, sds within 5%: where they apply.

        Independent draws have no R-hat; a point has no spread, and does not pass.
        """
        mixed = math.isnan(self.rhat) or self.rhat <= diagnostics.RHAT_LIMIT
        near = self.shift <= 0.05 and self.mcse <= 0.02
        return mixed and near and self.low_ratio >= 0.95 and self.high_ratio <= 1.05


def accuracy(posterior: Posterior, reference: Mapping[str, np.ndarray]) -> Accuracy:
    """Compare a posterior with reference draws ``(chains, draws, *shape)`` by site.

    Raises:
        ValueError: where the posterior lacks a site of the reference, or has it in another shape.
    """
    names, ours, theirs = _paired(posterior, reference)
    flat = ours.reshape(-1, ours.shape[-1])
    spread = theirs.std(0, ddof=1)
    shift = np.abs(flat.mean(0) - theirs.mean(0)) / spread
    ratio = flat.std(0, ddof=1) / spread if len(flat) > 1 else np.zeros(len(names))
    with np.errstate(divide="ignore"):
        off = np.abs(np.log(ratio))
    rhat, ess, mcse = _worth(posterior, ours)
    weights = posterior.log_weights
    k_hat = math.nan
    if posterior.kind == "independent" and weights is not None:
        found = diagnostics.pareto_k(weights)
        k_hat, ess = found.k, found.ess
    return Accuracy(
        shift=float(shift.max()),
        shift_at=names[int(shift.argmax())],
        low_ratio=float(ratio.min()),
        high_ratio=float(ratio.max()),
        ratio_at=names[int(off.argmax())],
        w1=float((diagnostics.wasserstein1(flat, theirs) / spread).max()),
        mcse=float((mcse / spread).max()),
        rhat=rhat,
        ess=ess,
        k_hat=k_hat,
    )


def _worth(posterior: Posterior, ours: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Largest R-hat of all scalars, smallest ESS and the MCSE of those that are compared."""
    if posterior.kind == "chains":
        every = posterior.stacked()
        ess = np.minimum(diagnostics.ess_bulk(ours), diagnostics.ess_tail(ours))
        rhat = float(np.max(diagnostics.rhat(every)))
        return rhat, float(np.min(ess)), diagnostics.mcse_mean(ours)
    if posterior.kind == "point":
        return math.nan, math.nan, np.full(ours.shape[-1], np.nan)
    count = ours.shape[0] * ours.shape[1]
    return math.nan, math.nan, ours.std((0, 1), ddof=1) / math.sqrt(count)


def _paired(
    posterior: Posterior, reference: Mapping[str, np.ndarray]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the scalars; ours ``(chains, draws, V)``; the reference, ``(n, V)``."""
    scalars = posterior.scalars()
    names, theirs = [], []
    for site, values in reference.items():
        for index in np.ndindex(*values.shape[2:]):
            names.append(site + (f"[{','.join(map(str, index))}]" if index else ""))
            theirs.append(values[(..., *index)].ravel())
    missing = [name for name in names if name not in scalars]
    if missing:
        raise ValueError(
            f"the reference has draws of {', '.join(missing)}; the posterior has "
            f"{', '.join(scalars)}"
        )
    return names, np.stack([scalars[name] for name in names], -1), np.stack(theirs, -1)
