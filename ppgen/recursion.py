r"""Linear recursions without a loop: :math:`x_t = a_t x_{t-1} + b_t` in log2 T batched steps.

Two successive steps of a linear recursion are one step of another,

.. math:: (a', b') \circ (a, b) = (a' a,\; a' b + b'),

and :math:`\circ` is associative. So steps can be joined in pairs, pairs of pairs and so on: after
k doublings every :math:`x_t` knows the last :math:`2^k` terms of its sum

.. math:: x_t = \sum_{s \le t} \Bigl( \prod_{r = s + 1}^{t} a_r \Bigr) b_s .

A loop over 200 steps is 200 times the operations of its body, in the story's recording and in its
gradient; the doublings are eight. Values and gradients are those of the loop up to rounding.
Products and sums beyond the largest float are held there: the answer is then huge as the loop's
is infinite, but no ``inf * 0`` or ``inf - inf`` turns it into NaN, and a density of it is zero.

References:
    | Prefix sums and their applications (Blelloch, 1990)
      | https://www.cs.cmu.edu/~guyb/papers/Ble93.pdf
    | Parallelizing linear recurrent neural nets over sequence length (Martin & Cundy, 2018)
      | https://arxiv.org/abs/1709.04057
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_Join = Callable[[Tensor, Tensor], Tensor]


def linear_recursion(coefficient: Tensor, drive: Tensor) -> Tensor:
    r"""All :math:`x_t = a_t x_{t-1} + b_t`, beginning with :math:`x_1 = b_1`.

    Stochastic volatility, :math:`h_t = \mu + \phi (h_{t-1} - \mu) + \sigma z_t`, is this for
    :math:`h - \mu` with :math:`b_1 = \sigma z_1 / \sqrt{1 - \phi^2}`; the residuals of an
    ARMA(1, 1) are this with :math:`a = -\theta`. For a = 1, a random walk, ``drive.cumsum(-1)``
    is the same.

    Args:
        coefficient: a. What stands at t = 1 is not used.
        drive: b.

    Shapes:
        `drive` is ``(..., T)``; `coefficient` is ``(..., T)``, or ``()`` or ``(..., 1)`` where it
        does not change in time; the result has their common shape.

    Raises:
        ValueError: where the shapes do not fit.

    Example:
        >>> linear_recursion(torch.tensor(2.0), torch.tensor([1.0, 0.0, 0.0, 1.0]))
        tensor([1., 2., 4., 9.])
    """
    if coefficient.ndim == 0:
        coefficient = coefficient.unsqueeze(-1)
    _check_time(coefficient, drive, coefficient.shape[-1:], drive.shape[-1:])
    batch = torch.broadcast_shapes(coefficient.shape[:-1], drive.shape[:-1])
    return _doubled(coefficient, drive.expand(*batch, -1), torch.mul, torch.mul, -1)


def matrix_recursion(coefficient: Tensor, drive: Tensor) -> Tensor:
    """The same for vectors: ``x_t = A_t x_{t-1} + b_t``, beginning with ``x_1 = b_1``.

    Shapes:
        `drive` is ``(..., T, D)``; `coefficient` is ``(..., T, D, D)``, or ``(..., 1, D, D)`` or
        ``(D, D)`` where it does not change in time.

    Raises:
        ValueError: where the shapes do not fit.
    """
    if coefficient.ndim == 2:
        coefficient = coefficient.unsqueeze(0)
    if drive.ndim < 2 or coefficient.shape[-2:] != (drive.shape[-1], drive.shape[-1]):
        raise ValueError(
            f"a recursion of vectors needs terms of shape (..., T, D) and matrices (..., D, D), "
            f"got {tuple(drive.shape)} and {tuple(coefficient.shape)}"
        )
    _check_time(coefficient, drive, coefficient.shape[-3:-2], drive.shape[-2:-1])
    batch = torch.broadcast_shapes(coefficient.shape[:-3], drive.shape[:-2])
    terms = drive.expand(*batch, *drive.shape[-2:]).unsqueeze(-1)  # columns, as the matrices want
    return _doubled(coefficient, terms, torch.matmul, torch.matmul, -3).squeeze(-1)


def autoregression(coefficients: Tensor, noise: Tensor) -> Tensor:
    r"""AR(p): :math:`x_t = \phi_1 x_{t-1} + \dots + \phi_p x_{t-p} + e_t`, with zeros before t = 1.

    Args:
        coefficients: phi, the nearest lag first.
        noise: e; a start other than zero goes into its first p terms.

    Shapes:
        `coefficients` is ``(..., p)``, `noise` and the result ``(..., T)``.
    """
    lags = coefficients.shape[-1]
    if lags == 1:
        return linear_recursion(coefficients, noise)
    below = torch.eye(lags - 1, lags, dtype=noise.dtype, device=noise.device)
    below = below.expand(*coefficients.shape[:-1], lags - 1, lags)
    companion = torch.cat([coefficients.unsqueeze(-2), below], -2)
    columns = torch.nn.functional.pad(noise.unsqueeze(-1), (0, lags - 1))
    return matrix_recursion(companion.unsqueeze(-3), columns)[..., 0]


def _doubled(a: Tensor, x: Tensor, compose: _Join, apply: _Join, time: int) -> Tensor:
    """The doublings; `a` holds the products over the last `span` steps, for t > span."""
    length, span = x.shape[time], 1
    constant = a.shape[time] == 1
    a = a if constant else a.narrow(time, 1, length - 1)
    while span < length:
        reached = apply(a, x.narrow(time, 0, length - span))
        rest = x.narrow(time, span, length - span)
        x = torch.cat([x.narrow(time, 0, span), _finite(rest + reached)], time)
        if 2 * span < length:
            kept = a.shape[time] - span
            later, earlier = (
                (a, a) if constant else (a.narrow(time, span, kept), a.narrow(time, 0, kept))
            )
            a = _finite(compose(later, earlier))
        span *= 2
    return x


def _finite(x: Tensor) -> Tensor:
    largest = torch.finfo(x.dtype).max
    return x.clamp(-largest, largest)


def _check_time(a: Tensor, b: Tensor, steps: torch.Size, terms: torch.Size) -> None:
    if steps not in ((1,), terms) or not len(terms) or terms[0] == 0:
        raise ValueError(
            f"a recursion needs one coefficient, or one for each of its terms; the coefficients "
            f"have shape {tuple(a.shape)}, the terms {tuple(b.shape)}"
        )
