"""Writing into a fresh tensor, which vmap refuses: ``p = torch.zeros(3); p[0] = x``.

Under vmap the fresh tensor has no room for the batch that `x` carries. Here every tensor made in
the function has it from the start. So Pyro's ordered logistic and multinomial distributions, and
stories that fill a table entry by entry, can be recorded; and samplers, which fill empty tensors
with noise, can run in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_MAKERS = {
    *(torch.zeros, torch.ones, torch.empty, torch.full, torch.eye, torch.tensor, torch.clone),
    *(torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like),
    *(Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full, Tensor.new_tensor),
    *(Tensor.clone, Tensor.new),
}


def writable(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function of one tensor or dictionary of tensors, for vmap.

    It may write into tensors that it has made.
    """

    def run(given: Any) -> Any:
        first = next(t for t in tree_leaves(given) if t.is_floating_point())
        with _Batched(torch.zeros_like(first.flatten()[0])):
            return function(given)

    return run


class _Batched(TorchFunctionMode):
    def __init__(self, zero: Tensor) -> None:
        super().__init__()
        self.zero = zero  # () to the function, (C,) to vmap

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__setitem__ and _is_mask(args[1], args[2]):
            target, mask, value = args
            mask = mask.reshape(mask.shape + (1,) * (target.dim() - mask.dim()))
            return target.copy_(torch.where(mask, value, target))  # of fixed shape
        made = func(*args, **(kwargs or {}))
        if func in _MAKERS and (made.is_floating_point() or func is Tensor.new):
            return made + self.zero.to(made.dtype)
        return made


def _is_mask(index: Any, value: Any) -> bool:
    """Whether one number is written wherever a mask holds."""
    one = not isinstance(value, Tensor) or value.dim() == 0
    return one and isinstance(index, Tensor) and index.dtype == torch.bool
