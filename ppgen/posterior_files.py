"""A posterior on disk: tensors as safetensors, how they were obtained as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from torch import Tensor

from ppgen import checkpoint
from ppgen.posterior import Cost, Posterior

_SCHEMA = 1


def save(posterior: Posterior, folder: str | Path) -> None:
    """See :meth:`ppgen.posterior.Posterior.save`."""
    tensors: dict[str, Tensor] = {}
    for group in ("draws", "stats", "history"):
        tensors.update({f"{group}/{n}": t for n, t in getattr(posterior, group).items()})
    for name in ("unconstrained", "log_density", "log_guide"):
        value = getattr(posterior, name)
        if value is not None:
            tensors[name] = value
    meta = {
        "format": "ppgen posterior",
        "posterior_schema": _SCHEMA,
        "engine": posterior.engine,
        "kind": posterior.kind,
        "converged": posterior.converged,
        "messages": list(posterior.messages),
        "options": json.loads(json.dumps(posterior.options, default=str)),
        "cost": dataclasses.asdict(posterior.cost),
        "deterministic": list(posterior.deterministic),
        "sites": list(posterior.draws),
    }
    checkpoint.save(folder, tensors, meta)


def load(folder: str | Path) -> Posterior:
    """See :meth:`ppgen.posterior.Posterior.load`."""
    tensors, meta = checkpoint.load(folder)
    if meta.get("format") != "ppgen posterior" or meta.get("posterior_schema") != _SCHEMA:
        raise checkpoint.CheckpointError(
            f"{folder} holds no posterior of schema {_SCHEMA}: format "
            f"{meta.get('format')!r}, schema {meta.get('posterior_schema')!r}"
        )
    groups: dict[str, dict[str, Tensor]] = {"draws": {}, "stats": {}, "history": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        if rest:
            groups[group][rest] = tensor
    return Posterior(
        engine=meta["engine"],
        kind=meta["kind"],
        converged=meta["converged"],
        messages=tuple(meta["messages"]),
        options=meta["options"],
        cost=Cost(**meta["cost"]),
        deterministic=tuple(meta["deterministic"]),
        draws={name: groups["draws"][name] for name in meta["sites"]},
        stats=groups["stats"],
        history=groups["history"],
        unconstrained=tensors.get("unconstrained"),
        log_density=tensors.get("log_density"),
        log_guide=tensors.get("log_guide"),
    )
