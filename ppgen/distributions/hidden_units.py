r"""Hidden units that are not binary: Gaussian and rectified ones, each with ``e^{-h^2 / 2}``.

.. math:: p(h \mid \theta) = e^{\theta h - h^2 / 2} / e^{A(\theta)}, \qquad
          A(\theta) = \log \int e^{\theta h - h^2 / 2} dh

over all numbers or over those above zero. ``theta = b + W^T x`` is all that a unit knows of the
visible side. Summed out, Gaussian units couple the visible ones by ``W W^T`` (the Hopfield model),
rectified ones do so where their input is positive, and are sparse.

References:
    | On the equivalence of Hopfield networks and Boltzmann machines (Barra et al., 2012)
    | Emergence of compositional representations in restricted Boltzmann machines
      (Tubiana, Monasson, 2017) | https://arxiv.org/abs/1611.06759
    | Rectified linear units improve restricted Boltzmann machines (Nair, Hinton, 2010), whose noisy
      units max(0, N(theta, sigmoid(theta))) approximate a stack of binary ones and have no energy
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.distributions import positive_normal
from ppgen.distributions.positive_normal import PositiveNormal


@dataclass(frozen=True)
class UnitGaussian:
    """Real units of unit variance; theta is their mean."""

    binary = False

    def log_normaliser(self, natural: Tensor) -> Tensor:
        return (natural.square() / 2 + math.log(2 * math.pi) / 2).sum(-1)

    def moments(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        return natural, self.log_normaliser(natural).sum()

    def change(self, natural: Tensor, start: float, end: float) -> Tensor:
        return (end**2 - start**2) / 2 * natural.double().square().sum(-1)

    def sample(self, natural: Tensor) -> Tensor:
        return natural + torch.randn_like(natural)

    def law(self, natural: Tensor) -> TorchDistribution:
        return dist.Normal(natural, torch.ones_like(natural)).to_event(1)


@dataclass(frozen=True)
class Rectified(UnitGaussian):
    """Units at zero and above: a unit Gaussian of mean theta, restricted to them."""

    def log_normaliser(self, natural: Tensor) -> Tensor:
        return positive_normal.log_mass(natural).sum(-1)

    def moments(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        return positive_normal.mean(natural), self.log_normaliser(natural).sum()

    def change(self, natural: Tensor, start: float, end: float) -> Tensor:
        natural = natural.double()
        return self.log_normaliser(end * natural) - self.log_normaliser(start * natural)

    def sample(self, natural: Tensor) -> Tensor:
        return positive_normal.draw(natural)

    def law(self, natural: Tensor) -> TorchDistribution:
        return PositiveNormal(natural).to_event(1)
