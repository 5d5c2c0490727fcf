"""A mixture of the simplest flows on the sphere, for directions that come in clusters."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppgen.arguments import require_whole
from ppgen.data.errors import check_rows
from ppgen.distributions.spherical_cauchy import SphericalCauchy
from ppgen.distributions.units import as_floats
from ppgen.models.sphere_flow import DirectionalFlow
from ppgen.transforms.moebius import FARTHEST, moebius

_LEAST = 1e-4  # events that belong to a component at least


class MoebiusMixture(DirectionalFlow):
    r"""Mixture of K flows on :math:`S^n`, each one Moebius map of the uniform law.

    .. math:: p(x) = \sum_k \pi_k\, \mathrm{SphericalCauchy}(x; \psi_k)

    Where data come in many clusters, one deep flow bends to fit them and a mixture has a part for
    each; and the tails of these parts are heavy, as those of clusters often are. `from_data` fits
    it by expectation-maximisation; `ppgen.train` by gradients.

    Args:
        dim: n; 2 is the globe.
        components: K; they start at random places.

    Shapes: ``x``: unit vectors, ``(*, n + 1)``; ``log_prob(x)``: ``(*)`` in nats.

    References:
        | Moebius transformation and a Cauchy family on the sphere (Kato & McCullagh, 2015)
        | https://arxiv.org/abs/1510.07679

    Example:
        >>> x = SphericalCauchy(torch.tensor([0.0, 0.0, 0.9])).sample(torch.Size([50]))
        >>> MoebiusMixture.from_data(x, 2).log_prob(x).shape
        torch.Size([50])
    """

    def __init__(self, dim: int = 2, components: int = 20) -> None:
        require_whole(self, dim=dim, components=components)
        super().__init__()
        self.dim = dim
        self.register_buffer("base", torch.zeros(dim + 1), persistent=False)
        self.logits = nn.Parameter(torch.zeros(components))
        start = torch.randn(components, dim + 1)
        self.raw = nn.Parameter(start / start.norm(dim=-1, keepdim=True))

    @classmethod
    @torch.no_grad()
    def from_data(cls, x: Tensor, components: int, *, sweeps: int = 200) -> MoebiusMixture:
        """Fitted by EM from random data points; the likelihood of `x` rises with each sweep."""
        require_whole("from_data", least=0, sweeps=sweeps)
        x = as_floats(check_rows(x))
        made = cls(x.shape[-1] - 1, components).to(x)
        x = made.check(x)
        if len(x) < components:
            raise ValueError(f"{components} components begin at as many points; got {len(x)}")
        centre = 0.9 * x[torch.randperm(len(x))[:components]]
        weights = x.new_full((components,), 1 / components)
        for _ in range(sweeps):
            centre, weights = em_step(x, centre, weights)
        # length r of the centre is FARTHEST |raw| / sqrt(1 + |raw|^2)
        share = centre / FARTHEST
        made.raw.copy_(share * (1 - share.square().sum(-1, keepdim=True)).clamp(1e-12).rsqrt())
        made.logits.copy_(weights.log())
        return made

    def density(self) -> TorchDistribution:
        centre = FARTHEST * self.raw * (1 + self.raw.square().sum(-1, keepdim=True)).rsqrt()
        return dist.MixtureSameFamily(
            dist.Categorical(logits=self.logits), SphericalCauchy(centre, validate_args=False)
        )


def em_step(x: Tensor, centre: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """One sweep of EM: shares of the data, then one step uphill for each centre.

    At the best centre the data, mapped by its inverse and weighted by their shares, have mean
    zero. The step is that mean, times what makes it right for a law that is nearly uniform.
    """
    components = SphericalCauchy(centre, validate_args=False)
    share = (components.log_prob(x[:, None]) + weights.log()).softmax(-1)
    mass = share.sum(0) + _LEAST
    pulled, _ = moebius(x[:, None], -centre)
    dim = x.shape[-1] - 1
    step = (dim + 1) / (2 * dim) * (share[..., None] * pulled).sum(0) / mass[:, None]
    centre = _carried(step, centre)
    length = torch.linalg.vector_norm(centre, dim=-1, keepdim=True)
    # a component that one event keeps to itself would have no bound
    centre = centre * (FARTHEST * (1 - 1e-6) / length).clamp(max=1)
    return centre, mass / mass.sum()


def _carried(step: Tensor, centre: Tensor) -> Tensor:
    """Where the Moebius map of `centre` takes `step`, a place inside the ball."""
    both = 1 + 2 * (centre * step).sum(-1, keepdim=True)
    small, large = (v.square().sum(-1, keepdim=True) for v in (step, centre))
    return ((both + small) * centre + (1 - large) * step) / (both + small * large)
