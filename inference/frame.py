"""Where a guide stands: an affine map from its own scale to that of the story."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Frame(NamedTuple):
    """An affine map from the scale of the guide to that of the story, ``z = centre + F u``."""

    centre: Tensor  # (D,)
    factor: Tensor  # F: its diagonal, (D,), or a lower triangle, (D, D)

    def push(self, u: Tensor) -> Tensor:
        """Draws of the guide to the story's flat vectors, ``(K, D)``."""
        moved = u @ self.factor.mT if self.factor.ndim == 2 else u * self.factor
        return self.centre + moved

    def back(self, z: Tensor) -> Tensor:
        """The inverse of `push`, ``(K, D)``."""
        moved = z - self.centre
        if self.factor.ndim == 2:
            return torch.linalg.solve_triangular(self.factor, moved.mT, upper=False).mT
        return moved / self.factor

    def pull(self, gradient: Tensor) -> Tensor:
        """Gradients with respect to z to those with respect to u, ``(K, D)``."""
        return gradient @ self.factor if self.factor.ndim == 2 else gradient * self.factor

    @property
    def log_det(self) -> Tensor:
        """Log |det F|, nats."""
        diagonal = self.factor.diagonal() if self.factor.ndim == 2 else self.factor
        return diagonal.log().sum()
