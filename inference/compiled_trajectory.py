"""Whole trajectories of HMC as one compiled program.

A trajectory is a loop of leapfrogs around the recorded gradient. ``torch.compile`` takes loop and
gradient together, with the number of steps as an input: it is compiled once for all lengths, and a
leapfrog is then one pass of fused code instead of some hundred operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppgen.compiling import apart, compiled, unchecked
from ppgen.inference.hmc import Onward, trajectory
from ppgen.inference.target import Target
from ppgen.program import Program
from ppgen.recording import Recording

Whole = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


class CompiledTarget(Target):
    """A target that also runs whole trajectories.

    Single gradients stay as recorded: starts need few of them, and each shape would be compiled.

    Args:
        program: one that is recorded; of a story that is evaluated point by point, nothing is
            compiled, which a warning says.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._compiled: dict[tuple[torch.Size, torch.Size], Whole | None] = {}
        self._kept: tuple[Any, list[Tensor]] = None, []

    def trajectory(
        self, z: Tensor, r: Tensor, gradient: Tensor, scaled: Tensor, leapfrogs: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """A trajectory of all chains, or None where it has to be run step by step.

        Args:
            z: positions, ``(C, D)``.
            r: whitened momenta there, ``(C, D)``.
            gradient: of the log density there, ``(C, D)``.
            scaled: the metric's factor times the step size, ``(D,)`` or ``(D, D)``.
            leapfrogs: at least 1.

        Returns: position, log density, gradient and momentum at its end.
        """
        recording = self.program.recorded_gradient(z, part=self.part)
        if recording is None:
            return None
        key = z.shape, scaled.shape
        kept = recording.kept()
        if kept is not self._kept[0]:
            self._kept = kept, apart(kept)
        inputs = (z, r, gradient, scaled, torch.tensor(leapfrogs - 1), *self._kept[1])
        if key not in self._compiled:
            self._compiled[key] = self._compile(recording, inputs)
        whole = self._compiled[key]
        if whole is None:
            return None
        with torch.no_grad():
            found = whole(*inputs)
        self.gradients += len(z) * leapfrogs
        return found

    def _compile(self, recording: Recording, inputs: tuple[Tensor, ...]) -> Whole | None:
        """The compiled trajectory, if it does on `inputs` what it has to do."""
        begin = time.perf_counter()
        body = unchecked(recording.body)
        slope = recording.alone(1)
        plain = trajectory_of(body, unchecked(slope) if slope else lambda *z: body(*z)[1])
        with torch.no_grad():
            one_step = (*inputs[:4], torch.zeros_like(inputs[4]), *inputs[5:])
            found = compiled(plain, one_step, "trajectories")
        self.seconds_compiling += time.perf_counter() - begin
        return found


def trajectory_of(
    value_and_slope: Callable[..., tuple[Tensor, Tensor]], slope: Callable[..., Tensor]
) -> Whole:
    """:func:`ppgen.inference.hmc.trajectory` with a loop that can be compiled.

    Args:
        value_and_slope: ``(z, *kept) -> log density (C,), gradient (C, D)``.
        slope: the gradient alone.

    Returns: ``(z, r, gradient, scaled, inner, *kept)`` -> ``z``, log density, gradient and ``r`` at
        the end of ``inner + 1`` steps.
    """

    def repeat(inner: Tensor, onward: Onward, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        def body(done: Tensor, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return done + 1, *onward(z, r)

        start = torch.zeros_like(inner), z, r
        return torch.while_loop(lambda done, z, r: done < inner, body, start)[1:]

    def run(
        z: Tensor, r: Tensor, gradient: Tensor, scaled: Tensor, inner: Tensor, *kept: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return trajectory(
            z,
            r,
            gradient,
            scaled,
            inner,
            value_and_slope=lambda z: value_and_slope(z, *kept),
            slope=lambda z: slope(z, *kept),
            repeat=repeat,
        )

    return run
