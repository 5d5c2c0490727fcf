"""One measured call in a process of its own: a request on stdin, the answer on stdout.

Whoever measures (`benchmarks/samplers.py`, `benchmarks/variational.py`) and whoever is measured may
live in different environments, so that nothing but numpy is needed here. The clock of a run starts
after the imports, with story and data in memory, and stops with the draws in memory: recording or
compilation, adaptation and sampling all count.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Request(NamedTuple):
    """What is asked of an engine."""

    posterior: str
    data: dict[str, Any]  # the story's arguments: arrays and numbers
    draws: int  # of each chain
    seed: int
    cap: float  # core seconds after which an engine that can stop itself should
    rate: float | None = None  # of learning, where it is a variational one


Sampler = Callable[[Request], Arrays]
"""Draws ``(chains, draws, *shape)`` by site, constrained scale."""

Density = Callable[[str, dict[str, Any], list[dict[str, np.ndarray]]], list[float]]
"""Log joint density at constrained points, up to a constant of the posterior."""


def serve(packages: list[str], samplers: dict[str, Sampler], density: Density | None) -> None:
    """Answer one request."""
    asked = json.loads(sys.stdin.read())
    answer: dict[str, Any] = {"versions": {name: _version(name) for name in packages}}
    if asked["task"] == "density":
        assert density is not None
        answer["densities"] = {
            case["posterior"]: density(
                case["posterior"], _arrays(case["data"]), [_arrays(p) for p in case["points"]]
            )
            for case in asked["cases"]
        }
    else:
        data = _arrays(asked["data"])
        request = Request(
            asked["posterior"], data, asked["draws"], asked["seed"], asked["cap"], asked.get("rate")
        )
        # of core time, since the load of others makes the wall's meaningless; imports are over
        limit = math.ceil(core_seconds() + 1.5 * asked["cap"])
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        begin, used = time.perf_counter(), core_seconds()
        draws = samplers[asked["engine"]](request)
        answer["seconds"] = time.perf_counter() - begin
        answer["core_seconds"] = core_seconds() - used
        np.savez(asked["out"], **draws)
    print("\n" + json.dumps(answer))


def core_seconds() -> float:
    """What all threads of this process have computed: the load of others does not count."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _arrays(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: np.asarray(value, float) if isinstance(value, list) else value
        for name, value in values.items()
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
