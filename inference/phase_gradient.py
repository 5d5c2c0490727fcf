"""The gradient of a Boltzmann machine: the difference of its two phases, centred or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.types import BoltzmannMachine, Statistics


class Offsets(NamedTuple):
    """About which the gradient is centred: means of statistics given the data."""

    visible: Tensor  # (M,); those of the units themselves, mu, first
    hidden: Tensor  # lambda, (H,)


class Gradient(NamedTuple):
    """Of the loss, ``-mean log p``, in the sides: what an optimizer descends."""

    weight: Tensor  # (D, H); zero between layers that are not coupled
    visible_bias: Tensor  # (M,), of the natural parameters: M = D but where units have more
    hidden_bias: Tensor  # (H,)


def positive_phase(machine: BoltzmannMachine, x: Tensor, sweeps: int = 0) -> Statistics:
    """The phase of the data ``(N, visible)``: by the machine's own means, or by sampling.

    With `sweeps`, latent layers of the visible side are where so many Gibbs updates leave them,
    data clamped, that begin with a draw of the mean field; the hidden side stands there by its
    exact means given them.
    """
    phase = machine.positive_phase(x)
    if not sweeps:
        return phase
    clamped = slice(0, machine.visible)
    side = machine.sample_visible(machine.hidden_states(phase))
    side[:, clamped] = x
    for _ in range(sweeps - 1):
        side = machine.sweep(side)
        side[:, clamped] = x
    return machine.statistics(side)


def difference(
    positive: Statistics,
    negative: Statistics,
    offsets: Offsets | None,
    out: Gradient | None = None,
    couplings: Sequence[tuple[slice, slice]] = ((slice(None), slice(None)),),
) -> Gradient:
    r"""Negative phase minus positive phase, each averaged over its own count.

    With `offsets`, the centred gradient: the gradient in the parameters of
    ``E = -a.(x - mu) - b.(h - lambda) - (x - mu).W.(h - lambda)``, carried back to this machine's
    parameters, so that neither the machine nor its log density changes. It does not change when
    the units of the data are flipped.

    References:
        | How to center deep Boltzmann machines (Melchior, Fischer, Wiskott, 2016)
        | https://jmlr.org/papers/v17/14-237.html
    """
    if out is None:
        shapes = shapes_of(positive.visible, positive.visible_mean, positive.hidden_mean)
        out = Gradient(*(positive.visible.new_zeros(shape) for shape in shapes))
    weight, visible_bias, hidden_bias = out
    torch.sub(negative.visible_mean, positive.visible_mean, out=visible_bias)
    torch.sub(negative.hidden_mean, positive.hidden_mean, out=hidden_bias)
    x, p, v, q = positive.visible, positive.hidden, negative.visible, negative.hidden
    mu = lam = None
    if offsets is not None:
        mu, lam = offsets.visible[: x.shape[1]], offsets.hidden
        x, p, v, q = x - mu, p - lam, v - mu, q - lam
    for rows, columns in couplings:
        block = weight[rows, columns]
        torch.mm(x[:, rows].T, p[:, columns], out=block)
        block.addmm_(v[:, rows].T, q[:, columns], beta=-1 / len(x), alpha=1 / len(v))
    if mu is not None and lam is not None:
        visible_bias[: x.shape[1]].addmv_(weight, lam, alpha=-1)
        hidden_bias.addmv_(weight.T, mu, alpha=-1)
    return out


def shapes_of(visible: Tensor, visible_mean: Tensor, hidden_mean: Tensor) -> list[tuple[int, ...]]:
    """Of a `Gradient`: W couples the units themselves, the biases belong to all statistics."""
    (M,), (H,) = visible_mean.shape, hidden_mean.shape
    return [(visible.shape[-1], H), (M,), (H,)]
