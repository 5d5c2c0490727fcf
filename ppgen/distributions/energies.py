"""Four densities in the plane on which flows are tried, normalised and with exact draws."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

_ONE = Size()
_LOG_Z = {1: 1.8775016261, 2: 2.6253183009, 3: 3.1849340888, 4: 3.2539269603}  # nats
_WALL = 6.0
_BOX = (11.5, 7.5)  # |z_1|, |z_2| of all but 1e-13 of each density
_BLOCK = 100_000  # proposals at a time; about one in 50 is kept


class RezendeMohamed(TorchDistribution):
    r"""The density ``exp(-U_k(z)) / Z`` of one of four energies: two moons, a wave, two forks.

    With :math:`w_1 = \sin(\pi z_1 / 2)`, :math:`w_2 = 3 \exp(-\tfrac12 ((z_1 - 1) / 0.6)^2)`,
    :math:`w_3 = 3 \sigma((z_1 - 1) / 0.3)` and :math:`g(a) = \exp(-a^2 / 2)`,

    .. math::
        U_1 &= \tfrac12 ((\|z\| - 2) / 0.4)^2
               - \log [g((z_1 - 2) / 0.6) + g((z_1 + 2) / 0.6)] \\
        U_2 &= \tfrac12 ((z_2 - w_1) / 0.4)^2 \\
        U_3 &= -\log [g((z_2 - w_1) / 0.35) + g((z_2 - w_1 + w_2) / 0.35)] \\
        U_4 &= -\log [g((z_2 - w_1) / 0.4) + g((z_2 - w_1 + w_3) / 0.35)]

    plus a wall, :math:`\sum_i \max(|z_i| - 6, 0)^2`, without which all but the first are
    improper. Since log Z is known, the ELBO of a guide is exactly minus its KL divergence.

    Args:
        number: k, 1 to 4.

    Shapes: z ``(*, 2)``; densities ``(*)``, nats.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), table 1
        | https://arxiv.org/abs/1505.05770
        | Block Neural Autoregressive Flow (De Cao et al., 2019), for the wall
        | https://arxiv.org/abs/1904.04676
    """

    arg_constraints: ClassVar[dict] = {}  # pyright: ignore[reportIncompatibleMethodOverride]
    support = constraints.real_vector  # type: ignore[assignment]
    has_rsample = False

    def __init__(
        self, number: int, batch_shape: Any = _ONE, *, validate_args: bool | None = None
    ) -> None:
        if number not in _LOG_Z:
            raise ValueError(f"number must be 1, 2, 3 or 4, got {number!r}")
        self.number = number
        super().__init__(Size(batch_shape), Size([2]), validate_args=validate_args)

    @property
    def log_z(self) -> float:
        """Log of the integral of ``exp(-energy)``, nats."""
        return _LOG_Z[self.number]

    def energy(self, z: Tensor) -> Tensor:
        """``U_k(z)`` with the wall, ``(*, 2) -> (*)``, nats."""
        first, second = z.unbind(-1)
        off = second - torch.sin(math.pi / 2 * first)
        wall = (z.abs() - _WALL).clamp(min=0).square().sum(-1)
        if self.number == 1:
            ring = 0.5 * ((torch.linalg.vector_norm(z, dim=-1) - 2) / 0.4).square()
            return ring - _log_bumps((first - 2) / 0.6, (first + 2) / 0.6) + wall
        if self.number == 2:
            return 0.5 * (off / 0.4).square() + wall
        if self.number == 3:
            fork = 3 * torch.exp(-0.5 * ((first - 1) / 0.6).square())
            return wall - _log_bumps(off / 0.35, (off + fork) / 0.35)
        fork = 3 * torch.sigmoid((first - 1) / 0.3)
        return wall - _log_bumps(off / 0.4, (off + fork) / 0.35)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return -self.energy(value) - self.log_z

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        """Exact draws, by rejection from a box that holds all but 1e-13 of the mass."""
        shape = self._extended_shape(sample_shape)
        count, kept = shape[:-1].numel(), []
        while sum(map(len, kept)) < count:
            z = (2 * torch.rand(_BLOCK, 2) - 1) * torch.tensor(_BOX)
            # exp(-energy) is at most 2, where two bumps meet
            kept.append(z[torch.rand(_BLOCK) < 0.5 * torch.exp(-self.energy(z))])
        drawn = torch.cat(kept) if kept else torch.zeros(0, 2)
        return drawn[:count].reshape(shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RezendeMohamed:
        return RezendeMohamed(self.number, batch_shape)


def _log_bumps(a: Tensor, b: Tensor) -> Tensor:
    return torch.logaddexp(-0.5 * a.square(), -0.5 * b.square())
