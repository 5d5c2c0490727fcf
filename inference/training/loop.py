"""The loop itself: steps, epochs, and what is done between them."""

from __future__ import annotations

import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyro
from torch import Tensor, nn

from ppgen import checkpoint
from ppgen.inference.training.captured import CapturedUpdates
from ppgen.inference.training.minibatches import Minibatches
from ppgen.inference.training.options import check_same
from ppgen.inference.training.state import TrainingState, load_story_tensors, story_tensors
from ppgen.inference.training.validation import Question
from ppgen.progress import Interrupt, Progress, interruptible, quiet
from ppgen.run_folder import RunFolder, read_config
from ppgen.story import Frozen

Stopped = Literal["finished", "interrupted", "patience", "diverged"]
Callback = Callable[[nn.Module, dict[str, Any]], object]

_SHOWN_EVERY = 0.1  # seconds between two updates of the bar
_NOT_FINITE = re.compile(r"\b(nan|inf|not finite)\b", re.IGNORECASE)  # in a loss's own error


@contextmanager
def own_store(story: nn.Module) -> Iterator[None]:
    """A parameter store for one fit, with Pyro's validation until the first step is done.

    Without a store of its own, a second model of the same class would not train. What is frozen
    stays so.
    """
    frozen = any(not p.requires_grad for p in story.parameters())
    with (
        pyro.get_param_store().scope(),
        Frozen() if frozen else nullcontext(),  # steps are not recorded under a handler
        pyro.validation_enabled(True),
        warnings.catch_warnings(),
    ):
        # The loop looks at the loss itself and ends the run.
        warnings.filterwarnings("ignore", message="Encountered NaN")
        # An optimizer whose steps will be captured, at one that is not yet.
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable")
        yield


@dataclass
class Loop:
    """One run; `begin`, `run` and `end` in this order, inside `own_store`."""

    state: TrainingState
    batches: Minibatches
    mean: bool  # the loss averages over the batch
    ask: Question | None
    epochs: int
    patience: int | None
    checkpoint_every: int | None
    factor: Callable[[int], float] | None
    callbacks: Sequence[Callback]
    out: Path | None
    folder: RunFolder | None  # of rank 0
    captured: CapturedUpdates | None = None  # under train(compile=True)
    validated: bool = field(default=False, init=False)  # a first step has been checked
    since: float = field(default=0.0, init=False)
    rates: list[float] = field(default_factory=list, init=False)
    parameters: list[Tensor] = field(default_factory=list, init=False)
    resume_command: str = field(default="", init=False)
    reason: str = field(default="", init=False)  # why a loss is not finite, in its own words

    @property
    def columns(self) -> list[str]:
        """Of the history and the metrics."""
        validation = [] if self.ask is None else ["validation"]
        return ["epoch", "step", "loss", *validation, "learning_rate", "seconds"]

    def begin(self, options: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Start from the checkpoint of the run folder, or write its first one."""
        state, group = self.state, self.state.ranks
        self.rates = [float(g["lr"]) for g in state.optimizer.param_groups]
        self.parameters = [p for g in state.optimizer.param_groups for p in g["params"]]
        group.equalise(list(story_tensors(state.story).values()))
        if self.out is None:
            return
        command = "ppgen resume {}" if "story" in config else "train(..., out={!r}, resume=True)"
        self.resume_command = command.format(str(self.out))
        there = self.folder is not None and checkpoint.exists(self.folder.checkpoints)
        there = group.agree(float(there), state.device) > 0
        if self.folder is not None and there:
            check_same(read_config(self.out).get("options", {}), options, self.out)
        if there:
            state.load(self.out / "ckpt")
        if self.folder is not None:
            self._begin_folder(self.folder, there, options, config)
        group.agree(0.0, state.device)  # nobody writes before all have read
        if not there:
            self._save()

    def run(self) -> tuple[Stopped, str]:
        """Go on until the epochs are done or there is a reason to stop; the reason in words."""
        position, shown = self.state.position, self.state.ranks.first
        story = self.state.story
        training = story.training
        story.train()
        self.since = time.monotonic() - position.seconds
        stopped: Stopped | None = "patience" if self._impatient() else None
        total = self.epochs * len(self.batches)
        label = f"training {type(story).__name__}"
        with (
            nullcontext() if shown else quiet(),
            interruptible() as interrupt,
            Progress(label, total) as progress,
        ):
            progress.advance(position.step)
            while stopped is None and position.epoch < self.epochs:
                stopped = self._epoch(interrupt, progress) or self._close_epoch(progress)
        story.train(training)
        message = self._explain(stopped)
        if message and shown:
            print(message, file=sys.stderr)
        return stopped or "finished", message

    def end(self) -> None:
        """Leave in the story what `restore_story` would find in the run folder."""
        if self.state.best is not None:
            load_story_tensors(self.state.story, self.state.best)
        elif self.state.average is not None:
            self.state.average.swap()

    def _begin_folder(
        self, folder: RunFolder, there: bool, options: Mapping[str, Any], config: Mapping[str, Any]
    ) -> None:
        folder.clean()
        folder.rewrite(self.state.position.history)
        if there:
            config = {**read_config(folder.path), **config}
        folder.write_config({**config, "options": dict(options)})

    def _epoch(self, interrupt: Interrupt, progress: Progress) -> Stopped | None:
        state, captured = self.state, self.captured
        position, ranks, optimizer, average = (
            state.position,
            state.ranks,
            state.optimizer,
            state.average,
        )
        factor = 1.0 if self.factor is None else float(self.factor(position.epoch))
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        if hasattr(state.loss, "begin_epoch"):
            state.loss.begin_epoch(position.epoch)
        if captured is not None:
            captured.begin_epoch()
        step_shown, time_shown = position.step, time.monotonic()
        for batch in islice(self.batches.epoch(position.epoch), position.batch, None):
            share, rows = ranks.share(batch), len(batch[0])
            if captured is not None and self.validated:
                captured.run(share, position.loss)
                stop = interrupt.requested
            else:
                value, stop = self._update(share, rows, interrupt.requested)
                if not math.isfinite(value):
                    return "diverged"
                position.loss += value * rows if self.mean else value
                optimizer.step()
            if average is not None:
                average.update()
            position.batch += 1
            position.step += 1
            position.examples += rows
            every = self.checkpoint_every
            if stop or (
                every and position.step % every == 0 and position.batch < len(self.batches)
            ):
                if not self._finite():
                    return "diverged"
                self._save()
                if stop:
                    return "interrupted"
            if time.monotonic() - time_shown > _SHOWN_EVERY:
                if captured is not None and not self._finite():
                    return "diverged"
                progress.advance(position.step - step_shown)
                step_shown, time_shown = position.step, time.monotonic()
        progress.advance(position.step - step_shown)
        return None

    def _update(self, share: tuple[Tensor, ...], rows: int, stop: bool) -> tuple[float, bool]:
        """Gradients of all ranks in ``.grad``; their loss, and whether one of them is to stop."""
        story: Any = self.state.story
        self.state.optimizer.zero_grad()
        value = self._loss_and_grads(story.model, story.guide, share)
        weight = len(share[0]) / rows if self.mean else 1.0
        return self.state.ranks.reduce(self.parameters, weight, value, stop)

    def _finite(self) -> bool:
        """Whether the losses up to here and every parameter are finite numbers."""
        if self.captured is not None:
            self.state.position.loss = self.captured.look(self.state.position.loss)
        return math.isfinite(self.state.position.loss) and self.state.finite()

    def _loss_and_grads(self, model: Callable, guide: Callable, share: tuple[Tensor, ...]) -> float:
        if len(share[0]) == 0:
            return 0.0  # fewer examples than ranks
        try:
            value = float(self.state.loss.loss_and_grads(model, guide, *share))
        except (ArithmeticError, ValueError) as error:
            # Data are finite and a step went well: now it is the parameters that are extreme.
            if self.validated and _NOT_FINITE.search(str(error)):
                self.reason = f" ({str(error).splitlines()[0]})"
                return math.nan
            raise
        if not self.validated:
            self._check_gradients(value)
            pyro.enable_validation(False)  # what can be wrong with shapes has shown; now be quick
            self.validated = True
        return value

    def _check_gradients(self, value: float) -> None:
        name = type(self.state.story).__name__
        if all(p.grad is None for p in self.parameters) and math.isfinite(value):
            raise ValueError(
                f"the loss reaches no parameter of {name}: its model or guide must show them to "
                'Pyro: use PyroModule with @pyro_method, or pyro.module("name", self) in both'
            )
        own = {id(p) for p in self.state.story.parameters()}
        for site, p in pyro.get_param_store().named_parameters():
            if id(p) not in own and p.grad is not None:
                raise ValueError(
                    f"the parameter {site!r} is made by pyro.param and is no parameter of {name}, "
                    "so it would neither be trained nor saved: make it an nn.Parameter or PyroParam"
                )

    def _close_epoch(self, progress: Progress) -> Stopped | None:
        state, position = self.state, self.state.position
        if not self._finite():
            return "diverged"
        row: dict[str, Any] = {
            "epoch": position.epoch + 1,
            "step": position.step,
            "loss": position.loss / position.examples,
        }
        with nullcontext() if state.average is None else state.average.applied():
            if self.ask is not None:
                row["validation"] = state.ranks.agree(self.ask(state.story), state.device)
            row["learning_rate"] = state.optimizer.param_groups[0]["lr"]
            row["seconds"] = round(time.monotonic() - self.since, 3)
            self._keep_best(row)
            if state.ranks.first:
                for callback in self.callbacks:
                    callback(state.story, dict(row))
        position.history.append(row)
        position.epoch, position.batch, position.loss, position.examples = row["epoch"], 0, 0.0, 0
        if self.folder is not None:
            self.folder.append(row)
        self._save()
        numbers = {k: row[k] for k in ("loss", "validation") if k in row}
        progress.advance(0, epoch=row["epoch"], **numbers)
        return "patience" if self._impatient() else None

    def _keep_best(self, row: Mapping[str, Any]) -> None:
        position = self.state.position
        if self.patience is None:
            return
        if position.best is None or row["validation"] < position.best:
            position.best, position.best_epoch = row["validation"], row["epoch"]
            tensors = story_tensors(self.state.story)
            self.state.best = {name: value.clone() for name, value in tensors.items()}

    def _impatient(self) -> bool:
        position = self.state.position
        if self.patience is None or position.best is None:
            return False
        return position.epoch - position.best_epoch >= self.patience

    def _save(self) -> None:
        self.state.position.seconds = time.monotonic() - self.since if self.since else 0.0
        if self.out is not None:
            self.state.save(self.out / "ckpt")

    def _explain(self, stopped: Stopped | None) -> str:
        position = self.state.position
        where = f"in epoch {position.epoch + 1}, after {position.step} steps"
        if stopped == "interrupted":
            saved = f"; saved; continue with: {self.resume_command}" if self.out else ""
            return f"interrupted {where}{saved}"
        if stopped == "patience":
            return (
                f"stopped after epoch {position.epoch}: no better validation since epoch "
                f"{position.best_epoch}, whose parameters are kept"
            )
        if stopped == "diverged":
            rate = self.state.optimizer.param_groups[0]["lr"]
            kept = ""
            if self.out is not None:
                self.state.load(self.out / "ckpt")
                kept = (
                    f"; the story is as it was after {self.state.position.step} steps, at the last "
                    f"checkpoint in {self.out}"
                )
            return (
                f"the loss or a parameter is not finite {where}, learning rate {rate:g}: start "
                f"again with a smaller learning_rate{kept}{self.reason}"
            )
        return ""
