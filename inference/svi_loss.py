"""What ``pyro.infer.SVI`` calls, for losses that write their gradients themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch


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
