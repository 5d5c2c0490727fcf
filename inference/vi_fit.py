r"""One fit of a family to one story: a guide in its frame, its gradient, its draws."""

from __future__ import annotations

import math
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
_PAIRS = 64  # of groups of importance samples, at least, that do
_AT_ONCE = 2**16  # importance samples
Gradients = tuple[Tensor | None, ...]  # one of each parameter


class Fit:
    """A guide in its frame, against one story.

    Args:
        guide: what is trained.
        frame: the affine map that places it.
        function: log density and gradient of the story.
        path_gradient: leave out the score of the guide.
        importance_samples: K, draws to each logarithm of the bound.
    """

    def __init__(
        self,
        guide: FlatGuide,
        frame: Frame,
        function: Batched,
        path_gradient: bool,
        importance_samples: int = 1,
    ) -> None:
        self.guide, self.frame, self.function = guide, frame, function
        self.path_gradient, self.importance_samples = path_gradient, importance_samples
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
        """A stochastic gradient of the bound."""
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
        """The bound by these draws, ``()``, nats, and its gradient in each parameter.

        `path_gradient` as of the fit unless given.
        """
        on_path = self.path_gradient if path_gradient is None else path_gradient
        with torch.enable_grad():
            u, log_q = self.guide(noise)
            value, gradient = value_and_grad(self.frame.push(u.detach()))
            log_weights = value - log_q.detach()
            bounds = self._bounds(log_weights)
            along = self.frame.pull(gradient)
            if on_path:
                with torch.no_grad():
                    along = along - self.guide.score(u.detach(), noise)
            if self.importance_samples > 1:
                share = self._grouped(log_weights).softmax(-1).flatten()
                share = share.square() if on_path else share  # doubly reparameterised
                along, log_q = share[:, None] * along, share * log_q
            surrogate = (along * u).sum() if on_path else (along * u).sum() - log_q.sum()
            surrogate = surrogate / len(bounds)
            gradients = torch.autograd.grad(surrogate, self.parameters, allow_unused=True)
            return bounds.mean() + self.frame.log_det, gradients

    def _grouped(self, log_weights: Tensor) -> Tensor:
        """``(S,) -> (S / K, K)``."""
        return log_weights.unflatten(0, (-1, self.importance_samples))

    def _bounds(self, log_weights: Tensor) -> Tensor:
        """The log of the mean weight of each K draws, ``(S,) -> (S / K,)``, nats."""
        if self.importance_samples == 1:
            return log_weights
        return self._grouped(log_weights).logsumexp(-1) - math.log(self.importance_samples)

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

    def bounds(self) -> Tensor:
        """Estimates of the bound, nats: means of antithetic pairs, independent of each other."""
        draws = whole(max(CHECKED, _PAIRS * self.importance_samples), self.importance_samples)
        first, second = self._bounds(self.log_weights(draws)).chunk(2)
        return 0.5 * (first + second)

    def spread(self) -> float:
        """Standard deviation of these estimates: zero where the guide is the posterior."""
        return float(self.bounds().std())

    @torch.no_grad()
    def resample(self, count: int) -> tuple[Tensor, Tensor]:
        """One of each K draws in proportion to ``p / q``, ``(count, D)``; log weights of all.

        Those are ``(count, K)``, nats; the mean of ``log 1/K sum_k w_k`` is the bound.
        """
        groups = max(1, _AT_ONCE // self.importance_samples)
        chosen, weights = [], []
        for begin in range(0, count, groups):
            size = min(groups, count - begin)
            z, log_q = self.sample(size * self.importance_samples)
            log_w = self._grouped(self.function.estimates(z) - log_q)
            log_w = log_w.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
            gumbel = -torch.empty_like(log_w).exponential_().log()  # its maximum draws by weight
            place = (log_w + gumbel).argmax(-1)
            chosen.append(z.unflatten(0, log_w.shape)[torch.arange(size), place])
            weights.append(log_w)
        return torch.cat(chosen), torch.cat(weights)

    @torch.no_grad()
    def log_weights_of_all_rows(self, count: int) -> Tensor:
        """The same by one pass over all rows."""
        assert isinstance(self.function, Minibatches)
        z, log_q = self.sample(count, antithetic=True)
        return self.function.everything(z)[0] - log_q

    def finished(self, ascent: Ascent) -> Fit:
        self.ascent = ascent
        self.elbo = float(self.bounds().mean().nan_to_num(nan=-torch.inf))
        return self


def whole(draws: int, importance_samples: int) -> int:
    """At least so many draws, in pairs of groups of K: the draws of each are independent."""
    pair = 2 * importance_samples
    return pair * math.ceil(draws / pair)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
