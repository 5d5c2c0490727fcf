"""What is asked of a story after each epoch, on data that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.inference.training.minibatches import Data, Minibatches
from ppgen.inference.training.options import averages_over_batch
from ppgen.inference.training.randomness import seeded, stream
from ppgen.types import BoltzmannMachine

Question = Callable[[nn.Module], float]


def question(
    validation: Data | Callable[[Any], float] | None,
    story: nn.Module,
    loss: Any,
    batches: Minibatches,
    patience: int | None,
) -> Question | None:
    """The number to record after each epoch, smaller is better; it leaves no trace in the run.

    Args:
        validation: a function of the story, taken as it is; or held-out data, of which it is the
            loss per example, under the same noise every time; for a Boltzmann machine the
            free-energy gap to the training data, in nats, which grows as the machine overfits.
        story: the one to be trained.
        loss: that of the training.
        batches: of the training data.
        patience: refused for the free-energy gap, which is smallest before training.
    """
    if validation is None:
        if patience is not None:
            raise ValueError("patience needs a validation: give held-out data or a function")
        return None
    if not isinstance(validation, (Tensor, Sequence)) and not hasattr(validation, "x"):
        if not callable(validation):
            raise TypeError(
                f"validation: expected data or a function, not {type(validation).__name__}"
            )
        return _quietly(validation, batches)
    held_out = _as_training_data(validation, batches)
    if isinstance(story, BoltzmannMachine):
        if patience is not None:
            raise ValueError(
                "patience: the free-energy gap of a Boltzmann machine is smallest before training; "
                "give validation=lambda story: ... a number that training shall make smaller"
            )
        return _quietly(lambda machine: _free_energy_gap(machine, held_out, batches), batches)
    if not callable(getattr(loss, "loss", None)):
        raise TypeError(
            f"validation: {type(loss).__name__} has no method `loss(model, guide, x)` to evaluate "
            "held-out data with; give validation=lambda story: ... instead"
        )
    return _quietly(lambda story: _loss_per_example(story, loss, held_out), batches)


def _quietly(ask: Callable[[Any], float], batches: Minibatches) -> Question:
    """In evaluation mode, without gradients, with noise of its own that is the same every time."""
    seed = stream(batches.seed, "validation")

    def answer(story: nn.Module) -> float:
        training = story.training
        with seeded(seed, batches.device), torch.no_grad():
            story.eval()
            try:
                number = float(ask(story))
            finally:
                story.train(training)
        if math.isnan(number):
            raise ValueError("validation: the number is nan")
        return number

    return answer


def _loss_per_example(story: Any, loss: Any, held_out: Minibatches) -> float:
    mean = averages_over_batch(loss, story)
    total = 0.0
    for batch in held_out.in_order():
        value = float(loss.loss(story.model, story.guide, *batch))
        total += value * len(batch[0]) if mean else value
    return total / held_out.examples


def _free_energy_gap(machine: Any, held_out: Minibatches, batches: Minibatches) -> float:
    # of a deep machine the variational free energies, which its positive phase minimises
    theirs, ours = (
        torch.cat([x for x, *_ in islice(source.in_order(), len(held_out))])[: held_out.examples]
        for source in (held_out, batches)
    )
    return float(
        machine.positive_phase(theirs).free_energy - machine.positive_phase(ours).free_energy
    )


def _as_training_data(data: Any, batches: Minibatches) -> Minibatches:
    return Minibatches(
        data,
        batches.size,
        seed=batches.seed,
        device=batches.device,
        dtype=batches.dtype,
        name="validation",
    )
