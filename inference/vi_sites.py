"""What a Pyro guide and a story have to agree on: their sites and the guide's parameters."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from ppgen.anatomy import Subsample
from ppgen.types import Story


def traced(function: Story, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The trace of one run, with log densities computed."""
    trace: Any = pyro.poutine.trace(function).get_trace(*args, **kwargs)
    return trace


def fresh_parameters(
    guide: Story, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Tensor], Any]:
    """Unconstrained leaves of the guide's parameters at their initial values, and a trace.

    Raises:
        ValueError: where there are none.
    """
    store = pyro.get_param_store()
    with torch.random.fork_rng(devices=[]):
        with store.scope():  # which parameters are the guide's
            first = traced(guide, args, kwargs)
        for name, node in first.nodes.items():
            if node["type"] == "param" and name in store:
                del store[name]  # an earlier fit is no start
        trace = traced(guide, args, kwargs)
    values = [node["value"] for node in trace.nodes.values() if node["type"] == "param"]
    leaves = [v.unconstrained() if hasattr(v, "unconstrained") else v for v in values]
    leaves = list({id(leaf): leaf for leaf in leaves if leaf.requires_grad}.values())
    if not leaves:
        raise ValueError(
            "the guide has no parameters to train: declare them with pyro.param, or make the "
            "guide a PyroModule (a plain nn.Module needs pyro.module)"
        )
    return leaves, trace


def common_sites(guide: Any, story: Any) -> list[str]:
    """The guide's sites that are the story's latent ones, in the story's order."""

    def sampled(trace: Any) -> dict[str, Any]:
        return {
            name: node
            for name, node in trace.nodes.items()
            if is_latent(node)
            and not node["infer"].get("is_auxiliary")
            and not node["infer"].get("_deterministic")
        }

    drawn, latent = sampled(guide), sampled(story)
    missing = [
        name
        for name, node in latent.items()
        if name not in drawn and not node["fn"].has_enumerate_support and not is_point(node["fn"])
    ]
    extra = [name for name in drawn if name not in latent]
    if missing or extra:
        parts = [f"it lacks {missing}"] if missing else []
        parts += [f"the story has no {extra}"] if extra else []
        raise ValueError(
            f"the guide's sites must be the story's latent sites {list(latent)}: "
            f"{' and '.join(parts)} (auxiliary sites need infer={{'is_auxiliary': True}})"
        )
    for name, node in drawn.items():
        if node["value"].shape != latent[name]["value"].shape:
            raise ValueError(
                f"site '{name}': the guide draws shape {tuple(node['value'].shape)}, the story "
                f"{tuple(latent[name]['value'].shape)}"
            )
    partial = subsampled_plates(story)
    return [
        name
        for name, node in latent.items()
        if name in drawn and not any(f.name in partial for f in node["cond_indep_stack"])
    ]


def is_latent(node: Any) -> bool:
    """Whether a node of a trace is a draw: neither data nor a plate's choice of rows."""
    return (
        node["type"] == "sample"
        and not node["is_observed"]
        and not isinstance(node["fn"], Subsample)
    )


def subsampled_plates(trace: Any) -> set[str]:
    """Names of the plates of a trace that take some of their members only."""
    return {
        name
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and isinstance(node["fn"], Subsample)
        and node["fn"].subsample_size is not None
        and node["fn"].subsample_size < node["fn"].size
    }


def bare(fn: Any) -> Any:
    """The distribution inside reshapings, masks and the like."""
    while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
        fn = fn.base_dist
    return fn


def is_point(fn: Any) -> bool:
    """Whether all mass is on one point."""
    return isinstance(bare(fn), Delta)
