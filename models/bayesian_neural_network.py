r"""A network with one hidden layer, and the posterior of its weights and activations.

.. math::
    W_{kh} \sim N(0, w / \sqrt K), \quad b_h \sim N(0, w), \quad
    v_h \sim N(0, 1 / \sqrt H), \quad \sigma \sim N^+(0, 1), \\
    h_n = \tanh(x_n W + b), \quad f_n = c + h_n \cdot v, \quad c \sim N(0, 1), \quad
    y_n \sim N(f_n, \sigma)

With these scales f tends to a Gaussian process as H grows. Hidden units may change places and
signs: the posterior of the weights has :math:`2^H H!` equal parts, while that of the activations'
sum f, and of any prediction, has one; judge convergence by ``f``.

References:
    | Bayesian learning for neural networks (Neal, 1996) | https://doi.org/10.1007/978-1-4612-0745-0
    | What are Bayesian neural network posteriors really like? (Izmailov et al., 2021)
      | https://arxiv.org/abs/2104.14421
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def data() -> dict[str, Tensor]:
    """A wave of amplitude 1 with noise 0.1, at 24 points that leave a gap in the middle."""
    side = torch.linspace(0.6, 2.0, 12, dtype=torch.float64)
    x = torch.cat([-side.flip(0), side])
    wobble = 0.1 * torch.sin(37.0 * torch.arange(24, dtype=torch.float64) ** 1.5) * 2**0.5
    return {"x": x.unsqueeze(-1), "y": torch.sin(1.5 * x) + wobble}


def bayesian_neural_network(
    x: Tensor, y: Tensor | None = None, hidden: int = 5, scale: float = 2.0
) -> None:
    """Predictors `x`, ``(N, K)``; outcome `y`, ``(N,)``, or None to predict.

    The sites ``activation`` ``(N, H)`` and ``f`` ``(N,)`` follow from the weights.
    """
    inputs, zero = x.shape[-1], x.new_zeros(hidden)
    weight = pyro.sample(
        "weight", dist.Normal(x.new_zeros(inputs, hidden), scale / inputs**0.5).to_event(2)
    )
    bias = pyro.sample("bias", dist.Normal(zero, scale).to_event(1))
    readout = pyro.sample("readout", dist.Normal(zero, hidden**-0.5).to_event(1))
    offset = pyro.sample("offset", dist.Normal(x.new_zeros(()), 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(x.new_ones(())))
    activation = pyro.deterministic("activation", torch.tanh(x @ weight + bias))
    f = pyro.deterministic("f", offset + activation @ readout)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, noise), obs=y)
