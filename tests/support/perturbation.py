"""Parameters away from where they start, which is often the identity."""

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def perturbed(module: M, spread: float = 0.3) -> M:
    """`module` itself, with normal noise of standard deviation `spread` in all its parameters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return module
