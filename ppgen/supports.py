"""From unconstrained vectors to the support of a law."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import biject_to, constraints


def unconstrained_view(support: Any) -> Any:
    """``biject_to(support)``; of a mixture, for which torch has none, that of its components.

    Raises:
        NotImplementedError: where there is none; of a mixture too whose components may each have
            another support, as uniform laws have.
    """
    return biject_to(_of_components(support))


def _of_components(support: Any) -> Any:
    """A support without the mark that torch puts on that of a mixture."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        base = _of_components(support.base_constraint)
        return support if _has_tensors(base) else base
    if isinstance(support, constraints.independent):
        inner = _of_components(support.base_constraint)
        if inner is not support.base_constraint:
            return constraints.independent(inner, support.reinterpreted_batch_ndims)
    return support


def _has_tensors(support: Any) -> bool:
    """Whether its bounds are tensors, and so one for each component."""
    inner = getattr(support, "base_constraint", None)
    return any(isinstance(part, Tensor) for part in vars(support).values()) or (
        inner is not None and _has_tensors(inner)
    )
