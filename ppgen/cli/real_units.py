"""What ``--visible-units gaussian`` stands for: data as real numbers, on a standard scale."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ppgen.cli.autoencoders import levels_as_grey
from ppgen.cli.labels import own_columns
from ppgen.cli.training import has_real_units, hold_out

if TYPE_CHECKING:
    from ppgen.data import Dataset
    from ppgen.likelihood import Likelihood


def standardised(examples: Dataset, settings: dict[str, Any]) -> Dataset:
    """The examples less their mean in training, in units of their deviation there, by column.

    Whole numbers, as grey levels are, have no density: each is first moved by uniform noise of
    width 1 around it, drawn once. Means, deviations and whether the numbers are whole go into
    `settings` with the first data that are read, without what is held out of them.

    Raises:
        DataError: for data without a density: 0 and 1, a column that never changes; for fractions
            or other columns than a run was trained on.
        ValueError: for binarised data.
    """
    import torch

    from ppgen.data import DataError
    from ppgen.data.binarisation import stream
    from ppgen.data.errors import refuse_where

    try:
        levels = examples.in_levels()
    except ValueError as error:
        hint = "--visible-units gaussian is for real numbers: leave --binarisation out"
        raise ValueError(f"{error}; {hint}") from error
    x, name, known = levels.x, examples.name, settings.get("standard")
    if bool(((x == 0) | (x == 1)).all()):
        raise DataError(
            "every value is 0 or 1, which has no density: leave --visible-units gaussian out", name
        )
    if known and x.shape[1] != len(known["mean"]):
        raise DataError(f"{x.shape[1]} columns, {len(known['mean'])} in the training data", name)
    fraction = x != x.round()
    whole = known["whole"] if known else not bool(fraction.any())
    if whole:
        refuse_where(fraction, "not a whole number, as all were that the run was trained on", name)
        noise = torch.rand(x.shape, generator=stream("dequantise", examples.seed, examples.split),
                           dtype=torch.float32)  # fmt: skip
        x = x + (noise - 0.5).to(x)
    else:
        x = examples.x * examples.white  # of which `in_levels` takes some for whole
    if known is None:
        known = _scale(replace(levels, x=x), examples.white, whole=whole)
        settings["standard"] = known
    mean, deviation = (torch.tensor(known[key]).to(x) for key in ("mean", "deviation"))
    notes = ("noise within whole levels",) if whole else ()
    return replace(
        examples, x=(x - mean) / deviation, notes=(*examples.notes, *notes, "standardised")
    )


def own_units(x: Any, settings: dict[str, Any]) -> Any:
    """Standardised numbers, ``(*, D)``, an array, as the data have them."""
    import numpy as np

    known = settings["standard"]
    return x * np.asarray(known["deviation"]) + np.asarray(known["mean"])


def as_grey(x: Any, settings: dict[str, Any]) -> Any:
    """A run's numbers, ``(*, D)``, an array, on the scale of pictures, from 0 to 1; no labels."""
    if not has_real_units(settings):
        return levels_as_grey(own_columns(x, settings), settings)
    return own_units(x, settings) / settings["standard"]["white"]


def density(found: Likelihood, settings: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """What a likelihood of standardised numbers is, in words; and it in the data's own units.

    The density of a whole number with noise around it has a mean logarithm of at most the log
    probability of that number, so that bits per dimension compare with those of laws of levels.
    """
    known = settings["standard"]
    own = found.lower - sum(map(math.log, known["deviation"]))
    numbers = {"nats_in_own_units": own}
    relation = "" if found.kind == "exact" else ">= "
    text = (
        "\na density of real numbers, each column in units of its deviation (in the data's own: "
        f"{relation}{own:.2f} nats); not comparable with likelihoods of binary data"
    )
    if known["whole"]:
        bits = -own / (len(known["mean"]) * math.log(2))
        numbers["bits_per_dimension"] = bits
        text += f"\nat most {bits:.3f} bits per dimension, of the whole levels"
    return text, numbers


def _scale(levels: Dataset, white: float, *, whole: bool) -> dict[str, Any]:
    """Mean and deviation of each column, and what is white in a picture."""
    from ppgen.data import DataError

    x = hold_out(levels)[0].x
    mean, deviation = x.mean(0), x.std(0, correction=0)
    constant = (x == x[:1]).all(0).nonzero().flatten().tolist()
    if constant:
        column = constant[0] if levels.columns is None else levels.columns[constant[0]]
        raise DataError(
            f"always {x[0, constant[0]].item():g} ({len(constant)} such columns), which has no "
            "density: remove it; of images give the whole grey levels, which get noise",
            levels.name,
            column=column,
        )
    if white == 1:
        white = max(1.0, float(levels.x.max().round()))
    return {
        "whole": whole,
        "white": white,
        "mean": mean.double().tolist(),
        "deviation": deviation.double().tolist(),
    }
