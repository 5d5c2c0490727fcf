"""The Protocols where models and algorithms meet, and the one number they all report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from ppgen.posterior import Posterior

Story = Callable[..., Any]
"""Any Pyro callable: a function, a bound `model` of a module, a conditioned model."""


class Engine(Protocol):
    """An inference method: a frozen dataclass of options with one method."""

    def run(self, model: Story, *args: Any, **kwargs: Any) -> Posterior: ...


@runtime_checkable
class ExactDensity(Protocol):
    """A story whose ``log p(x)`` is a formula: flows, base-rate models."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each example, ``(*, D) -> (*)``, nats."""
        ...


@runtime_checkable
class ImportanceWeighted(Protocol):
    """A story with an amortised guide, whose ``log p(x)`` importance sampling bounds."""

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(x, z) - log q(z | x)``, z ~ q: ``(B, D) -> (samples, B)``, nats."""
        ...


class Statistics(NamedTuple):
    """Sufficient statistics of one phase of a Boltzmann machine, averaged over its own count."""

    gradients: dict[str, Tensor]  # d mean(-energy) / d parameter, by the parameter's name


@runtime_checkable
class BoltzmannMachine(Protocol):
    """A bipartite machine: its even layers are independent given its odd ones.

    A *side* is a tensor of units that are independent given the other side. For an RBM the
    even side is ``x`` and the odd side ``h``.
    """

    def free_energy(self, x: Tensor) -> Tensor:
        """``-log sum_h exp(-energy(x, h))``: ``(*, D) -> (*)``, nats."""
        ...

    def sweep(self, side: Tensor, inverse_temperature: float | Tensor = 1.0) -> Tensor:
        """One block Gibbs update of the even side through the odd side."""
        ...


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
        details: what a reader may want beside it (samples, chains, temperatures, ...).
    """

    kind: Literal["exact", "bounds", "lower"]
    lower: float
    upper: float | None
    lower_error: float
    upper_error: float | None
    method: str
    examples: int
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line with the unit and the kind; a bound is never printed as the value."""
        if self.kind == "exact":
            text = f"{self.lower:.2f} nats per example (exact)"
        elif self.kind == "bounds" and self.upper is not None:
            text = (
                f"between {self.lower:.2f} +- {self.lower_error:.2f} and {self.upper:.2f} "
                f"+- {self.upper_error or 0.0:.2f} nats per example (bounds)"
            )
        else:
            text = f">= {self.lower:.2f} +- {self.lower_error:.2f} nats per example (lower bound)"
        return f"{text}, {self.method}, {self.examples} examples"
