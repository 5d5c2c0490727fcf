r"""Where variational inference begins: the best of many local normals.

Every start climbs by L-BFGS; on the way, at several stages, the curvature gives a normal, and
the one of the largest ELBO is kept. So a density that rises without limit in a corner of small
mass (a funnel) does not lead astray, as its mode would.

References:
    | Pathfinder (Zhang, Carpenter, Gelman & Vehtari, 2022) | https://arxiv.org/abs/2108.03782
    | Advances in Black-Box VI (Agrawal, Sheldon & Domke, 2020) | https://arxiv.org/abs/2006.10343
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.inference.frame import Frame
from ppgen.inference.guides import standard_normal
from ppgen.inference.hmc import State, ValueAndGrad, init, value
from ppgen.inference.hmc_starts import climb
from ppgen.inference.mode import hessian, polish, spectrum

_STAGES = (10, 30, 100)  # L-BFGS iterations of each stage
DENSE = 500  # dimensions up to which the curvature is measured
_DRAWS = 64
_STARTS, _CLOSED, _TOP = 32, 300, 1e-6  # of an ascent that has a formula: starts, iterations, nats


def find_frame(value_and_grad: ValueAndGrad, starts: Tensor, *, dense: bool) -> Frame:
    """The frame in which a standard normal has the largest ELBO.

    Args:
        value_and_grad: batched values and gradients.
        starts: dispersed starting points, ``(C, D)``.
        dense: whether the factor may be a full triangle.
    """
    dim = starts.shape[-1]
    state = init(starts, value_and_grad)
    noise = torch.randn(_DRAWS // 2, dim, dtype=starts.dtype, device=starts.device)
    noise = torch.cat([noise, -noise])
    frames: list[Frame] = []
    for iterations in (0, *_STAGES):
        if iterations:
            state = climb(value_and_grad, state.z, iterations=iterations)
        for row in _spread_rows(state):
            frames += _frames(value_and_grad, state.z[row], dense)
    if dim <= DENSE:  # Newton's method crosses the narrow valleys where L-BFGS gives up
        best = int(state.log_density.nan_to_num(nan=-torch.inf).argmax())
        mode = polish(value_and_grad, state.z[best], state.log_density)
        frames += _frames(value_and_grad, mode.z, dense)
    elbos = torch.stack([_elbo(value_and_grad, frame, noise) for frame in frames])
    return frames[int(elbos.argmax())]


def low_rank_optimum(covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""Log S ``(D,)`` and W ``(D, rank)`` of the normal that is closest to one of this covariance.

    Closest in KL(q || p), so that it is what the ELBO asks for where the posterior is that normal:
    with :math:`Q = S (I + W W^T) S` and precision P the maximum of :math:`\log |Q| - tr(P Q)`, by
    L-BFGS from several starts. Where sites correlate strongly no gradient of a few draws finds it.
    """
    dim, unit = len(covariance), covariance.diagonal().sqrt()
    precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance / unit / unit[:, None]))

    def split(eta: Tensor) -> tuple[Tensor, Tensor]:
        return eta[:, :dim], eta[:, dim:].reshape(-1, dim, rank)

    def objective(eta: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            eta = eta.detach().requires_grad_()
            log_scale, columns = split(eta)
            scale = log_scale.exp()
            spread = scale[:, :, None] * columns
            trace = (scale.square() * precision.diagonal()).sum(-1)
            trace = trace + (spread * (precision @ spread)).sum((1, 2))
            gram = columns.mT @ columns + torch.eye(rank).to(columns)
            log_det = 2 * log_scale.sum(-1) + torch.logdet(gram)
            value = 0.5 * (log_det - trace)
            (gradient,) = torch.autograd.grad(value.sum(), eta)
        return value.detach(), gradient

    axes = torch.linalg.eigh(covariance / unit / unit[:, None])
    scale = precision.diagonal().rsqrt()
    widest = axes.eigenvectors[:, -rank:] * axes.eigenvalues[-rank:].sqrt()
    starts = [(widest / scale[:, None]) * share for share in (1.0, 0.3, 0.1)]
    starts += [torch.randn(dim, rank).to(scale) for _ in range(_STARTS - len(starts))]
    eta = torch.stack([torch.cat([scale.log(), columns.flatten()]) for columns in starts])
    state = climb(objective, eta, iterations=_CLOSED, enough=_TOP)
    best = int(state.log_density.nan_to_num(nan=-torch.inf).argmax())
    log_scale, columns = split(state.z[best : best + 1])
    return log_scale[0] + unit.log(), columns[0]


def _spread_rows(state: State) -> list[int]:
    """The highest, the middling and the lowest of the finite chains."""
    order = state.log_density.nan_to_num(nan=-torch.inf).argsort(descending=True)
    finite = int(torch.isfinite(state.log_density).sum())
    return [int(order[i]) for i in sorted({0, finite // 2, max(finite - 1, 0)})]


def _frames(value_and_grad: ValueAndGrad, z: Tensor, dense: bool) -> list[Frame]:
    if len(z) > DENSE:
        return [Frame(z, torch.full_like(z, size)) for size in (1.0, 0.1, 0.01)]
    precision = hessian(value_and_grad, z).neg()
    if not bool(torch.isfinite(precision).all()):
        return [Frame(z, torch.full_like(z, 0.1))]
    curvature = precision.diagonal()
    # a coordinate curved upwards has no scale of its own; curved little, it is kept in bounds
    width = curvature.abs().clamp(min=1e-6).rsqrt()
    frames = [Frame(z, torch.where(curvature > 0, width, width.clamp(max=1.0)))]
    found = spectrum(precision)
    if dense:
        roots = found.vectors / found.values.abs().clamp(min=1e-9).sqrt() * found.unit[:, None]
        covariance = roots @ roots.mT
        unit = covariance.diagonal().sqrt()
        factor, failed = torch.linalg.cholesky_ex(covariance / unit / unit[:, None])
        if not bool(failed):
            frames.append(Frame(z, unit[:, None] * factor))
    return frames


def _elbo(value_and_grad: ValueAndGrad, frame: Frame, noise: Tensor) -> Tensor:
    values = value(value_and_grad, frame.push(noise))
    elbo = (values - standard_normal(noise)).mean() + frame.log_det
    return elbo.nan_to_num(nan=-torch.inf, posinf=-torch.inf)
