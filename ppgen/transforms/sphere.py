r"""Flows on spheres; log-determinants are with respect to surface area."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.nn import functional as F

from ppgen.arguments import require_whole, require_widths
from ppgen.networks.mlp import conditioner
from ppgen.transforms.bijection import Bijection
from ppgen.transforms.circle import CircularSpline, wrap
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.scalar import ScalarMap
from ppgen.transforms.stereographic import sphere

Side = Literal["base", "data"]
_STEPS = 100  # of Newton's method; a handful suffices but for extreme parameters
_HALVINGS = 12


class SphereMap(Bijection, TransformModule):
    """What the flows on a sphere have in common: both sides are it."""

    domain = sphere
    codomain = sphere


class ExponentialMap(SphereMap):
    r"""Exponential-map flow on :math:`S^n`: each point walks along the gradient of a potential.

    .. math::
        x \mapsto \exp_x(\nabla \phi(x)), \qquad
        \phi(x) = \sum_i \frac{\alpha_i}{\beta_i} e^{\beta_i (x \cdot \mu_i - 1)},
        \quad \alpha_i, \beta_i > 0, \sum_i \alpha_i < 1

    It draws mass towards the centres :math:`\mu_i`. One direction is this formula, the other
    Newton's method on the sphere with steps that are halved until the distance falls, and
    gradients by implicit differentiation.

    Args:
        dim: n, at least 1.
        components: centres.
        start: the side on which x above stands. ``"base"``: sampling is the formula, as
            variational inference wants it. ``"data"``: scoring is, as maximum likelihood does.

    Shapes: ``(*, n + 1) -> (*, n + 1)``, log-determinants ``(*)``.

    References:
        | Normalizing Flows on Tori and Spheres (Rezende et al., 2020), section 2.3.2
        | https://arxiv.org/abs/2002.02428
        | Jacobian inequality and the gradient maps on the sphere (Sei, 2013)
        | https://arxiv.org/abs/0906.0874
    """

    def __init__(self, dim: int, components: int = 8, *, start: Side = "base") -> None:
        require_whole(self, dim=dim, components=components)
        super().__init__()
        if start not in ("base", "data"):
            raise ValueError(f"start must be 'base' or 'data', the side of x; got {start!r}")
        self.dim, self.start = dim, start
        self.centre = nn.Parameter(torch.randn(components, dim + 1))
        # all components together take a tenth of what is allowed
        self.share = nn.Parameter(torch.full((components,), math.log(1 / (9 * components))))
        self.sharpness = nn.Parameter(torch.ones(components))

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._walk(y) if self.start == "data" else self._back(y)

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._walk(x) if self.start == "base" else self._back(x)

    def _potential(self) -> tuple[Tensor, Tensor, Tensor]:
        mu = F.normalize(self.centre, dim=-1)
        # the share that is left over keeps the sum below one
        alpha = F.pad(self.share, (0, 1)).softmax(-1)[:-1]
        return mu, alpha, F.softplus(self.sharpness) + 1e-3

    def _walk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, matrix = walk(x, *self._potential())
        return y, log_abs_det(matrix)

    def _back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        potential = self._potential()
        with torch.no_grad():
            x = _newton(y, [part.detach() for part in potential])
        again, matrix = walk(x, *potential)
        # one more step, this one differentiable: the implicit function
        gap = _tangent(y - again, again.detach())
        x = F.normalize(x + torch.linalg.solve(matrix.detach(), gap[..., None])[..., 0], dim=-1)
        return x, -log_abs_det(walk(x, *potential)[1])


def walk(x: Tensor, mu: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    r"""End of the walk from `x`, and a matrix that is its differential.

    The matrix, ``(*, n + 1, n + 1)``, takes the tangents at `x` to those at the end, and `x` to
    the end: so its determinant is that of the map, and no tangent frame needs choosing.
    """
    pull = alpha * (beta * (x @ mu.T - 1)).exp()
    g = pull @ mu  # the gradient in space
    bend = torch.einsum("...k,ki,kj->...ij", pull * beta, mu, mu)  # its Hessian
    along = (x * g).sum(-1, keepdim=True)
    v = g - along * x  # the gradient on the sphere
    s = v.square().sum(-1, keepdim=True)
    cosine, sinc, third = _series(s)
    y = cosine * x + sinc * v
    bent = _times(bend, x)
    a = _times(bend, v) - along * v  # v's component of the change of v
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    change = bend - _outer(x, g + bent) - along[..., None] * eye  # of v
    matrix = (
        cosine[..., None] * eye
        + _outer(third * v - sinc * x, a)
        + sinc[..., None] * change
    )  # fmt: skip
    matrix = matrix - _outer(_times(matrix, x) - y, x)
    return y, matrix


def log_abs_det(matrix: Tensor) -> Tensor:
    """``log |det|`` of each of ``(*, n + 1, n + 1)``."""
    if matrix.shape[-1] == 3:  # 20 times faster than a factorisation of each
        a, b, c = matrix.unbind(-1)
        return (a * torch.linalg.cross(b, c)).sum(-1).abs().log()
    return torch.linalg.slogdet(matrix).logabsdet


def _series(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``cos r``, ``sin r / r`` and ``(cos r - sin r / r) / r^2`` of ``s = r^2``, smooth at 0."""
    near = s < 1e-3
    r = torch.where(near, 1.0, s).sqrt()
    cosine, sinc = r.cos(), r.sin() / r
    # the next terms are 1e-16 of these
    t = torch.where(near, s, 0.0)
    cosine0 = 1 - t / 2 * (1 - t / 12 * (1 - t / 30 * (1 - t / 56 * (1 - t / 90))))
    sinc0 = 1 - t / 6 * (1 - t / 20 * (1 - t / 42 * (1 - t / 72)))
    third0 = -1 / 3 * (1 - t / 10 * (1 - t / 28 * (1 - t / 54 * (1 - t / 88))))
    far = (cosine - sinc) / r.square()
    return (
        torch.where(near, cosine0, cosine),
        torch.where(near, sinc0, sinc),
        torch.where(near, third0, far),
    )


def _newton(y: Tensor, potential: Sequence[Tensor]) -> Tensor:
    """The point whose walk ends at `y`; each step is halved until the end comes closer."""
    mu, alpha, beta = potential
    x, tolerance = y.clone(), 8 * torch.finfo(y.dtype).eps
    end, matrix = walk(x, mu, alpha, beta)
    apart = torch.linalg.vector_norm(y - end, dim=-1)
    for _ in range(_STEPS):
        step = torch.linalg.solve(matrix, _logarithm(end, y)[..., None])[..., 0]
        moved = torch.zeros_like(apart, dtype=torch.bool)
        for halving in range(_HALVINGS):
            trial = F.normalize(_exponential(x, step * 0.5**halving), dim=-1)
            trial_end, trial_matrix = walk(trial, mu, alpha, beta)
            trial_apart = torch.linalg.vector_norm(y - trial_end, dim=-1)
            taken = ~moved & (trial_apart < apart)
            x, end = (torch.where(taken[..., None], *p) for p in ((trial, x), (trial_end, end)))
            matrix = torch.where(taken[..., None, None], trial_matrix, matrix)
            apart = torch.where(taken, trial_apart, apart)
            moved = moved | taken
            if bool((moved | (apart <= tolerance)).all()):
                break
        if not bool((moved & (apart > tolerance)).any()):
            break  # all have arrived, or rounding lets none come closer
    return x


def _exponential(x: Tensor, v: Tensor) -> Tensor:
    cosine, sinc, _ = _series(v.square().sum(-1, keepdim=True))
    return cosine * x + sinc * v


def _logarithm(x: Tensor, y: Tensor) -> Tensor:
    """The tangent at x along which `y` is reached."""
    v = _tangent(y - x, x)
    length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    away = torch.atan2(length, (x * y).sum(-1, keepdim=True))
    return v * away / length.clamp(min=torch.finfo(x.dtype).tiny)


def _tangent(v: Tensor, x: Tensor) -> Tensor:
    return v - (v * x).sum(-1, keepdim=True) * x


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix * v[..., None, :]).sum(-1)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]


class Recursive(SphereMap):
    r"""Recursive flow on :math:`S^2`: a map of the height, then one of the longitude given it.

    On the cylinder of height and longitude the surface element is ``dh d\lambda``
    (Archimedes), so that the log-determinant is the sum of two log slopes. At the poles, where
    all longitudes meet, the density need not be continuous.

    Args:
        height: map of [0, 1]; a rational-quadratic spline by default.
        longitude: map of the circle; its parameters come from a network that sees the height of
            the data. A circular spline by default.
        hidden: widths of the network's hidden layers.
        waves: the network sees the height h as cosines of 1 to so many half turns from pole to
            pole; few make densities smooth, many let neighbouring latitudes differ.

    Shapes: ``(*, 3) -> (*, 3)``, log-determinants ``(*)``.

    References:
        | Normalizing Flows on Tori and Spheres (Rezende et al., 2020), section 2.3.1
        | https://arxiv.org/abs/2002.02428
    """

    waves: Tensor

    def __init__(
        self,
        height: ScalarMap | None = None,
        longitude: ScalarMap | None = None,
        hidden: Sequence[int] = (64, 64),
        *,
        waves: int = 8,
    ) -> None:
        require_whole(self, waves=waves)
        require_widths(self, hidden=hidden)
        super().__init__()
        self.height = RationalQuadratic(16, None) if height is None else height
        self.longitude = CircularSpline(16) if longitude is None else longitude
        self.shape = nn.Parameter(torch.zeros(self.height.parameters))
        self.register_buffer("waves", math.pi * torch.arange(1, waves + 1))
        self.conditioner = conditioner((waves, *hidden, self.longitude.parameters), nn.SiLU)

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        up, turn = _cylinder(y)
        low, slope = self.height.to_base(up, self.shape)
        back, slope_of_turn = self.longitude.to_base(turn, self._at(up))
        return _globe(low, back), slope + slope_of_turn

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, back = _cylinder(x)
        up, slope = self.height.to_data(low, self.shape)
        turn, slope_of_turn = self.longitude.to_data(back, self._at(up))
        return _globe(up, turn), slope + slope_of_turn

    def _at(self, up: Tensor) -> Tensor:
        return self.conditioner((up[..., None] * self.waves).cos())


class Rotation(SphereMap):
    """A rotation of :math:`S^n`, fixed: between recursive layers it moves the poles.

    Args:
        matrix: orthogonal, ``(n + 1, n + 1)``.
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        size = len(matrix) if matrix.ndim == 2 else 0
        if not size or matrix.shape != (size, size):
            raise ValueError(
                "Rotation(matrix=...) must be orthogonal, (n + 1, n + 1); "
                f"got {tuple(matrix.shape)}"
            )
        off = (matrix @ matrix.mT - torch.eye(size).to(matrix)).abs().max()
        if not off <= 1e-5:
            raise ValueError(
                f"Rotation(matrix=...) must be orthogonal; its rows are off by {float(off):.1e}"
            )
        self.register_buffer("matrix", matrix)

    def inverse_with_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y @ self.matrix, torch.zeros_like(y[..., 0])

    def forward_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self.matrix.T, torch.zeros_like(x[..., 0])


def _cylinder(x: Tensor) -> tuple[Tensor, Tensor]:
    """Height as a share of the way from the south to the north pole, and longitude."""
    east, north, height = x.unbind(-1)
    # at a pole the longitude is anything, and has no gradient
    pole = (east == 0) & (north == 0)
    longitude = torch.atan2(torch.where(pole, 0.0, north), torch.where(pole, 1.0, east))
    return (height + 1) / 2, wrap(longitude)


def _globe(share: Tensor, longitude: Tensor) -> Tensor:
    # 1 - height^2, without the cancellation; at a pole with a slope that is merely finite
    across = 2 * (share * (1 - share)).clamp(min=torch.finfo(share.dtype).tiny).sqrt()
    x = torch.stack([across * longitude.cos(), across * longitude.sin(), 2 * share - 1], -1)
    return F.normalize(x, dim=-1)
