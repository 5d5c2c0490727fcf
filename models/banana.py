r"""A banana: a normal distribution bent along a parabola, whose moments are known.

.. math:: x_1 \sim N(0, s), \quad x_2 \sim N(b (x_1^2 - s^2), 1)

.. math:: E x_1 = E x_2 = 0, \quad \mathrm{var}\, x_1 = s^2, \quad
          \mathrm{var}\, x_2 = 1 + 2 b^2 s^4, \quad \mathrm{cov}(x_1, x_2) = 0

The two are uncorrelated and far from independent. Rosenbrock's function is the energy for
another b and s.

References:
    | Adaptive proposal distribution for random walk Metropolis algorithm
      (Haario, Saksman & Tamminen, 1999) | https://doi.org/10.1007/s001800050022
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist


def banana(scale: float = 10.0, bend: float = 0.03) -> None:
    """Two sites, ``x1`` and ``x2``; `scale` is s, `bend` is b."""
    x1 = pyro.sample("x1", dist.Normal(0.0, scale))
    pyro.sample("x2", dist.Normal(bend * (x1.square() - scale**2), 1.0))
