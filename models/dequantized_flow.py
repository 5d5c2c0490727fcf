"""Normalizing flows as models of discrete data: binary digits, grey levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.torch_transform import TransformModule
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen.arguments import require_whole
from ppgen.data.errors import check_rows
from ppgen.data.levels import whole_levels
from ppgen.distributions.standard_normal import StandardNormal
from ppgen.transforms.autoregressive import Autoregressive
from ppgen.transforms.cube import ToCube
from ppgen.transforms.pushforward import Pushforward
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.scalar import LinearSpline

MOST_STEPS = 32  # up to here each level has its own step; beyond, a smooth spline serves


class DequantizedFlow(PyroModule):
    r"""Flow on the unit cube whose cells are the discrete examples.

    .. math::
        v \sim \mathrm{flow\ on\ } [0, 1]^D, \quad x = \lfloor L v \rfloor, \quad
        q(v \mid x) = U\left(\tfrac{x}{L}, \tfrac{x + 1}{L}\right)

    The probability of an image is the flow's mass in its cell, and the guide is uniform
    dequantisation: ``E_q[log p(v) - log q(v | x)]`` is a lower bound on ``log p(x)`` in the same
    nats as a VAE's or an RBM's on the same data, and importance weighting over several draws
    tightens it (`log_weights`).

    A density with a jump at each cell's wall is what discrete data ask for: up to 32 levels the
    layers are piecewise linear with one step a level, beyond that rational-quadratic splines.

    Args:
        dim: pixels, D.
        levels: the values are 0 to ``levels - 1``, L.
        layers: autoregressive layers, in alternating order.
        hidden: widths of each layer's network.
        dropout: in the networks, while training.
        transforms: other layers, base to data, instead of the default ones. Those of the unit cube
            start from a uniform law; those of real numbers from a standard normal, and end in the
            cube through the logistic function.

    Shapes: ``x``: ``(B, D)``.

    Raises:
        ValueError: when `x` is not whole numbers in range; the row and column are named.

    References:
        | A note on the evaluation of generative models (Theis et al., 2016)
        | https://arxiv.org/abs/1511.01844
        | Flow++ (Ho et al., 2019), section 3.1
        | https://arxiv.org/abs/1902.00275

    Example:
        >>> flow = DequantizedFlow(64, levels=2)
        >>> flow.log_weights(torch.zeros(5, 64), samples=3).shape
        torch.Size([3, 5])
    """

    base: Tensor

    def __init__(
        self,
        dim: int,
        levels: int = 2,
        *,
        layers: int = 1,
        hidden: Sequence[int] = (512,),
        dropout: float = 0.5,
        transforms: Sequence[TransformModule] | None = None,
    ) -> None:
        require_whole(self, dim=dim, layers=layers)
        require_whole(self, least=2, levels=levels)
        super().__init__()
        self.dim, self.levels = dim, levels
        if transforms is None:
            smooth = levels > MOST_STEPS
            scalar_map = RationalQuadratic(16, None) if smooth else LinearSpline(levels)
            orders = [range(dim), range(dim - 1, -1, -1)]
            transforms = [
                Autoregressive(dim, scalar_map, hidden, order=orders[i % 2], dropout=dropout)
                for i in range(layers)
            ]
        if not transforms:
            raise ValueError(f"{type(self).__name__}(transforms=...) must hold a layer at least")
        self.transforms = nn.ModuleList(transforms)
        domain = getattr(transforms[0].domain, "base_constraint", None)
        self.into_cube = None if domain is constraints.unit_interval else ToCube([dim])
        self.register_buffer("base", torch.zeros(dim))

    @pyro_method
    def model(self, x: Tensor) -> None:
        x = whole_levels(check_rows(x), self.dim, self.levels).to(self.base.dtype)
        density = self.density()
        data = pyro.plate("data", len(x))
        with data:
            v = pyro.sample("v", density)
            pyro.sample("x", Cell(v, self.levels), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        noise = self.dequantize(check_rows(x))
        with pyro.plate("data", len(x)):
            pyro.sample("v", noise)

    def density(self) -> TorchDistribution:
        """p(v), the flow on the unit cube."""
        if self.into_cube is not None:
            base = StandardNormal(self.base, validate_args=False)
            return Pushforward(base, [*self.transforms, self.into_cube])
        base = dist.Uniform(self.base, torch.ones_like(self.base)).to_event(1)
        return Pushforward(base, list(self.transforms))

    def dequantize(self, x: Tensor) -> TorchDistribution:
        """q(v | x), uniform on the cell of `x`."""
        x = whole_levels(x, self.dim, self.levels).to(self.base.dtype)
        return UniformCell(x / self.levels, (x + 1) / self.levels).to_event(1)

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """``log p(v) - log q(v | x)``, v ~ q: ``(B, D) -> (samples, B)``, nats."""
        v = self.dequantize(x).sample(torch.Size([samples]))
        return self.density().log_prob(v) - self.dim * math.log(self.levels)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """New examples, ``(count, D)``, whole numbers in the flow's dtype."""
        return Cell(self.density().sample(torch.Size([count])), self.levels).sample()


class UniformCell(dist.Uniform):
    """Uniform whose draws never round up to the upper end, where the next cell begins."""

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return torch.minimum(super().rsample(sample_shape), torch.nextafter(self.high, self.low))


class Cell(dist.TorchDistribution):
    """The cell in which `v` lies: probability one at ``floor(levels * v)``.

    Args:
        v: points of the unit cube, ``(*, D)``.
        levels: cells in each direction.
    """

    def __init__(self, v: Tensor, levels: int, *, validate_args: bool | None = None) -> None:
        self.v, self.levels = v, levels
        super().__init__(v.shape[:-1], v.shape[-1:], validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {"v": constraints.independent(constraints.unit_interval, 1)}

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), 1)

    def log_prob(self, value: Tensor) -> Tensor:
        # the same arithmetic as the guide's: floor(levels * v) could round across the wall
        inside = (value / self.levels <= self.v) & (self.v <= (value + 1) / self.levels)
        return inside.all(-1).to(self.v.dtype).log()

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        cell = (self.v * self.levels).floor().clamp(0, self.levels - 1)
        return cell.expand(*sample_shape, *cell.shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Cell:
        return Cell(self.v.expand(*batch_shape, *self.event_shape), self.levels)
