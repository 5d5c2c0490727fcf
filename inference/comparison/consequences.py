"""Does it matter? Predictions, leave-one-out and quantities of the user's own, under both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen import diagnostics
from ppgen.diagnostics.arrays import Array, as_array
from ppgen.diagnostics.pareto import khat_limit
from ppgen.inference.comparison.coordinates import of_program
from ppgen.inference.verdict import Marginal, marginals
from ppgen.posterior import Posterior
from ppgen.program import Program

Quantity = Callable[[dict[str, Tensor]], Tensor]
"""From sites ``(draws, *shape)`` to a quantity of each draw, ``(draws, ...)``."""

_DRAWS = 1000
_NUMBERS = 20_000_000  # draws x observations held at once
_NO_MEAN = 1.0  # k-hat of weights whose mean does not exist
_FALSE_ALARM = 0.01  # of the noise level of predictions, all observations together


class Predictive(NamedTuple):
    """Posterior predictive of one observed site, observation by observation."""

    site: str
    shift: float  # largest difference of means, reference's predictive sd
    shift_at: int  # of which observation, flat index
    ratio: float  # sd / reference's predictive sd, where it is farthest from 1
    ratio_at: int
    noise: float  # what Monte Carlo error alone leaves of `shift` and of |ratio - 1|
    crps: float  # mean over the observations of (CRPS - the reference's); less is better


@dataclass(frozen=True)
class Loo:
    """PSIS leave-one-out of one observed site, both taken as if they were the posterior."""

    site: str
    elpd: float  # nats, all observations; larger is better
    reference: float
    error: float  # standard error of the difference, over observations
    khat: float  # worst of either
    pointwise: Array = field(repr=False)  # difference of each observation, nats
    heavy: int = 0  # observations whose k-hat is above its limit, of either

    @property
    def difference(self) -> float:
        return self.elpd - self.reference

    @property
    def known(self) -> bool:
        """Whether there is anything to estimate: weights have no mean from a k-hat of 1 on."""
        return self.khat < _NO_MEAN and math.isfinite(self.difference)

    def __str__(self) -> str:
        doubt = (
            f"k-hat above its limit at {self.heavy} of {len(self.pointwise)} observations, up to "
            f"{self.khat:.2f}"
        )
        if not self.known:
            if self.khat < _NO_MEAN:
                return "not known: it is not finite at some observation"
            return f"not known: {doubt}, and weights have no mean from 1 on"
        said = (
            f"{self.elpd:.1f}, reference {self.reference:.1f} nats; difference "
            f"{self.difference:+.2f} +- {self.error:.2f} over observations"
        )
        return f"{said} ({doubt}: not to be relied on)" if self.heavy else said


@dataclass(frozen=True)
class Consequences:
    """What follows for predictions; empty where it cannot be known, and `missing` says why."""

    predictive: tuple[Predictive, ...] = ()
    loo: tuple[Loo, ...] = ()
    missing: tuple[str, ...] = ()


def consequences(
    posterior: Posterior, reference: Posterior, program: Program | None
) -> Consequences:
    """Predictions and leave-one-out of `posterior` beside those of `reference`.

    Args:
        posterior: to be judged.
        reference: draws to be trusted.
        program: the story with its data; without it nothing can be predicted.
    """
    if program is None:
        return Consequences(missing=("predictions need the story and its data",))
    if not program.anatomy.of_kind("observed"):
        return Consequences(missing=("nothing is observed",))
    lacking = [n for n in program.sites for p in (posterior, reference) if n not in p.draws]
    if lacking:
        return Consequences(missing=(f"no draws of {lacking[0]}, so nothing can be predicted",))
    for whose, each in (("it", posterior), ("the reference", reference)):
        if not each.converged:  # numbers of no posterior, and absurd ones where it went astray
            said = f"{whose} has not converged, so its predictions and leave-one-out mean nothing"
            return Consequences(missing=(said,))
    missing: list[str] = []
    predicted: tuple[Predictive, ...] = ()
    loo: tuple[Loo, ...] = ()
    try:
        predicted = _predictions(posterior, reference, program)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        missing.append(f"no predictions: {error}")
    if posterior.kind == "point":
        missing.append("a point has no leave-one-out")
    elif not all(of_program(p, program) for p in (posterior, reference)):
        missing.append("leave-one-out needs draws of the story's own parameters")
    else:
        loo = _leave_one_out(posterior, reference, program, missing)
    return Consequences(predicted, loo, tuple(missing))


def of_quantities(
    posterior: Posterior, reference: Posterior, quantities: Mapping[str, Quantity]
) -> tuple[Marginal, ...]:
    """The user's own functions of the draws under both, judged like any scalar, worst first.

    Raises:
        ValueError: where a function fails or gives no number for each draw; it names it.
    """
    if not quantities:
        return ()
    return marginals(*(_evaluated(p, quantities) for p in (posterior, reference)))


def _evaluated(posterior: Posterior, quantities: Mapping[str, Quantity]) -> Posterior:
    flat = {name: v.flatten(0, 1) for name, v in posterior.draws.items()}
    shape = next(iter(posterior.draws.values())).shape[:2]
    found = {}
    for name, quantity in quantities.items():
        try:
            value = torch.as_tensor(quantity(dict(flat))).detach()
        except KeyError as error:
            raise ValueError(
                f"quantity '{name}' asks for site {error}; {posterior.engine} has {list(flat)}"
            ) from error
        if value.shape[:1] != (posterior.count,):
            raise ValueError(
                f"quantity '{name}' gave shape {tuple(value.shape)}: it gets {posterior.count} "
                "draws of each site in the first dimension, and has to give one value a draw"
            )
        found[name] = value.double().unflatten(0, shape)
    return dataclasses.replace(posterior, draws=found, deterministic=())


def _predictions(
    posterior: Posterior, reference: Posterior, program: Program
) -> tuple[Predictive, ...]:
    observed = program.observed()
    size = sum(value.numel() for value in observed.values())
    draws = min(_DRAWS, _NUMBERS // max(size, 1))
    if draws < 100:
        raise ValueError(f"{size:,} observations are too many to predict under both")
    replicated = []
    for each in (posterior, reference):  # with the same noise: less is left of its difference
        with torch.random.fork_rng(devices=[]):
            replicated.append(_replicated(each, program, draws))
    ours, theirs = replicated
    found = []
    for site, data in observed.items():
        y = as_array(data).ravel()
        one, two = (as_array(x[site]).reshape(len(x[site]), -1) for x in (ours, theirs))
        found.append(_predictive(site, y, one, two))
    return tuple(found)


def _predictive(site: str, y: Array, ours: Array, theirs: Array) -> Predictive:
    from scipy.special import ndtri

    sd = theirs.std(0, ddof=1)
    known = sd > 0
    scale = np.where(known, sd, 1.0)
    shift = np.where(known, np.abs(ours.mean(0) - theirs.mean(0)) / scale, 0.0)
    ratio = np.where(known, ours.std(0, ddof=1) / scale, 1.0)
    off = np.abs(np.log(np.maximum(ratio, 1e-300)))
    # of normals: the error of a difference of means in sd; that of a ratio of sds is less
    error = math.sqrt(1 / len(ours) + 1 / len(theirs))
    noise = error * float(-ndtri(_FALSE_ALARM / (2 * len(y))))
    same = y.size == ours.shape[1]
    crps = float((_crps(ours, y) - _crps(theirs, y)).mean()) if same else math.nan
    i, j = int(shift.argmax()), int(off.argmax())
    return Predictive(site, float(shift[i]), i, float(ratio[j]), j, noise, crps)


def _crps(x: Array, y: Array) -> Array:
    """Continuous ranked probability score of draws ``(S, N)`` at ``(N,)``; less is better."""
    size = len(x)
    ranked = np.sort(x, axis=0)
    weights = (2 * np.arange(1, size + 1) - size - 1) / (size * (size - 1))
    return np.abs(x - y).mean(0) - weights @ ranked


def _replicated(posterior: Posterior, program: Program, draws: int) -> dict[str, Tensor]:
    """Data drawn anew, ``(draws, *shape)`` of each observed site."""
    rows = torch.linspace(0, posterior.count - 1, min(draws, posterior.count)).round().long()
    if posterior.kind == "point":
        rows = torch.zeros(draws, dtype=torch.long)
    return program.replicate(
        {name: posterior.draws[name].flatten(0, 1)[rows] for name in program.sites}
    )


def _leave_one_out(
    posterior: Posterior, reference: Posterior, program: Program, missing: list[str]
) -> tuple[Loo, ...]:
    observed = program.anatomy.of_kind("observed")
    size = sum(math.prod(site.shape) for site in observed.values())
    draws = min(4 * _DRAWS, _NUMBERS // max(size, 1))
    if draws < 100:
        missing.append(f"{size:,} observations are too many for leave-one-out")
        return ()
    for name, site in program.anatomy.of_kind("factor").items():
        if site.batch_shape.numel() > 1:
            without = "for predictions and leave-one-out, which leave it out"
            missing.append(f"what pyro.factor '{name}' means {without}")
    try:
        ours, theirs = (_elpd(p, program, draws) for p in (posterior, reference))
    except (RuntimeError, ValueError, NotImplementedError) as error:
        missing.append(f"no leave-one-out: {error}")
        return ()
    found = []
    for site in observed:
        if site not in ours or site not in theirs:
            continue
        (one, k_one), (two, k_two) = ours[site], theirs[site]
        gap = one - two
        error = float(gap.std() * math.sqrt(gap.size))
        khat = np.maximum(k_one, k_two)
        fewest = min(draws, posterior.count, reference.count)
        heavy = int((khat > khat_limit(fewest)).sum())
        total, other = float(one.sum()), float(two.sum())
        found.append(Loo(site, total, other, error, float(khat.max()), gap, heavy))
    return tuple(found)


def _elpd(posterior: Posterior, program: Program, draws: int) -> dict[str, tuple[Array, Array]]:
    """Pointwise leave-one-out log densities and their k-hat, by observed site."""
    if posterior.unconstrained is None:
        return {}
    z = posterior.unconstrained.flatten(0, 1)
    rows = torch.linspace(0, len(z) - 1, min(draws, len(z))).round().long()
    worth = _relative_ess(posterior)
    found = {}
    for site, term in program.log_likelihood(z[rows]).items():
        if site not in program.anatomy.of_kind("observed"):
            continue
        pointwise = as_array(term).reshape(len(rows), -1).T  # (observations, draws)
        known = np.isfinite(pointwise).all(1)
        if not known.all():
            raise ValueError(f"the likelihood of {site} is not finite at some draws")
        smoothed = [diagnostics.psis(-row, worth) for row in pointwise]
        log_weights = np.stack([weights for weights, _ in smoothed])
        elpd = np.logaddexp.reduce(log_weights + pointwise, axis=1)
        found[site] = (elpd, np.array([khat for _, khat in smoothed]))
    return found


def _relative_ess(posterior: Posterior) -> float:
    """Independent draws that one is worth: neighbours of a chain share a tail of weights."""
    if posterior.kind != "chains":
        return 1.0
    ess = diagnostics.ess_mean(posterior.stacked())
    known = ess[np.isfinite(ess)]
    return float(np.clip(known.mean() / posterior.count, 1e-3, 1.0)) if known.size else 1.0
