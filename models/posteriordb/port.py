"""A posterior of posteriordb as a Pyro story: what turns Stan's data and draws into the story's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Sites = dict[str, Tensor]


def _as_they_are(draws: Sites, arguments: Mapping[str, Any]) -> Sites:
    return draws


@dataclass(frozen=True)
class Port:
    """One posterior.

    Args:
        story: the Pyro story; its sites have the names of Stan's parameters.
        prepare: from the data by Stan's names (tensors and numbers) to the story's arguments.
        latent: from reference draws, ``(..., *shape)`` each, and the story's arguments to the
            story's latent sites, where Stan's are deterministic in the story.
    """

    story: Callable[..., None]
    prepare: Callable[[dict[str, Any]], dict[str, Any]]
    latent: Callable[[Sites, Mapping[str, Any]], Sites] = _as_they_are

    def arguments(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The story's arguments from `ppgen.data.posteriordb.read_data`, in float64.

        Raises:
            ValueError: where a column is missing.
        """
        tensors = {
            name: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
            for name, value in data.items()
        }
        try:
            return self.prepare(tensors)
        except KeyError as error:
            raise ValueError(
                f"the data have no {error}: they hold {', '.join(data)}; are they those of "
                f"{self.story.__name__}?"
            ) from None


def columns(*names: str, **renamed: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Arguments that are columns of the data, under their own or another name."""
    wanted = {**{name: name for name in names}, **renamed}
    return lambda data: {argument: data[column] for argument, column in wanted.items()}
