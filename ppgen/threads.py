"""How many threads work is worth: one, where its tensors are too small to share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

LITTLE = 50_000  # numbers in the parameters and a batch, below which an update is little work


@contextmanager
def one_thread_if(little: bool) -> Iterator[None]:
    """One thread for little work, and the old number afterwards.

    Threads that wait for each other made a flow guide ten times slower on a busy machine, updates
    of a Boltzmann machine on 8x8 digits twenty times, and neither faster on an idle one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if little else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
