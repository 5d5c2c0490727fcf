"""Flow posteriors: what an encoder says of the code, bent by invertible maps of its choosing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

from ppgen.arguments import require_whole
from ppgen.distributions.standard_normal import StandardNormal
from ppgen.networks.posteriors import DiagonalNormal
from ppgen.transforms.autoregressive import Autoregressive, InverseAutoregressive
from ppgen.transforms.pushforward import Pushforward
from ppgen.transforms.scalar import Affine, ScalarMap
from ppgen.transforms.vector import ConditionedTransform, VectorMap

_STEEPEST = 3.0  # nats: the largest |log scale| of one affine layer


class FlowPosterior(nn.Module):
    r"""A diagonal normal through an invertible map with parameters for each example.

    .. math:: z = T_{\lambda(x)}(\mu(x) + \sigma(x)\, \epsilon), \quad \epsilon \sim N(0, I)

    At the start the map is the one of `initial()` for every example, about the identity. Draws
    come with their density in one pass; other values are scored through the map's inverse.

    Args:
        features: numbers from the encoder, F.
        latent: dimensions of the code, L.
        vector_map: T, such as ``VectorChain([Planar(L)] * 10)`` or ``Sylvester(L)``.

    Raises:
        ValueError: when the map is of another dimension than the code.

    References:
        | Variational Inference with Normalizing Flows (Rezende and Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770
        | Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018)
        | https://arxiv.org/abs/1803.05649

    Example:
        >>> from ppgen.transforms.planar import Planar
        >>> posterior = FlowPosterior(16, 2, Planar(2))
        >>> z, log_q = posterior(torch.zeros(5, 16)).rsample_with_log_prob()
        >>> z.shape, log_q.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, features: int, latent: int, vector_map: VectorMap) -> None:
        require_whole(self, features=features, latent=latent)
        super().__init__()
        if vector_map.dim != latent:
            raise ValueError(
                f"the code has {latent} dimensions and the flow {vector_map.dim}: they must agree"
            )
        self.features, self.vector_map = features, vector_map
        self.base = DiagonalNormal(features, latent)
        self.head = nn.Linear(features, vector_map.parameters)
        with torch.no_grad():
            # 80 planar layers on a trained encoder cost 20 nats at a tenth, 0.2 at a hundredth
            self.head.weight.mul_(0.01)
            self.head.bias.copy_(vector_map.initial())

    def forward(self, features: Tensor) -> Pushforward:
        transform = ConditionedTransform(self.vector_map, self.head(features))
        return Pushforward(self.base(features), [transform])


class AutoregressivePosterior(nn.Module):
    r"""A diagonal normal whose noise goes through autoregressive layers told by the encoder.

    .. math:: z = \mu(x) + \sigma(x)\, T_{h(x)}(\epsilon), \quad \epsilon \sim N(0, I)

    T is inverse autoregressive: a draw and its density take one pass of each layer. Other values
    take `latent` steps, one after the other, which objectives that score them, such as reweighted
    wake-sleep and doubly reparameterised gradients, and a `VampPrior` pay for. T comes before the
    normal's shift and scale, so that splines see noise of unit variance. It starts as the identity.

    Args:
        features: numbers from the encoder, F; the layers are told all of them, h.
        latent: dimensions of the code, L.
        scalar_map: what the layers do to a coordinate; None: `Affine`, which is IAF.
            ``RationalQuadratic(8, 4.0)`` is a neural spline flow.
        layers: how many, in alternating order of the coordinates.
        hidden: widths of each layer's network.

    References:
        | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032

    Example:
        >>> posterior = AutoregressivePosterior(16, 2)
        >>> z, log_q = posterior(torch.zeros(5, 16)).rsample_with_log_prob()
        >>> z.shape, log_q.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        features: int,
        latent: int,
        scalar_map: ScalarMap | None = None,
        *,
        layers: int = 4,
        hidden: Sequence[int] = (128,),
    ) -> None:
        require_whole(self, layers=layers)
        super().__init__()
        self.features = features
        self.base = DiagonalNormal(features, latent)
        orders = [range(latent), range(latent - 1, -1, -1)]
        self.layers = nn.ModuleList(
            Autoregressive(
                latent,
                scalar_map or Affine(_STEEPEST),
                hidden,
                order=orders[i % 2],
                context=features,
            )
            for i in range(layers)
        )

    def forward(self, features: Tensor) -> Pushforward:
        normal = self.base(features).base_dist  # type: ignore[attr-defined]
        layers = [InverseAutoregressive(layer, features) for layer in self.layers]  # type: ignore
        scale = AffineTransform(normal.loc, normal.scale, event_dim=1)
        noise = StandardNormal(torch.zeros_like(normal.loc), validate_args=False)
        return Pushforward(noise, [*layers, scale])
