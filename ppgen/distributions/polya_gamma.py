"""The law that makes a logistic likelihood normal in its coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor
from torch.nn.functional import logsigmoid

_CUT = 0.64  # of x = 4 omega: below, the series in 1 / x; above, that in x
_LEVY = 2 * math.erfc(1 / math.sqrt(2 * _CUT))  # mass of the first term below the cut, no tilt
_INVERSE_NORMAL = 1.5  # from this z on, proposals below the cut are inverse normal
_ROUNDS = 64  # one takes 0.71 of the proposals or more, so that 1e-34 are left
_NODES = 40
_REACH = 40.0  # nats below the mode at which an integral ends


class PolyaGamma(TorchDistribution):
    r"""Polya-Gamma law ``PG(1, c)``, tilted from ``PG(1, 0)``.

    .. math::
        \omega = \frac{1}{2 \pi^2} \sum_{k \geq 1} \frac{g_k}{(k - 1/2)^2 + c^2 / 4 \pi^2},
        \quad g_k \sim \mathrm{Exp}(1); \qquad
        \frac{1}{1 + e^{-c}} = \frac{e^{c/2}}{2} \int e^{-\omega c^2 / 2} p(\omega | 0) d\omega

    Draws are exact, by rejection (Devroye's method for the Jacobi law). The alternating series of
    the density is summed to the rounding of float64: its fifth term is below 1e-24 of the first.

    Args:
        tilt: c, any real number; its sign does not matter.

    Raises:
        ValueError: from `sample`, where a tilt is not finite.

    References:
        | Bayesian Inference for Logistic Models Using Polya-Gamma Latent Variables
          (Polson, Scott & Windle, 2013) | https://arxiv.org/abs/1205.0310
        | On exact simulation algorithms for some distributions related to Jacobi theta functions
          (Devroye, 2009) | https://doi.org/10.1016/j.spl.2009.07.028

    Example:
        >>> float(PolyaGamma(torch.tensor(0.0)).mean)
        0.25
    """

    arg_constraints: ClassVar[dict] = {"tilt": constraints.real}  # pyright: ignore
    support = constraints.positive  # type: ignore[assignment]

    def __init__(self, tilt: Tensor, validate_args: bool | None = None) -> None:
        self.tilt = tilt
        super().__init__(tilt.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> PolyaGamma:
        return PolyaGamma(self.tilt.expand(Size(batch_shape)), validate_args=False)

    @property
    def mean(self) -> Tensor:
        c = self.tilt.abs().clamp(min=1e-30)  # where tanh is its argument
        return (c / 2).tanh() / (2 * c)

    @property
    def variance(self) -> Tensor:
        c = self.tilt.abs()
        near, far = c.clamp(max=0.1).square(), c.clamp(min=0.1)
        tanh = (c / 2).tanh()
        # (sinh c - c) / 4 c^3, near 0 by its series, over cosh(c / 2)^2
        series = (1 / 24 + near / 480 + near.square() / 20160) * (1 - tanh.square())
        closed = (2 * tanh - far * (1 - tanh.square())) / (4 * far**3)
        return torch.where(c < 0.1, series, closed)

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008 (it has no state)
        tilt = self.tilt.expand(self._extended_shape(sample_shape))
        return draw(tilt.flatten()).reshape(tilt.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return _log_untilted(value) - self.tilt.square() * value / 2 + _log_cosh(self.tilt / 2)

    def expected_log_untilted(self) -> Tensor:
        """``E[log p(omega | 0)]`` under this law, elementwise, nats.

        By the trapezoidal rule in ``log omega``, where the density falls doubly exponentially.
        """
        reach = (1 + _REACH / (self.tilt.abs() / 2).clamp(min=1.0)).acosh()
        at = torch.linspace(-1.0, 1.0, _NODES).to(self.tilt)
        omega = self.mean[..., None] * (reach[..., None] * at).exp()
        mass = PolyaGamma(self.tilt[..., None]).log_prob(omega).exp() * omega
        return (mass * _log_untilted(omega)).sum(-1) * reach * 2 / (_NODES - 1)

    def entropy(self) -> Tensor:
        tilting = _log_cosh(self.tilt / 2) - self.tilt.square() * self.mean / 2
        return -tilting - self.expected_log_untilted()


def draw(tilt: Tensor) -> Tensor:
    """One draw for each tilt, ``(N,)``, in float64 inside."""
    z = tilt.double().abs() / 2
    x, pending = torch.empty_like(z), torch.arange(len(z), device=z.device)
    for _ in range(_ROUNDS):
        if not len(pending):
            return (x / 4).to(tilt)
        proposed, taken = _propose(z[pending])
        x[pending[taken]] = proposed[taken]
        pending = pending[~taken]
    raise ValueError(
        f"PolyaGamma: no draw for {len(pending)} tilts after {_ROUNDS} rounds, the first of them "
        f"{float(tilt[pending[0]])}; they must be finite"
    )


def _propose(z: Tensor) -> tuple[Tensor, Tensor]:
    """X = 4 omega from an envelope of the density, and which of them to take.

    The envelope is the first term of either series: above the cut an exponential, below it an
    inverse normal, or the Levy law that this is without a tilt (drawn within the cut).
    """
    u, v = torch.rand(2, *z.shape, dtype=z.dtype, device=z.device)
    u, v = 1 - u, 1 - v  # in (0, 1]: log and ndtri of zero are infinite
    rate = math.pi**2 / 8 + z.square() / 2
    far = z > _INVERSE_NORMAL
    log_below = torch.where(far, math.log(2) - z, math.log(_LEVY))
    log_above = (math.pi / 2 / rate).log() - rate * _CUT
    above = torch.rand_like(z) < torch.sigmoid(log_above - log_below)
    levy = torch.special.ndtri(u * (_LEVY / 4)).square().reciprocal()
    below = torch.where(far, _inverse_normal(z, u), levy)
    x = torch.where(above, _CUT - u.log() / rate, below)
    share = _series(x) * torch.where(above | far, 1.0, (-z.square() * x / 2).exp())
    return x, (v <= share) & (above | (x <= _CUT))


def _inverse_normal(z: Tensor, u: Tensor) -> Tensor:
    """Of mean 1 / z and shape 1 (Michael, Schucany & Haas, 1976)."""
    y = torch.randn_like(z).square()
    small = 2 / (2 * z + y + (y.square() + 4 * y * z).sqrt())
    return torch.where(u * (1 + z * small) <= 1, small, 1 / (z.square() * small))


def _series(x: Tensor) -> Tensor:
    """The untilted density over its first term, in (0, 1]."""
    w = torch.where(x < _CUT, 2 / x, math.pi**2 * x / 2)
    return 1 - 3 * (-2 * w).exp() + 5 * (-6 * w).exp() - 7 * (-12 * w).exp()


def _log_untilted(omega: Tensor) -> Tensor:
    """``log p(omega | 0)``."""
    x = 4 * omega
    below = 0.5 * math.log(2 / math.pi) - 1.5 * x.log() - 0.5 / x
    above = math.log(math.pi / 2) - math.pi**2 * x / 8
    return math.log(4) + torch.where(x < _CUT, below, above) + _series(x).log()


def _log_cosh(t: Tensor) -> Tensor:
    return t.abs() - logsigmoid(2 * t.abs()) - math.log(2)
