"""Normalizing flows as density models of continuous data."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.torch_transform import TransformModule
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppgen.arguments import require_positive, require_whole
from ppgen.data.errors import check_rows
from ppgen.distributions.standard_normal import StandardNormal
from ppgen.transforms.autoregressive import Autoregressive
from ppgen.transforms.pushforward import Pushforward
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.scalar import Affine, Chain


class DensityFlow(PyroModule):
    """A base law pushed through invertible transforms, as a Pyro pair."""

    transforms: nn.ModuleList  # base to data
    base: Tensor  # of the flow's dtype

    def base_law(self) -> TorchDistribution:
        """Where the transforms start."""
        raise NotImplementedError

    @pyro_method
    def model(self, x: Tensor) -> None:
        x, density = self.check(check_rows(x)), self.density()
        with pyro.plate("data", len(x)):
            pyro.sample("x", density, obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """Empty: nothing is latent, and the ELBO is the log-likelihood."""

    def density(self) -> TorchDistribution:
        """p(x), a distribution with samples and exact log probabilities."""
        return Pushforward(self.base_law(), list(self.transforms))

    def check(self, x: Tensor) -> Tensor:
        """`x` in the flow's dtype; ValueError where no density is defined."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        x = self.check(x)
        # of no points torch's distributions cannot say how many
        return self.density().log_prob(x) if x.numel() else x.new_zeros(x.shape[:-1])

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """New examples, ``(count, *)``."""
        return self.density().sample(torch.Size([count]))


class Flow(DensityFlow):
    r"""Normalizing flow: a standard normal, pushed through invertible transforms.

    .. math:: \log p(x) = \log N(T^{-1}(x);\ 0, I) + \log |\det \partial T^{-1} / \partial x|

    By default a neural spline flow: autoregressive layers of rational-quadratic splines with
    shift and scale, in alternating order. Data need no standardisation beyond a scale within a
    factor of 100 of one, but train faster with it.

    Args:
        dim: coordinates of an example, D.
        layers: autoregressive layers.
        hidden: widths of each layer's network.
        bins: of each spline.
        bound: beyond it a spline is the identity.
        transforms: other layers, base to data, instead of the default ones.

    Shapes: ``x``: ``(*, D)``; ``log_prob(x)``: ``(*)`` in nats.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032

    Example:
        >>> flow = Flow(2)
        >>> flow.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        dim: int,
        *,
        layers: int = 3,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        bound: float = 4.0,
        transforms: Sequence[TransformModule] | None = None,
    ) -> None:
        require_whole(self, dim=dim, layers=layers)
        require_positive(self, bound=bound)
        super().__init__()
        self.dim = dim
        if transforms is None:
            orders = [range(dim), range(dim - 1, -1, -1)]
            scalar_map = Chain([RationalQuadratic(bins, bound), Affine()])
            transforms = [
                Autoregressive(dim, scalar_map, hidden, order=orders[i % 2]) for i in range(layers)
            ]
        self.transforms = nn.ModuleList(transforms)
        self.register_buffer("base", torch.zeros(dim))

    def base_law(self) -> TorchDistribution:
        # what it scores, the flow has checked
        return StandardNormal(self.base, validate_args=False)

    def check(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.dim,):
            raise ValueError(f"this flow has {self.dim} coordinates; got data {tuple(x.shape)}")
        return x.to(self.base.dtype)
