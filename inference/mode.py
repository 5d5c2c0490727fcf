"""Modes of a log density: a climb from many starts at once, then Newton's method to the end.

Everything goes through one batched value-and-gradient function with a fixed number of rows, so
that a :class:`ppgen.program.Program` records once.

References:
    | Numerical Optimization (Nocedal & Wright, 2006), chapters 3 and 6
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.inference.hmc import ValueAndGrad
from ppgen.inference.hmc_starts import climb
from ppgen.inference.target import InPieces, Target
from ppgen.program import Part, Program
from ppgen.recording import Recording

_DENSE = 1000  # dimensions up to which Hessians are formed
_DROP = 0.5  # nats that a maximum loses three standard deviations away; a normal loses 4.5
_EDGE = 1e-6  # curvature of a bounded site that lies at the edge of its support
_FLAT = 1e-9  # of the largest eigenvalue of the Hessian with unit diagonal


class Batched:
    """`program.value_and_grad` of any number of points, through calls of `rows` points.

    Args:
        program: the story.
        rows: points to a call.
        part: which part of the log density.
        tolerant: whether a point at which a matrix cannot be factorised has log density -infinity;
            otherwise it raises, as where a mode at such a point would be nonsense.
    """

    def __init__(
        self, program: Program, rows: int, part: Part = "density", *, tolerant: bool = False
    ) -> None:
        self.program, self.rows = program, rows
        self.particles = rows  # points that a step takes
        self.part: Part = part
        self.gradients = 0  # points evaluated so far
        self._whole = InPieces(
            Target(program, part=part) if tolerant else _Plain(program, part), rows
        )

    def next(self) -> None:
        """Before a step: here every step sees all rows."""

    def recording(self) -> Recording | None:
        """Value and gradient at the points of a step, where they are one recorded function."""
        z = self.program.anatomy.prototype.expand(self.rows, -1)
        return self.program.recorded_gradient(z, part=self.part)

    def estimates(self, z: Tensor) -> Tensor:
        """Values at many points, ``(N,)``: their mean is to be that of all rows."""
        return self.value(z)

    def log_density(self, z: Tensor) -> Tensor | None:
        """Values ``(N,)`` at the points `z`, ``(N, D)``, nats; None where that takes too long."""
        return self.value(z)

    def value(self, z: Tensor) -> Tensor:
        """Values ``(N,)`` at the points `z`, ``(N, D)``."""
        self.gradients += len(z)
        return self._whole.value(z)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(N,)`` and gradients ``(N, D)`` at the points `z`, ``(N, D)``."""
        self.gradients += len(z)
        return self._whole(z)


class _Plain(NamedTuple):
    program: Program
    part: Part

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.program.value_and_grad(z, part=self.part)

    def value(self, z: Tensor) -> Tensor:
        return self.program.value(z, part=self.part)


class Mode(NamedTuple):
    """Where an ascent ended."""

    z: Tensor  # (D,)
    value: Tensor  # log density there, (), nats
    precision: Tensor  # minus the Hessian there, (D, D)
    decrement: float  # what a further Newton step promises, nats
    values: Tensor  # of the ends of all starts before the polish, (starts,), nats


def find_mode(value_and_grad: ValueAndGrad, starts: Tensor) -> Mode:
    """The highest point reached from the `starts`, ``(C, D)``.

    Raises:
        ValueError: where no start leads to a finite value, or there are too many dimensions.
    """
    if starts.shape[-1] > _DENSE:
        raise ValueError(
            f"the story has {starts.shape[-1]} latent dimensions; this engine forms a Hessian, "
            f"and takes at most {_DENSE}: use VI or HMC"
        )
    ends = climb(value_and_grad, starts)
    values = torch.where(torch.isfinite(ends.log_density), ends.log_density, -torch.inf)
    best = int(values.argmax())
    if not bool(torch.isfinite(values[best])):
        raise ValueError("the log density is not finite at any of the points that were tried")
    return polish(value_and_grad, ends.z[best], values)


def polish(value_and_grad: ValueAndGrad, z: Tensor, values: Tensor) -> Mode:
    """Newton's method with a line search; directions of negative curvature are turned round."""
    eps = torch.finfo(z.dtype).eps
    value, gradient = (t[0] for t in value_and_grad(z[None]))
    precision = hessian(value_and_grad, z).neg()
    step, decrement = _newton(precision, gradient)
    lengths = 2.0 ** torch.arange(2, -14, -1, dtype=z.dtype, device=z.device)
    for _ in range(50):
        trials = z + lengths[:, None] * step
        trial_values, trial_gradients = value_and_grad(trials)
        trial_values = torch.where(torch.isfinite(trial_values), trial_values, -torch.inf)
        best = int(trial_values.argmax())
        noise = 64 * eps * max(1.0, abs(float(value)))
        if float(trial_values[best] - value) <= noise:
            # values no longer tell: the full step counts if it shortens the gradient
            best = 2
            shorter = _newton(precision, trial_gradients[best])[1] < 0.5 * decrement
            if not shorter or float(value - trial_values[best]) > noise:
                break
        z, value, gradient = trials[best], trial_values[best], trial_gradients[best]
        precision = hessian(value_and_grad, z, scales(precision)).neg()
        step, decrement = _newton(precision, gradient)
    return Mode(z, value, precision, decrement, values)


def scales(precision: Tensor) -> Tensor:
    """Standard deviation of each coordinate given the others, at most 1, ``(D,)``."""
    return precision.diagonal().abs().clamp(min=1.0).rsqrt()


def hessian(value_and_grad: ValueAndGrad, z: Tensor, scale: Tensor | None = None) -> Tensor:
    """Hessian at `z`, ``(D, D)``, by central differences of fourth order of the gradient.

    Args:
        value_and_grad: batched values and gradients.
        z: the point, ``(D,)``.
        scale: size of a natural step in each coordinate, ``(D,)``; 1 by default.
    """
    dim = len(z)
    # balances rounding (eps / h) and truncation (h^4)
    reach = torch.finfo(z.dtype).eps ** 0.2 * (torch.ones_like(z) if scale is None else scale)
    steps = reach.diag()
    points = torch.cat([z + steps, z - steps, z + 2 * steps, z - 2 * steps])
    near, near_back, far, far_back = value_and_grad(points)[1].split(dim)
    slopes = (8 * (near - near_back) - (far - far_back)) / (12 * reach[:, None])
    return 0.5 * (slopes + slopes.mT)


class Spectrum(NamedTuple):
    """Eigen-decomposition of a precision matrix scaled to a unit diagonal."""

    values: Tensor  # ascending, (D,)
    vectors: Tensor  # columns, in the scaled coordinates, (D, D)
    unit: Tensor  # length of the scaled unit in each coordinate, (D,)

    def sites(self, program: Program, column: int) -> list[str]:
        """The sites that move most along one eigenvector."""
        load = self.vectors[:, column].abs()
        parts = {
            n: float(load[s.start : s.stop].max())
            for n, s in program.anatomy.of_kind("latent").items()
        }
        return [name for name, part in parts.items() if part > 0.3 * max(parts.values())]


def spectrum(precision: Tensor) -> Spectrum:
    """How curved a mode is in each direction; 1 everywhere where coordinates are independent."""
    diagonal = precision.diagonal().abs()
    unit = torch.where(diagonal > 0, diagonal.clamp(min=1e-30).rsqrt(), 1.0)
    values, vectors = torch.linalg.eigh(precision * unit * unit[:, None])
    return Spectrum(values, vectors, unit)


def flat_sites(value_and_grad: ValueAndGrad, mode: Mode, program: Program) -> list[str]:
    """Sites that can move far from the mode at no loss: a maximum that is not one.

    Three standard deviations away, as the curvature has them, a normal density loses 4.5 nats.
    Where it loses next to nothing, the density has a ridge or rises towards infinity.
    """
    found = spectrum(mode.precision)
    lengths = 3 * found.values.clamp(min=_FLAT).rsqrt()
    moves = (found.vectors * lengths).mT * found.unit
    values, _ = value_and_grad(torch.cat([mode.z + moves, mode.z - moves]))
    loss = (mode.value - values).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    flat = (loss < _DROP).reshape(2, -1).any(0) | (found.values < _FLAT)
    named = [found.sites(program, int(i)) for i in flat.nonzero()[:, 0]]
    return [site for site in program.sites if any(site in names for names in named)]


def edge_sites(mode: Mode, program: Program) -> list[str]:
    """Sites whose value at the mode lies at the edge of their support, as a scale of zero."""
    values = program.constrain(mode.z[None])
    found = []
    for name, site in program.anatomy.of_kind("latent").items():
        z = mode.z[site.start : site.stop]
        value = values[name].flatten()
        bounded = z.shape != value.shape or bool((z != value).any())
        # flat on a log or logit scale, where one is a natural step
        curvature = mode.precision.diagonal()[site.start : site.stop]
        if bounded and bool((curvature.abs() < _EDGE).any()):
            found.append(name)
    return found


def _newton(precision: Tensor, gradient: Tensor) -> tuple[Tensor, float]:
    """Newton step ``(D,)`` and the rise that it promises, nats."""
    found = spectrum(precision)
    size = found.values.abs()
    size = size.clamp(min=max(float(size.max()), 1e-300) * 1e-13)
    along = found.vectors.mT @ (found.unit * gradient)
    step = found.unit * (found.vectors @ (along / size))
    return step, 0.5 * float(gradient @ step)
