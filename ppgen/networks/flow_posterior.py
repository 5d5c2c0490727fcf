"""Flow posteriors: what an encoder says of the code, bent by invertible maps of its choosing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppgen.networks.posteriors import DiagonalNormal
from ppgen.transforms.pushforward import Pushforward
from ppgen.transforms.vector import ConditionedTransform, VectorMap


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
