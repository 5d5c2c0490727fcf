"""What follows from the draws of a posterior: data to come, and assignments of those there are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppgen.anatomy import weighs_rows
from ppgen.program import Program
from ppgen.simulation import simulate_all
from ppgen.story import sandbox
from ppgen.types import Story

if TYPE_CHECKING:
    from ppgen.posterior import Posterior


def predict(
    posterior: Posterior,
    story: Story,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    draws: int,
    seed: int | None,
) -> dict[str, Tensor]:
    """See :meth:`ppgen.posterior.Posterior.predict`."""
    dtype = _dtype(posterior)
    args, kwargs = _cast(dtype, args, kwargs)
    with torch.random.fork_rng(enabled=seed is not None), sandbox(dtype):
        if seed is not None:
            torch.manual_seed(seed)
        chosen = torch.randperm(posterior.count)[: min(draws, posterior.count)]
        flat = {name: posterior[name].flatten(0, 1)[chosen] for name in posterior.latent}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            # conditioned: an improper prior has no draws
            once = pyro.poutine.condition(story, data={n: v[0] for n, v in flat.items()})
            found = pyro.poutine.trace(once).get_trace(*args, **kwargs).nodes
        if flat and not set(found) & set(flat):
            raise ValueError(
                f"the story has none of the posterior's sites {list(flat)}, so it would be "
                "drawn from its prior: give the story that was fitted"
            )
        weights = [n for n, m in found.items() if m.get("type") == "sample" and weighs_rows(m)]
        predicted = simulate_all(story, flat, args, kwargs)
    if weights and predicted:
        warnings.warn(
            f"pyro.factor '{weights[0]}' cannot be drawn: data are drawn anew from the laws of "
            "their sites alone, which is wrong where it truncates or couples them, and right where "
            "it stands for rows of its own, such as censored ones",
            stacklevel=3,
        )
    return predicted


def infer_discrete(
    posterior: Posterior,
    story: Story,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    draws: int | None,
    seed: int | None,
) -> dict[str, Tensor]:
    """See :meth:`ppgen.posterior.Posterior.infer_discrete`."""
    args, kwargs = _cast(_dtype(posterior), args, kwargs)
    program = Program(story, *args, **kwargs)
    if not program.anatomy.of_kind("enumerated"):
        raise ValueError("no site of the story is discrete and summed out: nothing to infer")
    if set(program.sites) != set(posterior.latent):
        raise ValueError(
            f"the story's latent sites {list(program.sites)} are not the posterior's "
            f"{list(posterior.latent)}: give the story that was fitted"
        )
    length = posterior.count // posterior.chains
    kept = torch.linspace(0, length - 1, min(draws or length, length)).round().long()
    z = posterior.unconstrained
    if z is None:
        sites = {name: posterior[name][:, kept].flatten(0, 1) for name in program.sites}
        rows = program.unconstrain(sites)
    else:
        rows = z[:, kept].flatten(0, 1)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        found = program.infer_discrete(rows)
    return {name: v.unflatten(0, (posterior.chains, len(kept))) for name, v in found.items()}


def _dtype(posterior: Posterior) -> torch.dtype:
    floating = (v.dtype for v in posterior.draws.values() if v.is_floating_point())
    return next(floating, torch.get_default_dtype())


def _cast(
    dtype: torch.dtype, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The arguments with their tensors in the draws' dtype."""

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(dtype)
        return value

    return tree_map(cast, (args, kwargs))
