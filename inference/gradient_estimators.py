r"""Estimators of the gradient of an expectation with respect to the law it is taken under.

.. math:: g(\phi) = \nabla_\phi E_{q_\phi}[f(z)]

The pathwise estimators move the draws, :math:`\nabla_\phi f(z_\phi)`, and need the gradient of f.
The score-function estimators (REINFORCE) reweight them,
:math:`(f(z) - b) \nabla_\phi \log q_\phi(z)`, and need only its values; they differ in the
baseline b. Each estimator below is a function

``(family, parameters, f, draws, repetitions) -> (repetitions, draws, P)``

whose mean over the draws is one estimate; the repetitions show how it scatters
(:func:`ppgen.inference.gradient_report.gradient_report` measures that).

A `family` maps parameters ``(*, P)`` to a distribution of batch shape ``(*)``; `f` maps draws
``(*, *event)`` to ``(*)``. `parameters` is one flat vector ``(P,)``.

The score function is biased where the support moves with the parameters: the draws say nothing of
what happens at the boundary. For a Pareto of scale s it misses :math:`-\alpha f(s) / s`.

References:
    | Simple Statistical Gradient-Following Algorithms (Williams, 1992)
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014) | https://arxiv.org/abs/1312.6114
    | Implicit Reparameterization Gradients (Figurnov, Mohamed & Mnih, 2018)
    | https://arxiv.org/abs/1805.08498
    | Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016)
    | https://arxiv.org/abs/1602.06725
    | Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool, van Hoof & Welling, 2019)
    | Monte Carlo Gradient Estimation in Machine Learning (Mohamed et al., 2020)
    | https://arxiv.org/abs/1906.10652
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, Independent

from ppgen.recursion import linear_recursion

Family = Callable[[Tensor], Distribution]
"""From parameters ``(*, P)`` to a distribution of batch shape ``(*)``."""

Integrand = Callable[[Tensor], Tensor]
"""f: from draws ``(*, *event)`` to values ``(*)``."""

_DECAY = 0.9  # of the moving average, by batch
_WARM_UP = 50  # batches before the moving average is used: what it began with counts for 0.5 %


class Estimator(Protocol):
    """Gradients by draw, ``(repetitions, draws, P)``."""

    def __call__(
        self, family: Family, parameters: Tensor, f: Integrand, draws: int, repetitions: int = 1
    ) -> Tensor: ...


def reparameterisation(
    family: Family, parameters: Tensor, f: Integrand, draws: int, repetitions: int = 1
) -> Tensor:
    r""":math:`\nabla_\phi f(z_\phi)` by the family's own `rsample`.

    Raises:
        ValueError: where the family has none, or `f` has no gradient.
    """
    rows = _rows(parameters, repetitions, draws)
    with torch.enable_grad():
        q = family(rows)
        if not q.has_rsample:
            raise ValueError(
                f"{_name(q)} has no rsample: use implicit_reparameterisation where it has a cdf, "
                "or the score function (leave_one_out)"
            )
        return _pathwise(f, q.rsample(), rows)


def implicit_reparameterisation(
    family: Family, parameters: Tensor, f: Integrand, draws: int, repetitions: int = 1
) -> Tensor:
    r"""Draws moved so that their distribution function stays what it is.

    .. math:: \nabla_\phi z = - \frac{\nabla_\phi F_\phi(z)}{q_\phi(z)}

    For a scalar, or for independent scalars (``.to_event``). It needs no sampler that can be
    differentiated, so it also holds for mixtures.

    Raises:
        ValueError: where the family has no distribution function that can be differentiated.
    """
    rows = _rows(parameters, repetitions, draws)
    with torch.enable_grad():
        q = family(rows)
        scalars = q
        while isinstance(scalars, Independent):
            scalars = scalars.base_dist
        if scalars.event_shape:
            raise ValueError(
                f"{_name(q)} is no product of scalar distributions: implicit reparameterisation "
                "needs their distribution functions"
            )
        z = q.sample()
        density = scalars.log_prob(z).detach().exp()
        try:
            below = scalars.cdf(z)
            return _pathwise(f, z - (below - below.detach()) / density, rows)
        except NotImplementedError as error:  # of the cdf, or of its derivative in the parameters
            raise ValueError(
                f"{_name(q)} has no cdf that can be differentiated; torch differentiates the draws "
                "of StudentT, Gamma, Beta and Dirichlet implicitly in rsample: use "
                "reparameterisation"
            ) from error


def reinforce(
    family: Family, parameters: Tensor, f: Integrand, draws: int, repetitions: int = 1
) -> Tensor:
    r""":math:`f(z) \nabla_\phi \log q_\phi(z)`, without a baseline."""
    found = _scored(family, parameters, f, draws, repetitions)
    return found.value[..., None] * found.score


def moving_average_baseline(
    family: Family, parameters: Tensor, f: Integrand, draws: int, repetitions: int = 1
) -> Tensor:
    """REINFORCE less an exponential average of f over the batches before.

    The repetitions are those batches, in the order of time; some more are drawn at the start to
    warm the average up.
    """
    found = _scored(family, parameters, f, draws, repetitions + _WARM_UP)
    drive = (1 - _DECAY) * found.value.mean(-1)
    drive = torch.cat([found.value[:1].mean(-1), drive[1:]])
    average = linear_recursion(drive.new_tensor(_DECAY), drive)
    centred = found.value[_WARM_UP:] - average[_WARM_UP - 1 : -1, None]
    return centred[..., None] * found.score[_WARM_UP:]


def optimal_baseline(
    family: Family, parameters: Tensor, f: Integrand, draws: int, repetitions: int = 1
) -> Tensor:
    r"""REINFORCE less the constant that makes its variance least, one for each parameter.

    .. math:: b_k = \frac{E[f(z)\, s_k^2]}{E[s_k^2]}, \quad s = \nabla_\phi \log q_\phi(z)

    It is estimated from as many draws of their own: free of bias, at twice the price.
    """
    pilot = _scored(family, parameters, f, draws, repetitions)
    square = pilot.score.square()
    weighted = (pilot.value[..., None] * square).sum((0, 1))
    baseline = weighted / square.sum((0, 1)).clamp(min=torch.finfo(square.dtype).tiny)
    found = _scored(family, parameters, f, draws, repetitions)
    return (found.value[..., None] - baseline) * found.score


def leave_one_out(
    family: Family, parameters: Tensor, f: Integrand, draws: int, repetitions: int = 1
) -> Tensor:
    r"""REINFORCE less the mean of f over the other draws of the batch.

    .. math:: \frac{1}{K - 1} \sum_k (f(z_k) - \bar f)\, \nabla_\phi \log q_\phi(z_k)

    Raises:
        ValueError: for fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"leave_one_out compares draws with one another: draws={draws}, use >= 2")
    found = _scored(family, parameters, f, draws, repetitions)
    centred = (found.value - found.value.mean(-1, keepdim=True)) * (draws / (draws - 1))
    return centred[..., None] * found.score


PATHWISE: dict[str, Estimator] = {
    "reparameterisation": reparameterisation,
    "implicit": implicit_reparameterisation,
}
SCORE_FUNCTION: dict[str, Estimator] = {
    "REINFORCE": reinforce,
    "moving average": moving_average_baseline,
    "optimal baseline": optimal_baseline,
    "leave one out": leave_one_out,
}
ESTIMATORS: dict[str, Estimator] = {**PATHWISE, **SCORE_FUNCTION}


def moving_support(family: Family, parameters: Tensor) -> bool:
    """Whether the support changes with the parameters, so that the score function is biased."""
    with torch.enable_grad():
        bounds: Any = family(parameters.detach().requires_grad_()).support
    while hasattr(bounds, "base_constraint"):
        bounds = bounds.base_constraint
    ends = (getattr(bounds, name, None) for name in ("lower_bound", "upper_bound"))
    return any(isinstance(end, Tensor) and end.requires_grad for end in ends)


class _Scored(NamedTuple):
    value: Tensor  # f at the draws, (repetitions, draws)
    score: Tensor  # gradient of log q there, (repetitions, draws, P)


def _scored(
    family: Family, parameters: Tensor, f: Integrand, draws: int, repetitions: int
) -> _Scored:
    rows = _rows(parameters, repetitions, draws)
    with torch.enable_grad():
        q = family(rows)
        z = q.sample()
        log_q = q.log_prob(z)
        _check(log_q, rows, "log_prob of the family")
        (score,) = torch.autograd.grad(log_q.sum(), rows)
    with torch.no_grad():
        value = f(z)
    _check(value, rows, "f")
    return _Scored(value, score)


def _pathwise(f: Integrand, z: Tensor, rows: Tensor) -> Tensor:
    value = f(z)
    _check(value, rows, "f")
    if not value.requires_grad:
        raise ValueError(
            "f has no gradient with respect to the draws, and pathwise estimators need it: write "
            "f with torch operations that can be differentiated, or use leave_one_out"
        )
    (gradient,) = torch.autograd.grad(value.sum(), rows)
    return gradient


def _rows(parameters: Tensor, repetitions: int, draws: int) -> Tensor:
    """The parameters once for each draw: the gradient of a sum is then one for each draw."""
    if parameters.ndim != 1 or not parameters.is_floating_point():
        raise ValueError(
            "parameters: expected one flat vector of floating point numbers (P,), got shape "
            f"{tuple(parameters.shape)} of {parameters.dtype}"
        )
    for name, count in (("draws", draws), ("repetitions", repetitions)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    return parameters.detach().expand(repetitions, draws, -1).clone().requires_grad_()


def _check(value: Tensor, rows: Tensor, what: str) -> None:
    expected = Size(rows.shape[:-1])
    if value.shape != expected:
        raise ValueError(
            f"{what}: expected one value for each of the draws {tuple(expected)}, got shape "
            f"{tuple(value.shape)}; sum over the dimensions of a draw, and let the family map "
            "(..., P) to a distribution of batch shape (...), with .to_event(1) for vectors"
        )


def _name(q: Distribution) -> str:
    while isinstance(q, Independent):
        q = q.base_dist
    return type(q).__name__
