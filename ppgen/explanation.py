"""What a story consists of, in words: the page to look at when shapes do not fit."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ppgen.program import Program
from ppgen.summary import columns
from ppgen.types import Story

_MANY = 1000  # operations; stories without a loop have tens to a few hundreds


@dataclass(frozen=True)
class SiteRow:
    """One site, in words."""

    name: str
    becomes: str
    distribution: str
    support: str
    plates: str
    batch: str
    event: str
    unconstrained: str


@dataclass(frozen=True)
class Explanation:
    """A story's sites and how its log density is computed; ``print`` it.

    Args:
        story: its name.
        rows: the sites in the order of execution.
        dim: unconstrained dimensions.
        dtype: what the log density is computed in.
        recorded: whether it is replayed as a graph of tensor operations.
        reason: why not, if it is not.
        operations: of the graph for value and gradient.
        seconds: that recording took.
        milliseconds: of one evaluation of value and gradient for 64 points.
    """

    story: str
    rows: tuple[SiteRow, ...]
    dim: int
    dtype: str
    recorded: bool
    reason: str | None
    operations: int
    seconds: float
    milliseconds: float

    def __str__(self) -> str:
        titles = ["site", *list(asdict(self.rows[0]))[1:]] if self.rows else ["site"]
        table = columns([titles, *([*asdict(row).values()] for row in self.rows)])
        how = (
            f"recorded as {self.operations} operations in {self.seconds:.1f} s; 64 points take "
            f"{self.milliseconds:.2f} ms"
            if self.recorded
            else f"evaluated point by point, which is slow: {self.reason}"
        )
        if self.recorded and self.operations > _MANY:
            how += (
                "; so many are those of a loop: where it is over time and linear in its state, "
                "ppgen.recursion does without"
            )
        lines = [f"{self.story}: {self.dim} unconstrained dimensions, {self.dtype}", table, how]
        summed = [row.name for row in self.rows if row.becomes == "summed out"]
        if summed:
            lines.append(f"discrete sites summed out: {', '.join(summed)}")
        return "\n\n".join(lines)


_BECOMES = {
    "latent": "latent",
    "enumerated": "summed out",
    "observed": "data",
    "factor": "factor",
    "deterministic": "deterministic",
}


def explain(model: Story, *args: Any, **kwargs: Any) -> Explanation:
    """Explain a story with its data.

    Raises:
        ValueError: as :class:`ppgen.Program` does, naming the site.
    """
    program = Program(model, *args, **kwargs)
    rows = tuple(
        SiteRow(
            name=site.name,
            becomes=_BECOMES[site.kind],
            distribution=site.distribution,
            support=site.support,
            plates=" x ".join(f"{name}:{size}" for name, size in site.plates) or "-",
            batch=_shape(site.batch_shape),
            event=_shape(site.shape[len(site.batch_shape) :]),
            unconstrained=_shape(site.unconstrained_shape) if site.kind == "latent" else "-",
        )
        for site in program.anatomy.sites.values()
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        z = program.initial(64)
        start, repeats = time.perf_counter(), 10 if program.fallback is None else 1
        for _ in range(repeats):
            program.value_and_grad(z)
        elapsed = (time.perf_counter() - start) / repeats
    return Explanation(
        story=getattr(model, "__name__", type(model).__name__),
        rows=rows,
        dim=program.dim,
        dtype=str(program.dtype).removeprefix("torch."),
        recorded=program.fallback is None,
        reason=program.fallback,
        operations=program.operations,
        seconds=program.seconds_recording,
        milliseconds=1e3 * elapsed,
    )


def _shape(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "-"
