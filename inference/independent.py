"""How every run ends that returns independent draws of a density it can evaluate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ppgen.posterior import Cost, Posterior
from ppgen.program import Program


class Clock:
    """Seconds since it was made, by phase; those of recording the program apart."""

    def __init__(self, program: Program) -> None:
        self.program, self.recorded = program, program.seconds_recording
        self.begin = self.adapted = program.now()
        self.recording = self.compiling = 0.0

    def fitted(self, *, compiling: float = 0.0) -> None:
        """What follows is drawing; `compiling` are seconds of what went before."""
        self.adapted, self.compiling = self.program.now(), compiling
        self.recording = self.program.seconds_recording - self.recorded

    def cost(self, gradients: int = 0) -> Cost:
        """Of the run up to now."""
        recording = self.program.seconds_recording - self.recorded
        drawing = self.program.now() - self.adapted
        return Cost(
            recording=recording,
            compiling=self.compiling,
            adapting=max(0.0, self.adapted - self.begin - self.recording - self.compiling),
            sampling=max(0.0, drawing - (recording - self.recording)),
            gradients=gradients,
        )


def independent(
    program: Program,
    z: Tensor,
    log_guide: Tensor | None,
    *,
    log_density: Callable[[Tensor], Tensor | None],
    cost: Callable[[], Cost],
    engine: str,
    options: dict[str, Any],
    complaints: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    history: dict[str, Tensor] | None = None,
    guide_log_prob: Callable[[Tensor], Tensor] | None = None,
) -> Posterior:
    """Wrap draws of an approximation.

    Args:
        program: the story with its data.
        z: draws, ``(S, D)``.
        log_guide: log density of the approximation at each, ``(S,)``, nats; None where it is not
            known.
        log_density: of the story, ``(S, D) -> (S,)``, nats; None where it is not known.
        cost: asked once the densities have been computed.
        engine: its name.
        options: its options.
        complaints: why the run has not converged, if it has not.
        notes: what else it has to say.
        history: what changed during the fit.
        guide_log_prob: log density of the approximation at any points, ``(N, D) -> (N,)``, nats.
    """
    values = log_density(z)
    return Posterior.from_program(
        program,
        z[None],
        engine=engine,
        kind="independent",
        converged=not complaints,
        messages=(*complaints, *notes),
        options=options,
        log_density=None if values is None else values[None],
        log_guide=None if log_guide is None else log_guide[None],
        history=history or {},
        cost=cost(),
        guide_log_prob=guide_log_prob,
    )
