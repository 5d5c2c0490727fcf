r"""Item response with two parameters an item (2PL): who can solve which item.

.. math::
    \theta_p \sim N(0, 1), \quad b_i \sim N(0, 2), \quad a_i \sim \mathrm{LogNormal}(0, 1/2),
    \quad y_n \sim \mathrm{Bernoulli}(\mathrm{logit}^{-1}(a_{i_n} (\theta_{p_n} - b_{i_n})))

The prior's mean 0 and scale 1 of abilities, and positive discriminations, identify a likelihood
which is the same for :math:`(-\theta, -b, -a)` and under a common shift and scale of abilities and
difficulties. Answers come as a list of who, what and whether: not everybody needs to answer every
item.

References:
    | Some latent trait models and their use in inferring an examinee's ability (Birnbaum, 1968)
    | Handbook of item response theory (van der Linden, 2016) | https://doi.org/10.1201/9781315374512
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def data() -> dict[str, Tensor]:
    """Thirty persons, eight items; a low-discrepancy sequence in the place of chance."""
    person = torch.arange(30).repeat_interleave(8)
    item = torch.arange(8).repeat(30)
    ability = torch.distributions.Normal(0.0, 1.0).icdf(
        (torch.arange(30, dtype=torch.float64) + 0.5) / 30
    )
    difficulty = torch.linspace(-1.5, 1.5, 8, dtype=torch.float64)
    discrimination = 1.0 + 0.8 * torch.cos(2.0 * torch.arange(8, dtype=torch.float64))
    logits = discrimination[item] * (ability[person] - difficulty[item])
    threshold = (0.5 + 0.6180339887498949 * torch.arange(240, dtype=torch.float64)) % 1.0
    return {"person": person, "item": item, "y": (logits.sigmoid() > threshold).to(ability)}


def item_response(
    person: Tensor, item: Tensor, y: Tensor | None = None, persons: int = 30, items: int = 8
) -> None:
    """Answer `y` of each `person` to each `item`, ``(N,)`` each, numbered from 0."""
    with pyro.plate("person", persons):
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
    with pyro.plate("item", items):
        difficulty = pyro.sample("difficulty", dist.Normal(0.0, 2.0))
        discrimination = pyro.sample("discrimination", dist.LogNormal(0.0, 0.5))
    logits = discrimination[item] * (ability[person] - difficulty[item])
    with pyro.plate("answer", len(person)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)
