"""Point estimates: the mode of the posterior, and the maximum of the likelihood."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.inference.independent import Clock
from ppgen.inference.mode import Batched, Mode, edge_sites, find_mode, flat_sites
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.progress import Progress
from ppgen.types import Story

_SETTLED = {torch.float64: 1e-8, torch.float32: 1e-3}  # nats that a Newton step may promise
ROWS = 32  # points to a call


@dataclass(frozen=True)
class MAP:
    """The mode of the posterior: one point, without any width.

    A mode depends on the scale that the sites are written on: that of LogNormal(0, 1) is at
    exp(-1) on its own scale and at 1 on the log scale. A density that rises without limit, as
    that of a centred hierarchy does towards a scale of zero, has none; the run then says so.

    Args:
        starts: dispersed starting points; the highest end counts.
        scale: ``"constrained"`` maximises the density of the sites as the story writes them;
            ``"unconstrained"`` that of the flat vector, with the Jacobian.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def story():
        ...     pyro.sample("x", dist.LogNormal(0.0, 1.0))
        >>> print(f"{MAP().run(story)['x'].item():.4f}")
        0.3679
    """

    starts: int = 16
    scale: Literal["constrained", "unconstrained"] = "constrained"

    def __post_init__(self) -> None:
        require_starts(self, self.starts)
        if self.scale not in ("constrained", "unconstrained"):
            raise ValueError(f"scale must be 'constrained' or 'unconstrained', got {self.scale!r}")

    def run(self, model: Story, *args: Any, **kwargs: Any) -> Posterior:
        program = as_program(model, args, kwargs)
        part = "map" if self.scale == "constrained" else "density"
        function = Batched(program, ROWS, part)
        clock = Clock(program)
        with Progress("MAP", None) as progress:
            mode = find_mode(function, program.initial(ROWS)[: self.starts])
            flat = flat_sites(function, mode, program)
            progress.advance(function.gradients, log_density=float(mode.value))
        clock.fitted()
        where = (
            "the mode on the sites' own scale (no Jacobian)"
            if self.scale == "constrained"
            else "the mode on the unconstrained scale (with the Jacobian)"
        )
        edge = edge_sites(mode, program)
        if edge:
            where += f"; it lies at the edge of the support of {' and '.join(edge)}"
        complaints = _complaints(mode)
        if flat:
            complaints.append(
                f"the density has no mode: it does not fall as {' and '.join(flat)} "
                f"move{'s' if len(flat) == 1 else ''} away; use VI or HMC, or a prior that "
                "keeps away from there"
            )
        return _point(self, program, mode, clock, function, (where, *complaints), not complaints)


@dataclass(frozen=True)
class MLE:
    """The maximum of the likelihood alone; priors only say where the sites live.

    Latent sites that the data do not determine without their priors, as in a hierarchy, have
    no such estimate: the run refuses and names them.

    Args:
        starts: dispersed starting points; the highest end counts.
    """

    starts: int = 16

    def __post_init__(self) -> None:
        require_starts(self, self.starts)

    def run(self, model: Story, *args: Any, **kwargs: Any) -> Posterior:
        """Maximise the likelihood.

        Raises:
            ValueError: where it has no single maximum; the message names the latent sites.
        """
        program = as_program(model, args, kwargs)
        if not program.anatomy.of_kind("observed", "factor"):
            raise ValueError("the story observes nothing, so there is no likelihood to maximise")
        function = Batched(program, ROWS, "likelihood")
        clock = Clock(program)
        with Progress("MLE", None) as progress:
            starts = program.initial(ROWS)
            self._refuse_untouched(program, starts, function)
            mode = find_mode(function, starts[: self.starts])
            flat = flat_sites(function, mode, program)
            if flat:
                raise ValueError(_unidentified(program, flat, "the likelihood does not fall"))
            progress.advance(function.gradients, log_likelihood=float(mode.value))
        clock.fitted()
        complaints = tuple(_complaints(mode))
        return _point(self, program, mode, clock, function, complaints, not complaints)

    def _refuse_untouched(self, program: Program, z: Tensor, function: Batched) -> None:
        _, gradient = function(z)
        moved = (gradient != 0).any(0)
        sites = program.anatomy.of_kind("latent")
        untouched = [n for n, s in sites.items() if not bool(moved[s.start : s.stop].any())]
        if untouched:
            raise ValueError(
                _unidentified(program, untouched, "the likelihood does not change at all")
            )


def as_program(model: Story | Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
    """The model itself where it is a program already.

    Raises:
        ValueError: for a story without latent sites, or a program with further arguments.
    """
    if isinstance(model, Program):
        if args or kwargs:
            raise ValueError(
                "a Program holds its data already: pass no further arguments, or use "
                "program.with_data(...)"
            )
        program = model
    else:
        program = Program(model, *args, **kwargs)
    if program.dim == 0:
        raise ValueError("the story has no continuous latent site, so there is nothing to infer")
    return program


def parents(program: Program) -> dict[str, list[str]]:
    """For each latent site the other latent sites that its prior shares a factor with."""
    z = program.anatomy.prototype[None].to(program.dtype)
    sites = program.anatomy.of_kind("latent")
    full, likelihood = Batched(program, ROWS, "map"), Batched(program, ROWS, "likelihood")

    def slope(point: Tensor) -> Tensor:
        return full(point)[1] - likelihood(point)[1]

    found: dict[str, list[str]] = {}
    base = slope(z)[0]
    for name, site in sites.items():
        moved = z.clone()
        moved[:, site.start : site.stop] += 0.1
        change = (slope(moved)[0] - base).abs() > 1e-6 * (1 + base.abs())
        found[name] = [
            n for n, s in sites.items() if n != name and bool(change[s.start : s.stop].any())
        ]
    return found


def _unidentified(program: Program, sites: list[str], what: str) -> str:
    kin = {n: others for n, others in parents(program).items() if n in sites and others}
    ties = "; ".join(f"the prior ties {n} to {', '.join(others)}" for n, others in kin.items())
    hierarchy = f" ({ties})" if ties else ""
    return (
        f"MLE: {what} as {' and '.join(sites)} move{'s' if len(sites) == 1 else ''}: without "
        f"the prior the data do not determine {'it' if len(sites) == 1 else 'them'}"
        f"{hierarchy}; use MAP, VI or HMC, which keep the prior, or integrate the site out"
    )


def require_starts(engine: object, starts: int) -> None:
    """Refuse a number of starting points that does not fit into one call."""
    require_whole(engine, starts=starts)
    if starts > ROWS:
        name = type(engine).__name__
        raise ValueError(f"{name}(starts=...) must be at most {ROWS}, got {starts}")


def _complaints(mode: Mode) -> list[str]:
    if mode.decrement <= _SETTLED.get(mode.z.dtype, 1e-3):
        return []
    return [f"the ascent stopped {mode.decrement:.2g} nats below where it was heading"]


def _point(
    engine: MAP | MLE,
    program: Program,
    mode: Mode,
    clock: Clock,
    function: Batched,
    messages: tuple[str, ...],
    converged: bool,
) -> Posterior:
    z = mode.z[None, None]
    return Posterior.from_program(
        program,
        z,
        engine=type(engine).__name__,
        kind="point",
        converged=converged,
        messages=messages,
        options=dataclasses.asdict(engine),
        log_density=program.log_density(z),
        cost=clock.cost(function.gradients),
    )
