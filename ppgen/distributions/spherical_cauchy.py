"""The spherical Cauchy law: directions about a place, with heavy tails."""

from __future__ import annotations

from typing import Any, ClassVar

from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from ppgen.distributions.sphere import SphereUniform, log_area
from ppgen.transforms.moebius import moebius
from ppgen.transforms.stereographic import sphere

_ONE = Size()


class SphericalCauchy(TorchDistribution):
    r"""Spherical Cauchy law on :math:`S^n`: the uniform law under a Moebius map.

    .. math:: p(x) = \frac{1}{|S^n|} \left(\frac{1 - |\psi|^2}{|x - \psi|^2}\right)^n,
              \quad |\psi| < 1

    Its density falls as a power of the distance, where a von Mises-Fisher law's falls as a
    normal's. Draws are that map of uniform ones, with their gradients.

    Args:
        centre: :math:`\psi`, inside the unit ball, ``(*batch, n + 1)``: its direction is the mode,
            its length the concentration; 0 is uniform.

    Shapes: draws ``(*batch, n + 1)``; log densities ``(*batch)``, nats per surface area.

    Raises:
        ValueError: when a centre is not inside the ball.

    References:
        | Moebius transformation and a Cauchy family on the sphere (Kato & McCullagh, 2015)
        | https://arxiv.org/abs/1510.07679

    Example:
        >>> import torch
        >>> SphericalCauchy(torch.tensor([0.0, 0.0, 0.9])).sample(torch.Size([5])).shape
        torch.Size([5, 3])
    """

    arg_constraints: ClassVar[dict] = {  # pyright: ignore[reportIncompatibleMethodOverride]
        "centre": constraints.real_vector
    }
    support = sphere  # type: ignore[assignment]
    has_rsample = True

    def __init__(self, centre: Tensor, *, validate_args: bool | None = None) -> None:
        if centre.ndim < 1 or centre.shape[-1] < 2:
            raise ValueError(
                "a centre is a vector of at least 2 coordinates, (*, n + 1); got shape "
                f"{tuple(centre.shape)}"
            )
        self.centre, self.dim = centre, centre.shape[-1] - 1
        super().__init__(centre.shape[:-1], centre.shape[-1:], validate_args=validate_args)
        if self._validate_args and bool((centre.square().sum(-1) >= 1).any()):
            raise ValueError("the centre of a spherical Cauchy law lies inside the unit ball")

    def expand(self, batch_shape: Any, _instance: Any = None) -> SphericalCauchy:
        centre = self.centre.expand(*batch_shape, self.dim + 1)
        return SphericalCauchy(centre, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return moebius(value, -self.centre)[1] - log_area(self.dim)

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = self._extended_shape(sample_shape)[:-1]
        uniform = SphereUniform(self.dim, shape, dtype=self.centre.dtype, device=self.centre.device)
        return moebius(uniform.sample(), self.centre)[0]
