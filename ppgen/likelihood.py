"""The one number that every model reports, and what kind of number it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import numpy as np

DISAGREEMENT = 1.0  # nats between two bounds, beyond which they are no measurement


class Difference(NamedTuple):
    """Of the mean log-likelihoods of two stories on the same examples, nats per example."""

    value: float
    paired_error: float  # of the mean over examples, as a sample of others, example by example
    monte_carlo: float  # what the estimates themselves leave of it

    def __str__(self) -> str:
        said = f"{self.value:+.3f} +- {self.paired_error:.3f} nats per example, example by example"
        return f"{said} (Monte Carlo error {self.monte_carlo:.2g})" if self.monte_carlo else said


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of data under a story, in nats per example, and what kind of number it is.

    It has two errors. The Monte Carlo error is that of its computation on these examples, and none
    of an exact value. That over examples says how far the mean over these may be from the mean over
    all that there could be: it is most of the error of one story, and cancels to a large part in a
    difference between two on the same examples (:meth:`minus`).

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
        each: `lower` of each example, ``(N,)``, whose mean it is; None where it is not kept.
    """

    kind: Literal["exact", "bounds", "lower"]
    lower: float
    upper: float | None
    lower_error: float
    upper_error: float | None
    method: str
    examples: int
    details: dict[str, Any] = field(default_factory=dict)
    each: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def examples_error(self) -> float:
        """Standard error of the mean over examples, as a sample of others; NaN where unknown."""
        if self.each is None or len(self.each) < 2:
            return math.nan
        return float(self.each.std(ddof=1)) / math.sqrt(len(self.each))

    def minus(self, other: Likelihood) -> Difference:
        """How much better this story is than another on the same examples, in the same order.

        Of two lower bounds it is the difference of the bounds.

        Raises:
            ValueError: where the examples are not as many, or the values of each were not kept.
        """
        one, two = self.each, other.each
        if one is None or two is None:
            raise ValueError("the log-likelihoods of each example are needed, and were not kept")
        if len(one) != len(two) or len(one) < 2:
            raise ValueError(
                f"expected the same examples, two or more, got {len(one)} and {len(two)}"
            )
        gap = one - two
        error = float(gap.std(ddof=1)) / math.sqrt(len(gap))
        noise = math.hypot(self.lower_error, other.lower_error)
        return Difference(float(gap.mean()), error, noise)

    def to_json(self) -> dict[str, Any]:
        """Its fields as plain data, and the error over examples in the place of each."""
        names = (f.name for f in fields(self) if f.name != "each")
        return {n: getattr(self, n) for n in names} | {"examples_error": self.examples_error}

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
        noise = f"Monte Carlo error {self.lower_error:.2g}"
        if self.kind == "exact":
            text = f"{self.lower:.2f} nats per example (exact)"
        elif self.kind == "bounds" and self.upper is not None:
            noise = f"Monte Carlo errors {self.lower_error:.2g} and {self.upper_error or 0.0:.2g}"
            if self.disagrees:
                text = (
                    f"no likelihood: the two sides disagree by {self.gap:.1f} nats, "
                    f"{self.lower:.2f} from below and {self.upper:.2f} from above (bounds, {noise})"
                )
            elif self.lower <= self.upper:
                ends = f"between {self.lower:.2f} and {self.upper:.2f}"
                text = f"{ends} nats per example (bounds, {noise})"
            else:  # each is off by its Monte Carlo error
                ends = f"{self.lower:.2f} from below, {self.upper:.2f} from above"
                text = f"{ends}, nats per example (bounds, crossed, {noise})"
        else:
            text = f">= {self.lower:.2f} nats per example (lower bound, {noise})"
            if self.disagrees:
                text = f"no likelihood: two sides of log Z disagree by {self.gap:.1f} nats, {text}"
        error = self.examples_error
        over = "" if math.isnan(error) else f" (+- {error:.2g} over examples)"
        return f"{text}, {self.method}, {self.examples} examples{over}"
