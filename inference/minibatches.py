r"""Log densities of all rows, estimated from a batch of them without bias and nearly without noise.

With a point :math:`z_0` at which the gradient of all rows is known, a batch has to estimate
only how its log density :math:`f_B` differs from its own linear approximation there,

.. math:: f(z) \approx f_B(z) - f_B(z_0) - \nabla f_B(z_0) \cdot (z - z_0)
          + f(z_0) + \nabla f(z_0) \cdot (z - z_0)

Each row's log density is nearly linear over a posterior that N rows have made narrow: in its
standard deviations the noise of a gradient is about :math:`1 / \sqrt B`, against
:math:`\sqrt{N / B}` for the batch alone.

References:
    | Control variates for stochastic gradient MCMC (Baker, Fearnhead, Fox & Nemeth, 2019)
    | https://arxiv.org/abs/1706.05439
    | Communication-efficient distributed optimization using an approximate Newton-type method
    | (Shamir, Srebro & Zhang, 2014) | https://arxiv.org/abs/1312.7853
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.inference.data_plate import Rows
from ppgen.inference.frame import Frame
from ppgen.inference.mode import Batched
from ppgen.inference.point import as_program
from ppgen.inference.vi_start import find_frame
from ppgen.posterior import Posterior
from ppgen.types import Story

_PASSES = 8  # over all rows, at most, that look for the anchor
_NEAR = 0.1  # of a standard deviation in each dimension, between two anchors: near enough
_MANY = 65  # points to a call beside those of the steps: 64 and the anchor
_BATCHES = 16  # of rows, that `estimates` are spread over
_AFFORDABLE = 2e7  # rows times draws whose log densities are computed
_LENGTHS = (1.0, 0.5, 0.25, 0.1, 1.5)  # of the move to the next anchor


class Anchor(NamedTuple):
    """A point at which all rows are known."""

    z: Tensor  # (D,)
    value: Tensor  # log density of all rows, (), nats
    gradient: Tensor  # of it, (D,)


class Minibatches(Batched):
    """As :class:`Batched`, of one batch of rows at a time, each an unbiased estimate of all.

    Args:
        model: the story.
        args: its arguments.
        kwargs: its keyword arguments.
        batch_size: rows of a batch; None where the story takes its rows itself.
        particles: points to a step.
    """

    def __init__(
        self,
        model: Story,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        batch_size: int | None,
        particles: int,
    ) -> None:
        self.data = Rows(model, args, kwargs, batch_size)
        program = as_program(self.data.program, (), {})
        super().__init__(program, particles + 1, tolerant=True)  # and the anchor
        self._many = Batched(self.program, _MANY, tolerant=True)
        self.particles = particles
        self.anchor: Anchor | None = None

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.anchor is None:
            return self._of_batch(z)
        at = self.anchor
        values, gradients = self._of_batch(torch.cat([z, at.z[None]]))
        turn = at.gradient - gradients[-1]
        values = values[:-1] - values[-1] + at.value + (z - at.z) @ turn
        return values, gradients[:-1] + turn

    def value(self, z: Tensor) -> Tensor:
        return self(z)[0]

    def next(self) -> None:
        """The next batch of the epoch."""
        self.data.next()

    def recording(self) -> None:
        """None: each batch is another function."""

    def estimates(self, z: Tensor) -> Tensor:
        """Values at many points, ``(N,)``, spread over batches at random."""
        parts = []
        for some in z.split(-(-len(z) // _BATCHES)):
            self.data.draw()
            parts.append(self(some)[0])
        return torch.cat(parts)

    def _of_batch(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if len(z) <= self.rows:
            return super().__call__(z)
        self.gradients += len(z)
        return self._many(z)

    def everything(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(K,)`` and gradients ``(K, D)`` of all rows: one pass over the data.

        Raises:
            ValueError: where the log density of some rows is not finite at any of the points.
        """
        values, gradients = torch.zeros_like(z[:, 0]), torch.zeros_like(z)
        for rows, weight in self.data.cover():
            self.data.take(rows)
            some = self._of_batch(z)
            if not bool(torch.isfinite(some[0]).any()):
                raise ValueError(
                    f"the log density of rows {int(rows.min())} to {int(rows.max())} is "
                    f"{float(some[0][0])}: look for values there that are not finite"
                )
            values, gradients = values + weight * some[0], gradients + weight * some[1]
        return values, gradients

    def log_density(self, z: Tensor) -> Tensor | None:
        """Of all rows; None where draws times rows are too many."""
        affordable = len(z) * self.data.plate.size <= _AFFORDABLE
        return self.everything(z)[0] if affordable else None

    def described(self, log_weights: Tensor) -> str:
        """What the fit saw, and its ELBO by one pass over all rows."""
        plate, mean = self.data.plate, float(log_weights.mean())
        first, second = log_weights.chunk(2)  # an antithetic pair is one draw
        error = float((0.5 * (first + second)).std() / len(first) ** 0.5)
        return (
            f"batches of {plate.taken} of the {plate.size} rows of '{plate.name}'; "
            f"ELBO of all rows {mean:.2f} +- {error:.2f} nats"
        )

    def kept(self, posterior: Posterior) -> Posterior:
        """Without the deterministic sites that hold a value for each row of a batch."""
        partial = self.data.partial
        return replace(
            posterior,
            draws={n: x for n, x in posterior.draws.items() if n not in partial},
            deterministic=tuple(n for n in posterior.deterministic if n not in partial),
        )

    def start(self, *, dense: bool) -> Frame:
        r"""The best local normal, and an anchor near its centre.

        The posterior of one batch lies :math:`\sqrt{N / B}` standard deviations off. From there
        the batch, tilted to the slope of all rows, has its own best normal nearer by, and so on.
        """
        if self.anchor is not None:
            return find_frame(self, self._around(self.anchor.z), dense=dense)
        self.next()
        frame = find_frame(self, self.program.initial(_MANY), dense=dense)
        self.anchor = self._anchored(frame.centre[None])
        for _ in range(_PASSES):
            self.next()
            frame = find_frame(self, self._around(frame.centre, frame), dense=dense)
            move = frame.centre - self.anchor.z
            far = float(frame.back((frame.centre + move)[None]).square().mean().sqrt())
            if far < _NEAR:
                break
            lengths = torch.tensor(_LENGTHS).to(move)
            before = self.anchor
            self.anchor = self._anchored(before.z + lengths[:, None] * move)
            if not float(self.anchor.value) > float(before.value):
                self.anchor = before
                break
        return frame

    def _anchored(self, z: Tensor) -> Anchor:
        """The highest of the points ``(K, D)``, by all rows."""
        values, gradients = self.everything(z)
        best = int(values.nan_to_num(nan=-torch.inf).argmax())
        return Anchor(z[best], values[best], gradients[best])

    def _around(self, z: Tensor, frame: Frame | None = None) -> Tensor:
        noise = torch.randn(_MANY - 1, len(z)).to(z)
        return z + 1e-3 * noise if frame is None else frame.push(noise)
