r"""Forward KL: the normal that is closest to the posterior in the direction that covers it.

.. math:: \mathrm{KL}(p \,\|\, q) = E_p[\log p(z) - \log q(z)]

Over normals its minimum has the posterior's own moments: mean and covariance, or, for independent
normals, mean and variances. (The reverse divergence, which :class:`~ppgen.inference.VI` minimises,
takes variances :math:`1 / \Lambda_{ii}` on a normal of precision :math:`\Lambda`: too small where
sites correlate. The forward one takes :math:`\Sigma_{ii}`.) Expectations under p come from a
proposal by importance sampling, and each round moves the proposal to the moments it found,

.. math:: w_s \propto \frac{p(\mathrm{data}, z_s)}{r(z_s)}, \quad
          m = \sum_s w_s z_s, \quad C = \sum_s w_s (z_s - m)(z_s - m)^T

with Pareto-smoothed weights, tempered while the proposal is still far away.

References:
    | Adaptive Importance Sampling in General Mixture Classes (Cappé et al., 2008)
    | https://arxiv.org/abs/0710.4242
    | Pareto smoothed importance sampling (Vehtari et al., 2024) | https://arxiv.org/abs/1507.02646
    | Pattern Recognition and Machine Learning (Bishop, 2006), 10.1.2
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen import diagnostics
from ppgen.arguments import require_whole
from ppgen.diagnosis import trustworthy
from ppgen.diagnostics import ParetoK
from ppgen.inference.guides import Family
from ppgen.inference.importance import Normal, Sample, draw, moments, smoothed, temper
from ppgen.inference.independent import Clock, independent
from ppgen.inference.mode import Batched
from ppgen.inference.point import as_program
from ppgen.inference.vi_guides import choose, describe
from ppgen.inference.vi_start import find_frame
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.progress import Progress
from ppgen.types import Story

_ROWS = 64  # points to a call
_DENSE = 500  # dimensions of the proposal's covariance
_FINAL = 10  # times `particles`: the draws that the moments come from
_STILL = 4.0  # standard errors within which the moments of two rounds agree


@dataclass(frozen=True)
class ForwardKL:
    """Minimise KL(p || q) over normals on the unconstrained scale: moment matching.

    The proposal, a full normal with a Student-t part, starts at the best of many local normals.
    Where its weights say that the moments are not to be trusted (k-hat of the weights, and of
    the weights times squares), the run has not converged and says so. Modes that no start leads
    to are missed, and no weight can tell.

    Args:
        guide: None for independent normals, ``full_rank_guide()`` for one with a covariance.
        draws: from the fitted normal.
        particles: draws of a round; the moments come from ten times as many.
        rounds: at most.
        reference: a posterior of this story, as of HMC: its moments are taken instead.

    Raises:
        ValueError: where the guide is none of the two; from `run`, beyond 500 dimensions, and
            where the reference does not fit.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppgen.progress import quiet
        >>> def story(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> with quiet():
        ...     print(f"{ForwardKL().run(story, torch.tensor(2.0))['mu'].mean():.1f}")
        1.0
    """

    guide: Family | Callable[..., Any] | None = None
    draws: int = 4000
    particles: int = 2000
    rounds: int = 20
    reference: Posterior | None = None

    def __post_init__(self) -> None:
        require_whole(self, draws=self.draws, rounds=self.rounds)
        require_whole(self, least=100, particles=self.particles)
        self._full()

    def run(self, model: Story, *args: Any, **kwargs: Any) -> Posterior:
        program = as_program(model, args, kwargs)
        function, clock = Batched(program, _ROWS, tolerant=True), Clock(program)
        if self.reference is not None:
            fit = _of_reference(program, self.reference)
        elif program.dim > _DENSE:
            raise ValueError(
                f"ForwardKL: importance sampling in {program.dim} dimensions, and at most {_DENSE} "
                "are taken: give a reference, ForwardKL(reference=fit(...)), or use VI"
            )
        else:
            with Progress("ForwardKL", self.rounds) as progress:
                fit = self._adapt(program, function, progress)
        clock.fitted()
        covariance = fit.covariance if self._full() else fit.covariance.diagonal().diag()
        q = Normal.of(fit.mean, covariance)
        z = q.push(torch.randn(self.draws, program.dim).to(q.mean))
        names = ("draws", "particles", "rounds")
        try:
            return independent(
                program,
                z,
                q.log_prob(z),
                log_density=function.value,
                cost=lambda: clock.cost(function.gradients),
                engine="ForwardKL",
                options={
                    "guide": describe(self.guide),
                    **{name: getattr(self, name) for name in names},
                    "reference": None if self.reference is None else self.reference.engine,
                },
                complaints=fit.complaints,
                notes=(*fit.notes, *_divergence(fit, q, self._full())),
                history={"location": fit.mean, "covariance": fit.covariance, **fit.history},
            )
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            raise ValueError(
                f"ForwardKL: draws of the fitted normal lie where a matrix inside the story cannot "
                f"be factorised ({error}), so that its sites have no value there: add a jitter to "
                "that diagonal, or use HMC, which treats such points as impossible"
            ) from error

    def _adapt(self, program: Program, function: Batched, progress: Progress) -> Fit:
        frame = find_frame(function, program.initial(_ROWS), dense=True)
        triangle = frame.factor if frame.factor.ndim == 2 else frame.factor.diag()
        normal, sizes, settled = Normal(frame.centre, triangle), [], False
        best, most = normal, 0.0
        for _ in range(self.rounds):
            sample = draw(normal, function, self.particles)
            power, weights = temper(sample.log_weights)
            size = 1 / float(weights.square().sum())
            if power == 1 and size > most:
                best, most = normal, size
            moved = _blend(normal, *moments(sample.z, weights), size)
            settled = power == 1 and _agree(normal, moved, size)
            normal = moved
            sizes.append(size)
            progress.advance(ess=size, tempered=power)
            if settled:
                break
        # In many dimensions the noise of a round's moments makes a worse proposal than the start.
        sample = draw(best if most else normal, function, _FINAL * self.particles)
        found = judge(program, sample, settled)
        return found._replace(history={**found.history, "ess": torch.tensor(sizes)})

    def _full(self) -> bool:
        family = choose(self.guide)
        name = family.name if isinstance(family, Family) else describe(self.guide)
        if name not in ("mean-field", "full-rank"):
            raise ValueError(
                f"ForwardKL(guide=...) takes None or full_rank_guide(), whose best member is known "
                f"from the posterior's moments; got {name}: use VI for it"
            )
        return name == "full-rank"


class Fit(NamedTuple):
    """The moments of the posterior, and what there is to say about them."""

    mean: Tensor  # (D,)
    covariance: Tensor  # (D, D)
    complaints: tuple[str, ...]
    notes: tuple[str, ...]
    history: dict[str, Tensor]
    entropy: Tensor | None = None  # of the posterior, (), nats; where it is known
    ess: float = math.inf  # draws that the moments are worth


def judge(program: Program, sample: Sample, settled: bool) -> Fit:
    """The moments of the posterior by the last draws, and whether to trust them."""
    weights = smoothed(sample.log_weights)
    mean, covariance = moments(sample.z, weights)
    said = [] if settled else ["the moments were still moving after the last round: raise rounds"]
    size = len(weights)
    found = diagnostics.pareto_k(sample.log_weights)
    if not trustworthy(found, size):
        said.append(f"{_khat(found, size)}: the proposal is too far from the posterior; use HMC")
    squares = (sample.z - mean).square().log() + sample.log_weights[:, None]
    tails = [diagnostics.pareto_k(column.nan_to_num(nan=-torch.inf)) for column in squares.mT]
    worst = max(range(len(tails)), key=lambda i: tails[i].k)
    if not tails[worst].ok:
        said.append(
            f"the variance of {_site(program, worst)} is not to be trusted (of its squares: "
            f"{_khat(tails[worst], size)}): the posterior's tails are heavier than the proposal's"
        )
    log_evidence = sample.log_weights.logsumexp(0) - math.log(size)
    finite = torch.isfinite(sample.log_density)
    entropy = log_evidence - (weights * sample.log_density)[finite].sum()
    return Fit(
        mean,
        covariance,
        tuple(said),
        (f"moments from weights worth {found.ess:.0f} of {size} draws, k-hat {found.k:.2f}",),
        {
            "importance_k": torch.tensor(found.k),
            "importance_ess": torch.tensor(found.ess),
            "log_evidence": log_evidence,
        },
        entropy,
        found.ess,
    )


def _of_reference(program: Program, reference: Posterior) -> Fit:
    z = reference.unconstrained
    if z is None or reference.kind == "point" or z.shape[-1] != program.dim:
        what = "no unconstrained draws" if z is None else f"draws {tuple(z.shape)}"
        raise ValueError(
            f"ForwardKL(reference=...): expected draws of this story's {program.dim} unconstrained "
            f"dimensions ({', '.join(program.sites)}), got {what} of kind {reference.kind!r}"
        )
    z = z.flatten(0, 1).to(program.device, program.dtype)
    mean, covariance = moments(z, torch.full_like(z[:, 0], 1 / len(z)))
    said = () if reference.converged else (f"the reference, {reference.engine}, did not converge",)
    note = f"moments of {len(z)} draws of {reference.engine}"
    return Fit(mean, covariance * (len(z) / max(len(z) - 1, 1)), said, (note,), {})


def _divergence(fit: Fit, q: Normal, full: bool) -> tuple[str, ...]:
    """KL(p || q) of a normal with the moments of p: its cross entropy is in closed form.

    The same draws fitted q, which makes it look better by parameters / draws (Akaike 1974).
    """
    if fit.entropy is None:
        return ()
    dim = len(q.mean)
    parameters = dim * (dim + 3) / 2 if full else 2 * dim
    cross = 0.5 * dim * (1 + math.log(2 * math.pi)) + q.log_det
    return (f"KL(p || q) {float(cross - fit.entropy) + parameters / fit.ess:.3f} nats",)


def _blend(old: Normal, mean: Tensor, covariance: Tensor, size: float) -> Normal:
    """Few draws do not fix a covariance: what they leave open stays as it was."""
    dim = len(mean)
    share = size / (size + dim)
    return Normal.of(mean, share * covariance + (1 - share) * old.factor @ old.factor.mT)


def _agree(old: Normal, new: Normal, size: float) -> bool:
    sd_old, sd_new = (n.factor.square().sum(1).sqrt() for n in (old, new))
    error = _STILL / math.sqrt(size)
    moved = (new.mean - old.mean).abs() / sd_new
    return bool((moved < error).all()) and bool(((sd_old / sd_new).log().abs() < error).all())


def _khat(found: ParetoK, size: int) -> str:
    return f"k-hat {found.k:.2f} (limit {found.threshold:.2f}), IS-ESS {found.ess:.0f} of {size}"


def _site(program: Program, index: int) -> str:
    sites = program.anatomy.of_kind("latent").items()
    return next(name for name, s in sites if s.start <= index < s.stop)
