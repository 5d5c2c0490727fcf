"""What ``pyro.infer.SVI`` calls, for losses that write their gradients themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pyro
import torch
from pyro.poutine.runtime import am_i_wrapped


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


def show_parameters(story: Any) -> None:
    """Under SVI, show a module's trainable parameters to Pyro, which steps what it saw."""
    if not am_i_wrapped():
        return
    for name, parameter in story.named_parameters():
        if parameter.requires_grad and pyro.param(name, parameter) is not parameter:
            raise ValueError(
                f"Pyro's parameter store holds another model's {name!r}, so this machine would "
                "not be trained: run each fit inside `with pyro.get_param_store().scope():`"
            )
