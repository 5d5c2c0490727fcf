"""Data-parallel ranks under ``torchrun``: each takes its share of every batch.

The ranks hold equal parameters: they start from those of rank 0, and every update is made of
the same reduced gradient. Only rank 0 writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module

import torch
import torch.distributed as dist
from torch import Tensor

# A rank that dies closes its connections, which the others see at once. The timeout is for one
# that hangs, and must outlast what rank 0 does alone: saving and callbacks.
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """One process of a group: its number and the size of the group; (0, 1) is a single one."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """This rank's rows of a batch; the shares differ by one row at most."""
        if self.world == 1:
            return batch
        rows = len(batch[0])
        start, end = (rows * r // self.world for r in (self.rank, self.rank + 1))
        return tuple(t[start:end] for t in batch)

    def reduce(
        self, parameters: Sequence[Tensor], weight: float, loss: float, stop: bool
    ) -> tuple[float, bool]:
        """Sum ``weight * grad`` over the ranks into ``.grad``; the sum of losses, any stop.

        Args:
            parameters: those with gradients; one that has none counts as zero.
            weight: 1 for losses that sum over the batch, the rank's share for those that average.
            loss: this rank's.
            stop: whether this rank was asked to stop.
        """
        if self.world == 1:
            return loss, stop
        numbers = torch.tensor([weight * loss, float(stop)], dtype=torch.float64)
        bucket = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters]
        ).mul_(weight)
        numbers = numbers.to(bucket.device)
        with _explained():
            dist.all_reduce(bucket)
            dist.all_reduce(numbers)
        for p, part in zip(parameters, bucket.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p).to(p.dtype)
        total, stops = numbers.tolist()
        return total, stops > 0

    @torch.no_grad()
    def equalise(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank the values of rank 0, in place."""
        if self.world > 1:
            with _explained():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def agree(self, number: float, device: torch.device) -> float:
        """Rank 0's number, on every rank; also a place where the ranks wait for each other."""
        if self.world == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.float64, device=device)
        self.equalise([tensor])
        return float(tensor)

    def gather(self, content: bytes, device: torch.device) -> list[bytes]:
        """The bytes of every rank, in order."""
        if self.world == 1:
            return [content]
        sizes = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(self.world)]
        with _explained():
            dist.all_gather(sizes, torch.tensor(len(content), device=device))
            longest = max(int(size) for size in sizes)
            mine = torch.zeros(longest, dtype=torch.uint8)
            mine[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            all_of_them = [mine.to(device).clone() for _ in range(self.world)]
            dist.all_gather(all_of_them, mine.to(device))
        return [
            bytes(t[: int(size)].cpu().numpy()) for t, size in zip(all_of_them, sizes, strict=True)
        ]


def own_device(device: torch.device) -> torch.device:
    """Where this process computes: of several accelerators the one of its local rank."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


@contextmanager
def ranks(device: torch.device) -> Iterator[Ranks]:
    """The group that ``torchrun`` started, joined for this block; a single process without it.

    Raises:
        ValueError: if the environment names a group without saying where to meet.
        RuntimeError: if the group cannot be joined.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if world == 1:
        yield Ranks()
        return
    missing = {"RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys()
    if missing:
        raise ValueError(
            f"WORLD_SIZE={world}, but {', '.join(sorted(missing))} not set: start the processes "
            "with torchrun, or unset WORLD_SIZE"
        )
    # The defaults of its functions would hold the group, were it imported (by an optimizer) while
    # there is one: threads that outlive the group abort a process at its end, now and then.
    import_module("torch.distributed.nn.functional")

    with _explained():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RuntimeError(
            "the group of processes broke: another rank ended, hung or could not be reached "
            f"({reason}); continue from the last checkpoint with resume=True"
        ) from error
