"""Train a deep story by minibatches: one loop for every loss, resumable bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppgen.inference.training.averaging import ParameterAverage
from ppgen.inference.training.captured import captured_updates, require_capturable
from ppgen.inference.training.data_parallel import own_device, ranks
from ppgen.inference.training.loop import Callback, Loop, Stopped, own_store
from ppgen.inference.training.minibatches import Data, Minibatches
from ppgen.inference.training.options import (
    averages_over_batch,
    check_config,
    check_numbers,
    check_story,
    default_loss,
    describe,
)
from ppgen.inference.training.randomness import seeded, stream
from ppgen.inference.training.state import Position, TrainingState
from ppgen.inference.training.state import restore_story as restore_story
from ppgen.inference.training.state import trained_tensors as trained_tensors
from ppgen.inference.training.validation import question
from ppgen.run_folder import RunFolder
from ppgen.threads import LITTLE, one_thread_if


@dataclass(frozen=True)
class TrainResult:
    """What a training run arrived at.

    Args:
        story: the one that was given, trained: with the best validation under `patience`, else
            with averaged parameters under `averaging`, else with the last ones.
        history: name -> a value for each epoch: ``epoch``, ``step``, ``loss`` (per example, mean
            over the epoch), ``validation``, ``learning_rate``, ``seconds`` (since the start).
        epochs: epochs that were completed.
        steps: updates of the parameters.
        seconds: of training, over all resumed parts.
        stopped: "finished", "interrupted", "patience" or "diverged".
        message: what to know about the end, in one line; empty when finished.
        out: the run folder.
    """

    story: nn.Module = field(repr=False)
    history: dict[str, list[Any]] = field(repr=False)
    epochs: int
    steps: int
    seconds: float
    stopped: Stopped
    message: str = ""
    out: Path | None = None

    def __str__(self) -> str:
        last = {name: values[-1] for name, values in self.history.items() if values}
        bounds = [f", {name} {last[name]:.2f}" for name in ("loss", "validation") if name in last]
        return (
            f"{type(self.story).__name__}: {self.stopped} after {self.epochs} epochs, {self.steps} "
            f"steps, {self.seconds:.1f} s{''.join(bounds)}{self.message and f'; {self.message}'}"
        )


def train(
    story: nn.Module,
    data: Data,
    *,
    loss: Any = None,
    epochs: int = 10,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    schedule: str | Callable[[int], float] = "constant",
    averaging: float = 0.0,
    validation: Data | Callable[[Any], float] | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int | None = None,
    compile: bool = False,
    config: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Fit the parameters of `story` to `data`, and keep a run folder from which to go on.

    Killed at any moment and called again with ``resume=True``, it ends bit for bit where it would
    have ended (same machine, same number of threads). Under ``torchrun`` every process takes its
    share of each batch. The first Ctrl-C finishes the step and saves. A loss that is not finite
    ends the run at once, with the story as it was at the last checkpoint.

    Args:
        story: a module with methods `model` and `guide`.
        data: ``(N, ...)``; several tensors, which become the pair's arguments; or a
            `ppgen.data.Dataset`.
        loss: as Pyro's: ``loss.loss_and_grads(model, guide, *batch) -> float`` adds to ``.grad``.
            Its ``reduction`` says whether it is a "sum" over the batch (Pyro's ELBOs, the default)
            or a "mean" (contrastive divergence). None: `ContrastiveDivergence` for a Boltzmann
            machine, else `ELBO`. ``state_dict``, ``load_state_dict``, ``begin_epoch(epoch)`` and
            ``check_data(story, *data)``, which refuses data that it cannot take, are honoured,
            if there.
        epochs: passes over the data, in all: a resumed run counts those it has.
        batch_size: the last batch of an epoch may be shorter; fewer than `batch_size` examples are
            one batch, so that every epoch is one step.
        learning_rate: above 0, at most 100.
        optimizer: called as ``optimizer(parameters, lr=learning_rate)``: a class of torch.optim,
            or a functools.partial of one. None: Adam.
        schedule: "constant", or the factor of the learning rate in epoch number 0, 1, ...
        averaging: decay of an exponential moving average of the parameters; 0 for none.
        validation: held-out data, or a function of the story (smaller is better), asked after
            each epoch; a Boltzmann machine's held-out data give its free-energy gap.
        patience: stop after so many epochs without a better validation, and keep the best.
        seed: of the batches' order and of all noise; the caller's generator is left as it was.
        device: where to train; None: where the story is.
        out: run folder; None: nothing is written.
        resume: go on with the run in `out`, whose options must be the same but for `epochs`,
            `patience`, `checkpoint_every`, `compile`, `device` and `callbacks`.
        overwrite: replace the run in `out`.
        checkpoint_every: steps between checkpoints in `out`, where there is also one after each
            epoch.
        compile: on a GPU, capture each whole update (both phases, gradient, optimizer) as one CUDA
            graph, which leaves the numbers as they are; for `ContrastiveDivergence`, `TopLayer`
            and `UpDown` with any sampler but `Trajectory`, in one process. On a CPU there is
            nothing to gain, and it changes nothing.
        config: what else ``config.json`` shall hold, such as ``{"story": {"name": "rbm"}}``; in a
            resumed run, in place of what it holds under these keys.
        callbacks: called after each epoch as ``callback(story, row)``, on rank 0.

    Raises:
        ValueError: for options out of range, by name; for data with NaN, or of another kind than
            the units of a Boltzmann machine, by row and column; for a folder that cannot be used as
            asked. Nothing is written in these cases.
        OSError: in one line, when the folder cannot be written; its last checkpoint is intact.

    Example:
        >>> result = train(VAE(784), x, epochs=20, out="runs/vae")        # doctest: +SKIP
        >>> train(VAE(784), x, epochs=40, out="runs/vae", resume=True)    # doctest: +SKIP
    """
    options: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "averaging": averaging,
        "patience": patience,
        "seed": seed,
        "checkpoint_every": checkpoint_every,
    }
    check_numbers(options)
    check_config(config or {})
    if schedule != "constant" and not callable(schedule):
        raise ValueError(f'schedule={schedule!r}: expected "constant" or a function of the epoch')
    if out is None and (resume or overwrite):
        raise ValueError("resume and overwrite need a folder: give out=")
    parameters = check_story(story)
    device = parameters[0].device if device is None else own_device(torch.device(device))
    loss = default_loss(story) if loss is None else loss
    batches = Minibatches(data, batch_size, seed=seed, device=device, dtype=parameters[0].dtype)
    if hasattr(loss, "check_data"):
        loss.check_data(story, *batches.tensors)
    ask = question(validation, story, loss, batches, patience)
    make = partial(torch.optim.Adam, fused=True) if optimizer is None else optimizer
    options |= {
        "batch_size": batches.size,
        "loss": describe(loss),
        "optimizer": describe(make),
        "schedule": describe(schedule),
        "data": None if out is None else batches.fingerprint(),
        "device": str(device),
    }
    with ExitStack() as stack:
        group = stack.enter_context(ranks(device))
        if compile:
            require_capturable(loss, group.world)
        folder = None
        if out is not None and group.first:
            folder = stack.enter_context(RunFolder(out, resume=resume, overwrite=overwrite))
        stack.enter_context(seeded(stream(seed, "rank", group.rank), device))
        stack.enter_context(own_store(story))
        numbers = sum(p.numel() for p in parameters) + batches.numbers
        stack.enter_context(one_thread_if(numbers < LITTLE))
        story.to(device)
        average = ParameterAverage(parameters, averaging) if averaging else None
        descent = make(parameters, lr=learning_rate)
        loop = Loop(
            state=TrainingState(story, descent, loss, average, Position(), group, device),
            batches=batches,
            mean=averages_over_batch(loss, story),
            ask=ask,
            epochs=epochs,
            patience=patience,
            checkpoint_every=checkpoint_every,
            factor=schedule if callable(schedule) else None,
            callbacks=callbacks,
            out=None if out is None else Path(out),
            folder=folder,
            captured=captured_updates(loss, story, descent, device) if compile else None,
        )
        loop.begin(options, config or {})
        stopped, message = loop.run()
        loop.end()
    position = loop.state.position
    return TrainResult(
        story=story,
        history={k: [row[k] for row in position.history] for k in loop.columns},
        epochs=position.epoch,
        steps=position.step,
        seconds=position.seconds,
        stopped=stopped,
        message=message,
        out=None if out is None else Path(out),
    )
