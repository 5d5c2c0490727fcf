"""A story in other coordinates, and the way back to its own."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppgen.posterior import Cost, Posterior
from ppgen.program import Program
from ppgen.types import Story


@dataclass(frozen=True)
class Reparametrisation(ABC):
    """The same posterior in coordinates in which an engine has it easier.

    Args:
        story: to be called as the original.
        description: what was changed, in words.
        program: of the story as written.
        cost: of finding the coordinates.
    """

    story: Story
    description: str
    program: Program
    cost: Cost

    @abstractmethod
    def back(self, posterior: Posterior) -> Tensor:
        """The draws of :attr:`story` as flat vectors of the original, ``(chains, draws, D)``.

        Raises:
            ValueError: where `posterior` is not one of :attr:`story`.
        """

    def restored(self, posterior: Posterior) -> Posterior:
        """A posterior of :attr:`story` as one of the original: its sites, densities and checks.

        Raises:
            ValueError: where `posterior` is not one of :attr:`story`.
        """
        z = self.back(posterior)
        lp = self.program.log_density(z)
        messages = (self.description, *posterior.messages)
        moved: dict[str, Any] = {}
        if posterior.kind == "chains":  # diagnosed anew, on the sites that are reported
            said = posterior.complaints()
            messages = tuple(m for m in messages if m not in said)
        else:
            moved["converged"] = posterior.converged
        if posterior.log_guide is not None and posterior.log_density is not None:
            # the Jacobian between the coordinates is the difference of the log densities
            moved["log_guide"] = posterior.log_guide + (lp - posterior.log_density)
        stats = {**posterior.stats, **({"lp": lp} if "lp" in posterior.stats else {})}
        return Posterior.from_program(
            self.program,
            z,
            engine=posterior.engine,
            kind=posterior.kind,
            messages=messages,
            options=posterior.options,
            log_density=lp,
            stats=stats,
            history=posterior.history,
            cost=added(self.cost, posterior.cost),
            guide_log_prob=self.guide_log_prob(posterior),
            **moved,
        )

    def guide_log_prob(self, posterior: Posterior) -> Callable[[Tensor], Tensor] | None:
        """The density of the approximation on the original scale, where it is known."""
        del posterior
        return None

    def flat(self, posterior: Posterior) -> Tensor:
        """The flat vectors of the new story, which has as many dimensions as the original."""
        z = posterior.unconstrained
        if z is None or z.shape[-1] != self.program.dim:
            raise ValueError(
                f"the posterior has not {self.program.dim} unconstrained dimensions: restore what "
                "was fitted to .story"
            )
        return z


def added(a: Cost, b: Cost) -> Cost:
    """Both costs together."""
    both = zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True)
    return Cost(*(x + y for x, y in both))
