r"""Ridge maps, of which planar and Sylvester flows are two: space bent along M directions at once.

.. math:: y = x + A \tanh(s), \quad s = B x + b, \quad
    \log \left|\det \frac{dy}{dx}\right| = \sum_i \log(1 + m_i \tanh'(s_i))

where B A is upper triangular with diagonal m. Many layers cost little more than two small products
each: what comes before the first and after the last tanh is done for all of them at once.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ppgen.transforms.hyperbolic import tanh_slope


class Ridges(NamedTuple):
    """What the raw parameters ``(*, parameters)`` of such a map stand for."""

    outward: Tensor  # A, (*, D, M)
    inward: Tensor  # B, (*, M, D)
    offset: Tensor  # b, (*, M)
    stretch: Tensor  # m, (*, M), each above -1


@runtime_checkable
class RidgeMap(Protocol):
    """A vector map of this form."""

    def ridges(self, raw: Tensor) -> Ridges:
        """Of the raw parameters of one layer, or of several along a first axis."""
        ...


def push(x: Tensor, layers: Ridges) -> tuple[Tensor, Tensor]:
    """Base values through all layers, and the log-determinant of the whole way.

    Args:
        x: ``(*, D)``.
        layers: with an axis of K layers in front, ``(K, *, ...)``; their ``*`` broadcasts against
            that of `x`.
    """
    rows = layers.offset.shape[1:-1]
    while rows[:1] == (1,):
        rows = rows[1:]
    shape = torch.broadcast_shapes(x.shape[:-1], rows)
    draws, rows = shape[: len(shape) - len(rows)], shape[len(shape) - len(rows) :]
    # the values that share their parameters are the columns of one product
    dim = x.shape[-1]
    y = x.expand(*shape, dim).reshape(draws.numel(), rows.numel(), dim).permute(1, 2, 0)
    outward, inward, offset, stretch = (
        _by_row(part, rows) for part in (*layers[:2], *(v[..., None] for v in layers[2:]))
    )
    places = []
    for A, B, b in zip(outward.unbind(), inward.unbind(), offset.unbind(), strict=True):
        places.append(torch.baddbmm(b, B, y))
        y = torch.baddbmm(y, A, torch.tanh(places[-1]))
    log_det = torch.log1p(stretch * tanh_slope(torch.stack(places))).sum((0, 2))
    return y.permute(2, 0, 1).reshape(*shape, dim), log_det.mT.reshape(shape)


def push_score(x: Tensor, score: Tensor, layers: Ridges) -> Tensor:
    r"""The score where `push` takes base values, from that where they are: no inverse is asked for.

    .. math:: \nabla_y \log q(y) = J^{-T} \left(\nabla_x \log p(x) - \nabla_x \log |\det J|\right),
        \quad J = I + A \, \mathrm{diag}(\tanh'(s)) \, B

    Its linear equations are triangular and M x M, by the matrix inversion lemma.

    Args:
        x: ``(N, D)``.
        score: gradient of the log density of x there, ``(N, D)``.
        layers: with an axis of K layers in front, and the same for all rows.
    """
    places = []
    for A, B, b in zip(*(part.unbind() for part in layers[:3]), strict=True):
        places.append(torch.addmm(b, x, B.mT))
        x = torch.addmm(x, torch.tanh(places[-1]), A.mT)
    s, (A, B, _, m) = torch.stack(places), layers
    h, slope, m = torch.tanh(s), tanh_slope(s), m[:, None]
    bent = 2 * m * h * slope / (1 + m * slope)
    system = torch.eye(s.shape[-1]).to(x) + (B @ A).mT[:, None] * slope[..., None, :]
    back = slope[..., None] * torch.linalg.solve_triangular(system, A.mT[:, None], upper=False)
    for toward, along, inward in zip(bent.unbind(), back.unbind(), B.unbind(), strict=True):
        score = torch.addmm(score, toward, inward)
        score = torch.addmm(score, (along @ score[..., None]).squeeze(-1), inward, alpha=-1)
    return score


def _by_row(part: Tensor, rows: torch.Size) -> Tensor:
    """``(K, *, I, J) -> (K, R, I, J)``, R the number of rows."""
    layers, matrix = part.shape[0], part.shape[-2:]
    part = part.reshape(layers, *part.shape[-2 - len(rows) : -2], *matrix)
    return part.expand(layers, *rows, *matrix).reshape(layers, rows.numel(), *matrix)
