"""What ``--labels`` stands for: the label of an example as a part of it, a unit for each class."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ppgen.data import Dataset
    from ppgen.likelihood import Likelihood


def beside_labels(examples: Dataset, settings: dict[str, Any]) -> Dataset:
    """The examples with one-hot labels after their own columns: ``(N, D) -> (N, D + K)``.

    Which labels there are, numbers or words, goes into `settings` with the first data that are
    read.

    Raises:
        DataError: for data without labels, with one label only, or with one that the data of the
            training do not have.
    """
    import torch

    from ppgen.data import DataError
    from ppgen.data.errors import refuse_where
    from ppgen.models import labelled

    if examples.labels is None:
        raise DataError(
            "no labels come with it, which --labels makes a part of each example: digits, mnist "
            "and fashion-mnist have some, a .csv file in its column label, a .npz file in its "
            "array labels",
            examples.name,
        )
    present, place = examples.labels.unique(return_inverse=True)
    said = [n if examples.words is None else examples.words[n] for n in present.tolist()]
    known = settings.setdefault("classes", said)
    if len(known) < 2:
        raise DataError(f"every label is {known[0]}: leave --labels out", examples.name)
    index = torch.tensor([known.index(label) if label in known else -1 for label in said])[place]
    among = f"no label of the training data, which has {', '.join(map(str, known))}"
    refuse_where(index < 0, among, examples.name)
    names = None
    if examples.columns is not None:
        names = (*examples.columns, *(f"label {label}" for label in known))
    return replace(
        examples,
        x=labelled(examples.x, index, len(known)),
        # of dynamic binarisation: a draw with probability 0 or 1 is the label again
        grey=None if examples.grey is None else labelled(examples.grey, index, len(known)),
        columns=names,
        notes=(*examples.notes, "with labels"),
    )


def own_columns(x: Any, settings: dict[str, Any]) -> Any:
    """The columns of the data themselves, as pictures show them: ``(*, D + K) -> (*, D)``."""
    return x[..., : -len(settings["classes"])] if settings.get("labels") else x


def label_column(x: Any, settings: dict[str, Any]) -> Any:
    """An array of examples with the label itself as the last column: ``(*, D + K) -> (*, D + 1)``.

    A word is its place among those of the run, from 0. Without `--labels` they stay as they are.
    """
    import numpy as np

    if not settings.get("labels"):
        return x
    known = settings["classes"]
    numbers = range(len(known)) if isinstance(known[0], str) else known
    label = np.asarray(numbers)[x[..., -len(known) :].argmax(-1)]
    return np.concatenate([own_columns(x, settings), label[..., None].astype(x.dtype)], -1)


def class_of(label: str, settings: dict[str, Any]) -> int:
    """The place of a label, a number or a word, among those of a run.

    Raises:
        ValueError: where the run has no labels, or not this one.
    """
    if not settings.get("labels"):
        raise ValueError(
            f"--label {label}: this run knows no labels; train one that does: "
            "ppgen train rbm --labels"
        )
    known = [str(one) for one in settings["classes"]]
    if label not in known:
        raise ValueError(f"--label {label}: this run has the labels {', '.join(known)}")
    return known.index(label)


def classification(
    story: Any, found: Likelihood, x: Tensor, split: str
) -> tuple[str, dict[str, float]]:
    """How well rows ``(N, D + K)`` are classified, in words and numbers.

    And what the likelihood of pixels and labels, `found`, is of the pixels alone:
    ``log p(x) = log p(x, y) - log p(y | x)``, whose last term is exact.
    """
    import torch

    from ppgen.diagnostics import share_error

    x = x.to(next(story.parameters()))
    pixels, labels = x[:, : story.pixels], x[:, story.pixels :].argmax(-1)
    with torch.no_grad():
        cost = -story.label_given_data(pixels).log_prob(labels).mean().item()
        wrong = int((story.classify(pixels) != labels).sum())
    share = wrong / len(x)
    error = share_error(wrong, len(x))
    numbers = {
        "classification_error": share,
        "classification_standard_error": error,
        "nats_per_label": cost,
    }
    text = "\na likelihood of examples with their labels"
    if found.upper is not None and not found.disagrees:
        low, high = sorted([found.lower + cost, found.upper + cost])
        numbers |= {"unlabelled_lower": low, "unlabelled_upper": high}
        ends = f"{low:.2f}" if found.kind == "exact" else f"between {low:.2f} and {high:.2f}"
        text += f"; of the examples alone {ends} nats ({found.kind})"
    text += (
        f"\nclassification error {100 * share:.1f} % ({wrong} of {len(x)}, {split}; +- "
        f"{100 * error:.1f} % as a sample of others), {cost:.3f} nats a label: both of "
        "p(label | example), which is exact"
    )
    return text, numbers
