"""Coupling flows: one half moves, told how by the other half."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints

from ppgen.arguments import require_whole, require_widths
from ppgen.networks.mlp import conditioner
from ppgen.transforms.bijection import Bijection
from ppgen.transforms.circle import angle
from ppgen.transforms.scalar import ScalarMap


class Coupling(Bijection, TransformModule):
    r"""Coupling layer: some coordinates stay, and set the scalar maps of the others.

    .. math:: y_A = x_A, \quad y_B = f(x_B;\ \theta(x_A))

    Both directions are one pass of the network. Nothing is cached. Over a map of the circle (see
    `ppgen.transforms.circle`) it is a flow on a torus of angles.

    Args:
        dim: coordinates, D >= 2.
        scalar_map: f; its parameters come from the network.
        hidden: widths of the network's hidden layers.
        fixed: the coordinates A that stay; every other one by default.

    Shapes: ``(*, D) -> (*, D)``, log-determinants ``(*)``.

    References:
        | Density estimation using Real NVP (Dinh et al., 2017)
        | https://arxiv.org/abs/1605.08803
    """

    domain: Any
    codomain: Any
    order: Tensor
    back: Tensor

    def __init__(
        self,
        dim: int,
        scalar_map: ScalarMap,
        hidden: Sequence[int] = (64, 64),
        *,
        fixed: Sequence[int] | None = None,
    ) -> None:
        require_whole(self, least=2, dim=dim)
        require_widths(self, hidden=hidden)
        require_widths(self, least=0, fixed=() if fixed is None else fixed)
        super().__init__()
        stay = sorted({int(i) for i in (range(0, dim, 2) if fixed is None else fixed)})
        move = [i for i in range(dim) if i not in stay]
        if not stay or not move or stay[-1] >= dim:
            raise ValueError(
                f"coupling needs coordinates that stay and some that move, of {dim}; fixed={stay}"
            )
        self.scalar_map = scalar_map
        self.domain = self.codomain = constraints.independent(scalar_map.domain, 1)
        # in two blocks: where the data have them so, nothing is looked up by index
        self.stay_last = stay == list(range(len(move), dim))
        blocks = [move, stay] if self.stay_last else [stay, move]
        order = torch.tensor(blocks[0] + blocks[1])
        self.in_blocks = bool((order == torch.arange(dim)).all())
        self.sizes = [len(block) for block in blocks]
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.periodic = scalar_map.domain is angle
        seen = (2 if self.periodic else 1) * len(stay)
        self.conditioner = conditioner((seen, *hidden, len(move) * scalar_map.parameters))

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(self.scalar_map.to_data, x)

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(self.scalar_map.to_base, y)

    def _move(
        self, way: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Those that move go through their maps, in one direction or the other."""
        blocks = value if self.in_blocks else value.index_select(-1, self.order)
        first, last = blocks.split(self.sizes, -1)
        stay, move = (last, first) if self.stay_last else (first, last)
        seen = torch.cat([stay.cos(), stay.sin()], -1) if self.periodic else stay
        raw = self.conditioner(seen).unflatten(-1, (move.shape[-1], self.scalar_map.parameters))
        moved, slope = way(move, raw)
        out = torch.cat([moved, stay] if self.stay_last else [stay, moved], -1)
        return out if self.in_blocks else out.index_select(-1, self.back), slope.sum(-1)
