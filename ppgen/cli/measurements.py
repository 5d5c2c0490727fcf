"""Likelihoods measured while a run is trained, a line each in its ``likelihood.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppgen.cli.options import Common
from ppgen.cli.runs import LIKELIHOODS, held_out_likelihood

if TYPE_CHECKING:
    from torch import nn

    from ppgen.data import Dataset

_EXAMPLES = 1000  # at most, of the held-out ones
_CHAINS, _TEMPERATURES = 50, 500


def measuring(
    out: Path, held_out: Dataset, settings: dict[str, Any], common: Common
) -> list[Callable[[nn.Module, dict[str, Any]], None]]:
    """Callbacks of `ppgen.train`: what ``--likelihood-every`` asks for, or none."""
    every = settings.get("likelihood_every")
    path = out / LIKELIHOODS
    if every is None:
        return []
    if every < 1:
        raise ValueError(f"--likelihood-every must be at least 1, got {every}")
    few = held_out.hold_out(_EXAMPLES)[1] if len(held_out) > _EXAMPLES else held_out

    def measure(story: nn.Module, row: dict[str, Any]) -> None:
        if row["epoch"] % every:
            return
        found = held_out_likelihood(story, few, common, None, _CHAINS, _TEMPERATURES)
        line = {
            "epoch": row["epoch"],
            "kind": found.kind,
            "lower": found.lower,
            "upper": found.upper,
            "lower_error": found.lower_error,
            "upper_error": found.upper_error,
            "examples_error": found.examples_error,
            "method": found.method,
            "examples": found.examples,
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    return [measure]
