"""The posteriors in NumPyro's own language, and its samplers and SVI, for `worker.serve`.

Sites have the names of posteriordb's parameters; arguments are those of ppgen's stories.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"  # a chain each, in parallel

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

sys.path.insert(0, str(Path(__file__).parent))
from worker import Arrays, Request, core_seconds, serve

numpyro.enable_x64()

WARMUP = 500
STEPS = 100  # of SVI between two looks


def _flat(name: str, shape: tuple[int, ...] = (), support: Any = constraints.real) -> Any:
    return numpyro.sample(name, dist.ImproperUniform(support, (), event_shape=shape))


def _regression(mean: Any, sigma: Any, y: Any) -> None:
    numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def eight_schools(sigma: Any, y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    eta = numpyro.sample("eta", dist.Normal(jnp.zeros(len(y)), 1.0))
    theta = numpyro.deterministic("theta", mu + tau * eta)
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_centred(sigma: Any, y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def ark(y: Any, lags: int) -> None:
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(lags), 10.0).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    before = jnp.stack([y[lags - k - 1 : len(y) - k - 1] for k in range(lags)], -1)
    _regression(alpha + before @ beta, sigma, y[lags:])


def arma11(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = numpyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = numpyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))

    def one_step(error: Any, pair: Any) -> tuple[Any, Any]:
        before, now = pair
        mean = mu + phi * before + theta * error
        return now - mean, mean

    before = jnp.concatenate([mu[None], y[:-1]])
    _, mean = jax.lax.scan(one_step, jnp.zeros(()), (before, y))
    _regression(mean, sigma, y)


def kidscore_interaction(mom_hs: Any, mom_iq: Any, kid_score: Any) -> None:
    beta = _flat("beta", (4,), constraints.real_vector)
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    mean = beta[0] + beta[1] * mom_hs + beta[2] * mom_iq + beta[3] * mom_hs * mom_iq
    _regression(mean, sigma, kid_score)


def logearn_interaction(height: Any, male: Any, log_earn: Any) -> None:
    beta = _flat("beta", (4,), constraints.real_vector)
    sigma = _flat("sigma", (), constraints.positive)
    mean = beta[0] + beta[1] * height + beta[2] * male + beta[3] * height * male
    _regression(mean, sigma, log_earn)


def logmesquite(x: Any, log_weight: Any) -> None:
    beta = _flat("beta", (7,), constraints.real_vector)
    sigma = _flat("sigma", (), constraints.positive)
    _regression(beta[0] + x @ beta[1:], sigma, log_weight)


def blr(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(x.shape[-1]), 10.0).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    _regression(x @ beta, sigma, y)


def kilpisjarvi(
    x: Any, y: Any, alpha_loc: float, alpha_scale: float, beta_loc: float, beta_scale: float
) -> None:
    alpha = numpyro.sample("alpha", dist.Normal(alpha_loc, alpha_scale))
    beta = numpyro.sample("beta", dist.Normal(beta_loc, beta_scale))
    sigma = _flat("sigma", (), constraints.positive)
    _regression(alpha + beta * x, sigma, y)


def _covariance(x: Any, diagonal: Any) -> Any:
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    square = jnp.square(x[:, None] - x)
    return alpha**2 * jnp.exp(-square / (2 * rho**2)) + diagonal * jnp.eye(len(x))


def gp_regr(x: Any, y: Any) -> None:
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    covariance = _covariance(x, sigma)
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)


def gp_pois_regr(x: Any, k: Any) -> None:
    whitened = numpyro.sample("f_tilde", dist.Normal(jnp.zeros(len(x)), 1.0))
    factor = jnp.linalg.cholesky(_covariance(x, 1e-10))
    f = numpyro.deterministic("f", factor @ whitened)
    numpyro.sample("k", dist.Poisson(jnp.exp(f)), obs=k)


def low_dim_gauss_mix(y: Any) -> None:
    mu = _flat("mu", (2,), constraints.ordered_vector)
    numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0 * jnp.ones(2)).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    share = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    numpyro.sample("y", dist.MixtureSameFamily(share, dist.Normal(mu, sigma)), obs=y)


def logistic(x: Any, y: Any, scale: float = 2.5) -> None:
    intercept = numpyro.sample("intercept", dist.Normal(0.0, scale))
    slope = numpyro.sample("slope", dist.Normal(jnp.zeros(x.shape[-1]), scale).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ slope), obs=y)


STORIES: dict[str, Callable[..., None]] = {
    "arK-arK": ark,
    "arma-arma11": arma11,
    "earnings-logearn_interaction": logearn_interaction,
    "eight_schools-eight_schools_centered": eight_schools_centred,
    "eight_schools-eight_schools_noncentered": eight_schools,
    "gp_pois_regr-gp_pois_regr": gp_pois_regr,
    "gp_pois_regr-gp_regr": gp_regr,
    "kidiq-kidscore_interaction": kidscore_interaction,
    "kilpisjarvi_mod-kilpisjarvi": kilpisjarvi,
    "low_dim_gauss_mix-low_dim_gauss_mix": low_dim_gauss_mix,
    "mesquite-logmesquite": logmesquite,
    "sblrc-blr": blr,
    "logistic-1000x25": logistic,
}


def sample(request: Request, *, method: str, chains: int) -> Arrays:
    mcmc = MCMC(
        NUTS(STORIES[request.posterior]),
        num_warmup=WARMUP,
        num_samples=request.draws,
        num_chains=chains,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(request.seed), **request.data)
    return {name: np.asarray(x) for name, x in mcmc.get_samples(group_by_chain=True).items()}


def svi(request: Request) -> Arrays:
    """SVI with AutoNormal, one draw a step, compiled: the guide at every hundredth step."""
    model = STORIES[request.posterior]
    begin = core_seconds()
    guide = AutoNormal(model)
    fit = SVI(model, guide, numpyro.optim.Adam(request.rate), Trace_ELBO())
    state = fit.init(jax.random.PRNGKey(request.seed), **request.data)

    @jax.jit
    def steps(state: Any) -> Any:
        update = lambda state, _: (fit.update(state, **request.data)[0], None)  # noqa: E731
        return jax.lax.scan(update, state, length=STEPS)[0]

    path: dict[str, list[np.ndarray]] = {"times": []}
    while core_seconds() - begin < request.cap:
        state = steps(state)
        params = {name: np.asarray(x) for name, x in fit.get_params(state).items()}
        path["times"].append(np.array(core_seconds() - begin))
        for name, value in params.items():  # site_auto_loc, site_auto_scale
            site, _, what = name.rpartition("_auto_")
            path.setdefault(f"{what}/{site}", []).append(value)
    return {name: np.stack(values) for name, values in path.items()}


def density(posterior: str, data: dict[str, Any], points: list[Arrays]) -> list[float]:
    found = []
    for point in points:
        arrays = {name: jnp.asarray(x) for name, x in point.items()}
        value, _ = numpyro.infer.util.log_density(STORIES[posterior], (), data, arrays)
        found.append(float(value))
    return found


if __name__ == "__main__":
    samplers = {
        "NumPyro, parallel": lambda request: sample(request, method="parallel", chains=4),
        "NumPyro, vectorised": lambda request: sample(request, method="vectorized", chains=16),
        "NumPyro's SVI": svi,
    }
    serve(["numpyro", "jax", "numpy"], samplers, density)
