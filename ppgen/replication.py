"""A story with its data drawn from its own prior, as programs that share one recording."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from ppgen.program import Program
from ppgen.simulation import simulate
from ppgen.types import Story


class Replicated:
    """The story with other data at its observed sites, which are the first argument.

    What else the story does with its arguments stays as it is: the lagged outcomes of a time
    series, say, are predictors, and remain those that were given.
    """

    def __init__(self, model: Story) -> None:
        self.story = model

    def __call__(self, data: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        with pyro.condition(data=data):
            return self.story(*args, **kwargs)


class Simulator:
    """Draws parameters and data from the prior of `program`'s story.

    Raises:
        ValueError: where the story is no generative model: a flat prior, a ``pyro.factor``, or
            nothing that is observed; it names the site.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.observed = tuple(program.anatomy.of_kind("observed"))
        self._refuse()
        self._latest = program
        self.arguments = self._arguments()
        self._latest = program

    def draw(self) -> dict[str, Tensor]:
        """Every site, drawn from the prior; call it where torch is seeded."""
        with self.program.sandbox():
            return simulate(self.program.model, {}, self.program.args, self.program.kwargs)

    def with_data(self, drawn: dict[str, Tensor]) -> Program:
        """The story with the data among `drawn`; it shares the recordings of the one before."""
        data = {name: drawn[name] for name in self.observed}
        args, kwargs = self.program.args, self.program.kwargs
        if self.arguments is None:
            if self._latest is self.program:
                self._latest = Program(Replicated(self.program.model), data, *args, **kwargs)
            else:
                self._latest = self._latest.with_data(data, *args, **kwargs)
            return self._latest
        by_place = {self.arguments[name]: value for name, value in data.items()}
        # of the latest, not of the first, which nobody has evaluated and so recorded
        self._latest = self._latest.with_data(
            *(by_place.get(place, value) for place, value in enumerate(args)),
            **{name: by_place.get(name, value) for name, value in kwargs.items()},
        )
        return self._latest

    def _trace(self) -> Any:
        with self.program.sandbox(), torch.random.fork_rng(devices=[]), torch.no_grad():
            story = pyro.poutine.trace(self.program.model)
            return story.get_trace(*self.program.args, **self.program.kwargs)

    def _refuse(self) -> None:
        factors = self.program.anatomy.of_kind("factor")
        if factors:
            raise ValueError(
                f"pyro.factor '{next(iter(factors))}' cannot be drawn: calibration needs a story "
                "that is a distribution of parameters and data, written with pyro.sample alone"
            )
        if not self.observed:
            raise ValueError(
                "the story observes nothing, so there is nothing to calibrate: give it data of the "
                "right shape; which, does not matter"
            )
        sites = self.program.anatomy.of_kind("latent")
        flat = [n for n, site in sites.items() if "ImproperUniform" in site.distribution]
        if not flat:  # what is improper cannot be drawn
            nodes = self._trace().nodes
            flat = [n for n in sites if nodes[n]["mask"] is False or _is_masked(nodes[n]["fn"])]
        if flat:
            raise ValueError(
                f"site '{flat[0]}' has a flat prior, from which no true value can be drawn: "
                "calibration needs proper priors"
            )

    def _arguments(self) -> dict[str, int | str] | None:
        """Which argument each observed site is, where each is one and is used for nothing else.

        Stories that declare conditionals or a formula are asked with their own arguments; for
        all others :class:`Replicated` does the same.
        """
        places = [*enumerate(self.program.args), *self.program.kwargs.items()]
        nodes, found = self._trace().nodes, {}
        for name in self.observed:
            given = nodes[name]["value"]
            same = [
                place for place, value in places if isinstance(value, Tensor) and _is(value, given)
            ]
            if len(same) != 1 or same[0] in found.values():
                return None
            found[name] = same[0]
        return found if self._only_observed(found) else None

    def _only_observed(self, arguments: dict[str, int | str]) -> bool:
        """Whether a change of these arguments changes nothing but the data."""
        self.arguments = arguments
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            drawn = self.draw()
        data = {name: drawn[name] for name in self.observed}
        own = self.with_data(drawn)
        other = Program(
            Replicated(self.program.model), data, *self.program.args, **self.program.kwargs
        )
        z = self.program.anatomy.prototype[None].to(self.program.dtype)
        return torch.allclose(own.log_density(z), other.log_density(z), rtol=1e-6)


def _is(value: Tensor, given: Tensor) -> bool:
    """Whether `given` is `value`, or a view of the whole of it."""
    return value is given or (
        value.data_ptr() == given.data_ptr() and value.numel() == given.numel() > 0
    )


def _is_masked(fn: Any) -> bool:
    while fn is not None:
        if getattr(fn, "_mask", None) is False:
            return True
        fn = getattr(fn, "base_dist", None)
    return False
