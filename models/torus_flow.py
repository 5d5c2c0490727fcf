"""Normalizing flows as density models of angles: points on a circle or a torus."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

from ppgen.arguments import require_whole
from ppgen.models.flow import DensityFlow
from ppgen.transforms.autoregressive import Autoregressive
from ppgen.transforms.circle import TURN, CircularSpline
from ppgen.transforms.coupling import Coupling
from ppgen.transforms.scalar import ScalarMap


class TorusFlow(DensityFlow):
    r"""Flow on the torus :math:`T^D`: D uniform angles, pushed through maps of the circle.

    .. math:: \ln p(x) = -D \ln 2 \pi + \ln |\det \partial T^{-1} / \partial x|

    By default couplings of circular splines: some angles stay, and their cosines and sines choose
    the splines of the others, so that 0 and :math:`2 \pi` are one point everywhere. A single
    angle, the circle, has splines that nothing tells.

    Args:
        dim: angles of an example, D.
        layers: couplings; each angle moves in every other one.
        hidden: widths of each coupling's network.
        scalar_map: of the circle; None: ``CircularSpline(16)``. `Moebius` is the other.
        transforms: other layers, base to data, instead of the default ones.

    Shapes: ``x``: angles in [0, 2 pi], ``(*, D)``; ``log_prob(x)``: ``(*)`` in nats.

    References:
        | Normalizing Flows on Tori and Spheres (Rezende et al., 2020)
        | https://arxiv.org/abs/2002.02428

    Example:
        >>> flow = TorusFlow(2)
        >>> flow.log_prob(torch.tensor([[0.5, 6.1]])).shape
        torch.Size([1])
    """

    def __init__(
        self,
        dim: int = 2,
        *,
        layers: int = 4,
        hidden: Sequence[int] = (64, 64),
        scalar_map: ScalarMap | None = None,
        transforms: Sequence[TransformModule] | None = None,
    ) -> None:
        require_whole(self, dim=dim, layers=layers)
        super().__init__()
        self.dim = dim
        if transforms is None:
            of_circle = scalar_map or CircularSpline(16)
            transforms = [
                Autoregressive(1, of_circle, hidden)
                if dim == 1
                else Coupling(dim, of_circle, hidden, fixed=range(i % 2, dim, 2))
                for i in range(layers)
            ]
        self.transforms = nn.ModuleList(transforms)
        self.register_buffer("base", torch.zeros(dim))

    def base_law(self) -> TorchDistribution:
        return dist.Uniform(self.base, self.base + TURN).to_event(1)

    def check(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.dim,):
            raise ValueError(f"this flow has {self.dim} angles; got data {tuple(x.shape)}")
        x = x.to(self.base.dtype)
        outside = ~((x >= 0) & (x <= x.new_tensor(TURN)))
        if outside.any().item():
            first = outside.nonzero()[0].tolist()
            raise ValueError(
                f"row {first[0]}: {float(x[tuple(first)]):.6g} is no angle in [0, 2 pi]: take "
                "x % (2 * math.pi), which is the same one"
            )
        return x
