"""How far each gradient estimator is off, and how much it scatters: measured, not believed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppgen.inference.gradient_estimators import (
    ESTIMATORS,
    SCORE_FUNCTION,
    Estimator,
    Family,
    Integrand,
    moving_support,
)
from ppgen.inference.quadrature import exact_gradient
from ppgen.summary import columns, json_ready

_LIMIT = 4.3  # standard errors; an unbiased component is beyond once in 60,000


@dataclass(frozen=True)
class Measured:
    """One estimator against the exact gradient, by component ``(P,)``."""

    mean: Tensor
    error: Tensor  # standard error of the mean
    variance: Tensor  # of one draw: that of an estimate from K draws is this over K

    def bias(self, exact: Tensor) -> Tensor:
        return self.mean - exact

    def z(self, exact: Tensor) -> Tensor:
        """Bias in standard errors, of which rounding is at least one."""
        rounding = torch.finfo(exact.dtype).eps ** 0.5 * exact.abs()
        return torch.where(
            self.bias(exact) == 0, 0.0, self.bias(exact) / torch.maximum(self.error, rounding)
        )


@dataclass(frozen=True)
class GradientReport:
    """What :func:`gradient_report` found.

    Args:
        exact: the gradient, ``(P,)``.
        names: of its components.
        measured: by estimator.
        refused: estimators that the family does not have -> why.
        moving: whether the support moves with the parameters.
        draws: to an estimate.
        repetitions: estimates.
    """

    exact: Tensor
    names: tuple[str, ...]
    measured: dict[str, Measured]
    refused: dict[str, str]
    moving: bool
    draws: int
    repetitions: int

    @property
    def biased(self) -> dict[str, float]:
        """Estimators whose mean is more than 4.3 standard errors off -> their largest bias."""
        found = {}
        for name, measured in self.measured.items():
            off = ~(measured.z(self.exact).abs() < _LIMIT)  # NaN is off
            if bool(off.any()):
                bias = measured.bias(self.exact)[off]
                found[name] = float(bias[bias.abs().argmax()])
        return found

    def __str__(self) -> str:
        head = [["estimator", "of", "exact", "mean", "error", "bias", "z", "variance"]]
        rows = [
            [row["estimator"], row["component"], *(f"{row[key]:.4g}" for key in head[0][2:])]
            for row in self._rows()
        ]
        lines = [columns(head + rows)]
        lines.append(
            f"{self.repetitions} estimates from {self.draws} draws each; variance of one draw"
        )
        if self.moving:
            lines.append(
                "the support moves with the parameters: the score function does not see what "
                "happens at its ends, and is biased; use a pathwise estimator"
            )
        lines += [f"{name}: biased by {bias:.3g}" for name, bias in self.biased.items()]
        lines += [f"{name}: not available: {why}" for name, why in self.refused.items()]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        return {
            "draws": self.draws,
            "repetitions": self.repetitions,
            "support_moves": self.moving,
            "biased": sorted(self.biased),
            "refused": self.refused,
            "rows": [json_ready(row) for row in self._rows()],
        }

    def save(self, path: str | Path) -> Path:
        """Write :meth:`as_dict` to a file of JSON."""
        path = Path(path)
        path.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")
        return path

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "estimator": estimator,
                "component": name,
                "exact": float(self.exact[k]),
                "mean": float(found.mean[k]),
                "error": float(found.error[k]),
                "bias": float(found.bias(self.exact)[k]),
                "z": float(found.z(self.exact)[k]),
                "variance": float(found.variance[k]),
            }
            for estimator, found in self.measured.items()
            for k, name in enumerate(self.names)
        ]


def gradient_report(
    family: Family,
    parameters: Tensor,
    f: Integrand,
    *,
    exact: Tensor | None = None,
    estimators: Mapping[str, Estimator] | None = None,
    names: Sequence[str] | None = None,
    draws: int = 16,
    repetitions: int = 2000,
) -> GradientReport:
    r"""Bias and variance of estimators of :math:`\nabla_\phi E_{q_\phi}[f(z)]`, by component.

    Args:
        family: from parameters ``(*, P)`` to a distribution of batch shape ``(*)``.
        parameters: where the gradient is taken, ``(P,)``.
        f: from draws ``(*, *event)`` to ``(*)``.
        exact: the gradient, ``(P,)``; for a scalar family it is computed by quadrature.
        estimators: by name; all of :data:`~ppgen.inference.gradient_estimators.ESTIMATORS`.
        names: of the components.
        draws: to an estimate; what leave-one-out compares with one another.
        repetitions: estimates.

    Raises:
        ValueError: where the shapes do not fit, or there is no exact gradient to compare with.

    Example:
        >>> import pyro.distributions as dist
        >>> report = gradient_report(
        ...     lambda p: dist.Pareto(p[..., 0], 3.0),
        ...     torch.tensor([1.5], dtype=torch.float64),
        ...     torch.log,
        ... )
        >>> "REINFORCE" in report.biased, "reparameterisation" in report.biased
        (True, False)
        >>> print(f"{float(report.exact):.3f}")
        0.667
    """
    if repetitions < 2:
        raise ValueError(f"repetitions must be at least 2 to show scatter, got {repetitions}")
    truth = exact_gradient(family, parameters, f) if exact is None else exact.detach()
    labels = tuple(names or (f"[{k}]" for k in range(len(parameters))))
    if truth.shape != parameters.shape or len(labels) != len(parameters):
        raise ValueError(
            f"exact and names: expected as many as there are parameters, {len(parameters)}, got "
            f"shape {tuple(truth.shape)} and {len(labels)} names"
        )
    measured: dict[str, Measured] = {}
    refused: dict[str, str] = {}
    for name, estimator in (ESTIMATORS if estimators is None else estimators).items():
        try:
            found = estimator(family, parameters, f, draws, repetitions)
        except (ValueError, NotImplementedError) as error:
            refused[name] = str(error)
        else:
            measured[name] = measure(found)
    if not measured:
        raise ValueError("; ".join(f"{name}: {why}" for name, why in refused.items()))
    moving = moving_support(family, parameters)
    return GradientReport(truth, labels, measured, refused, moving, draws, repetitions)


def measure(gradients: Tensor) -> Measured:
    """Mean and variance of gradients ``(repetitions, draws, P)``.

    The variance is that of the estimates times their draws: a baseline that the draws of an
    estimate share makes them dependent, and only estimates are independent.
    """
    repetitions, draws, _ = gradients.shape
    estimates = gradients.mean(1)
    variance = estimates.var(0)
    return Measured(estimates.mean(0), (variance / repetitions).sqrt(), variance * draws)


Problem = Callable[[int], tuple[Family, Tensor, Integrand]]
"""From the dimension to a family, its parameters and f."""


@dataclass(frozen=True)
class VarianceGrowth:
    """Variance of one draw, mean over the components, by estimator and dimension."""

    dimensions: tuple[int, ...]
    variance: dict[str, tuple[float, ...]]

    @property
    def exponents(self) -> dict[str, float]:
        """Powers a, variance ~ dimension^a, by least squares on the logarithms, upper half."""
        kept = slice(len(self.dimensions) // 2 if len(self.dimensions) > 3 else 0, None)
        return {
            name: _slope(self.dimensions[kept], values[kept])
            for name, values in self.variance.items()
        }

    def __str__(self) -> str:
        head = ["dimension", *self.variance]
        rows = [
            [str(d), *(f"{values[i]:.4g}" for values in self.variance.values())]
            for i, d in enumerate(self.dimensions)
        ]
        grows = ["grows as d^", *(f"{a:.2f}" for a in self.exponents.values())]
        return columns([head, *rows, grows])

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        return {
            "dimensions": list(self.dimensions),
            "variance": {name: list(values) for name, values in self.variance.items()},
            "exponents": json_ready(self.exponents),
        }


def variance_against_dimension(
    dimensions: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128),
    *,
    problem: Problem | None = None,
    estimators: Mapping[str, Estimator] | None = None,
    draws: int = 16,
    repetitions: int = 500,
) -> VarianceGrowth:
    r"""Why reparameterise: how the variance of each estimator grows with the dimension.

    By default q = N(mu, I) at mu = 0 and :math:`f(z) = \|z\|^2`, whose gradient in mu has, by
    component and draw, the variance 4 for reparameterisation whatever d, (d + 2)(d + 4) for
    REINFORCE, 2 (d + 2) with the optimal baseline, and 2 d + 8 + 2 d / (K - 1) for leave-one-out
    among K draws.

    Args:
        dimensions: two or more, in ascending order.
        problem: from d to (family, parameters, f).
        estimators: reparameterisation and the score functions, by default.
        draws: to an estimate.
        repetitions: estimates.
    """
    if len(dimensions) < 2 or any(a >= b for a, b in pairwise(dimensions)):
        raise ValueError(f"dimensions: expected two or more, ascending, got {list(dimensions)}")
    chosen = estimators or {
        "reparameterisation": ESTIMATORS["reparameterisation"],
        **SCORE_FUNCTION,
    }
    found: dict[str, list[float]] = {name: [] for name in chosen}
    for d in dimensions:
        family, parameters, f = (problem or standard_problem)(d)
        for name, estimator in chosen.items():
            gradients = estimator(family, parameters, f, draws, repetitions)
            found[name].append(float(measure(gradients).variance.mean()))
    return VarianceGrowth(tuple(dimensions), {n: tuple(v) for n, v in found.items()})


def standard_problem(dimension: int) -> tuple[Family, Tensor, Integrand]:
    """N(mu, I) at mu = 0 and the squared length."""
    from pyro.distributions import Normal

    return (
        lambda p: Normal(p, torch.ones_like(p)).to_event(1),
        torch.zeros(dimension),
        lambda z: z.square().sum(-1),
    )


def _slope(dimensions: Sequence[int], values: Sequence[float]) -> float:
    x = torch.tensor([math.log(d) for d in dimensions], dtype=torch.float64)
    y = torch.tensor(values, dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())
