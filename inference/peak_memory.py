"""How many bytes a computation has in use at once, so that batches can be made as large as fits."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_memory(compute: Callable[[], Any]) -> int:
    """Bytes of the results of `compute`, intermediate ones too, that are alive at the same time.

    Args:
        compute: run once; the generator of the CPU is given back as it was.
    """
    with torch.random.fork_rng(devices=[]), _Alive() as alive:
        compute()
    return alive.most


class _Alive(TorchDispatchMode):
    """Counts the storages that operations make, until nothing holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.storages:
            return
        self.storages.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.now -= size
