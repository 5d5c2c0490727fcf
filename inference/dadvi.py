r"""Deterministic ADVI: mean-field variational inference with draws that are fixed once.

.. math:: f(\mu, \xi) = -\sum_i \xi_i
          - \frac1M \sum_m \log p(\mathrm{data}, \mu + e^{\xi} \odot \epsilon_m)

With the noise :math:`\epsilon_m` fixed, f is an ordinary function: a second-order optimiser finds
its minimum, and the curvature H there corrects what independent normals cannot represent. Linear
response gives :math:`\mathrm{Cov}(z) \approx (H^{-1})_{\mu\mu}`, exact for a normal posterior, and
:math:`H^{-1} \hat G H^{-1} / M`, with :math:`\hat G` the covariance of the draws' gradients, is
the error that comes from having fixed M draws.

References:
    | Black Box Variational Inference with a Deterministic Objective
    | (Giordano, Ingram & Broderick, 2024) | https://jmlr.org/papers/v25/23-1015.html
    | Covariances, Robustness, and Variational Bayes (Giordano, Broderick & Jordan, 2018)
    | https://arxiv.org/abs/1709.02536
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.inference.fixed_draws import Objective
from ppgen.inference.independent import Clock, independent
from ppgen.inference.laplace import log_prob, sample
from ppgen.inference.mode import spectrum
from ppgen.inference.point import as_program
from ppgen.inference.second_opinion import with_second_opinion
from ppgen.inference.target import InPieces, Target
from ppgen.inference.vi_start import find_frame
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.progress import Progress
from ppgen.types import Story

_ROWS = 64  # points to a call
_DENSE = 500  # dimensions up to which the curvature is formed
_SINGULAR = 1e-8  # smallest eigenvalue of H with unit diagonal
_SETTLED = {torch.float64: 1e-6, torch.float32: 1e-2}  # nats that a Newton step may promise
_NOTICEABLE = 0.1  # standard deviations of error by which the fixed draws may move a mean


@dataclass(frozen=True)
class DADVI:
    """Independent normals fitted with fixed draws, and the covariance that linear response adds.

    No learning rate, no noise in the objective, and a stopping rule that means something: the
    Newton step is negligible. The error of the means from the fixed draws is reported, and so is
    the site, if any, whose mean or width the importance weights of the draws contradict.

    Args:
        draws: from the normal that is returned.
        fixed: draws of the objective, in antithetic pairs; more lessen the error in proportion to
            their root.
        linear_response: return the normal with the covariance of linear response; False keeps the
            independent normals, whose standard deviations are too small where sites correlate.
        iterations: of the optimiser, at most.

    Raises:
        ValueError: from `run`, beyond 500 dimensions with linear response.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from ppgen.progress import quiet
        >>> def story(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> with quiet():
        ...     print(f"{DADVI().run(story, torch.tensor(2.0))['mu'].mean():.1f}")
        1.0
    """

    draws: int = 4000
    fixed: int = 30
    linear_response: bool = True
    iterations: int = 500

    def __post_init__(self) -> None:
        require_whole(self, draws=self.draws, iterations=self.iterations)
        require_whole(self, least=4, fixed=self.fixed)
        if self.fixed % 2:
            raise ValueError(f"DADVI(fixed=...) must be even, for pairs, got {self.fixed}")

    def run(self, model: Story, *args: Any, **kwargs: Any) -> Posterior:
        program = as_program(model, args, kwargs)
        if self.linear_response and program.dim > _DENSE:
            raise ValueError(
                f"DADVI: linear response forms the curvature of {program.dim} dimensions, and "
                f"takes at most {_DENSE}: use DADVI(linear_response=False)"
            )
        target, clock = Target(program), Clock(program)
        function = InPieces(target, _ROWS)
        with Progress("DADVI", None) as progress:
            frame = find_frame(function, program.initial(_ROWS), dense=False)
            half = torch.randn(self.fixed // 2, program.dim).to(frame.centre)
            objective = Objective(function, frame, torch.cat([half, -half]))
            ascent = minimise(objective, self.iterations)
            fit = judge(objective, ascent, self.linear_response)
            progress.advance(target.gradients, elbo=float(ascent.elbo[-1]))
        clock.fitted()
        noise = torch.randn(self.draws, program.dim).to(frame.centre)
        u, log_guide = sample(fit.mean, fit.precision, noise)
        return with_second_opinion(
            independent(
                program,
                frame.push(u),
                log_guide - frame.log_det,
                log_density=function.value,
                cost=lambda: clock.cost(target.gradients),
                engine="DADVI",
                options=asdict(self),
                complaints=fit.complaints,
                notes=_error_note(program, fit, self.fixed),
                history={
                    "elbo": ascent.elbo,
                    "location": frame.push(fit.mean),
                    "fixed_draw_error": frame.factor * fit.error,
                },
                guide_log_prob=lambda z: (
                    log_prob(fit.mean, fit.precision, frame.back(z)) - frame.log_det
                ),
            )
        )


class Ascent(NamedTuple):
    """Where the optimiser ended."""

    eta: Tensor  # (2 D,)
    elbo: Tensor  # by the fixed draws, after each iteration; nats


def minimise(objective: Objective, iterations: int) -> Ascent:
    """Trust-region Newton with conjugate gradients, from the standard normal of the frame."""
    from scipy.optimize import minimize

    centre = objective.frame.centre
    start, history = centre.new_zeros(2 * len(centre)), []

    def tensor(x: np.ndarray) -> Tensor:
        return torch.as_tensor(x).to(centre)

    def value_and_grad(x: np.ndarray) -> tuple[float, np.ndarray]:
        values, gradients = objective(tensor(x)[None])
        value = float(values[0])
        slope = gradients[0].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return value if np.isfinite(value) else np.inf, _array(slope)

    found = minimize(
        value_and_grad,
        _array(start),
        jac=True,
        hessp=lambda x, v: _array(objective.curved(tensor(x), tensor(v)[None])[0]),
        method="trust-ncg",
        callback=lambda x: history.append(-value_and_grad(x)[0]),
        options={
            "maxiter": iterations,
            "gtol": torch.finfo(centre.dtype).eps ** 0.5,
            "max_trust_radius": 10.0 * len(start) ** 0.5,
        },
    )
    return Ascent(tensor(found.x), torch.tensor([*history, -float(found.fun)]).to(centre))


class Fit(NamedTuple):
    """The normal that is returned, in the frame, and what there is to say about it."""

    mean: Tensor  # (D,)
    precision: Tensor  # (D, D)
    error: Tensor  # of the mean, from the fixed draws, (D,); NaN where it is not known
    complaints: tuple[str, ...]


def judge(objective: Objective, ascent: Ascent, dense: bool) -> Fit:
    """The normal at the end of the ascent, by linear response where `dense`."""
    eta, dim = ascent.eta, len(ascent.eta) // 2
    mean, independent_precision = eta[:dim], (-2.0 * eta[dim:]).exp().diag()
    _, each = objective.each(eta[None])
    gradient = each[0].mean(0)
    unknown = torch.full_like(mean, torch.nan)
    limit = _SETTLED.get(eta.dtype, 1e-2)
    if not dense:
        left = 0.5 * float(gradient.square().sum())  # where the curvature is one: it is whitened
        said = () if left < limit else (_unsettled(left),)
        return Fit(mean, independent_precision, unknown, said)
    hessian = objective.curved(eta, torch.eye(2 * dim).to(eta))
    hessian = 0.5 * (hessian + hessian.mT)
    if not bool(torch.isfinite(hessian).all()) or not _positive(hessian):
        said = (
            "the objective has no minimum where the optimiser ended: no linear response; the "
            "draws are those of independent normals",
        )
        return Fit(mean, independent_precision, unknown, said)
    left = 0.5 * float(gradient @ torch.linalg.solve(hessian, gradient))
    ahead, behind = each[0].chunk(2)
    pairs = 0.5 * (ahead + behind)  # antithetic draws are one independent draw
    response = torch.linalg.solve(hessian, (pairs - gradient).mT)
    error = (response.square().sum(1) / (len(pairs) * (len(pairs) - 1))).sqrt()[:dim]
    # (H^-1)_mu,mu is the inverse of the Schur complement of H in xi
    across = hessian[:dim, dim:]
    schur = hessian[:dim, :dim] - across @ torch.linalg.solve(hessian[dim:, dim:], across.mT)
    said = () if left < limit else (_unsettled(left),)
    return Fit(mean, 0.5 * (schur + schur.mT), error, said)


def _positive(hessian: Tensor) -> bool:
    diagonal = hessian.diagonal()
    return bool((diagonal > 0).all()) and float(spectrum(hessian).values[0]) > _SINGULAR


def _unsettled(left: float) -> str:
    return f"the optimiser stopped {left:.2g} nats above the minimum of the objective"


def _error_note(program: Program, fit: Fit, fixed: int) -> tuple[str, ...]:
    """Where the fixed draws leave a mean uncertain, in its own standard deviations."""
    if bool(fit.error.isnan().any()):
        return ()
    ratio = fit.error / torch.linalg.inv(fit.precision).diagonal().clamp(min=1e-300).sqrt()
    worst = int(ratio.argmax())
    sites = program.anatomy.of_kind("latent").items()
    name = next(n for n, s in sites if s.start <= worst < s.stop)
    size = float(ratio[worst])
    note = f"the {fixed} fixed draws leave an error of up to {size:.2f} sd in means ({name})"
    return (note,) if size < _NOTICEABLE else (f"{note}: raise fixed={fixed}",)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()
