"""Masked autoregressive flows, and inverse ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints

from ppgen.networks.masked import MADE
from ppgen.transforms.bijection import Bijection
from ppgen.transforms.circle import angle
from ppgen.transforms.scalar import ScalarMap


class Autoregressive(Bijection, TransformModule):
    r"""Masked autoregressive flow: coordinate i of the data is a scalar map of the base's.

    .. math:: y_i = f(x_i;\ \theta_i(y_{<i}))

    Data to base, what a density needs, is one pass of the network; base to data, what a sample
    needs, is `dim` steps, which together have the arithmetic of one pass. Nothing is cached, so
    that no value outlives a parameter update; use `inverse_with_log_det` where both are wanted from
    one pass.

    Args:
        dim: coordinates, D.
        scalar_map: f; its parameters come from the network.
        hidden: widths of the network's hidden layers.
        order: the coordinates in the order of their generation.
        dropout: in the network, while training.
        context: numbers that the network is told besides, C, as in the flow posterior of an
            encoder; both directions then take them as a second argument.

    Shapes: ``(*, D) -> (*, D)``, log-determinants ``(*)``; contexts ``(*, C)``.

    Raises:
        ValueError: for maps of the circle, unless there is a single angle.

    References:
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057
    """

    domain: Any
    codomain: Any

    def __init__(
        self,
        dim: int,
        scalar_map: ScalarMap,
        hidden: Sequence[int] = (64, 64),
        *,
        order: Sequence[int] | None = None,
        dropout: float = 0.0,
        context: int = 0,
    ) -> None:
        super().__init__()
        if scalar_map.domain is angle and dim > 1:
            raise ValueError(
                "an autoregressive network sees angles as numbers, and would tear the torus at 0: "
                "use Coupling, which gives its network their cosines and sines"
            )
        self.scalar_map = scalar_map
        self.domain = self.codomain = constraints.independent(scalar_map.domain, 1)
        self.conditioner = MADE(
            dim, scalar_map.parameters, hidden, order=order, dropout=dropout, context=context
        )

    def forward_with_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The data value ``y`` of `x`, and ``log |det dy/dx|``; coordinate by coordinate."""
        columns, total = {}, x.new_zeros(())
        batch = x.shape[:-1]
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])

        def make(i: int, raw: Tensor) -> Tensor:
            nonlocal total
            columns[i], slope = self.scalar_map.to_data(x[..., i].expand(batch), raw)
            total = total + slope
            return self._seen(columns[i])

        self.conditioner.generate(make, batch, context)
        return torch.stack([columns[i] for i in range(x.shape[-1])], -1), total

    def inverse_with_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x, slope = self.scalar_map.to_base(y, self.conditioner(self._seen(y), context))
        return x, slope.sum(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.inverse_with_log_det(y)[1]

    def _seen(self, y: Tensor) -> Tensor:
        # centred, where the data live in the unit cube
        return 2 * y - 1 if self.scalar_map.domain is constraints.unit_interval else y


class InverseAutoregressive(Bijection, TransformModule):
    r"""An autoregressive layer the other way round: a draw is one pass, a density `dim` steps.

    .. math:: y_i = f^{-1}(x_i;\ \theta_i(x_{<i}, h))

    That is what a guide needs, which scores its own draws.

    Args:
        layer: an `Autoregressive` one.
        context: what its network is told, h, ``(*, C)``; None for a layer without.

    Shapes: ``(*, D) -> (*, D)``, log-determinants ``(*)``.

    References:
        | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934
    """

    domain: Any
    codomain: Any

    def __init__(self, layer: Autoregressive, context: Tensor | None = None) -> None:
        super().__init__()
        self.layer, self.context = layer, context
        self.domain = self.codomain = layer.domain

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.inverse_with_log_det(x, self.context)

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.forward_with_log_det(y, self.context)
