r"""Posterior simulation-based calibration: is an engine right near the data at hand?

Calibration over the prior may fail, or pass, in parts of the parameter space that the data exclude,
and needs proper priors. Here the true values come from a first posterior, new data from them, and
the engine fits both data sets together:

.. math:: \theta' \sim p(\theta \mid y), \quad y' \sim p(y' \mid \theta'), \quad
          p(\theta \mid y, y') \propto p(\theta)\, p(y \mid \theta)\, p(y' \mid \theta)

If first posterior and engine are right, the rank of :math:`\theta'` among draws from the second is
uniform.

References:
    | Posterior SBC: Simulation-Based Calibration Checking Conditional on Data
    | (Säilynoja, Schmitt, Bürkner & Vehtari, 2025) | https://arxiv.org/abs/2502.03279
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.inference.calibrate import calibrated
from ppgen.inference.calibration import Calibration
from ppgen.inference.declared import story_name
from ppgen.inference.fit import fit
from ppgen.inference.hmc_engine import HMC
from ppgen.names import refuse_taken
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.types import Engine, Story

_AGAIN = "again: "  # before the names of the second data set's sites


def calibrate_given_data(
    model: Story | Program,
    engine: Engine,
    *args: Any,
    first: Engine | None = None,
    simulations: int = 200,
    draws: int = 100,
    level: float = 0.01,
    seed: int | None = 0,
    **kwargs: Any,
) -> Calibration:
    """Check an engine on data that replicate the given ones.

    Args:
        model: the story; flat priors will do, where the posterior is proper.
        engine: the engine with its options; one that fits any story, not a declared structure.
        args: the story's arguments, the data among them.
        first: the engine of the first posterior, from which true values come; ``HMC()`` when
            None. A first posterior that is wrong is flagged like an engine that is.
        simulations: data sets.
        draws: posterior draws to rank among, at most.
        level: the chance that a correct engine is flagged, all quantities together.
        seed: of the whole; None continues from the caller's random state.
        kwargs: the story's keyword arguments.

    Raises:
        TypeError: where `engine` is none.
        ValueError: for a ``pyro.factor``, discrete sites, nothing observed, or an engine that
            gives a single point.

    Example:
        >>> import torch
        >>> from ppgen.inference import Laplace
        >>> from ppgen.models import NormalNormal
        >>> from ppgen.progress import quiet
        >>> with quiet():
        ...     found = calibrate_given_data(
        ...         NormalNormal().model, Laplace(draws=100), torch.ones(5), first=Laplace(),
        ...         simulations=50)
        >>> found.passed
        True
    """
    refuse_taken(calibrate_given_data, model, args, seed)

    def source(program: Program) -> tuple[Replicator, str]:
        _refuse(program)
        posterior = fit(program, using=first or HMC(), seed=None)  # type: ignore[arg-type]
        return Replicator(program, posterior), _described(posterior)

    return calibrated((model, args, kwargs), engine, source, simulations, draws, level, seed)


class Twice:
    """A story that sees two data sets: its own, and another at sites of other names."""

    def __init__(self, model: Story, latent: tuple[str, ...]) -> None:
        self.story, self.latent = model, latent
        self.__name__ = story_name(model)

    def __call__(self, again: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        with pyro.poutine.trace() as traced:
            self.story(*args, **kwargs)
        nodes: Any = traced.trace.nodes
        values: dict[str, Tensor] = {name: nodes[name]["value"] for name in self.latent}
        with _Renamed(self.latent), pyro.condition(data={**values, **again}):
            self.story(*args, **kwargs)


class _Renamed(Messenger):
    """Sites of the second run under other names; latent ones, which have counted, vanish."""

    def __init__(self, latent: tuple[str, ...]) -> None:
        super().__init__()
        self.latent = latent

    def _process_message(self, msg: Any) -> None:
        if msg["type"] != "sample":
            return
        if msg["name"] in self.latent:
            msg["stop"] = True
        else:
            msg["name"] = _AGAIN + msg["name"]


class Replicator:
    """True values from a posterior, and data drawn from them."""

    def __init__(self, program: Program, posterior: Posterior) -> None:
        if posterior.kind == "point":
            raise ValueError(
                f"{posterior.engine} gives a single point: true values need a posterior to be "
                "drawn from; give first=HMC() or another engine with draws"
            )
        self.program = program
        self.flat = {name: posterior.draws[name].flatten(0, 1) for name in program.sites}
        self.order = iter(torch.randperm(posterior.count).tolist())
        self.count = posterior.count
        self._latest: Program | None = None

    def draw(self) -> dict[str, Tensor]:
        """True values, of a draw not used before as long as there are any, and their data."""
        row = next(self.order, None)
        if row is None:
            row = int(torch.randint(self.count, ()))
        values = {name: draws[row] for name, draws in self.flat.items()}
        new = self.program.replicate({name: value[None] for name, value in values.items()})
        return {**{name: value[0] for name, value in new.items()}, **values}

    def with_data(self, drawn: dict[str, Tensor]) -> Program:
        """The story with both data sets; it shares the recordings of the one before."""
        again = {name: drawn[name] for name in self.program.anatomy.of_kind("observed")}
        args, kwargs = self.program.args, self.program.kwargs
        if self._latest is None:
            story = Twice(self.program.model, self.program.sites)
            self._latest = Program(story, again, *args, **kwargs)
        else:
            self._latest = self._latest.with_data(again, *args, **kwargs)
        return self._latest


def _described(posterior: Posterior) -> str:
    """Where the true values came from, and what was wrong there: a flag may be its fault."""
    if posterior.converged:
        return f"posterior by {posterior.engine}"
    return f"posterior by {posterior.engine}, NOT CONVERGED ({'; '.join(posterior.messages)})"


def _refuse(program: Program) -> None:
    for kind, why in (
        ("factor", "cannot be drawn: write the story with pyro.sample alone"),
        ("enumerated", "is discrete and summed out: it has no draws to replicate data from"),
    ):
        for name in program.anatomy.of_kind(kind):  # type: ignore[arg-type]
            raise ValueError(f"site '{name}' {why}")
    if not program.anatomy.of_kind("observed"):
        raise ValueError("the story observes nothing, so there are no data to calibrate around")
