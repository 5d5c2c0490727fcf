r"""Ports of posteriordb: the density by hand, and Stan's reference draws.

With g the score at draws u from the density that g belongs to, E[g] = 0 and E[(u - E u) g'] = -I
(integration by parts); under any other density one of them fails. The reference draws are Stan's:
a port that passes has Stan's density. What 10,000 draws are too weak to see - weak priors, the
Jacobian of a well known scale - shows in the density written out by hand, which needs no clone.
"""

from functools import cache, partial

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.messenger import Messenger
from scipy import stats
from torch.distributions import biject_to

import ppgen
from ppgen import diagnostics
from ppgen.data import DataError, posteriordb
from ppgen.inference import HMC, NUTS
from ppgen.models import posteriordb as ports
from ppgen.models.eight_schools import data as eight_schools_data
from ppgen.models.eight_schools import eight_schools, eight_schools_centred
from ppgen.models.posteriordb import POSTERIORS, Port, gaussian_process, time_series
from ppgen.program import Program
from ppgen.progress import quiet

try:
    posteriordb.find()
except DataError as error:
    WHY = str(error)
else:
    WHY = ""
needs_clone = pytest.mark.skipif(bool(WHY), reason=WHY)

FAILURE_RATE = 2e-5


# -- the density by hand, on small data ----------------------------------------------------------

DATA = {  # by Stan's names
    "arK-arK": {"K": 2, "y": [0.3, -0.2, 0.5, 0.9, 0.1]},
    "arma-arma11": {"y": [0.3, -0.2, 0.5, 0.9]},
    "earnings-logearn_interaction": {
        "height": [60.0, 70.0, 66.0],
        "male": [0, 1, 1],
        "earn": [2.0e4, 3.1e4, 500],
    },
    "eight_schools-eight_schools_centered": {"sigma": [15, 10], "y": [28, -3]},
    "eight_schools-eight_schools_noncentered": {"sigma": [15, 10], "y": [28, -3]},
    "gp_pois_regr-gp_pois_regr": {"x": [-2, 0, 3], "k": [4, 0, 2]},
    "gp_pois_regr-gp_regr": {"x": [-2, 0, 3], "y": [1.5, -0.5, 2.5]},
    "kidiq-kidscore_interaction": {
        "mom_hs": [0, 1, 1],
        "mom_iq": [90.0, 110.5, 100.0],
        "kid_score": [65, 98, 85],
    },
    "kilpisjarvi_mod-kilpisjarvi": {
        "x": [3952, 3953, 3954],
        "y": [8.3, 10.9, 9.4],
        "pmualpha": 9.3,
        "psalpha": 100,
        "pmubeta": 0,
        "psbeta": 0.03,
    },
    "low_dim_gauss_mix-low_dim_gauss_mix": {"y": [-2.0, 1.0, 3.0]},
    "mesquite-logmesquite": {
        "diam1": [1.8, 1.7, 2.8],
        "diam2": [1.1, 1.3, 2.1],
        "canopy_height": [1.0, 1.33, 0.6],
        "total_height": [1.3, 1.4, 1.1],
        "density": [1, 2, 1],
        "group": [0, 1, 1],
        "weight": [401.3, 513.7, 1179.2],
    },
    "sblrc-blr": {"X": [[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]], "y": [3.0, -1.0, 2.0]},
}

normal, half_cauchy = stats.norm.logpdf, stats.halfcauchy.logpdf


def half_normal(x, scale):
    return stats.halfnorm.logpdf(x, scale=scale).sum()


def kernel(x, rho, alpha):
    return alpha**2 * np.exp(-(np.subtract.outer(x, x) ** 2) / (2 * rho**2))


def arma(v, d):
    mu, phi, theta, sigma = (v[n] for n in ("mu", "phi", "theta", "sigma"))
    nu, error, total = mu + phi * mu, 0.0, 0.0
    for t, y in enumerate(d["y"]):
        if t:
            nu = mu + phi * d["y"][t - 1] + theta * error
        error = y - nu
        total += normal(error, 0, sigma)
    prior = normal(mu, 0, 10) + normal(phi, 0, 2) + normal(theta, 0, 2)
    return total + prior + half_cauchy(sigma, scale=2.5)


def ark(v, d):
    y, lags = d["y"], d["K"]
    total = normal(v["alpha"], 0, 10) + normal(v["beta"], 0, 10).sum()
    for t in range(lags, len(y)):
        mean = v["alpha"] + sum(v["beta"][k] * y[t - 1 - k] for k in range(lags))
        total += normal(y[t], mean, v["sigma"])
    return total + half_cauchy(v["sigma"], scale=2.5)


def schools(v, d, theta):
    prior = normal(v["mu"], 0, 5) + half_cauchy(v["tau"], scale=5)
    return prior + normal(d["y"], theta, d["sigma"]).sum()


def gp_poisson(v, d):
    f = np.linalg.cholesky(kernel(d["x"], v["rho"], v["alpha"]) + 1e-10 * np.eye(3)) @ v["f_tilde"]
    counts = stats.poisson.logpmf(d["k"], np.exp(f)).sum()
    return hyper(v) + normal(v["f_tilde"]).sum() + counts


def gp_regression(v, d):
    covariance = kernel(d["x"], v["rho"], v["alpha"]) + v["sigma"] * np.eye(3)
    data = stats.multivariate_normal.logpdf(d["y"], np.zeros(3), covariance)
    return hyper(v) + half_normal(v["sigma"], 1) + data


def hyper(v):
    return stats.gamma.logpdf(v["rho"], 25, scale=1 / 4) + half_normal(v["alpha"], 2)


def two_normals(v, d):
    weights = np.array([v["theta"], 1 - v["theta"]])
    densities = stats.norm.pdf(d["y"][:, None], v["mu"], v["sigma"])
    prior = normal(v["mu"], 0, 2).sum() + half_normal(v["sigma"], 2)
    return prior + stats.beta.logpdf(v["theta"], 5, 5) + np.log(densities @ weights).sum()


def bushes(v, d):
    b = v["beta"]
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    mean = b[0] + sum(b[1 + k] * np.log(d[name]) for k, name in enumerate(names))
    return normal(np.log(d["weight"]), mean + b[6] * d["group"], v["sigma"]).sum()


def interaction(b, u, v):
    return b[0] + b[1] * u + b[2] * v + b[3] * u * v


HAND = {
    "arK-arK": ark,
    "arma-arma11": arma,
    "earnings-logearn_interaction": lambda v, d: normal(
        np.log(d["earn"]), interaction(v["beta"], d["height"], d["male"]), v["sigma"]
    ).sum(),
    "eight_schools-eight_schools_centered": lambda v, d: (
        schools(v, d, v["theta"]) + normal(v["theta"], v["mu"], v["tau"]).sum()
    ),
    "eight_schools-eight_schools_noncentered": lambda v, d: (
        schools(v, d, v["mu"] + v["tau"] * v["eta"]) + normal(v["eta"]).sum()
    ),
    "gp_pois_regr-gp_pois_regr": gp_poisson,
    "gp_pois_regr-gp_regr": gp_regression,
    "kidiq-kidscore_interaction": lambda v, d: (
        normal(d["kid_score"], interaction(v["beta"], d["mom_hs"], d["mom_iq"]), v["sigma"]).sum()
        + half_cauchy(v["sigma"], scale=2.5)
    ),
    "kilpisjarvi_mod-kilpisjarvi": lambda v, d: (
        normal(d["y"], v["alpha"] + v["beta"] * d["x"], v["sigma"]).sum()
        + normal(v["alpha"], 9.3, 100)
        + normal(v["beta"], 0, 0.03)
    ),
    "low_dim_gauss_mix-low_dim_gauss_mix": two_normals,
    "mesquite-logmesquite": bushes,
    "sblrc-blr": lambda v, d: (
        normal(d["y"], d["X"] @ v["beta"], v["sigma"]).sum()
        + normal(v["beta"], 0, 10).sum()
        + half_normal(v["sigma"], 10)
    ),
}


def log_jacobian(name, v):
    """Of exp for scales, of the logistic function for a weight, of a log gap for ordered means."""
    total = sum(np.log(v[n]).sum() for n in ("sigma", "tau", "rho") if n in v)
    if "gp" in name:
        total += np.log(v["alpha"])
    if "mix" in name:
        total += np.log(v["theta"] * (1 - v["theta"])) + np.log(v["mu"][1] - v["mu"][0])
    return total


@pytest.mark.parametrize("name", POSTERIORS)
def test_the_density_is_that_written_out_by_hand(name):
    """Normalising constants and Jacobian included; a flat prior is 1."""
    port = POSTERIORS[name]
    program = Program(port.story, **port.arguments(DATA[name]))
    z = 0.7 * torch.randn(4, program.dim)
    found, values = program.log_density(z), program.constrain(z)
    data = {n: np.array(x) if isinstance(x, list) else x for n, x in DATA[name].items()}
    for i in range(len(z)):
        v = {site: x[i].numpy() for site, x in values.items()}
        expected = HAND[name](v, data) + log_jacobian(name, v)
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-9)


def test_data_of_another_posterior_are_refused_by_name():
    with pytest.raises(ValueError, match="no 'X': they hold K, y; are they those of blr"):
        POSTERIORS["sblrc-blr"].arguments(DATA["arK-arK"])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pyro's of plates, torch's of tracing
@pytest.mark.parametrize("name", POSTERIORS)
def test_a_port_runs_under_plain_pyro(name):
    """SVI, Predictive and NUTS, flat priors and ordered means included."""
    port = POSTERIORS[name]
    model = partial(port.story, **port.arguments(DATA[name]))
    guide = AutoNormal(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    svi.step()
    before = guide.median()
    assert np.isfinite(svi.step())
    assert any(not torch.equal(before[site], value) for site, value in guide.median().items())
    blind = pyro.poutine.uncondition(model)
    drawn = pyro.infer.Predictive(blind, num_samples=2)()
    assert all(len(values) == 2 for values in drawn.values())
    kernel = pyro.infer.NUTS(model, max_tree_depth=2)
    mcmc = pyro.infer.MCMC(kernel, num_samples=2, warmup_steps=2, disable_progbar=True)
    mcmc.run()
    assert all(torch.isfinite(values).all() for values in mcmc.get_samples().values())


# -- reference moments ---------------------------------------------------------------------------


def schools_by_quadrature():
    """Mean and sd of tau, and mean of mu, which given tau is normal."""
    data = eight_schools_data()
    sigma, y = data["sigma"].double().numpy(), data["y"].double().numpy()
    # tau = 5 tan(pi v / 2) makes the Cauchy prior uniform
    tau = 5 * np.tan(0.5 * np.pi * (np.arange(200_000) + 0.5) / 200_000)[:, None]
    precision = 1 / (sigma**2 + tau**2)
    total = precision.sum(1) + 1 / 25
    mu = (precision @ y) / total
    log_evidence = 0.5 * (np.log(precision).sum(1) - np.log(total) + total * mu**2)
    log_evidence -= 0.5 * precision @ y**2
    weight = np.exp(log_evidence - log_evidence.max())
    weight /= weight.sum()
    mean = weight @ tau[:, 0]
    return mean, np.sqrt(weight @ (tau[:, 0] - mean) ** 2), weight @ mu


def test_the_reference_moments_that_ship_are_those_of_quadrature():
    found = posteriordb.moments("eight_schools-eight_schools_noncentered")
    mean, sd, mu = schools_by_quadrature()
    limit = stats.norm.isf(FAILURE_RATE / 6)
    assert abs(found["tau"].mean - mean) < limit * found["tau"].mcse_mean
    assert abs(found["tau"].sd - sd) < limit * found["tau"].mcse_sd
    assert abs(found["mu"].mean - mu) < limit * found["mu"].mcse_mean
    with pytest.raises(DataError, match="no posterior 'other': there are arK-arK"):
        posteriordb.moments("other")


@pytest.mark.slow
@pytest.mark.parametrize("engine", [HMC(), NUTS()])
def test_samplers_find_the_reference_moments_of_eight_schools(engine):
    with quiet(True):
        posterior = ppgen.fit(eight_schools, using=engine, **eight_schools_data())
    expected = posteriordb.moments("eight_schools-eight_schools_noncentered")
    limit = stats.norm.isf(FAILURE_RATE / 2 / 20)
    for name, x in posterior.scalars().items():
        if name in expected:
            error = np.hypot(diagnostics.mcse_mean(x), expected[name].mcse_mean)
            assert abs(x.mean() - expected[name].mean) < limit * error, name
            error = np.hypot(diagnostics.mcse_sd(x), expected[name].mcse_sd)
            assert abs(x.std() - expected[name].sd) < limit * error, name


# -- Stan's draws --------------------------------------------------------------------------------


@cache
def stans(name):
    """Arguments of the story, and the draws, ``(10,000, *shape)``."""
    arguments = POSTERIORS[name].arguments(posteriordb.read_data(name))
    draws = posteriordb.read_reference(name).items()
    return arguments, {n: torch.from_numpy(x).flatten(0, 1) for n, x in draws}


def unconstrained(program, sites):
    """`Program.unconstrain` goes row by row; no support here depends on other sites."""
    trace = pyro.poutine.trace(program.model).get_trace(*program.args, **program.kwargs)
    supports = {name: trace.nodes[name]["fn"].support for name in program.sites}
    parts = [biject_to(support).inv(sites[name]) for name, support in supports.items()]
    u = torch.cat([part.reshape(len(part), -1) for part in parts], -1)
    some = program.unconstrain({name: sites[name][:2] for name in program.sites})
    assert torch.allclose(u[:2], some, rtol=1e-10)
    return u


def score_identity(name, port=None):
    """The largest |z| of both identities, and its limit for so many comparisons."""
    port = port or POSTERIORS[name]
    arguments, draws = stans(name)
    program = Program(port.story, **arguments)
    u = unconstrained(program, port.latent(draws, arguments))
    g = torch.cat([program.value_and_grad(rows)[1] for rows in u.split(1000)])
    products = (u - u.mean(0)).unsqueeze(-1) * g.unsqueeze(-2) + torch.eye(program.dim)
    z = [(x.mean(0) / x.std(0)).abs().max() * len(x) ** 0.5 for x in (g, products)]
    comparisons = program.dim + program.dim**2
    return float(max(z)), stats.norm.isf(FAILURE_RATE / 2 / comparisons)


@needs_clone
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in POSTERIORS if not n.endswith("_centered")])
def test_the_moments_that_ship_are_those_of_the_draws(name):
    scalars = posteriordb.moments(name)
    for site, draws in posteriordb.read_reference(name).items():
        for index in np.ndindex(*draws.shape[2:]):
            key = site + (f"[{index[0]}]" if index else "")
            x, found = draws[(..., *index)], scalars.pop(key)
            assert found.mean == pytest.approx(x.mean(), rel=1e-6)
            assert found.sd == pytest.approx(x.std(ddof=1), rel=1e-6)
    assert not scalars


@needs_clone
@pytest.mark.slow
@pytest.mark.parametrize("name", POSTERIORS)
def test_stans_draws_satisfy_the_score_identity(name):
    z, limit = score_identity(name)
    assert z < limit


class Instead(Messenger):
    """A story with another distribution at one of its sites."""

    def __init__(self, site, distribution):
        super().__init__()
        self.site, self.distribution = site, distribution

    def _pyro_sample(self, msg):
        if msg["name"] == self.site:
            msg["fn"] = self.distribution


def arma_that_begins_at_mu(y):
    """nu_1 = mu, without phi mu."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi, theta = pyro.sample("phi", dist.Normal(0, 2)), pyro.sample("theta", dist.Normal(0, 2))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    before = torch.cat([torch.zeros(1), y[:-1]])
    error = time_series.linear_recursion(-theta, y - mu - phi * before)
    pyro.sample("y", dist.Normal(y - error, sigma).to_event(1), obs=y)


def noise_squared(x, y):
    """The variance of the noise is the square of sigma."""
    rho, alpha = pyro.sample("rho", dist.Gamma(25.0, 4.0)), pyro.sample("alpha", dist.HalfNormal(2))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    factor = torch.linalg.cholesky(gaussian_process.covariance(x, rho, alpha, sigma.square()))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(x), scale_tril=factor), obs=y)


def planted(name, story=None, latent=None):
    """A port with another story, or with reference draws that are read in another way."""
    port = POSTERIORS[name]
    return name, Port(story or port.story, port.prepare, latent or port.latent)


PLANTED = {
    "half-normal tau": planted(
        "eight_schools-eight_schools_centered",
        Instead("tau", dist.HalfNormal(5.0))(eight_schools_centred),
    ),
    "narrow eta": planted(
        "eight_schools-eight_schools_noncentered",
        Instead("eta", dist.Normal(0.0, 0.8).expand([8]))(eight_schools),
    ),
    "nu_1 = mu": planted("arma-arma11", arma_that_begins_at_mu),
    "variance sigma squared": planted("gp_pois_regr-gp_regr", noise_squared),
    "the farthest lag first": planted(
        "arK-arK", latent=lambda draws, _: {**draws, "beta": draws["beta"].flip(-1)}
    ),
    "theta weighs the upper mean": planted(
        "low_dim_gauss_mix-low_dim_gauss_mix",
        latent=lambda draws, _: {**draws, "theta": 1 - draws["theta"]},
    ),
    "another rate of rho": planted(
        "gp_pois_regr-gp_pois_regr",
        Instead("rho", dist.Gamma(25.0, 5.0))(gaussian_process.gp_pois_regr),
    ),
}


@needs_clone
@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED)
def test_the_score_identity_fails_for_a_port_with_a_mistake(bug):
    z, limit = score_identity(*PLANTED[bug])
    assert z > limit


@needs_clone
@pytest.mark.slow
def test_a_jitter_of_1e_6_is_another_posterior(monkeypatch):
    for module in (ports, gaussian_process):
        monkeypatch.setattr(module, "JITTER", 1e-6)
    z, limit = score_identity("gp_pois_regr-gp_pois_regr")
    assert z > limit
