r"""Repair of an approximation: resample its draws by Pareto-smoothed importance weights.

.. math:: w = p(\mathrm{data}, z) / q(z), \quad z \sim q

The largest weights are replaced by the quantiles of a generalised Pareto distribution of shape
k-hat: their variance is finite, at the price of a small bias, as long as k-hat is below the
threshold ``min(1 - 1 / log10 S, 0.7)`` for S draws.

References:
    | Pareto smoothed importance sampling (Vehtari et al., 2024) | https://arxiv.org/abs/1507.02646
    | Yes, but did it work? (Yao, Vehtari, Simpson & Gelman, 2018) | https://arxiv.org/abs/1802.02538
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from ppgen import diagnostics
from ppgen.diagnosis import trustworthy
from ppgen.diagnostics import ParetoK
from ppgen.diagnostics.arrays import as_array
from ppgen.posterior import Posterior

REMEDY = "resample the draws with ppgen.inference.repair, or use HMC"  # ends what it answers


def repair(posterior: Posterior, draws: int | None = None) -> Posterior:
    """The same posterior with draws resampled in proportion to ``p / q``.

    It keeps as many draws as the weights are worth for the mean of the coordinate that they know
    least, so that Monte Carlo errors computed from their number are right. k-hat and IS-ESS of the
    weights stay in its diagnosis. Where they say that the weights cannot be trusted the result is
    not converged, and says why.

    Args:
        posterior: independent draws with the log density of the guide: of `VI`, `Laplace`,
            `DADVI`, `Pathfinder`.
        draws: to keep; by default what the smoothed weights are worth, at most their IS-ESS.

    Raises:
        ValueError: where there are no weights, or they hold nothing to repair with.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from ppgen.inference import Laplace
        >>> def story():
        ...     pyro.sample("x", dist.Gamma(3.0, 1.0))
        >>> fitted = Laplace().run(story)
        >>> off = [abs(float(found["x"].mean()) - 3) for found in (fitted, repair(fitted))]
        >>> off[1] < off[0] / 2
        True
    """
    log_weights = _weights(posterior)
    found = diagnostics.pareto_k(log_weights)
    if not math.isfinite(found.k):
        raise ValueError(
            f"{posterior.engine}: k-hat of the {log_weights.size} importance weights is {found.k}: "
            "at least 25 weights that differ are needed; use a wider guide or more draws"
        )
    if draws is not None and draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    weights = np.exp(diagnostics.psis(log_weights)[0])
    kept = draws or max(1, math.floor(_worth(weights.ravel(), posterior.unconstrained)))
    chosen = systematic(torch.as_tensor(weights), kept)
    note = (
        f"{kept} draws resampled from {log_weights.size}, k-hat {found.k:.2f}, "
        f"IS-ESS/S {found.ess / log_weights.size:.2f}"
    )
    said = tuple(m for m in posterior.messages if not m.endswith(REMEDY))
    return dataclasses.replace(
        posterior,
        draws={name: _rows(values, chosen) for name, values in posterior.draws.items()},
        unconstrained=_rows(posterior.unconstrained, chosen),
        log_density=_rows(posterior.log_density, chosen),
        log_guide=_rows(posterior.log_guide, chosen),
        stats={name: _rows(values, chosen) for name, values in posterior.stats.items()},
        history={**posterior.history, "log_weights": torch.as_tensor(log_weights)},
        converged=posterior.converged and trustworthy(found, log_weights.size),
        messages=(*said, note, *warning(found, log_weights.size)),
    )


def systematic(weights: Tensor, count: int) -> Tensor:
    """Indices ``(count,)``, in random order, of draws with `weights` ``(S,)`` that sum to 1.

    Each is drawn ``count * weight`` times, rounded down or up (Kitagawa 1996): among unbiased
    schemes one of little noise, and of no repetition where no weight exceeds ``1 / count``.
    """
    ticks = (torch.arange(count).to(weights) + torch.rand(()).to(weights)) / count
    found = torch.searchsorted(weights.cumsum(0), ticks).clamp(max=len(weights) - 1)
    return found[torch.randperm(count)]


def _worth(weights: np.ndarray, z: Tensor | None) -> float:
    r"""Independent draws whose means are known as well as the worst by these `weights`, ``(S,)``.

    The error of a weighted mean is :math:`\sum_s w_s^2 (z_s - \bar z)^2`, and more than that of
    IS-ESS draws where the largest weights are far out, as where q is too narrow.
    """
    ess = 1.0 / float(np.square(weights).sum())
    if z is None:
        return ess
    some = weights > 0
    weights, x = weights[some], as_array(z).reshape(len(some), -1)[some]
    far = np.square(x - weights @ x)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = (weights @ far) / (np.square(weights) @ far)
    return float(np.fmin.reduce(each, initial=ess))  # a constant coordinate has none


def _weights(posterior: Posterior) -> np.ndarray:
    if "log_weights" in posterior.history:
        raise ValueError(f"{posterior.engine}: these draws have been resampled already")
    found = posterior.log_weights
    if posterior.kind != "independent" or found is None:
        what = {"chains": "Markov chains", "point": "a point estimate"}.get(posterior.kind, "draws")
        raise ValueError(
            f"{posterior.engine}: {what} without the log density of a guide cannot be resampled; "
            "use VI, Laplace, DADVI or Pathfinder"
        )
    # outside the support, or where the density cannot be computed: no weight
    return np.nan_to_num(found, nan=-np.inf, neginf=-np.inf, posinf=np.inf)


def warning(found: ParetoK, size: int) -> tuple[str, ...]:
    """What there is to say about `size` weights, if anything."""
    said = f"k-hat {found.k:.2f} (limit {found.threshold:.2f}), IS-ESS {found.ess:.0f} of {size}"
    if trustworthy(found, size):
        return () if found.ok else (f"{said}: a heavy tail, but the weights vary little",)
    cure = "take more draws, a richer guide or HMC" if found.ok else "use a richer guide or HMC"
    return (f"{said}: the guide is too far from the posterior to be resampled; {cure}",)


def _rows(values: Tensor | None, chosen: Tensor) -> Tensor | None:
    return None if values is None else values.flatten(0, 1)[chosen.to(values.device)][None]
