"""What a story declares beyond its density, and draws of its sites as flat vectors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.inference.point import as_program
from ppgen.program import Program
from ppgen.supports import unconstrained_view
from ppgen.types import Story

P = TypeVar("P")


def declared(
    engine: str, protocol: type[P], model: Story | Program, args: Any, kwargs: Any
) -> tuple[P, Program, tuple[Any, ...]]:
    """The story that the bound method `model` belongs to, its program, and its data in order.

    Raises:
        ValueError: where it does not declare what `protocol` asks for.
    """
    method: Any = model.model if isinstance(model, Program) else model
    story: Any = getattr(method, "__self__", method)
    if not isinstance(story, protocol):
        wanted = [n for n in vars(protocol) if not n.startswith("_") and n != "model"]
        lacking = [n for n in wanted if not hasattr(story, n)]
        name = getattr(method, "__qualname__", type(method).__name__)
        raise ValueError(
            f"{engine} needs a story that declares {', '.join(wanted)} "
            f"(ppgen.types.{protocol.__name__}), given as its bound method, such as story.model; "
            f"{name} has no {', '.join(lacking or wanted)}: use HMC or VI, which ask for nothing"
        )
    if method is story:
        model = method.model
    program = as_program(model, args, kwargs)
    bound = inspect.signature(program.model).bind(*program.args, **program.kwargs)
    return story, program, bound.args


def story_name(model: Story | Program) -> str:
    """What to call a story in print: its function; the class or file whose ``model`` it is."""
    method: Any = model.model if isinstance(model, Program) else model
    if getattr(method, "__name__", "") == "model":
        if hasattr(method, "__self__"):
            return type(method.__self__).__name__
        return getattr(method, "__module__", "model").rpartition("ppgen_story_")[2]
    return getattr(method, "__name__", type(method).__name__)


def unconstrained(
    program: Program, values: Mapping[str, Tensor], laws: Mapping[str, TorchDistribution]
) -> tuple[Tensor, Tensor]:
    """Draws of named sites as flat vectors.

    Args:
        program: says where each site stands in the vector.
        values: of each latent site, ``(*batch, *shape)``.
        laws: their supports are those of the sites.

    Returns:
        z, ``(*batch, D)``, and ``log |det d values / d z|``, ``(*batch)``, nats.
    """
    parts, total = [], torch.zeros((), dtype=program.dtype)
    for name in program.sites:
        value = values[name].to(program.dtype)
        batch = value.shape[: value.dim() - len(program.anatomy.sites[name].shape)]
        transform = unconstrained_view(laws[name].support)
        point = transform.inv(value)
        parts.append(point.reshape(*batch, -1))
        jacobian = transform.log_abs_det_jacobian(point, value)
        total = total + jacobian.reshape(*batch, -1).sum(-1)
    return torch.cat(parts, -1), total


def log_prob(
    program: Program, values: Mapping[str, Tensor], laws: Mapping[str, TorchDistribution]
) -> Tensor:
    """Log density of draws ``(*batch, *shape)`` under `laws`, all sites together: ``(*batch)``."""
    total = torch.zeros((), dtype=program.dtype)
    for name in program.sites:
        value = values[name]
        batch = value.shape[: value.dim() - len(program.anatomy.sites[name].shape)]
        total = total + laws[name].log_prob(value).reshape(*batch, -1).sum(-1)
    return total
