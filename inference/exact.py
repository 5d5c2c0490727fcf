"""Independent draws from a posterior that is a formula."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pyro
import torch

from ppgen.arguments import require_whole
from ppgen.inference.declared import declared, log_prob, unconstrained
from ppgen.inference.independent import Clock, independent
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.story import sandbox
from ppgen.types import Conjugate, Story


@dataclass(frozen=True)
class Exact:
    """The posterior of a conjugate story, drawn from its formula: a reference without error.

    Every importance weight ``log_density - log_guide`` of the result is the log evidence.

    Args:
        draws: independent draws.

    Raises:
        ValueError: from `run`, for a story that declares no exact posterior.

    Example:
        >>> import torch
        >>> from ppgen.models import BetaBernoulli
        >>> posterior = Exact().run(BetaBernoulli().model, torch.tensor([1.0, 0.0, 1.0]))
        >>> posterior["theta"].shape
        torch.Size([1, 4000])
    """

    draws: int = 4000

    def __post_init__(self) -> None:
        require_whole(self, draws=self.draws)

    def run(self, model: Story | Program, *args: Any, **kwargs: Any) -> Posterior:
        story, program, data = declared("Exact", Conjugate, model, args, kwargs)
        clock = Clock(program)
        clock.fitted()
        with sandbox(program.dtype), torch.no_grad(), pyro.plate("draws", self.draws):
            trace: Any = pyro.poutine.trace(story.guide).get_trace(*data)
        values = {name: trace.nodes[name]["value"] for name in program.sites}
        laws = {name: trace.nodes[name]["fn"] for name in program.sites}
        z, log_jacobian = unconstrained(program, values, laws)
        return independent(
            program,
            z,
            log_prob(program, values, laws) + log_jacobian,
            log_density=program.log_density,
            cost=clock.cost,
            engine="Exact",
            options=asdict(self),
        )
