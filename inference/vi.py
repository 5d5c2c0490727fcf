r"""Variational inference: the member of a family that is closest to the posterior.

.. math:: \mathrm{ELBO}(q) = E_q[\log p(\mathrm{data}, z) - \log q(z)]
          = \log p(\mathrm{data}) - \mathrm{KL}(q \,\|\, p)

Families on the flat vector (:mod:`ppgen.inference.guides`, :mod:`ppgen.inference.flow_guides`)
are fitted on the recorded story, many draws to a call; any other Pyro guide with Pyro's own ELBO
(:mod:`ppgen.inference.vi_pyro`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppgen.anatomy import Subsampling
from ppgen.arguments import require_positive, require_whole
from ppgen.inference.fixed_draw_ascent import fixed_draw_ascent
from ppgen.inference.frame import Frame
from ppgen.inference.guides import Family, FlatGuide, FullRank, LowRank, MeanField
from ppgen.inference.independent import Clock, independent
from ppgen.inference.minibatches import Minibatches
from ppgen.inference.mode import Batched
from ppgen.inference.point import as_program
from ppgen.inference.stochastic_ascent import Schedule, ascend
from ppgen.inference.vi_fit import Fit, whole
from ppgen.inference.vi_guides import choose, describe
from ppgen.inference.vi_pyro import fit_pyro_guide
from ppgen.inference.vi_start import DENSE, find_frame, low_rank_optimum
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.progress import Interrupt, Progress, interruptible
from ppgen.types import Story

_NORMALS = MeanField, FullRank, LowRank  # of few parameters
_ON_ALL_ROWS = 64  # draws that tell the ELBO of all rows
_NEAR = 2  # drops of the learning rate with which they go on from there
_NEARLY_NORMAL = 2.0  # nats, sd of the log weights of a start that is nearly the optimum
_LARGEST_RATE = 10.0
_SHORT = 50  # steps between two looks then
_AGREE = 0.1  # nats of the ELBO by which restarts may differ


@dataclass(frozen=True)
class VI:
    r"""Maximise the ELBO over a family of densities; ``VI()`` is mean-field.

    The gradient is reparameterised and, where the family allows, the path derivative alone
    ("sticking the landing"), whose noise vanishes as the guide approaches the posterior; draws come
    in antithetic pairs. The ascent starts at the best of many local normals, stops when the ELBO
    has settled, averages its last iterates and says whether it did (``posterior.converged``).
    Normals are first fitted to draws that are fixed once, by L-BFGS: where larger sets of other
    draws gain nothing, that is the end, without a noisy step. Convergence is about the optimiser:
    how far the family is from the posterior, k-hat says (``posterior.diagnosis()``).

    Args:
        guide: None for independent normals; a family (``full_rank_guide()``, ``flow_guide()``,
            ...); a class of Pyro's autoguides or ``partial`` of one, the normal and IAF ones of
            which are fitted as families here; an autoguide or any hand-written guide, with the
            story's arguments. Only the guide's parameters are trained, never the story's.
        draws: draws from the fitted guide.
        particles: draws to a step; 64, or 8 where Pyro's own ELBO is used.
        learning_rate: Adam's first; the family's own by default.
        max_steps: steps at most, for each restart.
        tolerance: nats of the ELBO that a lower learning rate, or a larger set of fixed draws, has
            to gain to go on.
        restarts: independent runs, of which the best counts; they have to agree to 0.1 nats.
        path_gradient: leave out the score of the guide from its gradient; it has mean zero.
        batch_size: rows of the data to a step, in random order, epoch after epoch; None for all of
            them. The rows are those of the story's plate over an argument as long as it, and count
            N / B times; a plate with a ``subsample_size`` of its own needs no batch_size. Data of
            fewer rows are taken whole. For families; the ELBO that counts is that of all rows.
        compile: hand the step, guide and story together, to ``torch.compile``: some 10 s once, then
            faster steps. It pays for many steps, as flows need them. For families, on all rows.
        importance_samples: K > 1 maximises the importance weighted bound instead, ``E[log 1/K sum_k
            p(data, z_k) / q(z_k)]``, which rises with K from the ELBO to log p(data), by doubly
            reparameterised gradients (`path_gradient`). Its guide is wider than the posterior: it
            proposes K, and each draw that is returned is one of K, resampled by weight; k-hat is
            that of the weights, and ``history["elbo"]`` this bound. A step takes `particles` draws,
            in pairs of groups of K; `draws` cost K evaluations each. For families, on all rows.

    Raises:
        ValueError: from `run`, with `batch_size`: where no plate belongs to the rows, or a latent
            site has a value for each of them; with `compile` or `importance_samples`, where rows
            come in batches.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppgen.progress import quiet
        >>> def story(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> with quiet():
        ...     print(f"{VI().run(story, torch.tensor(2.0))['mu'].mean():.1f}")
        1.0

    References:
        | Automatic Differentiation Variational Inference (Kucukelbir et al., 2017)
        | https://arxiv.org/abs/1603.00788
        | Black Box Variational Inference with a Deterministic Objective
        | (Giordano, Ingram & Broderick, 2024) | https://jmlr.org/papers/v25/23-1015.html
        | Sticking the Landing (Roeder, Wu & Duvenaud, 2017) | https://arxiv.org/abs/1703.09194
        | Importance Weighted Autoencoders (Burda et al., 2016) | https://arxiv.org/abs/1509.00519
        | Doubly Reparameterized Gradient Estimators (Tucker et al., 2019)
        | https://arxiv.org/abs/1810.04152
        | Reinterpreting Importance-Weighted Autoencoders (Cremer et al., 2017), on the resampling
        | https://arxiv.org/abs/1704.02916
    """

    guide: Family | Callable[..., Any] | None = None
    draws: int = 4000
    particles: int | None = None
    learning_rate: float | None = None
    max_steps: int = 20_000
    tolerance: float = 1e-3
    restarts: int = 1
    path_gradient: bool = True
    batch_size: int | None = None
    compile: bool = False
    importance_samples: int = 1

    def __post_init__(self) -> None:
        counts = ("draws", "max_steps", "restarts", "importance_samples", "particles", "batch_size")
        given = {name: getattr(self, name) for name in counts}
        require_whole(self, **{name: n for name, n in given.items() if n is not None})
        require_positive(self, tolerance=self.tolerance)
        if self.learning_rate is not None:
            require_positive(self, learning_rate=self.learning_rate)
            if self.learning_rate >= _LARGEST_RATE:
                raise ValueError(
                    f"VI(learning_rate=...) must be below 10, got {self.learning_rate}"
                )
        choose(self.guide)

    def run(self, model: Story, *args: Any, **kwargs: Any) -> Posterior:
        family = choose(self.guide)
        options = self._options()
        if not isinstance(family, Family):
            self._refuse_options_of_families()
            return fit_pyro_guide(
                model,
                family,
                args,
                kwargs,
                draws=self.draws,
                particles=self.particles,
                schedule=self._schedule(0.02),
                options=options,
            )
        function = self._function(model, args, kwargs)
        if isinstance(function, Minibatches):
            self._refuse_minibatches()
        program = function.program
        clock = Clock(program)
        with interruptible() as interrupt, Progress(f"VI ({family})") as progress:
            fits = [
                self._fit(program, family, function, interrupt, progress)
                for _ in range(1 if interrupt else self.restarts)
            ]
        best = max(fits, key=lambda fit: fit.elbo)
        clock.fitted(compiling=sum(fit.seconds_compiling for fit in fits))
        history = {"elbo": torch.tensor(best.ascent.history, dtype=program.dtype)}
        notes: tuple[str, ...] = ()
        weighed = self.importance_samples > 1
        if weighed:
            (z, history["log_weights"]), log_guide = best.resample(self.draws), None
            notes = (_bounded(history["log_weights"]),)
        else:
            z, log_guide = best.sample(self.draws)
        if isinstance(function, Minibatches):
            weights = best.log_weights_of_all_rows(_ON_ALL_ROWS)
            history["elbo_of_all_rows"] = weights
            notes = (function.described(weights),)
        guided = hasattr(best.guide, "log_prob") and not weighed
        posterior = independent(
            program,
            z,
            log_guide,
            log_density=function.log_density,
            cost=lambda: clock.cost(function.gradients),
            engine="VI",
            options=options,
            complaints=tuple(m for m in (best.ascent.message, _disagreement(fits)) if m),
            notes=notes,
            history=history,
            guide_log_prob=best.log_prob if guided else None,
        )
        return function.kept(posterior) if isinstance(function, Minibatches) else posterior

    def _function(self, model: Story, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batched:
        """The log density of all rows, or an estimate of it from some at a time."""
        if self.batch_size is None:
            with suppress(Subsampling):
                return Batched(as_program(model, args, kwargs), self._rows, tolerant=True)
        if isinstance(model, Program):
            model, args, kwargs = model.model, model.args, model.kwargs
        found = Minibatches(model, args, kwargs, self.batch_size, self.particles or 8)
        if found.data.plate.taken < found.data.plate.size:
            return found
        return Batched(found.program, self._rows, tolerant=True)

    @property
    def _rows(self) -> int:
        """Draws to a step where it takes all rows of the data."""
        draws, each = self.particles or 64, self.importance_samples
        return draws if each == 1 else whole(draws, each)

    def _refuse_options_of_families(self) -> None:
        if self.batch_size is not None:
            raise ValueError(
                f"batch_size={self.batch_size} is for families: a hand-written guide and its "
                "story take their rows themselves, by subsample_size of their plates"
            )
        if self.compile:
            raise ValueError("compile=True is for families: a Pyro guide runs as it is written")
        if self.importance_samples > 1:
            raise ValueError(
                f"importance_samples={self.importance_samples} is for families: train a "
                "hand-written guide by ImportanceWeightedELBO or DReG, losses of Pyro's SVI"
            )
        if self.restarts > 1:
            raise ValueError(
                f"restarts={self.restarts}: a Pyro guide is trained in place and cannot be "
                "restarted; use restarts=1"
            )

    def _refuse_minibatches(self) -> None:
        if self.compile:
            raise ValueError("compile=True takes all rows at once: leave it or batch_size out")
        if self.importance_samples > 1:
            raise ValueError(
                f"importance_samples={self.importance_samples} takes all rows at once: the weight "
                "of a few of them bounds nothing; leave it or the batches (batch_size, "
                "subsample_size) out"
            )

    def _fit(
        self,
        program: Program,
        family: Family,
        function: Batched,
        interrupt: Interrupt,
        progress: Progress,
    ) -> Fit:
        guide = family.build(program.dim).to(program.device, program.dtype)
        frame = _begin(guide, function, program)
        on_path = self.path_gradient and guide.has_score
        fit = Fit(guide, frame, function, on_path, self.importance_samples)
        schedule = self._schedule(guide.rate)
        fixed = isinstance(guide, _NORMALS) and self.importance_samples == 1  # groups are random
        if fixed and not isinstance(function, Minibatches):
            first = fixed_draw_ascent(fit, self.tolerance)
            if first is not None and first.settled:
                progress.advance(0, elbo=first.history[-1])
                return fit.finished(first)
            # of independent normals this spread is large at their optimum
            if first is not None and (
                isinstance(guide, MeanField) or fit.spread() < _NEARLY_NORMAL
            ):
                schedule = replace(schedule, level=_NEAR, window=_SHORT)
        fit.record(compile=self.compile)
        ascent = ascend(
            lambda: fit.step(function.particles),
            fit.bounds,
            fit.parameters,
            schedule,
            interrupt,
            progress,
        )
        return fit.finished(ascent)

    def _schedule(self, rate: float) -> Schedule:
        return Schedule(self.learning_rate or rate, self.max_steps, self.tolerance)

    def _options(self) -> dict[str, Any]:
        named = ("draws", "particles", "learning_rate", "max_steps", "tolerance", "restarts")
        named += ("batch_size",) if self.batch_size else ()
        named += ("compile",) if self.compile else ()
        named += ("importance_samples",) if self.importance_samples > 1 else ()
        options = {name: getattr(self, name) for name in named}
        return {"guide": describe(self.guide), **options, "path_gradient": self.path_gradient}


def _begin(guide: FlatGuide, function: Batched, program: Program) -> Frame:
    """Where the guide stands at first; a low-rank one begins as the nearest to the best normal."""
    if isinstance(function, Minibatches):
        return function.start(dense=guide.dense)
    low = isinstance(guide, LowRank) and program.dim <= DENSE
    frame = find_frame(function, program.initial(function.rows), dense=guide.dense or low)
    if isinstance(guide, LowRank) and frame.factor.ndim == 2:
        covariance = frame.factor @ frame.factor.mT
        frame = Frame(frame.centre, covariance.diagonal().sqrt())
        log_scale, columns = low_rank_optimum(covariance, guide.columns.shape[1])
        guide.begin(log_scale - frame.factor.log(), columns)
    return frame


def _bounded(log_weights: Tensor) -> str:
    """The bound by fresh draws ``(S, K)``, in words."""
    count, each = log_weights.shape
    bounds = log_weights.logsumexp(-1) - math.log(each)
    error = float(bounds.std()) / math.sqrt(count)
    return (
        f"draws resampled, one of {each} by weight; importance weighted bound {bounds.mean():.3f} "
        f"+- {error:.3f} nats"
    )


def _disagreement(fits: list[Fit]) -> str:
    elbos = sorted((fit.elbo for fit in fits), reverse=True)
    if elbos[0] - elbos[-1] <= _AGREE:
        return ""
    listed = ", ".join(f"{e:.2f}" for e in elbos)
    return f"the restarts do not agree: ELBOs {listed} nats; the best is reported"
