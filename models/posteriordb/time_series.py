r"""Two time series of posteriordb, AR(5) and ARMA(1, 1), conditional on how they begin.

The data of both are observed, so that what the story replicates is one step ahead: each
:math:`y_t` given the true ones before it.

References:
    | posteriordb (Magnusson et al., 2024) | https://arxiv.org/abs/2407.04967
    | Time series analysis: forecasting and control (Box & Jenkins, 1970)
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen.recursion import linear_recursion


def ark(y: Tensor, lags: int = 5) -> None:
    r"""AR(K), without a limit to stationary coefficients.

    .. math::
        \alpha, \beta_k \sim N(0, 10), \quad \sigma \sim \mathrm{Cauchy}^+(0, 2.5), \quad
        y_t \sim N(\alpha + \sum_k \beta_k y_{t-k}, \sigma), \quad t > K
    """
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(y.new_zeros(lags), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    before = y[:-1].unfold(-1, lags, 1).flip(-1)  # y_{t-1}, ..., y_{t-K}
    with pyro.plate("time", len(y) - lags):
        pyro.sample("y", dist.Normal(alpha + before @ beta, sigma), obs=y[lags:])


def arma11(y: Tensor) -> None:
    r"""ARMA(1, 1) around :math:`\mu`, with neither coefficient bounded.

    .. math::
        \mu \sim N(0, 10), \quad \phi, \theta \sim N(0, 2), \quad
        \sigma \sim \mathrm{Cauchy}^+(0, 2.5), \\
        \nu_1 = \mu + \phi \mu, \quad \nu_t = \mu + \phi y_{t-1} + \theta e_{t-1}, \quad
        e_t = y_t - \nu_t, \quad y_t \sim N(\nu_t, \sigma)

    The errors are a linear recursion, :math:`e_t = -\theta e_{t-1} + y_t - \mu - \phi y_{t-1}`.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    before = torch.cat([mu.reshape(1), y[:-1]])  # the series is at its mean before it begins
    error = linear_recursion(-theta, y - mu - phi * before)
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(y - error, sigma), obs=y)
