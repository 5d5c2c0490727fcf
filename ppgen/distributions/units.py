r"""The kinds of visible units of a Boltzmann machine, each an exponential family.

.. math:: p(x \mid \eta) = \exp(\eta^\top T(x) - A(\eta)), \qquad T(x) = (x, \ldots)

Given the hidden side t, a machine's natural parameters are linear, ``eta = eta_0 + (W t, 0)``: its
couplings move those of x itself, which come first, and leave the others. So energies, gradients
(differences of mean statistics) and annealing (interpolated eta) are the same for every kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.distributions.unit_checks import refuse_where, require_binary, require_shape

_FEW_UNITS = 4096  # below, seeding a generator costs more than it saves
_LOWEST = torch.tensor(-(2.0**31), dtype=torch.float32)
_RANGE = 2.0**32 + 512  # 2^-23 wider than the integers, which float32 rounds up to 2^31


class Units(Protocol):
    """A side of D units with M statistics, ``M >= D``, of which the first D are x itself."""

    @property
    def binary(self) -> bool:
        """Whether the states are {0, 1}^D, so that few units can be enumerated."""
        ...

    @property
    def support(self) -> Any:
        """Of one unit."""
        ...

    def statistics(self, x: Tensor) -> Tensor:
        """``T(x)``: ``(*, D) -> (*, M)``."""
        ...

    def log_normaliser(self, natural: Tensor) -> Tensor:
        """``A(eta)``: ``(*, M) -> (*)``, nats."""
        ...

    def sample(self, natural: Tensor) -> Tensor:
        """Draws of x, ``(*, M) -> (*, D)``; `natural` may be overwritten."""
        ...

    def law(self, natural: Tensor) -> TorchDistribution:
        """The distribution of x, of event shape ``(D,)``."""
        ...

    def fitted(self, x: Tensor) -> Tensor:
        """Natural parameters of independent units that match `x`: ``(N, D) -> (M,)``."""
        ...

    def require(self, x: Tensor, units: int) -> None:
        """Refuse what is no data of this kind, ``(*, units)``, with a ValueError."""
        ...

    def variables(self, units: int) -> Tensor:
        """The number of the variable that each unit is a part of, ``(units,)``.

        Raises:
            ValueError: where so many units are no whole variables.
        """
        ...


class HiddenUnits(Protocol):
    """What a hidden side of H units may be: their only statistic is their value, M = H.

    Their A is all that the visible side feels of them: the free energy is ``-eta_0^T T(x) - A``.
    """

    @property
    def binary(self) -> bool: ...

    def log_normaliser(self, natural: Tensor) -> Tensor: ...

    def sample(self, natural: Tensor) -> Tensor: ...

    def law(self, natural: Tensor) -> TorchDistribution: ...

    def moments(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        """Means of all units, and A summed over all of them: ``(*, H) -> (*, H), ()``."""
        ...

    def change(self, natural: Tensor, start: float, end: float) -> Tensor:
        """``A(end * natural) - A(start * natural)``: ``(*, H) -> (*)``, float64, nats."""
        ...


@dataclass(frozen=True)
class Binary:
    """Units in {0, 1}; eta are their log-odds."""

    binary = True
    support = constraints.boolean

    def statistics(self, x: Tensor) -> Tensor:
        return x

    def log_normaliser(self, natural: Tensor) -> Tensor:
        return softplus(natural).sum(-1)

    def sample(self, natural: Tensor) -> Tensor:
        return sample_units(natural.sigmoid_())

    def law(self, natural: Tensor) -> TorchDistribution:
        return dist.Bernoulli(logits=natural).to_event(1)

    def fitted(self, x: Tensor) -> Tensor:
        return base_rate_logits(x)

    def require(self, x: Tensor, units: int) -> None:
        require_binary(x, units)

    def variables(self, units: int) -> Tensor:
        return torch.arange(units)

    def moments(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        means = natural.sigmoid()
        return means, softplus_sum(natural, means)

    def change(self, natural: Tensor, start: float, end: float) -> Tensor:
        return softplus_change(natural, start, end)


@dataclass(frozen=True)
class Gaussian:
    r"""Real units; ``eta = (mean / sigma^2, -1 / (2 sigma^2))``, ``T(x) = (x, x^2)``."""

    binary = False
    support = constraints.real

    def statistics(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.square()], -1)

    def log_normaliser(self, natural: Tensor) -> Tensor:
        linear, square = natural.chunk(2, -1)
        return (torch.log(-math.pi / square) / 2 - linear.square() / (4 * square)).sum(-1)

    def sample(self, natural: Tensor) -> Tensor:
        mean, scale = self._moments(natural)
        return torch.addcmul(mean, scale, torch.randn_like(mean))

    def law(self, natural: Tensor) -> TorchDistribution:
        return dist.Normal(*self._moments(natural)).to_event(1)

    def fitted(self, x: Tensor) -> Tensor:
        """A column that never changes gets a standard deviation of 1e-3, not 0."""
        x = as_floats(x)
        variance = x.var(0, correction=0).clamp_min(1e-6)
        return torch.cat([x.mean(0) / variance, -0.5 / variance])

    def require(self, x: Tensor, units: int) -> None:
        require_shape(x, units)
        refuse_where(x, ~x.isfinite(), "a finite number", "fill or drop the missing values")

    def variables(self, units: int) -> Tensor:
        return torch.arange(units)

    def _moments(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        linear, square = natural.chunk(2, -1)
        variance = -0.5 / square
        return linear * variance, variance.sqrt()


@dataclass(frozen=True)
class OneHot:
    """Groups of `categories` units, one of which is 1; eta are logits (softmax units)."""

    categories: int
    binary = False
    support = constraints.boolean

    def __post_init__(self) -> None:
        require_whole(self, least=2, categories=self.categories)

    def statistics(self, x: Tensor) -> Tensor:
        return x

    def log_normaliser(self, natural: Tensor) -> Tensor:
        return self._groups(natural).logsumexp(-1).sum(-1)

    def sample(self, natural: Tensor) -> Tensor:
        logits = self._groups(natural)
        choice = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, choice, 1.0).flatten(-2)

    def law(self, natural: Tensor) -> TorchDistribution:
        """Of the groups, ``(*, groups, categories)``."""
        return dist.OneHotCategorical(logits=self._groups(natural)).to_event(1)

    def fitted(self, x: Tensor) -> Tensor:
        """A category that never occurs gets the share 1e-4."""
        return self._groups(as_floats(x).mean(0)).clamp_min(1e-4).log().flatten()

    def require(self, x: Tensor, units: int) -> None:
        require_binary(x, units)
        wrong = self._groups(x).sum(-1) != 1
        if wrong.any():
            *row, group = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"x: expected one of {self.categories} categories, got "
                f"{int(self._groups(x)[(*row, group)].sum())} in row "
                f"{', '.join(map(str, row)) or 0}, group {group}: give one-hot rows, as "
                "torch.nn.functional.one_hot makes them"
            )

    def variables(self, units: int) -> Tensor:
        return self._groups(torch.arange(units)).flatten() // self.categories

    def _groups(self, units: Tensor) -> Tensor:
        if units.shape[-1] % self.categories:
            raise ValueError(
                f"OneHot: {units.shape[-1]} units are no groups of {self.categories} categories"
            )
        return units.unflatten(-1, (-1, self.categories))


@dataclass(frozen=True)
class Beside:
    """Units of several kinds in one side: ``Beside(((Binary(), 64), (OneHot(10), 10)))``.

    Only of kinds whose statistics are x alone.
    """

    parts: tuple[tuple[Units, int], ...]
    support = constraints.boolean

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("Beside(parts=...) must hold at least one kind of units, got ()")
        for kind, count in self.parts:
            require_whole(self, parts=count)
            if not kind.support.is_discrete:
                raise ValueError(f"Beside: expected kinds of discrete units, got {kind}")

    @property
    def binary(self) -> bool:
        return all(kind.binary for kind, _ in self.parts)

    def statistics(self, x: Tensor) -> Tensor:
        return x

    def log_normaliser(self, natural: Tensor) -> Tensor:
        pieces = self._split(natural)
        return torch.stack([kind.log_normaliser(part) for kind, part in pieces]).sum(0)

    def sample(self, natural: Tensor) -> Tensor:
        return torch.cat([kind.sample(part) for kind, part in self._split(natural)], -1)

    def law(self, natural: Tensor) -> TorchDistribution:
        raise NotImplementedError("units of several kinds have no single law: use their `sample`")

    def fitted(self, x: Tensor) -> Tensor:
        return torch.cat([kind.fitted(part) for kind, part in self._split(x)], -1)

    def require(self, x: Tensor, units: int) -> None:
        require_shape(x, units)
        for kind, part in self._split(x):
            kind.require(part, part.shape[-1])

    def variables(self, units: int) -> Tensor:
        if units != sum(count for _, count in self.parts):
            raise ValueError(f"Beside: {units} units are not those of {self.parts}")
        found = torch.zeros(0, dtype=torch.long)
        for kind, count in self.parts:
            found = torch.cat([found, kind.variables(count) + len(found)])
        return found

    def only(self, units: Tensor) -> Units:
        """The kinds of some of the units, a mask ``(D,)``; one kind alone is that kind itself."""
        counts = [int(part.sum()) for _, part in self._split(units)]
        kinds = [kind for kind, _ in self.parts]
        parts = tuple(p for p in zip(kinds, counts, strict=True) if p[1])
        return parts[0][0] if len(parts) == 1 else Beside(parts)

    def _split(self, units: Tensor) -> Sequence[tuple[Units, Tensor]]:
        pieces = units.split([count for _, count in self.parts], -1)
        return [(kind, piece) for (kind, _), piece in zip(self.parts, pieces, strict=True)]


def softplus(logits: Tensor) -> Tensor:
    """``log(1 + exp(logits))``; torch's own threshold of 20 costs 2e-9, this one nothing."""
    return torch.nn.functional.softplus(logits, threshold=40.0)


def softplus_sum(logits: Tensor, probabilities: Tensor) -> Tensor:
    """``softplus(logits).sum()``, ``(N, H) -> ()``, where their sigmoids are at hand.

    It is ``sum relu(logits) - log max(p, 1 - p)``, and a product of 100 numbers in [1/2, 1] is no
    underflow: so a hundred of them share one logarithm, and no softplus is taken at all.
    """
    if logits.is_cuda:  # where launches cost more than transcendentals
        return softplus(logits).sum()
    likelier = torch.maximum(probabilities, 1 - probabilities)
    products = torch.cat([part.prod(0) for part in likelier.split(100)])
    return logits.clamp_min(0).sum() - products.log_().sum()


def softplus_change(logits: Tensor, start: float, end: float) -> Tensor:
    """``sum_j softplus(end l_j) - softplus(start l_j)``: ``(*, H) -> (*)``, float64.

    Small changes are ``log1p(sigmoid(start l) expm1((end - start) l))``, whose rounding errors are
    relative to the change: float32 is enough, and a seventh of the time of float64 softplus.
    """
    change = end - start
    if logits.is_cuda or not abs(change) * logits.abs().max() <= 1:
        logits = logits.double()
        return (softplus(end * logits) - softplus(start * logits)).sum(-1)
    factor = torch.expm1(change * logits).mul_((start * logits).sigmoid_())
    return factor.log1p_().sum(-1, dtype=torch.float64)


def sample_units(probabilities: Tensor) -> Tensor:
    """Independent units in {0, 1}.

    For a large layer torch's Mersenne twister takes as long as the matrix product before it. So
    float32 units on a CPU take their bits from a generator (SFC64) that is three times as fast, and
    that torch's own seeds anew at every call: same seed, same units.
    """
    count, shape = probabilities.numel(), probabilities.shape
    if count < _FEW_UNITS or probabilities.is_cuda or probabilities.dtype != torch.float32:
        uniform = torch.rand_like(probabilities)
        return torch.lt(uniform, probabilities, out=uniform)
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw((count + 1) // 2).view(np.int32)
    uniform = torch.from_numpy(words[:count].reshape(shape)).to(torch.float32)  # in +- 2^31
    return torch.lt(uniform, torch.add(_LOWEST, probabilities, alpha=_RANGE), out=uniform)


def base_rate_logits(x: Tensor) -> Tensor:
    """Log-odds of each unit's base rate, clamped to [1e-4, 1 - 1e-4]: ``(N, D) -> (D,)``."""
    return torch.logit(as_floats(x).mean(0), eps=1e-4)


def as_floats(x: Tensor) -> Tensor:
    """Whole numbers and truth values in the default dtype; floating point as it is."""
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())
