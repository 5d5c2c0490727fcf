"""Pathfinder: a mixture of the best normals on many ways up, repaired by importance resampling."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen import diagnostics
from ppgen.arguments import require_whole
from ppgen.diagnosis import trustworthy
from ppgen.inference import hmc_starts
from ppgen.inference.hmc import Metric, ValueAndGrad
from ppgen.inference.hmc_warmup import whitening
from ppgen.inference.independent import Clock, independent
from ppgen.inference.pathfinder import Normals, Paths, search
from ppgen.inference.point import as_program
from ppgen.inference.psis import repair, warning
from ppgen.inference.target import InPieces, Target
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.progress import Progress
from ppgen.types import Story

_ROWS = 64  # points to a call
_MEMORY = 12  # pairs of differences: more than a climb needs, for the sake of the covariance
_DEFENSIVE, _WIDER = 0.1, 2.0  # share of the wide normals, and how many times as wide they are
_FLATTENED = 2.0  # the masses of paths are taken to this root: a mixture keeps wide tails


@dataclass(frozen=True)
class Pathfinder:
    r"""Normals along the way up from many starts, pooled and resampled by ``p / q``.

    Every start is climbed from three times: in the coordinates of the story, in those that the
    curvature near the top whitens, and in those that the curvature at the best normal so far
    whitens. The best normal of each path, by its ELBO, becomes a component of

    .. math:: q(z) = \sum_i w_i N(z; \mu_i, \Sigma_i), \quad w_i \propto \exp(\mathrm{ELBO}_i / 2)

    (a tenth of it twice as wide), and the draws of this mixture are resampled by Pareto-smoothed
    weights ``p / q``. Their k-hat is in ``posterior.diagnosis()``; where it forbids resampling,
    the draws are those of the mixture, and the run has not converged.

    Args:
        paths: starting points; modes that no path leads to are missed.
        draws: of the mixture; as many are kept as their weights are worth.
        elbo_draws: for the ELBO of each iterate, in antithetic pairs.
        iterations: of L-BFGS, at most, on each path.
        resample: False keeps the mixture's own draws, with its density as ``log_guide``.

    Raises:
        ValueError: from `run`, where no path has met a normal with a finite ELBO.

    References:
        | Pathfinder: Parallel quasi-Newton variational inference
        | (Zhang, Carpenter, Gelman & Vehtari, 2022) | https://jmlr.org/papers/v23/21-0889.html
    """

    paths: int = 16
    draws: int = 4000
    elbo_draws: int = 16
    iterations: int = 100
    resample: bool = True

    def __post_init__(self) -> None:
        require_whole(self, paths=self.paths, draws=self.draws, iterations=self.iterations)
        require_whole(self, least=2, elbo_draws=self.elbo_draws)
        if self.paths > _ROWS:
            raise ValueError(f"Pathfinder(paths=...) must be at most {_ROWS}, got {self.paths}")

    def run(self, model: Story | Program, *args: Any, **kwargs: Any) -> Posterior:
        program = as_program(model, args, kwargs)
        target, clock = Target(program), Clock(program)
        function = InPieces(target, _ROWS)
        with Progress("Pathfinder", None) as progress:
            mixture = self._fit(function, program.initial(_ROWS)[: self.paths])
            progress.advance(target.gradients, elbo=float(mixture.elbo.max()))
        clock.fitted()
        z, log_guide = mixture.sample(self.draws)
        found = independent(
            program,
            z,
            log_guide,
            log_density=function.value,
            cost=lambda: clock.cost(target.gradients),
            engine="Pathfinder",
            options=asdict(self),
            history={"path_elbo": mixture.elbo},
            guide_log_prob=mixture.log_prob,
        )
        return _resampled(found) if self.resample else found

    def _fit(self, function: ValueAndGrad, z: Tensor) -> Mixture:
        noise = torch.randn(self.elbo_draws // 2, 1, z.shape[-1]).to(z)
        noise = torch.cat([noise, -noise]).expand(-1, len(z), -1)
        rest = hmc_starts.climb(function, z)
        middle = rest.z[hmc_starts.median(rest)]
        rounds = [
            self._search(function, Metric(torch.ones_like(z[0])), z, noise),
            self._search(function, whitening(function, middle, _ROWS, "auto"), rest.z, noise),
        ]
        metric, paths = max(rounds, key=lambda found: float(found[1].elbo.max()))
        at = metric.push(paths.at)
        best = whitening(function, at[int(paths.elbo.argmax())], _ROWS, "auto")
        return Mixture.of([*rounds, self._search(function, best, at, noise)])

    def _search(
        self, function: ValueAndGrad, metric: Metric, z: Tensor, noise: Tensor
    ) -> tuple[Metric, Paths]:
        target, start = metric.inside(function), metric.whiten(z)
        found = search(start, target, noise, iterations=self.iterations, memory=_MEMORY)
        return metric, found


class Mixture(NamedTuple):
    """Normals in several frames, as many in each."""

    parts: list[tuple[Metric, Normals]]
    log_weights: Tensor  # of all of them, (N,), normalised
    elbo: Tensor  # of the paths, nats

    @classmethod
    def of(cls, found: list[tuple[Metric, Paths]]) -> Mixture:
        """Weighted by the ELBOs of the paths.

        A share is drawn from the same normals made wider, so that the weights show what the
        normals miss (a defensive mixture, Hesterberg 1995).
        """
        elbo = torch.cat([paths.elbo for _, paths in found])
        if not bool(torch.isfinite(elbo).any()):
            raise ValueError(
                "Pathfinder: no normal on any path has a finite ELBO: the log density is not "
                "finite nearby; check the data against the supports, or use HMC"
            )
        own = [(metric, paths.best) for metric, paths in found]
        wide = [(metric, paths.best.wider(_WIDER)) for metric, paths in found]
        shares = (elbo / _FLATTENED).log_softmax(0)
        log_weights = torch.cat([shares + math.log(1 - _DEFENSIVE), shares + math.log(_DEFENSIVE)])
        return cls([*own, *wide], log_weights, elbo)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draws ``(count, D)`` and their log densities ``(count,)``, nats."""
        which = torch.multinomial(self.log_weights.exp(), count, replacement=True)
        drawn = []
        for k, (metric, normals) in enumerate(self.parts):
            size = len(normals.log_det)
            rows = which[which // size == k] % size
            noise = torch.randn(len(rows), normals.mean.shape[-1]).to(normals.mean)
            drawn.append(metric.push(normals.rows(rows).push(noise)))
        z = torch.cat(drawn)[torch.randperm(count)]
        return z, self.log_prob(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """``(S, D) -> (S,)``, nats."""
        each = [n.log_prob(m.whiten(z)[:, None]) - m.log_det for m, n in self.parts]
        return torch.logsumexp(torch.cat(each, -1) + self.log_weights, -1)


def _resampled(found: Posterior) -> Posterior:
    """With the mixture's own draws where their weights hold nothing to resample by."""
    judged = diagnostics.pareto_k(found.log_weights)
    if trustworthy(judged, found.count):
        return repair(found)
    said = (*found.messages, "not resampled", *warning(judged, found.count))
    return replace(found, converged=False, messages=said)
