"""Memory that is freed stays at hand for the next operation."""

from __future__ import annotations

import functools

import torch

_LARGEST = 31 * 2**20  # bytes; glibc adapts to blocks of up to 32 MB


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 32 MB, 64 MB of them together; once a process.

    At first glibc's ``malloc`` gives a block of more than 128 KB back to the system as soon as it
    is freed, and what takes its place next is fresh pages, cleared one by one: for element-wise
    operations on a megabyte that costs several times the operation. It adapts to the size of the
    blocks that it sees freed, and this frees a large one, never touched. Other allocators do not
    mind.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)
