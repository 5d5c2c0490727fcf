r"""Laws on spheres; densities are with respect to surface area."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import biject_to, constraints, register_kl, transform_to

from ppgen.arguments import require_whole
from ppgen.distributions.bessel import bessel_ratio, log_mean_exp
from ppgen.transforms.stereographic import Sphere, Stereographic, sphere

_ONE = Size()
_NODES = 64  # of the quadrature behind the pathwise gradient
_REACH = 20.0  # standard deviations, beyond which its integrand is below 1e-8


@biject_to.register(Sphere)
@transform_to.register(Sphere)
def _chart(constraint: Sphere) -> Stereographic:
    return Stereographic()


def log_area(dim: int) -> float:
    r"""Log of the surface area of :math:`S^n`, :math:`2 \pi^{(n+1)/2} / \Gamma((n+1)/2)`."""
    half = (dim + 1) / 2
    return math.log(2) + half * math.log(math.pi) - math.lgamma(half)


class SphereUniform(TorchDistribution):
    r"""Uniform on :math:`S^n`, the unit vectors of :math:`R^{n+1}`.

    Args:
        dim: n, at least 1: 1 is the circle, 2 the globe.
        batch_shape: of independent copies.
        dtype: of the draws; None: torch's default.
        device: of the draws.

    Shapes: draws ``(*batch, n + 1)``; log densities ``(*batch)``, nats.
    """

    arg_constraints: ClassVar[dict] = {}  # pyright: ignore[reportIncompatibleMethodOverride]
    support = sphere  # type: ignore[assignment]
    has_rsample = True

    def __init__(
        self,
        dim: int,
        batch_shape: Any = _ONE,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        require_whole(self, dim=dim)  # 1 is the circle
        self.dim, self.dtype, self.device = dim, dtype, device
        super().__init__(Size(batch_shape), Size([dim + 1]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SphereUniform:
        return SphereUniform(
            self.dim,
            batch_shape,
            dtype=self.dtype,
            device=self.device,
            validate_args=self._validate_args,
        )

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self._extended_shape(), dtype=self.dtype, device=self.device)

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return _unit(torch.randn(shape, dtype=self.dtype, device=self.device))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -log_area(self.dim))

    def entropy(self) -> Tensor:
        return torch.full(
            self.batch_shape, log_area(self.dim), dtype=self.dtype, device=self.device
        )


class VonMisesFisher(TorchDistribution):
    r"""Von Mises-Fisher law on :math:`S^n`: the normal law of directions.

    .. math::
        p(x) = C(\kappa) e^{\kappa \mu \cdot x}, \quad
        C(\kappa) = \frac{\kappa^\nu}{(2\pi)^{\nu + 1} I_\nu(\kappa)}, \quad
        \nu = \frac{n - 1}{2}

    Draws are by Wood's rejection. Their gradient is pathwise and right in every dimension: in
    :math:`\kappa` by implicit differentiation of the distribution function of the height
    :math:`\mu \cdot x` (the rejection itself is not differentiated, which would be biased), in
    :math:`\mu` through the tangent direction. It is of first order: the gradient of a gradient
    is not. A mixture, ``MixtureSameFamily(Categorical(...), VonMisesFisher(...))``, has samples
    and densities but no pathwise gradient.

    Args:
        mean_direction: :math:`\mu`, unit vectors, ``(*batch, n + 1)``.
        concentration: :math:`\kappa \ge 0`, ``(*batch)``; 0 is uniform.

    Shapes: draws ``(*batch, n + 1)``; log densities ``(*batch)``, nats per surface area.

    References:
        | Simulation of the von Mises Fisher distribution (Wood, 1994)
        | https://doi.org/10.1080/03610919408813161
        | Implicit Reparameterization Gradients (Figurnov, Mohamed and Mnih, 2018)
        | https://arxiv.org/abs/1805.08498

    Example:
        >>> north = torch.tensor([0.0, 0.0, 1.0])
        >>> VonMisesFisher(north, torch.tensor(10.0)).sample(torch.Size([5])).shape
        torch.Size([5, 3])
    """

    arg_constraints: ClassVar[dict] = {  # pyright: ignore[reportIncompatibleMethodOverride]
        "mean_direction": sphere,
        "concentration": constraints.nonnegative,
    }
    support = sphere  # type: ignore[assignment]
    has_rsample = True

    def __init__(
        self,
        mean_direction: Tensor,
        concentration: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if mean_direction.ndim < 1 or mean_direction.shape[-1] < 2:
            raise ValueError(
                "a mean direction is a unit vector of at least 2 coordinates, (*, n + 1); got "
                f"shape {tuple(mean_direction.shape)}"
            )
        kappa = torch.as_tensor(
            concentration, dtype=mean_direction.dtype, device=mean_direction.device
        )
        batch = torch.broadcast_shapes(mean_direction.shape[:-1], kappa.shape)
        event = mean_direction.shape[-1:]
        self.mean_direction = mean_direction.expand(batch + event)
        self.concentration = kappa.expand(batch)
        self.dim = event[0] - 1
        super().__init__(batch, event, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMisesFisher:
        batch = Size(batch_shape)
        return VonMisesFisher(
            self.mean_direction.expand(batch + self.event_shape),
            self.concentration.expand(batch),
            validate_args=self._validate_args,
        )

    @property
    def _order(self) -> float:
        return (self.dim - 1) / 2

    @property
    def mean(self) -> Tensor:
        """Inside the ball: its length says how concentrated the law is."""
        return self.mean_length[..., None] * self.mean_direction

    @property
    def mean_length(self) -> Tensor:
        """A, the mean of the height."""
        return bessel_ratio(self._order, self.concentration)

    @property
    def mode(self) -> Tensor:
        return self.mean_direction

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # kappa (mu x - 1) = -kappa |x - mu|^2 / 2, which keeps its digits at large kappa
        apart = (value - self.mean_direction).square().sum(-1) / 2
        tilt = log_mean_exp(self._order, self.concentration)
        return -self.concentration * apart - tilt - log_area(self.dim)

    def entropy(self) -> Tensor:
        return log_area(self.dim) - kl_from_uniform(self)

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        mu = self.mean_direction.expand(shape)
        kappa = self.concentration.expand(shape[:-1])
        with torch.no_grad():
            gap = _rejection(kappa, self.dim)
        if kappa.requires_grad and torch.is_grad_enabled():
            slope = _height_slope(kappa.detach(), gap, self.dim)
            gap = gap - slope * (kappa - kappa.detach())
        noise = torch.randn(shape, dtype=mu.dtype, device=mu.device)
        aside = _unit(noise - (noise * mu).sum(-1, keepdim=True) * mu)
        gap = gap[..., None]
        # at the poles, where a square root has no slope, one that is merely finite
        across = (gap * (2 - gap)).clamp(min=torch.finfo(mu.dtype).tiny).sqrt()
        return _unit((1 - gap) * mu + across * aside)


@register_kl(VonMisesFisher, SphereUniform)
def _kl(p: VonMisesFisher, q: SphereUniform) -> Tensor:
    if p.dim != q.dim:
        raise ValueError(f"laws on S^{p.dim} and on S^{q.dim} have no divergence")
    return kl_from_uniform(p)


@register_kl(VonMisesFisher, VonMisesFisher)
def _kl_of_two(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    across = p.mean_length * (p.mean_direction * q.mean_direction).sum(-1) - 1
    of_q = q.concentration * across - log_mean_exp(q._order, q.concentration)
    return _kl(p, SphereUniform(q.dim)) - of_q


def kl_from_uniform(law: VonMisesFisher) -> Tensor:
    """KL(vMF || uniform), ``(*batch)``, nats; it does not depend on the direction."""
    kappa = law.concentration
    return kappa * (law.mean_length - 1) - log_mean_exp(law._order, kappa)


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _rejection(kappa: Tensor, dim: int) -> Tensor:
    """Draws of one minus the height, ``kappa``'s shape; without gradients."""
    b = dim / (2 * kappa + (4 * kappa.square() + dim**2).sqrt())
    centre = 2 * b / (1 + b)  # one minus the height where the envelope touches
    beta = torch.distributions.Beta(*kappa.new_full((2,), dim / 2), validate_args=False)
    gap, todo = torch.zeros_like(kappa), torch.ones_like(kappa, dtype=torch.bool)
    while bool(todo.any()):
        z = beta.sample(kappa.shape)
        proposal = 2 * b * z / (1 - (1 - b) * z)
        inside = (centre + (1 - centre) * proposal) / (centre * (2 - centre))
        accepted = kappa * (centre - proposal) + dim * inside.log()
        taken = todo & (accepted >= torch.rand_like(kappa).log())
        gap = torch.where(taken, proposal, gap)
        todo = todo & ~taken
    return gap


def _height_slope(kappa: Tensor, gap: Tensor, dim: int) -> Tensor:
    r"""The derivative of the height w in :math:`\kappa` at a fixed quantile, by quadrature.

    .. math::
        \frac{dw}{d\kappa} = -\frac{\partial F / \partial \kappa}{f(w)}
        = \int \frac{|t - A| f(t)}{f(w)} dt

    over heights t on the side of w that is away from the mean A, where nothing cancels. In
    the angle the integrand is smooth in every dimension.
    """
    short = 1 - bessel_ratio((dim - 1) / 2, kappa)
    spread = torch.minimum(
        (dim / 2) ** 0.5 / kappa.clamp(min=1e-30), torch.full_like(kappa, (dim + 1) ** -0.5)
    )
    end = torch.where(gap < short, gap - _REACH * spread, gap + _REACH * spread).clamp(0, 2)
    theta, stop = _angle(gap)[..., None], _angle(end)[..., None]
    nodes, weights = (torch.tensor(part).to(kappa) for part in _gauss_legendre())
    s = theta + (stop - theta) * nodes
    rise = 2 * (s / 2).sin().square()
    sine = theta.sin().clamp(min=torch.finfo(kappa.dtype).tiny)
    log_ratio = kappa[..., None] * (gap[..., None] - rise)
    # x log x at a sine of zero: on the circle the power is 0, elsewhere the integrand vanishes
    ratio = (s.sin() / sine).clamp(min=0) ** (dim - 1)
    integrand = (short[..., None] - rise).abs() * log_ratio.exp() * ratio
    width = (stop - theta).abs().squeeze(-1)
    return sine.squeeze(-1) * width * (integrand * weights).sum(-1)


def _angle(gap: Tensor) -> Tensor:
    """Of one minus the height to the mean direction."""
    return 2 * (gap / 2).clamp(0, 1).sqrt().asin()


@cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return (nodes + 1) / 2, weights / 2
