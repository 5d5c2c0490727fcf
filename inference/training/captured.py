"""Whole updates in memory that stays where it is: on a GPU one CUDA graph, launched at once.

An update of a Boltzmann machine is some fifty operations of a few microseconds each, and Python
takes longer to launch them than a GPU to carry them out. A graph keeps the operations with the
addresses and the numbers that they had, and replays all of them at one launch; so the batch is
copied to where it was, chains, offsets, parameters and the optimizer's moments are overwritten in
place, and what Python decides on the way is decided once. Random numbers go on from the device's
generator, whose state checkpoints hold, as they would without a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_AS_IT_IS = 2  # updates of a shape before its graph: libraries and moments have to be there


class InPlace(Protocol):
    """A loss that can make its step without a look at a number."""

    state: Any  # replaced by others alone: its own steps overwrite the tensors in it

    def accumulate_in_place(self, story: Any, *batch: Tensor) -> Tensor:
        """The mean loss, ``()``; gradients are added to ``.grad``, `state` is overwritten."""
        ...


def require_capturable(loss: Any, processes: int) -> None:
    """Refuse what has to look at numbers between the start of an update and its end."""
    if not hasattr(loss, "accumulate_in_place"):
        raise ValueError(
            "compile=True: updates by ContrastiveDivergence, TopLayer and UpDown can be captured, "
            f"those by {type(loss).__name__} run as they are written: leave compile out"
        )
    sampler = getattr(loss, "sampler", None)
    if sampler is not None and not getattr(sampler, "capturable", False):
        raise ValueError(
            f"compile=True: {type(sampler).__name__} decides on its way what to do next, which no "
            "captured update can: leave compile out, or take block Gibbs or Tempered"
        )
    if callable(getattr(loss, "options", {}).get("gibbs_steps")):
        raise ValueError("compile=True: a captured update has one number of gibbs_steps for good")
    if processes > 1:
        raise ValueError("compile=True: ranks exchange gradients in the middle of an update")


def captured_updates(
    loss: InPlace, story: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> CapturedUpdates | None:
    """None where there are no graphs, and memory that stays would be of no use."""
    return CapturedUpdates(loss, story, optimizer, device) if has_graphs(device) else None


def has_graphs(device: torch.device) -> bool:
    """Whether updates there can be captured."""
    return device.type == "cuda"


class CapturedUpdates:
    """The updates of a training run: gradient and optimizer, one program for each shape of a batch.

    Args:
        loss: whose `state` is there, as it is after one step.
        story: what is trained.
        optimizer: its numbers, such as the learning rate, are part of a program (`begin_epoch`).
        device: where the story is.
    """

    def __init__(
        self,
        loss: InPlace,
        story: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> None:
        self.loss, self.story, self.optimizer, self.device = loss, story, optimizer, device
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._counting = False  # whether it is the sum of the losses over the present epoch
        self._programs: dict[Any, _Program] = {}
        self._state: Any = None
        self._rates: list[float] = []

    def begin_epoch(self) -> None:
        """Call it when the learning rate is set; graphs with another one are forgotten."""
        groups = self.optimizer.param_groups
        for group in groups:
            if "capturable" in group:  # counts its steps on the device
                group["capturable"] = self.device.type == "cuda"  # others do not know it
        rates = [group["lr"] for group in groups]
        if rates != self._rates:
            self._forget()
        self._rates, self._counting = rates, False

    def run(self, batch: tuple[Tensor, ...], so_far: float) -> None:
        """One update, after others of the epoch whose losses sum to `so_far` over the examples."""
        if not self._counting:
            self._total.fill_(so_far)
            self._counting = True
        if self.loss.state is not self._state:
            self._state = self.loss.state
            self._forget()
        form = tuple((t.shape, t.dtype) for t in batch)
        if form not in self._programs:
            self._programs[form] = _Program(self._update, batch, self.device)
        self._programs[form].run(batch)

    def look(self, so_far: float) -> float:
        """That sum by now, for which the device has to be waited for."""
        return self._total.item() if self._counting else so_far

    def _forget(self) -> None:
        for program in self._programs.values():
            program.replay = None

    def _update(self, *batch: Tensor) -> None:
        self.optimizer.zero_grad()
        loss = self.loss.accumulate_in_place(self.story, *batch)
        self.optimizer.step()
        self._total.add_(loss.to(self._total) * len(batch[0]))


class _Program:
    """An update by batches of one shape, which are copied to where the graph reads them."""

    def __init__(
        self, update: Callable[..., None], batch: tuple[Tensor, ...], device: torch.device
    ) -> None:
        self.batch = tuple(torch.empty_like(t) for t in batch)
        self.step: Callable[[], None] = lambda: update(*self.batch)
        self.replay: Callable[[], None] | None = None
        self.device, self.runs = device, 0

    def run(self, batch: tuple[Tensor, ...]) -> None:
        for own, given in zip(self.batch, batch, strict=True):
            own.copy_(given)
        if self.replay is None and self.runs >= _AS_IT_IS:
            self.replay = captured(self.step, self.device)
        self.runs += 1
        (self.replay or self.step)()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all graphs of a device: libraries keep a workspace for each stream that they see."""
    return torch.cuda.Stream(device)


def captured(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`step`, which has run before, as a CUDA graph that is not run yet.

    Raises:
        RuntimeError: where it waits for the device, or allocates as graphs cannot.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=_side_stream(device)):
            step()
    except RuntimeError as error:
        raise RuntimeError(
            "compile=True: this update cannot be captured, as something in it waits for the device "
            f"({str(error).splitlines()[0]}): a DBM does to see its mean field converge unless its "
            "tolerance is 0; otherwise leave compile out"
        ) from error
    return graph.replay
