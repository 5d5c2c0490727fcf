r"""Coordinate ascent variational inference: mean field in closed form, one block at a time.

.. math::
    q_j \leftarrow \propto \exp E_{\prod_{i \neq j} q_i} [\log p(x, \theta)], \qquad
    \mathrm{ELBO} = E_q[\log p(x, \theta)] + \sum_j H[q_j]

No update lowers the ELBO; there is no step size, and no noise.

References:
    | Pattern Recognition and Machine Learning, chapter 10 (Bishop, 2006)
    | Variational Inference: A Review for Statisticians (Blei, Kucukelbir & McAuliffe, 2017)
    | https://arxiv.org/abs/1601.00670
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.arguments import require_between, require_whole
from ppgen.inference.declared import declared, log_prob, unconstrained
from ppgen.inference.independent import Clock, independent
from ppgen.moments import point
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.progress import Interrupt, Progress, interruptible
from ppgen.story import sandbox
from ppgen.types import ConditionallyConjugate, Coordinate, Factors, Story

_ROUNDING = 1e-9  # relative; a larger fall of the ELBO is a fault in the story's formulas


class State(NamedTuple):
    """What the next sweep needs."""

    factors: dict[str, TorchDistribution]  # of each block, (restarts,)


class Info(NamedTuple):
    """What a sweep has reached."""

    elbo: Tensor  # after the sweep, (restarts,), nats, larger is better


def init(story: ConditionallyConjugate, restarts: int, data: tuple[Any, ...]) -> State:
    """Point masses at dispersed values; the first sweep puts factors in their place."""
    start = story.start(restarts, *data)
    return State({name: point(value) for name, value in start.items()})


def step(
    state: State,
    coordinates: Mapping[str, Coordinate],
    story: ConditionallyConjugate,
    data: tuple[Any, ...],
) -> tuple[State, Info]:
    """One sweep over the blocks, for all restarts side by side."""
    factors = dict(state.factors)
    for name, update in coordinates.items():
        factors[name] = update(factors)
    return State(factors), Info(elbo(story, factors, data))


def elbo(story: ConditionallyConjugate, factors: Factors, data: tuple[Any, ...]) -> Tensor:
    """Exact, with all constants, ``(restarts,)``, nats."""
    entropies = [law.entropy() for law in factors.values()]
    return torch.stack(torch.broadcast_tensors(*entropies)).sum(0) + story.expected_log_joint(
        factors, *data
    )


@dataclass(frozen=True)
class CAVI:
    """Mean field by coordinate ascent, for stories that declare their updates.

    Such a story is a :class:`ppgen.types.ConditionallyConjugate`. The result's `history` has the
    ELBO of the best restart after each sweep; that of auxiliary variables, such as the assignments
    of a mixture, is part of it, so that it lies below the ELBO that `posterior.diagnosis()`
    estimates for the sites alone.

    Args:
        draws: from the fitted factors.
        restarts: starting points, fitted side by side; the one of the highest ELBO counts.
        sweeps: at most.
        tolerance: stop when no restart's ELBO changed by more than this share in a sweep.

    Raises:
        ValueError: from `run`, for a story that declares no updates.

    Example:
        >>> import torch
        >>> from ppgen.models import NormalGamma
        >>> posterior = CAVI().run(NormalGamma().model, torch.tensor([1.0, 2.0, 4.0]))
        >>> bool((posterior.history["elbo"].diff() >= -1e-9).all())
        True
    """

    draws: int = 4000
    restarts: int = 8
    sweeps: int = 2000
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        require_whole(self, draws=self.draws, restarts=self.restarts, sweeps=self.sweeps)
        require_between(self, tolerance=self.tolerance)

    def run(self, model: Story | Program, *args: Any, **kwargs: Any) -> Posterior:
        story, program, data = declared("CAVI", ConditionallyConjugate, model, args, kwargs)
        clock = Clock(program)
        with (
            sandbox(program.dtype),
            torch.no_grad(),
            interruptible() as interrupt,
            Progress("CAVI") as progress,
        ):
            state, history = self._ascend(story, data, interrupt, progress)
            best = int(history[-1].argmax())
            laws = {n: state.factors[n] for n in program.sites}
            values = {name: law.sample((self.draws,)) for name, law in laws.items()}
            z, _ = unconstrained(program, values, laws)
            log_guide = _on_unconstrained_scale(program, values, laws)
        clock.fitted()
        complaints, notes = self._verdict(history, best)
        return independent(
            program,
            z[:, best],
            log_guide[:, best],
            log_density=program.log_density,
            cost=clock.cost,
            engine="CAVI",
            options=asdict(self),
            complaints=complaints,
            notes=notes,
            history={"elbo": history[:, best]},
            guide_log_prob=lambda z: _anywhere(program, z, laws, len(history[0]))[:, best],
        )

    def _ascend(
        self,
        story: ConditionallyConjugate,
        data: tuple[Any, ...],
        interrupt: Interrupt,
        progress: Progress,
    ) -> tuple[State, Tensor]:
        """The last state, and the ELBO after each sweep, ``(sweeps, restarts)``."""
        coordinates = story.coordinates(*data)
        state, history = init(story, self.restarts, data), []
        for _ in range(self.sweeps):
            state, info = step(state, coordinates, story, data)
            history.append(info.elbo)
            progress.advance(elbo=float(info.elbo.max()))
            if interrupt or (len(history) > 1 and bool((_change(history) < self.tolerance).all())):
                break
        return state, torch.stack(history)

    def _verdict(self, history: Tensor, best: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Why it has not converged, if it has not, and what else there is to say."""
        found = history[:, best]
        falls = -(found.diff() / found[1:].abs().clamp(min=1.0))
        if not bool(torch.isfinite(found).all()):
            return ("the ELBO is not finite",), ()
        if len(falls) and float(falls.max()) > _ROUNDING:
            said = f"the ELBO fell by {float(falls.max()):.2g} of itself in a sweep, which correct"
            return (f"{said} updates never do: check the story's `coordinates`",), ()
        text = f"ELBO {float(found[-1]):.4f} nats after {len(found)} sweeps"
        if self.restarts > 1:
            near = history[-1] > found[-1] - 0.01
            text += f", reached by {int(near.sum())} of {self.restarts} restarts within 0.01"
        change = float(_change(list(history))[best]) if len(history) > 1 else float("inf")
        if change < self.tolerance:
            return (), (text,)
        return (f"it still changed by {change:.2g} of itself in the last sweep",), (text,)


def _on_unconstrained_scale(
    program: Program, values: Mapping[str, Tensor], laws: Mapping[str, TorchDistribution]
) -> Tensor:
    """Log density of draws of all restarts there, ``(N, restarts)``, nats."""
    _, log_jacobian = unconstrained(program, values, laws)
    return log_prob(program, values, laws) + log_jacobian


def _anywhere(
    program: Program, z: Tensor, laws: Mapping[str, TorchDistribution], restarts: int
) -> Tensor:
    """The same at any points ``(N, D)``."""
    with sandbox(program.dtype), torch.no_grad():
        values = {
            name: value[:, None].expand(-1, restarts, *value.shape[1:])
            for name, value in program.constrain(z).items()
        }
        return _on_unconstrained_scale(program, values, laws)


def _change(history: list[Tensor]) -> Tensor:
    """Relative change of the ELBO in the last sweep, ``(restarts,)``."""
    return (history[-1] - history[-2]).abs() / history[-1].abs().clamp(min=1.0)
