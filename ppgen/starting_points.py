"""Where chains and climbs begin: dispersed points at which a story has a density and a slope."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppgen.complaints import culprits, refuse_flat, warn_of_domains

if TYPE_CHECKING:
    from ppgen.program import Program

_DOMAIN_ROWS = 8  # points at which the parameters of distributions are checked
_TRIES = 50


def starting_points(program: Program, count: int) -> Tensor:
    """See :meth:`ppgen.program.Program.initial`: ``(count, D)``."""
    z = torch.empty(count, program.dim, dtype=program.dtype, device=program.device)
    z.uniform_(-2, 2)
    scale, bad = 1.0, torch.ones(count, dtype=torch.bool)
    for attempt in range(_TRIES):
        value, gradient = program.value_and_grad(z)
        bad = ~(torch.isfinite(value) & torch.isfinite(gradient).all(-1))
        if attempt == 0:
            rows = torch.cat([z[bad], z[~bad]])[:_DOMAIN_ROWS]
            _asked(program, warn_of_domains, rows)
        if not bool(bad.any()):
            refuse_flat(program.anatomy, gradient)
            return z
        scale *= 0.9
        z = torch.where(bad[:, None], torch.empty_like(z).uniform_(-2, 2) * scale, z)
    raise ValueError(
        f"no starting point with finite log density and gradient was found for "
        f"{int(bad.sum())} of {count} chains in {_TRIES} tries"
        f"{_asked(program, culprits, z[bad][0])}: check the data against the supports, and the "
        "scale of the priors (`ppgen explain` lists them)"
    )


def _asked(program: Program, question: Callable[..., Any], z: Tensor) -> Any:
    with program.sandbox(), torch.random.fork_rng(devices=[]):
        return question(program.model, program.anatomy, z, program.args, program.kwargs)
