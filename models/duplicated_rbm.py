"""The RBMs from which a deep Boltzmann machine is pretrained: one side stands there twice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ppgen.models.bipartite import Bipartite
from ppgen.models.rbm import RBM
from ppgen.types import Statistics


class DuplicatedRBM(Bipartite):
    r"""An RBM, one side of which is duplicated with the same weights: a machine of its own.

    .. math:: E(x, x', h) = -a^\top (x + x') - b^\top h - (x + x')^\top W h

    In a deep machine a layer has input from both its neighbours. The lowest RBM stands for both
    with the data twice, ``p(h | x, x) = sigmoid(b + 2 W^T x)`` and ``p(x | h) = sigmoid(a + W h)``;
    the highest with its hidden layer twice. Training it trains `rbm`, whose parameters it has.

    Args:
        rbm: the one whose weights are shared between the copies.
        side: "visible" or "hidden".

    References:
        | Deep Boltzmann Machines (Salakhutdinov, Hinton, 2009), section 3.1
    """

    def __init__(self, rbm: RBM, side: str) -> None:
        super().__init__()
        if side not in ("visible", "hidden"):
            raise ValueError(f'side={side!r}: expected "visible" or "hidden"')
        if not (rbm.units.binary and rbm.hidden_units.binary):
            raise ValueError("DuplicatedRBM: expected binary units, as a deep machine has them")
        self.rbm, self.side, self.visible = rbm, side, rbm.visible

    def model(self, x: Tensor) -> Any:
        raise NotImplementedError(
            "DuplicatedRBM is a device of pretraining and no story: train it with "
            "ContrastiveDivergence, then take its `rbm`"
        )

    guide = model

    @property
    def weight(self) -> Tensor:
        return torch.cat([self.rbm.weight] * 2, 0 if self.side == "visible" else 1)

    @property
    def visible_bias(self) -> Tensor:
        bias = self.rbm.visible_bias
        return torch.cat([bias, bias]) if self.side == "visible" else bias

    @property
    def hidden_bias(self) -> Tensor:
        bias = self.rbm.hidden_bias
        return torch.cat([bias, bias]) if self.side == "hidden" else bias

    def positive_phase(self, x: Tensor) -> Statistics:
        """All copies of the data clamped."""
        return self.statistics(torch.cat([x, x], -1) if self.side == "visible" else x)

    def log_unnormalised(self, x: Tensor) -> Tensor:
        return -self.free_energy(torch.cat([x, x], -1) if self.side == "visible" else x)

    def by_parameter(
        self, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor
    ) -> dict[str, Tensor]:
        if self.side == "visible":
            weight, visible_bias = _sum(weight, 0), _sum(visible_bias, 0)
        else:
            weight, hidden_bias = _sum(weight, 1), _sum(hidden_bias, 0)
        parts = self.rbm.by_parameter(weight, visible_bias, hidden_bias)
        return {f"rbm.{name}": value for name, value in parts.items()}

    def start_at(self, x: Tensor) -> None:
        self.rbm.start_at(x)


def pretraining_machines(sizes: Sequence[int], *, weight_scale: float = 0.01) -> list[Bipartite]:
    """The stack whose greedy training starts a DBM with layers of `sizes` (that of x first).

    The lowest has its data twice, the highest its hidden layer; those between are plain RBMs.
    Afterwards ``dbm.assemble(stack)``.
    """
    rbms = [RBM(below, above, weight_scale=weight_scale) for below, above in pairwise(sizes)]
    if len(rbms) < 2:
        raise ValueError(f"sizes: expected those of x and two hidden layers or more, got {sizes}")
    return [DuplicatedRBM(rbms[0], "visible"), *rbms[1:-1], DuplicatedRBM(rbms[-1], "hidden")]


def _sum(copies: Tensor, dim: int) -> Tensor:
    first, second = copies.chunk(2, dim)
    return first + second
