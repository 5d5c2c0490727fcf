"""The one number that every model reports, and what kind of number it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

DISAGREEMENT = 1.0  # nats between two bounds, beyond which they are no measurement


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of data under a story, in nats per example, and what kind of number it is.

    Args:
        kind: ``"exact"``; ``"bounds"`` when `lower` and `upper` enclose it (stochastic bounds
            hold up to their standard errors); ``"lower"`` when only the lower bound exists.
        lower: the value itself when exact, else the lower bound.
        upper: the value itself when exact, else the upper bound; None when there is none.
        lower_error: Monte Carlo standard error of `lower`; 0 when exact.
        upper_error: Monte Carlo standard error of `upper`; None where there is no upper bound.
        method: how it was computed, in words.
        examples: the number of examples averaged over.
        details: what a reader may want beside it (samples, chains, temperatures, ...); under
            ``"log_partition"`` the two sides of log Z where annealing has bracketed it.
    """

    kind: Literal["exact", "bounds", "lower"]
    lower: float
    upper: float | None
    lower_error: float
    upper_error: float | None
    method: str
    examples: int
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """How far two sides stand apart beyond three standard errors, nats; 0 without two.

        Of the bounds; of a lower bound alone, those of the log Z that it rests on.
        """
        sides = self if self.kind == "bounds" else self.details.get("log_partition")
        if sides is None or sides.upper is None:
            return 0.0
        noise = math.hypot(sides.lower_error, sides.upper_error or 0.0)
        return max(0.0, abs(sides.upper - sides.lower) - 3 * noise)

    @property
    def disagrees(self) -> bool:
        """Whether the two sides are a nat or more apart, so that this is no measurement."""
        return self.gap > DISAGREEMENT

    def __str__(self) -> str:
        """One line with the unit and the kind; a bound is never printed as the value.

        Sides that disagree by more than a nat enclose nothing that could be called a likelihood: a
        machine that annealing cannot follow. The line then begins with that.
        """
        if self.kind == "exact":
            text = f"{self.lower:.2f} nats per example (exact)"
        elif self.kind == "bounds" and self.upper is not None:
            below = f"{self.lower:.2f} +- {self.lower_error:.2f}"
            above = f"{self.upper:.2f} +- {self.upper_error or 0.0:.2f}"
            if self.disagrees:
                text = (
                    f"no likelihood: the two sides disagree by {self.gap:.1f} nats, {below} from "
                    f"below and {above} from above (bounds)"
                )
            elif self.lower <= self.upper:
                text = f"between {below} and {above} nats per example (bounds)"
            else:  # each is off by its Monte Carlo error
                text = f"{below} from below, {above} from above, nats per example (bounds, crossed)"
        else:
            text = f">= {self.lower:.2f} +- {self.lower_error:.2f} nats per example (lower bound)"
            if self.disagrees:
                text = f"no likelihood: two sides of log Z disagree by {self.gap:.1f} nats, {text}"
        return f"{text}, {self.method}, {self.examples} examples"
