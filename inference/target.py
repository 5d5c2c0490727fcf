"""The target of a sampler: a program's log density and gradient, counted and guarded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.inference.hmc import ValueAndGrad, value
from ppgen.program import Part, Program

_LinAlgError = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]


class Target:
    """Log density and gradient of a program, counted; no row can make the others fail.

    A factorisation that fails in one chain (``torch.linalg.cholesky`` of a matrix that is not
    positive definite) raises for the whole batch: the rows at fault get log density -infinity.
    """

    def __init__(self, program: Program, *, part: Part = "density") -> None:
        self.program = program
        self.part: Part = part
        self.gradients = 0
        self.seconds_compiling = 0.0
        self._safe: Tensor | None = None  # a point where everything works, (D,)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``(C, D)`` -> ``(C,)`` nats, ``(C, D)``."""
        self.gradients += len(z)
        try:
            result = self._evaluated(z)
        except _LinAlgError:
            if self._safe is None:
                raise
            return self._one_by_one(z, self._safe)
        if self._safe is None:
            self._safe = z[0].clone()
        return result

    def _evaluated(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.program.value_and_grad(z, part=self.part)

    def slope_like(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """The gradient alone, ``(C, D)``: what the inner steps of a trajectory from `z` need."""
        gradient = self.program.gradient_like(z, part=self.part)

        def slope(z: Tensor) -> Tensor:
            try:
                result = gradient(z)
            except _LinAlgError:
                return self(z)[1]
            self.gradients += len(z)
            return result

        return slope

    def value(self, z: Tensor) -> Tensor:
        """The log density alone, ``(C,)`` nats; each point counts as if it had a gradient."""
        try:
            result = self.program.value(z, part=self.part)
        except _LinAlgError:
            return self(z)[0]
        self.gradients += len(z)
        return result

    def _one_by_one(self, z: Tensor, safe: Tensor) -> tuple[Tensor, Tensor]:
        """Halve the batch until the failing rows stand alone; shapes stay as recorded."""
        value = z.new_full(z.shape[:1], -torch.inf)
        gradient = torch.zeros_like(z)
        pieces = [slice(0, len(z))]
        while pieces:
            piece = pieces.pop()
            trial = safe.repeat(len(z), 1)
            trial[piece] = z[piece]
            try:
                values, gradients = self._evaluated(trial)
                value[piece], gradient[piece] = values[piece], gradients[piece]
            except _LinAlgError:
                middle = (piece.start + piece.stop) // 2
                if middle > piece.start:
                    pieces += [slice(piece.start, middle), slice(middle, piece.stop)]
        return value, gradient


class InPieces:
    """The same function of any number of points, by calls of `rows`: the shape it is recorded for.

    What is missing in the last call is filled up with its last point.
    """

    def __init__(self, value_and_grad: ValueAndGrad, rows: int) -> None:
        self.function, self.rows = value_and_grad, rows

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self.function(piece) for piece in self._pieces(z)]
        values, gradients = (torch.cat(part)[: len(z)] for part in zip(*parts, strict=True))
        return values, gradients

    def value(self, z: Tensor) -> Tensor:
        """Values alone, ``(N,)``."""
        return torch.cat([value(self.function, piece) for piece in self._pieces(z)])[: len(z)]

    def _pieces(self, z: Tensor) -> tuple[Tensor, ...]:
        return torch.cat([z, z[-1:].expand(-len(z) % self.rows, -1)]).split(self.rows)
