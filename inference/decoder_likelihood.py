"""Likelihoods of decoder-based models by annealing the code from prior to posterior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from ppgen.arguments import require_positive, require_whole
from ppgen.inference import hmc
from ppgen.likelihood import Likelihood
from ppgen.types import DecoderModel

TARGET = 0.65  # acceptance that the pilot run adapts the step size to
GAIN = 0.15  # of the log step size, for each transition of the pilot run
SETTLING = 30  # transitions of the pilot run at the first temperature


@dataclass(frozen=True)
class Annealing:
    """How the code is moved from prior to posterior.

    Args:
        chains: for each example.
        temperatures: powers of the likelihood, from 0 to 1; more make a tighter bound.
        leapfrogs: of each Hamiltonian transition; one a temperature.
        step_size: where the pilot run starts.
    """

    chains: int = 16
    temperatures: int = 500
    leapfrogs: int = 10
    step_size: float = 0.1

    def __post_init__(self) -> None:
        require_whole(self, chains=self.chains, leapfrogs=self.leapfrogs)
        require_whole(self, least=2, temperatures=self.temperatures)
        require_positive(self, step_size=self.step_size)


def annealed_likelihood(
    story: DecoderModel, data: Tensor, options: Annealing | None = None, *, batch: int = 100
) -> Likelihood:
    r"""A lower bound on the likelihood of `data` that no encoder can spoil.

    .. math:: f_\beta(z) = p(z) \, p(x \mid z)^\beta, \quad
        \log p(x) \ge E \log \frac1K \sum_k w_k

    An importance weighted bound is as loose as its encoder is wrong; here annealed importance
    sampling with Hamiltonian transitions goes from the prior to the posterior. The step sizes,
    one a temperature, come from a pilot run with noise of its own and are then held fixed, without
    which the weights would be biased.

    Args:
        story: with ``prior()`` and ``decode(z)``, such as a VAE; of several layers, with
            ``flat()``, which is that.
        data: ``(N, D)``.
        options: of the annealing.
        batch: examples at a time.

    Raises:
        TypeError: when the story is no decoder.
        ValueError: when the codes have no density to move in.

    References:
        | On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)
        | https://arxiv.org/abs/1611.04273
    """
    options = options or Annealing()
    if data.ndim != 2 or not len(data):
        raise ValueError(f"data must have shape (N, D) with N >= 1; got {tuple(data.shape)}")
    forward, accepted = [], 0.0
    for x in data.split(batch):
        path = _Path(story, x, options)
        log_w, acceptance = path.forward(path.pilot())
        forward.append(log_w)
        accepted += acceptance * len(x) / len(data)
    each, error = _log_mean_weight(torch.cat(forward, -1))
    details = {**vars(options), "acceptance": accepted}
    method = f"annealed importance sampling of the code, {options.temperatures} temperatures"
    value = each.mean().item()
    return Likelihood(
        "lower", value, None, error, None, method, len(data), details, each.cpu().numpy()
    )


def simulated_likelihood(
    story: DecoderModel, count: int = 100, options: Annealing | None = None
) -> Likelihood:
    """Both bounds on data that the story itself has drawn: how much annealing leaves open.

    A code and its example drawn together are an exact draw from the posterior, from which the
    reverse chain bounds the likelihood from above (bidirectional Monte Carlo). The gap on such
    data says how tight `annealed_likelihood` is on real data like them.

    Args:
        story: as there.
        count: examples to draw.
        options: of the annealing.

    References:
        | Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse et al., 2015)
        | https://arxiv.org/abs/1511.02543
    """
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    options = options or Annealing()
    with torch.no_grad():
        story = _decoder(story)
        z = story.prior().sample(torch.Size([count]))
        x = story.decode(z).sample().to(z.dtype)
    path = _Path(story, x, options)
    steps = path.pilot()
    log_w, acceptance = path.forward(steps)
    above, lower_error = _log_mean_weight(log_w)
    # of the reverse chains the mean of 1 / w estimates 1 / p(x)
    below, upper_error = _log_mean_weight(-path.reverse(z, steps))
    details = {**vars(options), "acceptance": acceptance}
    method = f"bidirectional Monte Carlo, {options.temperatures} temperatures, simulated data"
    ends = above.mean().item(), -below.mean().item()
    each = above.cpu().numpy()
    return Likelihood("bounds", *ends, lower_error, upper_error, method, count, details, each)


class _Path:
    """The densities between prior and posterior of some examples, and ways along them."""

    def __init__(self, story: DecoderModel, x: Tensor, options: Annealing) -> None:
        self.story, self.options = _decoder(story), options
        self.prior = self.story.prior()
        example = self.prior.sample()
        self.x, self.latent = x.to(example.dtype), example.shape[-1]
        with torch.no_grad(), pyro.validation_enabled(True):  # once: is x in the law's support?
            self.story.decode(example).log_prob(self.x)
        self.metric = hmc.Metric(torch.ones_like(example))
        self.betas = sigmoid_schedule(options.temperatures)

    def pilot(self) -> list[float]:
        """A step size for each temperature, by a run that is thrown away."""
        step, steps, z = self.options.step_size, [0.0], self._start()
        for beta in [*[self.betas[1]] * SETTLING, *self.betas[1:]]:
            z, acceptance = self._move(z, beta, step)
            step *= math.exp(GAIN * (acceptance - TARGET) / TARGET)
            steps.append(step)
        return [0.0, *steps[SETTLING + 1 :]]

    def forward(self, steps: list[float]) -> tuple[Tensor, float]:
        """Log weights of chains from the prior, ``(chains, N)``, and the mean acceptance."""
        z, total, acceptances = self._start(), self.x.new_zeros(()), []
        for previous, beta, step in zip(self.betas, self.betas[1:], steps[1:], strict=False):
            total = total + (beta - previous) * self._log_likelihood(z)
            z, acceptance = self._move(z, beta, step)
            acceptances.append(acceptance)
        return total.double(), sum(acceptances) / len(acceptances)

    def reverse(self, z: Tensor, steps: list[float]) -> Tensor:
        """The same weights, ``(chains, N)``, along chains from posterior draws, ``(N, L)``."""
        z = z.repeat(self.options.chains, 1)
        total = self.x.new_zeros(())
        for k in range(len(self.betas) - 1, 0, -1):
            z, _ = self._move(z, self.betas[k], steps[k])
            total = total + (self.betas[k] - self.betas[k - 1]) * self._log_likelihood(z)
        return total.double()

    def _start(self) -> Tensor:
        with torch.no_grad():
            return self.prior.sample(torch.Size([self.options.chains * len(self.x)]))

    def _move(self, z: Tensor, beta: float, step: float) -> tuple[Tensor, float]:
        target = self._target(beta)
        state = hmc.init(z, target)
        if not state.log_density.isfinite().all():
            raise ValueError(
                "the log density of a code is not finite: look for values of x without density and "
                "for parameters that have diverged"
            )
        moved, info = hmc.step(
            state,
            value_and_grad=target,
            metric=self.metric,
            step_size=step,
            leapfrogs=self.options.leapfrogs,
        )
        return moved.z, info.acceptance.mean().item()

    def _target(self, beta: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        def value_and_grad(z: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                value = self.prior.log_prob(z) + beta * self._given(z).flatten()
                (gradient,) = torch.autograd.grad(value.sum(), z)
            return value.detach(), gradient

        return value_and_grad

    def _given(self, z: Tensor) -> Tensor:
        """Log p(x | z), ``(chains, N)``."""
        shape = (self.options.chains, len(self.x), self.latent)
        return self.story.decode(z.view(shape)).log_prob(self.x)

    def _log_likelihood(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return self._given(z)


def _decoder(story: Any) -> DecoderModel:
    if hasattr(story, "flat"):
        return story.flat()
    # a prior that is a part, and not a method, is a Boltzmann machine
    if not isinstance(story, DecoderModel) or isinstance(story.prior, torch.nn.Module):
        raise TypeError(
            f"{type(story).__name__} is no decoder: annealing its code needs prior() and decode(z)"
        )
    return story


def sigmoid_schedule(temperatures: int, steepness: float = 4.0) -> list[float]:
    """Powers of the likelihood, from 0 to 1, close to each other near both ends."""
    t = torch.linspace(-steepness, steepness, temperatures + 1, dtype=torch.float64).sigmoid()
    return ((t - t[0]) / (t[-1] - t[0])).tolist()


def _log_mean_weight(log_w: Tensor) -> tuple[Tensor, float]:
    """``log 1/K sum_k w_k`` of each example; the Monte Carlo error of the mean (delta method)."""
    chains, examples = log_w.shape
    each = log_w.logsumexp(0) - math.log(chains)
    if chains == 1:
        return each, math.inf
    spread = (log_w - log_w.amax(0)).exp()
    variance = spread.var(0) / spread.mean(0).square() / chains
    return each, variance.sum().sqrt().item() / examples
