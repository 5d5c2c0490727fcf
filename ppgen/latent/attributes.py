r"""Attribute vectors: the direction in which smiling faces, or sevens, lie.

A direction u, a point c between the classes and the distance g of their means along u make a
coordinate, :math:`(z - c)^T u / g`: about :math:`-\tfrac12` without the attribute and
:math:`+\tfrac12` with it, so that a strength of 1 takes the mean of one class to the other.

References:
    | Autoencoding beyond pixels (Larsen et al., 2016) | https://arxiv.org/abs/1512.09300
    | Sampling Generative Networks (White, 2016) | https://arxiv.org/abs/1609.04468
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.diagnostics import share_error
from ppgen.latent.codes import codes, nearest
from ppgen.types import Autoencoder

_ITERATIONS = 100  # of Newton's method; the penalised problem is strictly convex


class Attribute(NamedTuple):
    """A direction of the latent space with a scale."""

    direction: Tensor  # u, of length 1, (L,)
    middle: Tensor  # c, between the classes, (L,)
    gap: Tensor  # g, between the means of the classes along u, ()

    def coordinate(self, z: Tensor) -> Tensor:
        """How much of the attribute codes have, ``(*, L) -> (*)``."""
        return (z - self.middle) @ self.direction / self.gap

    def shift(self, z: Tensor, strength: float | Tensor) -> Tensor:
        """Codes with that much more of it; a strength for all, or one for each, ``(*)``."""
        amount = torch.as_tensor(strength).to(z) * self.gap
        return z + amount[..., None] * self.direction

    def put(self, z: Tensor, value: float) -> Tensor:
        """Codes moved along the direction until their coordinate is `value`."""
        return self.shift(z, value - self.coordinate(z))

    def remove(self, z: Tensor) -> Tensor:
        """Codes projected onto the plane between the classes."""
        return self.put(z, 0.0)


def difference_of_means(codes: Tensor, labels: Tensor) -> Attribute:
    """From the mean of the codes without the attribute to that of those with it.

    Args:
        codes: ``(N, L)``.
        labels: whether each has the attribute, ``(N,)``.

    Raises:
        ValueError: where one of the two classes is missing, or their means are the same.

    Example:
        >>> plane = torch.tensor([[0.0, 1.0], [0.0, 3.0], [2.0, 2.0]])
        >>> difference_of_means(plane, torch.tensor([False, False, True])).direction
        tensor([1., 0.])
    """
    without, having = _means(codes, labels)
    gap = (having - without).norm()
    if float(gap) == 0:
        raise ValueError("the codes with and without the attribute have the same mean")
    return Attribute((having - without) / gap, 0.5 * (having + without), gap)


def logistic_direction(codes: Tensor, labels: Tensor, penalty: float = 1.0) -> Attribute:
    r"""The normal of the plane that logistic regression puts between the classes.

    Unlike the difference of the means it leaves out what only happens to vary along with the
    attribute. The weights minimise the sum of the losses and
    ``penalty / 2 * |w|^2``, by Newton's method on standardised codes.

    Args:
        codes: ``(N, L)``.
        labels: whether each has the attribute, ``(N,)``.
        penalty: at least a little, for classes that a plane can separate.

    Raises:
        ValueError: where one of the two classes is missing, the penalty is not positive, or no
            weight is found.
    """
    if penalty <= 0:
        raise ValueError(f"penalty must be positive, got {penalty}")
    without, having = _means(codes, labels)
    centre, scale = codes.mean(0), codes.std(0).clamp(min=torch.finfo(codes.dtype).eps)
    design = torch.cat([(codes - centre) / scale, torch.ones_like(codes[:, :1])], 1).double()
    ridge = torch.full_like(design[0], penalty)
    ridge[-1] = 0  # the offset is free
    w = (_newton(design, labels.to(design), ridge)[:-1] / scale.double()).to(codes)
    direction = w / w.norm()
    gap = (having - without) @ direction
    if not float(gap) > 0:
        raise ValueError("logistic regression finds no direction in which the classes differ")
    # not where the regression says one half: that moves with how common the attribute is
    return Attribute(direction, 0.5 * (having + without), gap)


def _newton(design: Tensor, labels: Tensor, ridge: Tensor) -> Tensor:
    def loss(w: Tensor) -> Tensor:
        logits = design @ w
        fit = torch.nn.functional.softplus(logits) - labels * logits
        return fit.sum() + 0.5 * (ridge * w.square()).sum()

    w = torch.zeros_like(ridge)
    for _ in range(_ITERATIONS):
        p = torch.sigmoid(design @ w)
        gradient = design.mT @ (p - labels) + ridge * w
        curvature = (design * (p * (1 - p))[:, None]).mT @ design + ridge.diag()
        step = torch.linalg.lstsq(curvature, gradient[:, None]).solution[:, 0]
        while loss(w - step) > loss(w) and float(step.norm()) > 1e-12:
            step = 0.5 * step
        w = w - step
        if float(step.norm()) <= 1e-10 * (1 + float(w.norm())):
            break
    return w


def _means(codes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if codes.ndim != 2 or labels.shape != codes.shape[:1]:
        raise ValueError(
            f"expected codes (N, L) and labels (N,), got {tuple(codes.shape)} and "
            f"{tuple(labels.shape)}"
        )
    have = labels.bool()
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError("labels: expected whether each code has the attribute, 0 or 1")
    if bool(have.all()) or not bool(have.any()):
        raise ValueError(
            f"labels: {int(have.sum())} of {len(have)} codes have the attribute; both classes are "
            "needed"
        )
    return codes[~have].mean(0), codes[have].mean(0)


class Effect(NamedTuple):
    """What moving codes along an attribute does to the examples they decode to."""

    flipped: float  # share whose class the move changes, among those reconstructed in their own
    flipped_error: float  # its standard error
    kept: float  # share that is still nearest to its own code, the attribute left out
    kept_error: float
    examples: int

    def __str__(self) -> str:
        return (
            f"class flipped {self.flipped:.3f} +- {self.flipped_error:.3f}, identity kept "
            f"{self.kept:.3f} +- {self.kept_error:.3f} (by chance {1 / self.examples:.3f}), "
            f"{self.examples} examples"
        )


@torch.no_grad()
def attribute_effect(
    model: Autoencoder,
    x: Tensor,
    labels: Tensor,
    attribute: Attribute,
    classify: Callable[[Tensor], Tensor],
    *,
    strength: float = 1.0,
) -> Effect:
    """Whether a move along the attribute changes that, and nothing else.

    Examples without the attribute get `strength` more of it, those with it as much less. They
    are decoded, classified, and encoded anew to see whose code they are nearest to.

    Args:
        model: encodes and decodes.
        x: examples, held out from what the attribute was found on, ``(N, D)``.
        labels: whether each has the attribute, ``(N,)``.
        attribute: the direction.
        classify: whether decoded examples ``(N, D)`` have the attribute, ``(N,)``.
        strength: 1 takes the mean of one class to that of the other.

    Raises:
        ValueError: where no reconstruction is classified as its example is labelled.
    """
    z, have = codes(model, x), labels.bool()
    before = model.decode(z).mean
    moved = attribute.shift(z, torch.where(have, -strength, strength))
    after = model.decode(moved).mean
    right = classify(before).bool() == have
    if not bool(right.any()):
        raise ValueError(
            "classify: none of the reconstructions has the class of its example; a flip of their "
            "classes would mean nothing"
        )
    flips, tried = int((classify(after).bool() != have)[right].sum()), int(right.sum())
    own, again = (attribute.remove(codes(model, images)) for images in (before, after))
    same = int((nearest(again, own).rows[:, 0] == torch.arange(len(x), device=z.device)).sum())
    return Effect(
        flips / tried, share_error(flips, tried), same / len(x), share_error(same, len(x)), len(x)
    )
