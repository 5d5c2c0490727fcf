"""Laws of the code before any data are seen.

A prior is a module whose call returns a distribution with event ``(L,)``. It is given the story's
recognition distribution, ``x (*, D) -> q(z | x)``, of which the VampPrior is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppgen.arguments import require_whole

Encode = Callable[[Tensor], TorchDistribution]


class StandardNormal(nn.Module):
    """``N(0, I)``.

    Args:
        latent: dimensions of the code, L.
    """

    zeros: Tensor
    ones: Tensor

    def __init__(self, latent: int) -> None:
        require_whole(self, latent=latent)
        super().__init__()
        self.register_buffer("zeros", torch.zeros(latent), persistent=False)
        self.register_buffer("ones", torch.ones(latent), persistent=False)

    def forward(self, encode: Encode) -> TorchDistribution:
        return dist.Normal(self.zeros, self.ones).to_event(1)


class MixturePrior(nn.Module):
    """A learned mixture of diagonal normals.

    Args:
        latent: dimensions of the code, L.
        components: K; they start at draws of a standard normal, with unit scales.
    """

    def __init__(self, latent: int, components: int = 10) -> None:
        require_whole(self, latent=latent, components=components)
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, latent))
        self.log_scale = nn.Parameter(torch.zeros(components, latent))

    def forward(self, encode: Encode) -> TorchDistribution:
        component = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), component)


class VampPrior(nn.Module):
    r"""The variational mixture of posteriors: what the encoder says of learned pseudo-inputs.

    .. math:: p(z) = \frac1K \sum_k q(z \mid u_k)

    Every code of a batch is scored under K posteriors, through their inverse: where the posterior
    is inverse autoregressive that is `latent` steps in a row, K times as wide as the batch. With
    K = 50 and 20 dimensions a training step takes some sixty times as long as under a standard
    normal; fewer pseudo-inputs, or `MixturePrior` and `FlowPrior`, which ask for no posterior, take
    that away.

    Args:
        pseudo_inputs: where u starts, ``(K, D)``: rows of the training data serve well.

    References:
        | VAE with a VampPrior (Tomczak and Welling, 2018)
        | https://arxiv.org/abs/1705.07120
    """

    even: Tensor

    def __init__(self, pseudo_inputs: Tensor) -> None:
        super().__init__()
        if pseudo_inputs.ndim != 2 or not len(pseudo_inputs):
            raise ValueError(
                "a VampPrior starts at pseudo-inputs of shape (K, D), K >= 1; got "
                f"{tuple(pseudo_inputs.shape)}"
            )
        start = pseudo_inputs.detach().to(torch.get_default_dtype())
        self.pseudo_inputs = nn.Parameter(start.clone())
        self.register_buffer("even", torch.zeros(len(start)), persistent=False)

    def forward(self, encode: Encode) -> TorchDistribution:
        return dist.MixtureSameFamily(
            dist.Categorical(logits=self.even), encode(self.pseudo_inputs)
        )


class FlowPrior(nn.Module):
    """A normalizing flow.

    Args:
        flow: a module with ``density() -> distribution`` of event ``(L,)``, such as
            `ppgen.models.Flow` of `latent` dimensions.
    """

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, encode: Encode) -> TorchDistribution:
        return self.flow.density()
