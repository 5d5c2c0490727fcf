"""A story's log density as torch computes it without a recording."""

import torch
from torch import Tensor

from ppgen.program import Program


def value_and_slope(program: Program, point: Tensor) -> tuple[Tensor, Tensor]:
    """Log density and gradient at one point, ``(D,)``."""
    with torch.enable_grad(), program.sandbox():
        point = point.clone().requires_grad_()
        value = program._single(point).log_density()
        (slope,) = torch.autograd.grad(value, point)
    return value.detach(), slope
