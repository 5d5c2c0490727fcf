r"""Regressions in groups, partially pooled: every coefficient varies between groups.

.. math::
    m_k \sim N(0, s), \quad \tau_k \sim N^+(0, s), \quad \sigma \sim N^+(0, s), \quad
    \beta_{gk} \sim N(m_k, \tau_k), \quad
    y_n \sim N(\beta_{g_n 0} + x_n \cdot \beta_{g_n, 1:}, \sigma)

Complete pooling is :math:`\tau = 0`, no pooling :math:`\tau = \infty`; how much is pooled is
learnt. Given m, tau and sigma the coefficients are normal. The form is centred, the better one
where groups say much about themselves; where they do not, ``ppgen.fit(..., reparametrise="auto")``
finds for each coefficient how far to leave it.

References:
    | Data analysis using regression and multilevel/hierarchical models, chapters 12 and 13
      (Gelman & Hill, 2007)
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def data() -> dict[str, Tensor]:
    """Six groups of 3 to 12 rows, intercepts about 1 (sd 1), slopes about 2 (sd 0.5), noise 0.5."""
    sizes = torch.tensor([3, 4, 6, 8, 10, 12])
    group = torch.repeat_interleave(torch.arange(6), sizes)
    row = torch.arange(len(group), dtype=torch.float64)
    x = 2.0 * torch.sin(1.7 * row).unsqueeze(-1)
    intercept = 1.0 + torch.tensor([-1.2, 0.9, 0.1, -0.5, 1.4, -0.7], dtype=torch.float64)
    slope = 2.0 + 0.5 * torch.tensor([0.8, -1.3, 0.2, 1.1, -0.6, -0.2], dtype=torch.float64)
    wobble = 0.5 * torch.sin(37.0 * row**1.5) * 2**0.5
    return {"x": x, "group": group, "y": intercept[group] + slope[group] * x[:, 0] + wobble}


def hierarchical_regression(
    x: Tensor, group: Tensor, y: Tensor | None = None, groups: int = 6, scale: float = 5.0
) -> None:
    """Predictors `x`, ``(N, K)``; `group` of each row, 0 to `groups` - 1; outcome `y`, ``(N,)``."""
    size = x.shape[-1] + 1
    mean = pyro.sample("mean", dist.Normal(x.new_zeros(size), scale).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(x.new_full((size,), scale)).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(x.new_full((), scale)))
    with pyro.plate("group", groups):
        beta = pyro.sample("beta", dist.Normal(mean, spread).to_event(1))
    rows = beta[group]
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(rows[:, 0] + (x * rows[:, 1:]).sum(-1), noise), obs=y)
