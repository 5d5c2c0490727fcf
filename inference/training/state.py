"""Everything that a resumed run needs to end bit for bit where it would have ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppgen import checkpoint
from ppgen.checkpoint import CheckpointError
from ppgen.inference.training.averaging import ParameterAverage
from ppgen.inference.training.data_parallel import Ranks
from ppgen.inference.training.randomness import random_state, set_random_state


@dataclass
class Position:
    """How far a run has come."""

    epoch: int = 0  # epochs that are complete
    batch: int = 0  # batches done of the present one
    step: int = 0
    loss: float = 0.0  # summed over the examples of the present epoch
    examples: int = 0  # seen in the present epoch
    seconds: float = 0.0
    best: float | None = None  # lowest validation number
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)  # a row for each epoch


@dataclass
class TrainingState:
    """The moving parts of a run; `save` and `load` put them in one checkpoint."""

    story: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Any
    average: ParameterAverage | None
    position: Position
    ranks: Ranks
    device: torch.device
    best: dict[str, Tensor] | None = None  # the story's tensors at the best validation

    def save(self, folder: Path) -> None:
        """Commit a checkpoint; every rank calls it, rank 0 writes.

        Raises:
            OSError: in one line; the last checkpoint is intact.
        """
        tensors: dict[str, Tensor] = {}
        meta: dict[str, Any] = {
            "position": asdict(self.position),
            "processes": self.ranks.world,
            "optimizer": split(self.optimizer.state_dict(), "optimizer", tensors),
        }
        tensors |= {f"story/{k}": v for k, v in story_tensors(self.story).items()}
        if self.average is not None:
            meta["average_steps"] = self.average.steps
            named = zip(_names(self.story), self.average.averages, strict=True)
            tensors |= {f"average/{name}": value for name, value in named}
        if self.best is not None:
            tensors |= {f"best/{name}": value for name, value in self.best.items()}
        # What differs from rank to rank: the random stream, and the chains of a loss.
        own: dict[str, Tensor] = {}
        own_meta = {"loss": self._loss_state(own)}
        own |= random_state(self.device)
        every = self.ranks.gather(checkpoint.pack(own), self.device)
        if self.ranks.first:
            meta |= own_meta
            for rank, content in enumerate(every):
                tensors[f"rank/{rank}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            checkpoint.save(folder, tensors, meta)

    def load(self, folder: Path) -> None:
        """Take every part from the checkpoint in `folder`.

        Raises:
            CheckpointError: if it is damaged, or is not one of such a run.
        """
        tensors, meta = checkpoint.load(folder)
        try:
            if meta["processes"] != self.ranks.world:
                raise CheckpointError(
                    f"{folder}: the run was one of {meta['processes']} processes; resume it with "
                    f"as many, not with {self.ranks.world}"
                )
            load_story_tensors(self.story, _under("story/", tensors))
            fresh = self.optimizer.state_dict()["param_groups"]
            state = join(meta["optimizer"], tensors)
            if len(fresh) != len(state["param_groups"]):
                raise CheckpointError(f"{folder}: another optimizer made this run")
            self.optimizer.load_state_dict(state)
            averages = _under("average/", tensors)
            if self.average is not None:
                self.average.steps = int(meta["average_steps"])
                for name, value in zip(_names(self.story), self.average.averages, strict=True):
                    value.copy_(averages[name])
            best = _under("best/", tensors)
            self.best = best or None
            self.position = Position(**meta["position"])
            content = tensors[f"rank/{self.ranks.rank}"].numpy().tobytes()
            own = checkpoint.unpack(content, f"{folder}, rank {self.ranks.rank}")
            _restore_loss(self.loss, meta["loss"], own, self.device)
            set_random_state(own, self.device)
        except (KeyError, TypeError, IndexError) as error:
            raise CheckpointError(
                f"{folder}: not a checkpoint of such a run: {type(error).__name__} {error}"
            ) from error

    def finite(self) -> bool:
        """Whether every parameter is a finite number."""
        return all(bool(p.detach().isfinite().all()) for p in self.story.parameters())

    def _loss_state(self, tensors: dict[str, Tensor]) -> Any:
        state = self.loss.state_dict() if hasattr(self.loss, "state_dict") else None
        return None if state is None else split(state, "loss", tensors)


def _restore_loss(loss: Any, plain: Any, tensors: dict[str, Tensor], device: torch.device) -> None:
    if plain is None:
        return
    if not hasattr(loss, "load_state_dict"):
        raise CheckpointError(f"another loss made this run: {type(loss).__name__} has no state")
    moved = {k: v.to(device) for k, v in tensors.items() if not k.startswith("random/")}
    loss.load_state_dict(join(plain, moved))


def restore_story(story: nn.Module, folder: str | Path) -> nn.Module:
    """Give `story` what a run in `folder` arrived at: the best, else averaged, else last values.

    Args:
        story: of the class and sizes that were trained; changed in place.
        folder: the run's folder (``out``), or its ``ckpt``.

    Raises:
        CheckpointError: if there is no checkpoint, or it does not fit, by name of a parameter.
    """
    load_story_tensors(story, trained_tensors(folder))
    return story


def trained_tensors(folder: str | Path) -> dict[str, Tensor]:
    """What a run arrived at, by name: the best, else averaged, else last values.

    Raises:
        CheckpointError: if there is no checkpoint.
    """
    folder = Path(folder)
    inner = folder / "ckpt"
    is_run = inner.is_dir() or (folder / "config.json").is_file()
    tensors, _ = checkpoint.load(inner if is_run else folder)
    return _under("story/", tensors) | _under("average/", tensors) | _under("best/", tensors)


def story_tensors(story: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name.

    Raises:
        CheckpointError: if the story's state holds anything but tensors.
    """
    state = story.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name} of {type(story).__name__} is a {type(value).__name__}: only parameters "
                "and buffers can be saved"
            )
    return state


@torch.no_grad()
def load_story_tensors(story: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy `values` into the story, in place; names, shapes and dtypes must be its own.

    Half precision, in which trained weights are shipped, is widened.
    """
    state = story_tensors(story)
    if state.keys() != values.keys():
        odd = sorted(state.keys() ^ values.keys())
        raise CheckpointError(
            f"the checkpoint is of another story than this {type(story).__name__}: "
            f"{odd[0]} is only in one of them"
        )
    for name, tensor in state.items():
        value = values[name]
        if tensor.shape != value.shape or value.dtype not in (tensor.dtype, torch.float16):
            raise CheckpointError(
                f"{name}: the checkpoint holds {tuple(value.shape)} {value.dtype}, this "
                f"{type(story).__name__} {tuple(tensor.shape)} {tensor.dtype}"
            )
        tensor.copy_(value)


def split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """A nested state as plain JSON; its tensors go into `tensors` under their paths.

    Every container becomes a tagged list, so that integer keys and tuples come back as such.
    """
    if isinstance(value, Tensor):
        tensors[path] = value
        return ["tensor", path]
    if isinstance(value, Mapping):
        items = [[key, split(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        return ["mapping", items]
    if isinstance(value, (list, tuple)):
        items = [split(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return ["tuple" if isinstance(value, tuple) else "list", items]
    return value


def join(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `split`."""
    if not isinstance(plain, list):
        return plain
    kind, content = plain
    if kind == "tensor":
        return tensors[content]
    if kind == "mapping":
        return {key: join(item, tensors) for key, item in content}
    items = [join(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _names(story: nn.Module) -> list[str]:
    """Of the parameters that are trained, in the optimizer's order."""
    return [name for name, p in story.named_parameters() if p.requires_grad]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
