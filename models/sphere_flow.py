"""Normalizing flows as density models of directions: points on a sphere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

from ppgen.arguments import require_whole
from ppgen.distributions.sphere import SphereUniform
from ppgen.models.flow import DensityFlow
from ppgen.transforms.circle import CircularSpline
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.sphere import ExponentialMap, Recursive, Rotation
from ppgen.transforms.stereographic import sphere


class DirectionalFlow(DensityFlow):
    """A density of directions: its data are unit vectors, and it says so."""

    dim: int  # n, of the sphere

    def check(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.dim + 1,):
            raise ValueError(
                f"this flow lives on S^{self.dim}, unit vectors of {self.dim + 1} coordinates; "
                f"got data {tuple(x.shape)}"
            )
        x = x.to(self.base.dtype)
        outside = ~sphere.check(x)
        if outside.any().item():
            first = outside.nonzero()[0].tolist()
            length = float(torch.linalg.vector_norm(x[tuple(first)]))
            raise ValueError(
                f"row {first}: a vector of length {length:.6g}; this flow scores unit vectors: "
                "divide each row by its norm"
            )
        return x


class SphereFlow(DirectionalFlow):
    r"""Flow on :math:`S^n`: the uniform law, pushed through maps of the sphere.

    .. math:: \ln p(x) = -\ln |S^n| + \ln |\det \partial T^{-1} / \partial x|

    with respect to surface area: the uniform law on the globe scores :math:`-\ln 4\pi = -2.53`
    nats. On :math:`S^2` recursive layers by default, splines of the height and of the longitude
    given it, whose poles a rotation moves from layer to layer; in other dimensions
    exponential-map layers, whose scoring is a formula and whose sampling is a root.

    Args:
        dim: n; 2 is the globe.
        layers: of the default kind; None: 2 on :math:`S^2`, else 8.
        hidden: widths of each recursive layer's network.
        bins: of each spline; centres of each exponential map.
        waves: of each recursive layer (see `ppgen.transforms.sphere.Recursive`): how finely a
            layer tells latitudes apart.
        transforms: other layers, base to data, instead of the default ones.

    Shapes: ``x``: unit vectors, ``(*, n + 1)``; ``log_prob(x)``: ``(*)`` in nats.

    References:
        | Normalizing Flows on Tori and Spheres (Rezende et al., 2020)
        | https://arxiv.org/abs/2002.02428

    Example:
        >>> flow = SphereFlow(2)
        >>> flow.log_prob(torch.tensor([[0.0, 0.6, 0.8]])).shape
        torch.Size([1])
    """

    def __init__(
        self,
        dim: int = 2,
        *,
        layers: int | None = None,
        hidden: Sequence[int] = (64, 64),
        bins: int = 16,
        waves: int = 8,
        transforms: Sequence[TransformModule] | None = None,
    ) -> None:
        if layers is None:
            layers = 2 if dim == 2 else 8
        require_whole(self, dim=dim, layers=layers, bins=bins, waves=waves)
        super().__init__()
        self.dim = dim
        if transforms is None:
            transforms = _recursive(layers, hidden, bins, waves) if dim == 2 else [
                ExponentialMap(dim, bins, start="data") for _ in range(layers)
            ]  # fmt: skip
        self.transforms = nn.ModuleList(transforms)
        self.register_buffer("base", torch.zeros(dim + 1))

    def base_law(self) -> TorchDistribution:
        return SphereUniform(self.dim, dtype=self.base.dtype, device=self.base.device)


def _recursive(layers: int, hidden: Sequence[int], bins: int, waves: int) -> list[TransformModule]:
    """Each sees the axes one place further: every axis is the poles' in turn."""
    found: list[TransformModule] = []
    for i in range(layers):
        if i:
            found.append(Rotation(torch.eye(3).roll(1, 0)))
        parts = RationalQuadratic(bins, None), CircularSpline(bins)
        found.append(Recursive(*parts, hidden, waves=waves))
    return found
