r"""Laplace's approximation: a normal at the mode with the curvature's covariance."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.inference.guides import standard_normal
from ppgen.inference.independent import Clock, independent
from ppgen.inference.mode import Batched, Mode, find_mode, flat_sites, spectrum
from ppgen.inference.point import ROWS, as_program, require_starts
from ppgen.inference.second_opinion import with_second_opinion
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.progress import Progress
from ppgen.types import Story

_LinAlgError = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]
_SINGULAR = 1e-10  # smallest eigenvalue of the precision with unit diagonal


@dataclass(frozen=True)
class Laplace:
    r"""Normal at the mode of the unconstrained density.

    .. math:: q(z) = N(\hat z, H^{-1}), \quad H = -\nabla^2 \log p(\hat z)

    Exact for a normal posterior. The evidence estimate ``log p(z) - log q(z)`` at the mode is
    Laplace's method; `posterior.diagnosis()` says how far the normal is from the posterior.

    Args:
        draws: draws from the normal.
        starts: dispersed starting points of the ascent; the highest end counts.

    Raises:
        ValueError: from `run`, where there is no mode or the curvature is not positive
            definite; the message names the sites that move in that direction.

    References:
        | Accurate Approximations for Posterior Moments and Marginal Densities
        | (Tierney & Kadane, 1986)
    """

    draws: int = 4000
    starts: int = 16

    def __post_init__(self) -> None:
        require_whole(self, draws=self.draws)
        require_starts(self, self.starts)

    def run(self, model: Story, *args: Any, **kwargs: Any) -> Posterior:
        program = as_program(model, args, kwargs)
        function, clock = Batched(program, ROWS), Clock(program)
        with Progress("Laplace", None) as progress:
            mode, precision, flat = self._climb(program, function)
            progress.advance(function.gradients, log_density=float(mode.value))
        clock.fitted()
        noise = torch.randn(self.draws, program.dim, dtype=mode.z.dtype, device=mode.z.device)
        z, log_guide = sample(mode.z, precision, noise)
        complaint = f"the density does not fall as {' and '.join(flat)} move away from the mode"
        return with_second_opinion(
            independent(
                program,
                z,
                log_guide,
                log_density=function.value,
                cost=lambda: clock.cost(function.gradients),
                engine="Laplace",
                options=dataclasses.asdict(self),
                complaints=(complaint,) if flat else (),
                guide_log_prob=lambda z: log_prob(mode.z, precision, z),
            )
        )

    def _climb(self, program: Program, function: Batched) -> tuple[Mode, Tensor, list[str]]:
        try:
            mode = find_mode(function, program.initial(ROWS)[: self.starts])
            return mode, _positive_definite(program, mode), flat_sites(function, mode, program)
        except _LinAlgError as error:
            raise ValueError(
                f"Laplace: a matrix could not be factorised on the way to the mode ({error}): the "
                "density ends, or is flat, beside its highest point, or a covariance inside the "
                "story is singular there; add a jitter to that diagonal, give flat sites a proper "
                "prior, or use HMC, which treats such points as impossible"
            ) from error


def sample(mode: Tensor, precision: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draws ``(S, D)`` of ``N(mode, precision^-1)`` and their log densities ``(S,)``."""
    unit = precision.diagonal().rsqrt()  # scales that differ by 1e6 cost no digits
    factor = torch.linalg.cholesky(precision * unit * unit[:, None])
    spread = torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT
    log_det = unit.log().sum() - factor.diagonal().log().sum()
    return mode + unit * spread, standard_normal(noise) - log_det


def log_prob(mode: Tensor, precision: Tensor, z: Tensor) -> Tensor:
    """Log density of ``N(mode, precision^-1)`` at any points ``(S, D)``: ``(S,)``, nats."""
    unit = precision.diagonal().rsqrt()
    factor = torch.linalg.cholesky(precision * unit * unit[:, None])
    log_det = unit.log().sum() - factor.diagonal().log().sum()
    return standard_normal((z - mode) / unit @ factor) - log_det


def _positive_definite(program: Program, mode: Mode) -> Tensor:
    """The precision, if it is one."""
    found = spectrum(mode.precision)
    if float(found.values[0]) > _SINGULAR and bool((mode.precision.diagonal() > 0).all()):
        return mode.precision
    names = " and ".join(found.sites(program, 0))
    at = {n: v for n, v in program.constrain(mode.z[None]).items() if n in names.split(" and ")}
    where = ", ".join(f"{n} = {_short(v[0])}" for n, v in at.items())
    if not bool(torch.isfinite(mode.precision).all()):
        raise ValueError(
            "Laplace: the log density has no finite curvature at the highest point found, "
            f"{where}: it ends there or beside it, so that no normal lies around the mode; "
            "give the site a distribution with the right support, or use HMC"
        )
    raise ValueError(
        f"Laplace: the log density is not curved downwards in the direction of {names} (smallest "
        f"eigenvalue of the precision {float(found.values[0]):.2g}, where independent "
        f"coordinates have 1) at the highest point found, {where}: the posterior has no mode "
        "there, or a ridge; use VI or HMC, or write the hierarchy non-centred"
    )


def _short(value: Tensor) -> str:
    numbers = [f"{v:.3g}" for v in value.flatten()[:3].tolist()]
    inside = ", ".join(numbers) + (", ..." if value.numel() > 3 else "")
    return inside if value.numel() == 1 else f"[{inside}]"
