r"""One fit of a family to one story: a guide in its frame, its gradient, its draws."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_all, tree_map

from ppgen.compiling import compiled, unchecked
from ppgen.inference.frame import Frame
from ppgen.inference.guides import FlatGuide
from ppgen.inference.hmc import ValueAndGrad
from ppgen.inference.minibatches import Minibatches
from ppgen.inference.mode import Batched
from ppgen.inference.stochastic_ascent import Ascent, Step
from ppgen.simplify import tidy
from ppgen.tape import Unrecordable, trace

CHECKED = 1024  # draws that compare two states of the guide
Gradients = tuple[Tensor | None, ...]  # one of each parameter


class Fit:
    """A guide in its frame, against one story.

    Args:
        guide: what is trained.
        frame: the affine map that places it.
        function: log density and gradient of the story.
        path_gradient: leave out the score of the guide.
    """

    def __init__(
        self, guide: FlatGuide, frame: Frame, function: Batched, path_gradient: bool
    ) -> None:
        self.guide, self.frame, self.function = guide, frame, function
        self.path_gradient = path_gradient
        self.parameters = list(guide.parameters())
        self.ascent = Ascent([], False, "")
        self.elbo = -torch.inf
        self.seconds_compiling = 0.0
        self._recorded: Callable[..., tuple[Tensor, Gradients]] | None = None
        self._kept: tuple[Tensor, ...] = ()

    def record(self, *, compile: bool = False) -> None:
        """Make one program of tensors of a step: guide, story, and the gradient through both.

        Where that cannot be done, or gives something else, steps stay as they are.
        """
        recording = self.function.recording()
        if recording is None:
            return
        body, self._kept = unchecked(recording.body), tuple(recording.kept())

        def step(noise: Tensor) -> tuple[Tensor, Gradients]:
            return self.slope(noise, lambda z: body(z, *self._kept))

        inputs = self.noise(self.function.particles), *self.parameters, *self._kept
        try:
            graph, _ = trace(step, inputs[0], list(inputs[1:]))
            tidy(graph.graph)
            graph.recompile()
            with torch.no_grad():
                same = tree_map(_close, graph(*inputs), step(inputs[0]))
        except (Unrecordable, RuntimeError):
            return
        if not tree_all(bool, same):
            return
        self._recorded = graph
        if compile:
            begin = time.perf_counter()
            with torch.no_grad():
                fast = compiled(graph, inputs, "steps of VI")
            self._recorded = graph if fast is None else fast
            self.seconds_compiling = time.perf_counter() - begin

    def noise(self, count: int) -> Tensor:
        """Standard normal noise in antithetic pairs, ``(count, noise_dim)``."""
        like = self.frame.centre
        half = torch.randn((count + 1) // 2, self.guide.noise_dim).to(like)
        return torch.cat([half, -half])[:count]

    def step(self, count: int) -> Step:
        """A stochastic gradient of the ELBO."""
        self.function.next()
        noise = self.noise(count)
        if self._recorded is None:
            elbo, gradients = self.slope(noise, self.function)
        else:
            with torch.no_grad():
                elbo, gradients = self._recorded(noise, *self.parameters, *self._kept)
            self.function.gradients += count
        return Step(gradients, float(elbo))

    def slope(
        self, noise: Tensor, value_and_grad: ValueAndGrad, path_gradient: bool | None = None
    ) -> tuple[Tensor, Gradients]:
        """The ELBO by these draws, ``()``, nats, and its gradient in each parameter.

        `path_gradient` as of the fit unless given.
        """
        with torch.enable_grad():
            u, log_q = self.guide(noise)
            value, gradient = value_and_grad(self.frame.push(u.detach()))
            elbo = (value - log_q.detach()).mean() + self.frame.log_det
            along = self.frame.pull(gradient)
            if self.path_gradient if path_gradient is None else path_gradient:
                with torch.no_grad():
                    along = along - self.guide.score(u.detach(), noise)
                surrogate = (along * u).sum()
            else:
                surrogate = (along * u).sum() - log_q.sum()
            surrogate = surrogate / len(noise)
            return elbo, torch.autograd.grad(surrogate, self.parameters, allow_unused=True)

    @torch.no_grad()
    def sample(self, count: int, antithetic: bool = False) -> tuple[Tensor, Tensor]:
        """Draws of z, ``(count, D)``, and their log densities ``(count,)``, nats."""
        like = self.frame.centre
        noise = torch.randn(count, self.guide.noise_dim).to(like)
        u, log_q = self.guide(self.noise(count) if antithetic else noise)
        return self.frame.push(u), log_q - self.frame.log_det

    @torch.no_grad()
    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of any points, ``(K, D) -> (K,)``, nats; of guides that know theirs."""
        known: Any = self.guide
        return known.log_prob(self.frame.back(z)) - self.frame.log_det

    def log_weights(self, count: int) -> Tensor:
        """``log p - log q`` at draws, ``(count,)``; their mean estimates the ELBO."""
        z, log_q = self.sample(count, antithetic=True)
        return self.function.estimates(z) - log_q

    def paired_log_weights(self, count: int) -> Tensor:
        """Their means over antithetic pairs, ``(count / 2,)``: independent of each other."""
        first, second = self.log_weights(count).chunk(2)
        return 0.5 * (first + second)

    def spread(self, count: int) -> float:
        """Standard deviation of these means, nats: zero where the guide is the posterior."""
        return float(self.paired_log_weights(count).std())

    @torch.no_grad()
    def log_weights_of_all_rows(self, count: int) -> Tensor:
        """The same by one pass over all rows."""
        assert isinstance(self.function, Minibatches)
        z, log_q = self.sample(count, antithetic=True)
        return self.function.everything(z)[0] - log_q

    def finished(self, ascent: Ascent) -> Fit:
        weights = self.log_weights(CHECKED)
        self.ascent = ascent
        self.elbo = float(weights.mean().nan_to_num(nan=-torch.inf))
        return self


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
