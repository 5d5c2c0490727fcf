"""The posteriors in PyMC's language, sampled by nutpie (numba), for `worker.serve`.

Sites have the names of posteriordb's parameters; arguments are those of ppgen's stories.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# what an earlier process compiled must not count as fast
os.environ["PYTENSOR_FLAGS"] = f"base_compiledir={tempfile.mkdtemp()}"
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()

import numpy as np
import nutpie
import pymc as pm
import pytensor
import pytensor.tensor as pt

sys.path.insert(0, str(Path(__file__).parent))
from worker import Arrays, Request, serve

CHAINS, CORES = 4, 2


def eight_schools(sigma: Any, y: Any) -> None:
    mu = pm.Normal("mu", 0, 5)
    tau = pm.HalfCauchy("tau", 5)
    eta = pm.Normal("eta", 0, 1, shape=len(y))
    theta = pm.Deterministic("theta", mu + tau * eta)
    pm.Normal("y", theta, sigma, observed=y)


def eight_schools_centred(sigma: Any, y: Any) -> None:
    mu = pm.Normal("mu", 0, 5)
    tau = pm.HalfCauchy("tau", 5)
    theta = pm.Normal("theta", mu, tau, shape=len(y))
    pm.Normal("y", theta, sigma, observed=y)


def ark(y: Any, lags: int) -> None:
    alpha = pm.Normal("alpha", 0, 10)
    beta = pm.Normal("beta", 0, 10, shape=lags)
    sigma = pm.HalfCauchy("sigma", 2.5)
    before = np.stack([y[lags - k - 1 : len(y) - k - 1] for k in range(lags)], -1)
    pm.Normal("y", alpha + before @ beta, sigma, observed=y[lags:])


def arma11(y: Any) -> None:
    mu = pm.Normal("mu", 0, 10)
    phi = pm.Normal("phi", 0, 2)
    theta = pm.Normal("theta", 0, 2)
    sigma = pm.HalfCauchy("sigma", 2.5)
    before = pt.concatenate([mu[None], y[:-1]])
    error = pytensor.scan(
        lambda now, before, error, mu, phi, theta: now - mu - phi * before - theta * error,
        sequences=[pt.as_tensor(y), before],
        outputs_info=[pt.zeros(())],
        non_sequences=[mu, phi, theta],
        strict=True,
        return_updates=False,
    )
    pm.Normal("y", y - error, sigma, observed=y)


def kidscore_interaction(mom_hs: Any, mom_iq: Any, kid_score: Any) -> None:
    beta = pm.Flat("beta", shape=4, initval=np.zeros(4))
    sigma = pm.HalfCauchy("sigma", 2.5)
    mean = beta[0] + beta[1] * mom_hs + beta[2] * mom_iq + beta[3] * mom_hs * mom_iq
    pm.Normal("y", mean, sigma, observed=kid_score)


def logearn_interaction(height: Any, male: Any, log_earn: Any) -> None:
    beta = pm.Flat("beta", shape=4, initval=np.zeros(4))
    sigma = pm.HalfFlat("sigma", initval=1.0)
    mean = beta[0] + beta[1] * height + beta[2] * male + beta[3] * height * male
    pm.Normal("y", mean, sigma, observed=log_earn)


def logmesquite(x: Any, log_weight: Any) -> None:
    beta = pm.Flat("beta", shape=7, initval=np.zeros(7))
    sigma = pm.HalfFlat("sigma", initval=1.0)
    pm.Normal("y", beta[0] + x @ beta[1:], sigma, observed=log_weight)


def blr(x: Any, y: Any) -> None:
    beta = pm.Normal("beta", 0, 10, shape=x.shape[-1])
    sigma = pm.HalfNormal("sigma", 10)
    pm.Normal("y", x @ beta, sigma, observed=y)


def kilpisjarvi(
    x: Any, y: Any, alpha_loc: float, alpha_scale: float, beta_loc: float, beta_scale: float
) -> None:
    alpha = pm.Normal("alpha", alpha_loc, alpha_scale)
    beta = pm.Normal("beta", beta_loc, beta_scale)
    sigma = pm.HalfFlat("sigma", initval=1.0)
    pm.Normal("y", alpha + beta * x, sigma, observed=y)


def _covariance(x: Any, diagonal: Any) -> Any:
    rho = pm.Gamma("rho", alpha=25, beta=4)
    alpha = pm.HalfNormal("alpha", 2)
    square = np.square(x[:, None] - x)
    return alpha**2 * pt.exp(-square / (2 * rho**2)) + diagonal * np.eye(len(x))


def gp_regr(x: Any, y: Any) -> None:
    sigma = pm.HalfNormal("sigma", 1)
    pm.MvNormal("y", np.zeros(len(x)), cov=_covariance(x, sigma), observed=y)


def gp_pois_regr(x: Any, k: Any) -> None:
    whitened = pm.Normal("f_tilde", 0, 1, shape=len(x))
    f = pm.Deterministic("f", pt.linalg.cholesky(_covariance(x, 1e-10)) @ whitened)
    pm.Poisson("k", pt.exp(f), observed=k)


def low_dim_gauss_mix(y: Any) -> None:
    ordered = pm.distributions.transforms.ordered
    mu = pm.Normal("mu", 0, 2, shape=2, transform=ordered, initval=[-1.0, 1.0])
    sigma = pm.HalfNormal("sigma", 2, shape=2)
    theta = pm.Beta("theta", 5, 5)
    pm.NormalMixture("y", pt.stack([theta, 1 - theta]), mu, sigma=sigma, observed=y)


def logistic(x: Any, y: Any, scale: float = 2.5) -> None:
    intercept = pm.Normal("intercept", 0, scale)
    slope = pm.Normal("slope", 0, scale, shape=x.shape[-1])
    pm.Bernoulli("y", logit_p=intercept + x @ slope, observed=y)


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


def model(posterior: str, data: dict[str, Any]) -> pm.Model:
    with pm.Model() as made:
        STORIES[posterior](**data)
    return made


def sample(request: Request) -> Arrays:
    """The defaults of nutpie but for the number of draws."""
    compiled = nutpie.compile_pymc_model(model(request.posterior, request.data), backend="numba")
    trace = nutpie.sample(
        compiled,
        draws=request.draws,
        chains=CHAINS,
        cores=CORES,
        seed=request.seed,
        progress_bar=False,
    )
    return {str(name): x.to_numpy() for name, x in trace.posterior.data_vars.items()}


def density(posterior: str, data: dict[str, Any], points: list[Arrays]) -> list[float]:
    made = model(posterior, data)
    plainly = pytensor.compile.mode.Mode(linker="py", optimizer=None)  # nothing to compile
    log_joint = made.compile_logp(jacobian=False, mode=plainly)
    found = []
    for point in points:
        at = {}
        for variable in made.free_RVs:
            transform = made.rvs_to_transforms[variable]
            value = point[variable.name]
            if transform is not None:
                value = transform.forward(pt.as_tensor(value), *variable.owner.inputs).eval(
                    mode=plainly
                )
            at[made.rvs_to_values[variable].name] = value
        found.append(float(log_joint(at)))
    return found


if __name__ == "__main__":
    serve(["nutpie", "pymc", "numba", "numpy"], {"nutpie": sample}, density)
