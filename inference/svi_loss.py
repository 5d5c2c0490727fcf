"""What ``pyro.infer.SVI`` calls, for losses that write their gradients themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pyro
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch.nn import Parameter


class SVILoss(ABC):
    """A loss with `loss_and_grads` for a step and `loss` for a look."""

    def __call__(self, *args: Any, **kwargs: Any) -> float:
        """Without gradients, as in `SVI.evaluate_loss`, none is written and nothing moves."""
        compute = self.loss_and_grads if torch.is_grad_enabled() else self.loss
        return compute(*args, **kwargs)

    @abstractmethod
    def loss_and_grads(self, *args: Any, **kwargs: Any) -> float:
        """The number; the gradients are added to the parameters' ``.grad``."""

    @abstractmethod
    def loss(self, *args: Any, **kwargs: Any) -> float:
        """The number alone."""


def shown_parameters(story: Any) -> dict[str, Parameter]:
    """Trainable parameters of a module; under SVI also shown to Pyro, which steps what it saw."""
    parameters = {name: p for name, p in story.named_parameters() if p.requires_grad}
    if am_i_wrapped():
        for name, parameter in parameters.items():
            if pyro.param(name, parameter) is not parameter:
                raise ValueError(
                    f"Pyro's parameter store holds another model's {name!r}, so this machine would "
                    "not be trained: run each fit inside `with pyro.get_param_store().scope():`"
                )
    return parameters
