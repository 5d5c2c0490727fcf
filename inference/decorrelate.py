r"""Coordinates without scale or correlation: what badly scaled predictors ask for.

A slope of heights in centimetres and its intercept have a correlation of -.999, and independent
normals then claim 3 % of their widths. In

.. math:: u = F^{-1} (z - m), \quad F F^T = H^{-1},

with H the curvature of the log density at m, a posterior that is nearly normal is nearly the
standard normal, whatever units the predictors were measured in. m and H are those of the local
normal of the largest ELBO along climbs from dispersed starts, so that a mode in a corner of small
mass does not decide.

References:
    | A general framework for the parametrization of hierarchical models
      (Papaspiliopoulos, Roberts & Sköld, 2007) | https://doi.org/10.1214/088342307000000014
    | NeuTra-lizing bad geometry in Hamiltonian Monte Carlo (Hoffman et al., 2019): the same with
      a map that is learnt | https://arxiv.org/abs/1903.03704
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen import diagnostics
from ppgen.inference.dadvi import DADVI
from ppgen.inference.frame import Frame
from ppgen.inference.hmc_engine import HMC
from ppgen.inference.independent import Clock
from ppgen.inference.nuts import NUTS
from ppgen.inference.point import ROWS, as_program
from ppgen.inference.reparametrisation import Reparametrisation
from ppgen.inference.target import InPieces, Target
from ppgen.inference.verdict import RATIO_FAIL
from ppgen.inference.vi import VI
from ppgen.inference.vi_guides import describe
from ppgen.inference.vi_start import find_frame
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.story import evaluate
from ppgen.types import Engine, Story

_LARGEST = 500  # dimensions up to which a curvature is formed


@dataclass(frozen=True)
class Decorrelated(Reparametrisation):
    """A story in the coordinates u of one site, ``"coordinates"``, flat but for the posterior.

    Args:
        frame: m and F.
        narrow: the sds that independent normals would claim as written, over the true ones, if the
            posterior were normal; the smallest.
    """

    frame: Frame = field(repr=False)
    narrow: float

    def back(self, posterior: Posterior) -> Tensor:
        u = self.flat(posterior)
        return self.frame.push(u.flatten(0, 1)).reshape(u.shape)

    def guide_log_prob(self, posterior: Posterior) -> Callable[[Tensor], Tensor] | None:
        known = posterior.guide_log_prob
        if known is None:
            return None
        return lambda z: known(self.frame.back(z)) - self.frame.log_det


def decorrelated(model: Story | Program, *args: Any, **kwargs: Any) -> Decorrelated | None:
    """The story in coordinates that the curvature of its posterior scales and decorrelates.

    Args:
        model: the story, any Pyro callable, or its `Program`.
        args: its arguments.
        kwargs: its keyword arguments.

    Returns:
        None where independent normals would claim more than 0.75 of every width as it is, by the
        curvature: a mean-field posterior does not fail there for that reason.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def line(x, y):
        ...     a = pyro.sample("a", dist.Normal(0.0, 100.0))
        ...     b = pyro.sample("b", dist.Normal(0.0, 100.0))
        ...     pyro.sample("y", dist.Normal(a + b * x, 1.0).to_event(1), obs=y)
        >>> x = torch.linspace(100.0, 110.0, 20)
        >>> print(decorrelated(line, x, 0.1 * x).description)
        decorrelated: coordinates scaled by the curvature (correlation of a and b -1.00)
    """
    program = as_program(model, args, kwargs)
    if not 1 < program.dim <= _LARGEST:
        return None
    target, clock = Target(program), Clock(program)
    frame = find_frame(InPieces(target, ROWS), program.initial(ROWS), dense=True)
    if frame.factor.ndim == 1:  # independent normals are the best that there are
        return None
    precision = torch.cholesky_inverse(frame.factor).diagonal()
    covariance = frame.factor @ frame.factor.mT
    ratios = (precision * covariance.diagonal()).rsqrt()
    narrow = float(ratios.min())
    if not narrow < RATIO_FAIL[0]:
        return None
    clock.fitted()
    return Decorrelated(
        story=_InCoordinates(program, frame),
        description="decorrelated: coordinates scaled by the curvature "
        f"({_worst(program, covariance)})",
        program=program,
        cost=clock.cost(target.gradients),
        frame=frame,
        narrow=narrow,
    )


def along_axes(engine: Engine) -> bool:
    """Whether an engine does worse where coordinates are correlated or of different scales."""
    if isinstance(engine, VI):
        return describe(engine.guide).startswith(("mean-field", "low-rank"))
    if isinstance(engine, DADVI):
        return not engine.linear_response
    return isinstance(engine, HMC | NUTS)


class _InCoordinates:
    """The story's posterior as the density of one vector."""

    def __init__(self, program: Program, frame: Frame) -> None:
        self.model, self.anatomy, self.frame = program.model, program.anatomy, frame
        self.__name__ = f"{getattr(program.model, '__name__', 'story')} in other coordinates"

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        flat = dist.Normal(torch.zeros_like(self.frame.centre), 1.0).to_event(1).mask(False)
        u = pyro.sample("coordinates", flat)
        # hide_types=["sample"] would let the observed ones through, and count them twice
        with pyro.poutine.block(hide_fn=_is_sample):
            found = evaluate(self.model, self.anatomy, self.frame.push(u), args, kwargs)
        pyro.factor("posterior", found.log_density() + self.frame.log_det)


def _is_sample(msg: Any) -> bool:
    return msg["type"] == "sample"


def _worst(program: Program, covariance: Tensor) -> str:
    """The largest correlation, by the names of the scalars."""
    found = np.abs(np.triu(diagnostics.correlations(covariance.cpu().numpy()), 1))
    i, j = divmod(int(found.argmax()), len(found))
    names = program.coordinates
    size = math.copysign(found[i, j], float(covariance[i, j]))
    return f"correlation of {names[i]} and {names[j]} {size:.2f}"
