"""The ELBO of independent normals as a plain function: its draws are fixed once.

References:
    | Numerical Valuation of High Dimensional Multivariate European Securities (Barraquand, 1995):
    | draws with exact second moments
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.inference.frame import Frame
from ppgen.inference.hmc import ValueAndGrad


class Objective:
    r"""f, its gradient and curvature at points ``(N, 2 D)`` of :math:`(\mu, \xi)` in a frame."""

    def __init__(self, function: ValueAndGrad, frame: Frame, noise: Tensor) -> None:
        self.function, self.frame = function, frame
        self.noise = noise  # antithetic halves, (M, D)

    def each(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """By draw: values ``(N, M)`` of f and gradients ``(N, M, 2 D)``, nats."""
        mean, log_scale = eta.chunk(2, -1)
        moved = log_scale.exp()[:, None] * self.noise
        z = self.frame.push((mean[:, None] + moved).flatten(0, 1))
        value, gradient = self.function(z)
        slope = self.frame.pull(gradient).reshape(moved.shape)
        entropy = log_scale.sum(-1) + self.frame.log_det
        gradients = torch.cat([-slope, -1.0 - slope * moved], -1)
        return -value.reshape(moved.shape[:-1]) - entropy[:, None], gradients

    def __call__(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, 2 D)`` -> ``(N,)`` and ``(N, 2 D)``."""
        values, gradients = self.each(eta)
        return values.mean(1), gradients.mean(1)

    def curved(self, eta: Tensor, directions: Tensor) -> Tensor:
        """H times each direction ``(N, 2 D)`` at ``eta (2 D,)``, by central differences."""
        reach = torch.finfo(eta.dtype).eps ** (1 / 3) * (1.0 + eta.norm())
        steps = reach * directions / directions.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        ahead, behind = self(torch.cat([eta + steps, eta - steps]))[1].chunk(2)
        return (ahead - behind) / (2 * reach) * directions.norm(dim=-1, keepdim=True)


def matched_normal(count: int, like: Tensor, dim: int) -> Tensor:
    """Standard normal noise of exact moments, ``(count, dim)``, of the type of `like`.

    Antithetic pairs, so that the mean is zero, and covariance one (its diagonal alone where there
    are less than two pairs to a dimension): of a quadratic the mean over the draws is exact, so
    that the fixed draws misplace the optimum by what is not quadratic in the log density alone.
    """
    half = torch.randn(count // 2, dim).to(like)
    if len(half) >= 2 * dim:
        factor = torch.linalg.cholesky(half.mT @ half / len(half))
        half = torch.linalg.solve_triangular(factor, half.mT, upper=False).mT
    else:
        half = half / half.square().mean(0).sqrt()
    return torch.cat([half, -half])
