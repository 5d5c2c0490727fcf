"""Any Pyro guide: autoguides and hand-written ones.

Where every site of the guide is reparameterised, many draws of the guide (under vmap) meet the
recorded story in one call. Where plates are subsampled, so that there is no recording, or the guide
draws discrete sites, guide and story both run under vmap, each draw on rows of its own; the score
of sites without reparameterised draws is weighed by the ELBO less that of the other draws.
Otherwise Pyro's own ELBO does it, draw by draw.

References:
    | Buy 4 REINFORCE samples, get a baseline for free! (Kool, van Hoof & Welling, 2019)
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ppgen.inference.mode import Batched
from ppgen.inference.point import as_program
from ppgen.inference.stochastic_ascent import Ascent, Schedule, Step, ascend
from ppgen.inference.vi_guides import Guide, GuideFactory
from ppgen.inference.vi_sites import (
    common_sites,
    fresh_parameters,
    is_latent,
    is_point,
    subsampled_plates,
    traced,
)
from ppgen.posterior import Cost, Posterior
from ppgen.program import Program
from ppgen.progress import Progress, interruptible
from ppgen.story import Frozen, sandbox
from ppgen.supports import unconstrained_view
from ppgen.types import Story

_CHECKED = 100  # evaluations of Pyro's ELBO that compare two states of the guide
_CHUNK = 1000  # draws of a guide at once
Sites = dict[str, Tensor]


def fit_pyro_guide(
    model: Story,
    guide: GuideFactory | Guide,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    draws: int,
    particles: int | None,
    schedule: Schedule,
    options: dict[str, Any],
) -> Posterior:
    """Train `guide` for `model` and draw from it.

    Parameters of modules are trained in place; ``pyro.param`` values live in a scope of their
    own and start from their initial values. A subsampled plate leaves no density to evaluate:
    the posterior then holds draws of the sites outside it, and k-hat is unknown.

    Raises:
        ValueError: where the sites of the guide are not the latent sites of the story, naming
            them, or where the guide has no parameters.
    """
    program = None
    if isinstance(model, Program) or not _subsampled(model, args, kwargs):
        program = as_program(model, args, kwargs)
        model, args, kwargs = program.model, program.args, program.kwargs
    recorded, now = (
        (program.seconds_recording, program.now) if program else (0.0, time.perf_counter)
    )
    dtype = _dtype(guide, program)
    args, kwargs = tree_map(lambda v: _cast(v, dtype), (args, kwargs))
    begin = now()
    with sandbox(dtype):
        chosen: Guide = guide.build(model) if isinstance(guide, GuideFactory) else guide
        fit = _Fit(model, chosen, args, kwargs, program, particles)
        with interruptible() as interrupt, Progress("VI (Pyro guide)") as progress:
            ascent = ascend(fit.step, fit.evaluate, fit.parameters, schedule, interrupt, progress)
        between = now()
        values, log_q = fit.sample(draws)
        unknown = fit.unknown_density()
    fields = _fields(ascent, unknown, options)
    if program is None:
        cost = Cost(
            adapting=between - begin,
            sampling=now() - between,
            gradients=fit.gradients,
        )
        return Posterior(draws={n: v[None] for n, v in values.items()}, cost=cost, **fields)
    recording = program.seconds_recording - recorded
    z, log_jacobian = fit.flatten(values)
    if not unknown:
        fields["log_guide"] = (log_q + log_jacobian).to(program.dtype)[None]
    z = z.to(program.dtype)
    log_density, _ = fit.function(z) if fit.function else (program.log_density(z), None)
    cost = Cost(
        recording=recording,
        adapting=between - begin - recording,
        sampling=now() - between,
        gradients=fit.gradients,
    )
    return Posterior.from_program(
        program, z[None], log_density=log_density[None], cost=cost, **fields
    )


class _Fit:
    """A guide and a story with its data."""

    def __init__(
        self,
        model: Story,
        guide: Guide,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        program: Program | None,
        particles: int | None,
    ) -> None:
        self.guide, self.args, self.kwargs, self.program = guide, args, kwargs, program
        self.parameters, self.first = fresh_parameters(guide, args, kwargs)
        with torch.random.fork_rng(devices=[]):
            self.story = traced(model, args, kwargs)
        self.sites = common_sites(self.first, self.story)
        self.batched = self._can_batch()
        self.function: Batched | None = None
        self.model = model
        self._gradients = 0
        if program is not None and self.batched and self._reparameterised():
            self.function = Batched(program, particles or 64)
            return
        self.particles = particles or 8
        self.paired = self.batched and self._can_pair()
        if program is not None and program.anatomy.of_kind("enumerated"):
            model = config_enumerate(model)
            nesting = program.anatomy.plate_nesting
            self.elbo: Any = TraceEnum_ELBO(num_particles=self.particles, max_plate_nesting=nesting)
        else:
            self.elbo = Trace_ELBO(num_particles=self.particles)
        self.model = model

    @property
    def gradients(self) -> int:
        return self.function.gradients if self.function else self._gradients

    def step(self) -> Step:
        """A stochastic gradient of the ELBO."""
        if self.function is None:
            self._gradients += self.particles
            if self.paired:
                value, score, _ = self._pairs(self.particles)
                fixed = value.detach()
                others = (fixed.sum() - fixed) / max(self.particles - 1, 1)
                surrogate = value + (fixed - others) * score
                return self._ascending(surrogate.mean(), float(fixed.mean()))
            loss = self.elbo.differentiable_loss(self.model, self.guide, *self.args, **self.kwargs)
            return self._ascending(-loss, -float(loss.detach()))
        count = self.function.rows
        z, log_q = self._flat_draws(count)
        value, slope = self.function(z.detach())
        elbo = float((value - log_q.detach()).mean())
        return self._ascending(((slope * z).sum() - log_q.sum()) / count, elbo)

    def _ascending(self, surrogate: Tensor, elbo: float) -> Step:
        gradients = torch.autograd.grad(surrogate, self.parameters, allow_unused=True)
        return Step(gradients, elbo)

    def evaluate(self) -> Tensor:
        """Independent estimates of the ELBO, ``(S,)``, nats."""
        if self.function is None and self.paired:
            with torch.no_grad():
                parts = [self._pairs(_CHECKED)[0] for _ in range(self.particles)]
                return torch.cat(parts).double()
        if self.function is None:
            data = (self.args, self.kwargs)
            losses = [
                self.elbo.loss(self.model, self.guide, *data[0], **data[1]) for _ in range(_CHECKED)
            ]
            return -torch.tensor(losses, dtype=torch.float64)
        with torch.no_grad():
            z, log_q = self._flat_draws(_CHUNK)
            return self.function(z)[0] - log_q

    @torch.no_grad()
    def sample(self, draws: int) -> tuple[Sites, Tensor]:
        """Draws of the sites ``(draws, *shape)`` and their joint log densities ``(draws,)``."""
        if self.batched:
            sizes = [min(_CHUNK, draws - i) for i in range(0, draws, _CHUNK)]
            runs = [self._draws(size) for size in sizes]
            values = {n: torch.cat([run[0][n] for run in runs]) for n in self.sites}
            return values, torch.cat([run[1] for run in runs])
        singles = [self._draw() for _ in range(draws)]
        values = {n: torch.stack([run[0][n] for run in singles]) for n in self.sites}
        return values, torch.stack([run[1] for run in singles])

    def flatten(self, values: Sites) -> tuple[Tensor, Tensor]:
        """Draws as flat vectors z ``(S, D)``, and ``log |d values / dz|``, ``(S,)``."""
        assert self.program is not None
        parts, log_jacobian = [], torch.zeros(())
        for name in self.program.sites:
            transform = unconstrained_view(self.story.nodes[name]["fn"].support)
            value = values[name]
            point = transform.inv(value)
            more = transform.log_abs_det_jacobian(point, value)
            log_jacobian = log_jacobian + more.reshape(len(value), -1).sum(-1)
            parts.append(point.reshape(len(value), -1))
        return torch.cat(parts, -1), log_jacobian

    def unknown_density(self) -> str:
        """Why the guide's density at a draw is not known; empty if it is."""
        if self.program is None:
            return "a plate is subsampled, so log densities and k-hat are unknown"
        extra = [n for n in self.sites if n not in self.program.sites]
        if extra:
            return f"the guide draws the discrete {', '.join(extra)}, so k-hat is unknown"
        points = [n for n in self.sites if is_point(self.first.nodes[n]["fn"])]
        if points and not isinstance(self.guide, AutoGuide):
            return f"the guide puts all mass of {', '.join(points)} on points: k-hat is unknown"
        return ""

    def _draw(self, _: Any = None) -> tuple[Sites, Tensor]:
        trace = traced(self.guide, self.args, self.kwargs)
        log_q = torch.as_tensor(trace.log_prob_sum())
        return {name: trace.nodes[name]["value"] for name in self.sites}, log_q

    def _draws(self, count: int) -> tuple[Sites, Tensor]:
        with _OutOfPlace():
            return vmap(self._draw, randomness="different")(torch.zeros(count))

    def _flat_draws(self, count: int) -> tuple[Tensor, Tensor]:
        values, log_q = self._draws(count)
        z, log_jacobian = self.flatten(values)
        return z, log_q + log_jacobian

    def _can_batch(self) -> bool:
        """Whether vmap runs the guide, and flat vectors lead back to the same values."""
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values, _ = self._draws(3)
                if self.program is None:
                    return True
                z, _ = self.flatten(values)
                back = self.program.constrain(z.to(self.program.dtype))
        except (RuntimeError, ValueError, NotImplementedError, TypeError):
            return False
        near = 1e-4 if z.dtype == torch.float32 else 1e-8
        return all(
            torch.allclose(back[n], values[n].to(back[n]), near, near) for n in self.program.sites
        )

    def _pairs(self, count: int) -> tuple[Tensor, Tensor, Sites]:
        """Estimates of the ELBO, nats, scores of sites without rsample, and all that was drawn.

        ``(count,)`` each. Scores are of the rows that were taken, not counted N / B times.
        """

        def one(_: Tensor) -> tuple[Tensor, Tensor, Sites]:
            drawn = traced(self.guide, self.args, self.kwargs)
            story = pyro.poutine.replay(self.model, trace=drawn)
            met = traced(story, self.args, self.kwargs)
            elbo = torch.as_tensor(met.log_prob_sum() - drawn.log_prob_sum())
            score, values = torch.zeros_like(elbo), {}
            for name, node in (*drawn.nodes.items(), *met.nodes.items()):
                if node["type"] == "sample" and not node["is_observed"]:
                    values[name] = node["value"]
            for node in drawn.nodes.values():
                if is_latent(node) and not node["fn"].has_rsample:
                    score = score + node["fn"].log_prob(node["value"]).sum()
            return elbo, score, values

        with _OutOfPlace():
            return vmap(one, randomness="different")(torch.zeros(count))

    def _can_pair(self) -> bool:
        """Whether vmap runs guide and story, and finds what one run of each by itself does."""
        latent = {n for n, node in self.story.nodes.items() if is_latent(node)}
        summed = any(node.get("infer", {}).get("enumerate") for node in self.first.nodes.values())
        if summed or not latent <= set(self.first.nodes):
            return False  # Pyro sums over sites, or the story draws some from its prior
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                elbos, _, values = self._pairs(2)
                here = {name: value[1] for name, value in values.items()}
                drawn = traced(_replayed(self.guide, self.first, here), self.args, self.kwargs)
                met = traced(_replayed(self.model, self.story, here), self.args, self.kwargs)
                alone = torch.as_tensor(met.log_prob_sum() - drawn.log_prob_sum())
        except (RuntimeError, ValueError, NotImplementedError, TypeError):
            return False
        return torch.allclose(elbos[1], alone, 1e-4, 1e-4)

    def _reparameterised(self) -> bool:
        every = all(node["fn"].has_rsample for node in self.first.nodes.values() if is_latent(node))
        assert self.program is not None
        return every and set(self.sites) == set(self.program.sites)


def _replayed(function: Story, trace: Any, values: Sites) -> Story:
    """The same with these values for the sites of `trace` that it draws, rows of plates too."""
    given = trace.copy()
    for name in given.nodes:
        if name in values:
            given.nodes[name] = {**given.nodes[name], "value": values[name]}
    return pyro.poutine.replay(function, trace=given)


class _OutOfPlace(TorchFunctionMode):
    """Random numbers out of place: vmap cannot fill a tensor that all rows share.

    torch's distributions write ``torch.empty(shape).normal_()`` and use what it returns.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_) and not given.get("generator"):
            first, second = (*args[1:], *given.values(), *(0.0, 1.0)[len(args) - 1 + len(given) :])
            if func is torch.Tensor.normal_:
                return first + second * torch.randn_like(args[0])
            return first + (second - first) * torch.rand_like(args[0])
        if func is torch.Tensor.exponential_ and len(args) == 1 and not given:
            return -torch.log1p(-torch.rand_like(args[0]))
        if func is torch.Tensor.clamp_:  # without a rule of its own it would run row by row
            return args[0].copy_(torch.clamp(*args, **given))
        return func(*args, **given)


def _fields(ascent: Ascent, unknown: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "engine": "VI",
        "kind": "independent",
        "converged": ascent.settled,
        "messages": tuple(m for m in (ascent.message, unknown) if m),
        "options": options,
        "history": {"elbo": torch.tensor(ascent.history, dtype=torch.float64)},
    }


def _subsampled(model: Story, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    scope = pyro.get_param_store().scope()
    with scope, pyro.validation_enabled(False), torch.random.fork_rng(devices=[]), Frozen():
        return bool(subsampled_plates(traced(model, args, kwargs)))


def _dtype(guide: Guide | GuideFactory, program: Program | None) -> torch.dtype:
    owner = getattr(guide, "__self__", guide)
    if isinstance(owner, torch.nn.Module):
        for parameter in owner.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return torch.get_default_dtype() if program is None else program.dtype


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value
