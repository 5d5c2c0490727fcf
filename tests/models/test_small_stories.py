"""Each small story against a truth of its own: closed form, enumeration, quadrature or identity."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import (
    Beta,
    HalfCauchy,
    HalfNormal,
    LogNormal,
    MultivariateNormal,
    Normal,
)

from ppgen.inference.vi_sites import is_latent
from ppgen.models import (
    banana,
    bayesian_neural_network,
    correlated_gaussian,
    eight_schools,
    eight_schools_centred,
    gaussian_process,
    hierarchical_regression,
    item_response,
    linear_regression,
    logistic_regression,
    neals_funnel,
    poisson_gaussian_process,
    stochastic_volatility,
)
from ppgen.models.bayesian_neural_network import data as network_data
from ppgen.models.correlated_gaussian import covariance as neighbours
from ppgen.models.gaussian_process import JITTER, counts, predictive
from ppgen.models.gaussian_process import data as gaussian_process_data
from ppgen.models.hierarchical_regression import data as groups_data
from ppgen.models.stochastic_volatility import data as volatility_data
from ppgen.models.stochastic_volatility import log_volatility
from ppgen.program import Program

pytestmark = pytest.mark.usefixtures("silent")


def likelihood(program, z):
    """Of the data alone, given the point: no priors, no Jacobian."""
    return sum(v.sum() for v in program.log_likelihood(z).values())


def normal(mean, covariance):
    return MultivariateNormal(mean, covariance)


ANSWERS = {"person": torch.tensor([0, 2]), "item": torch.tensor([1, 0]), "persons": 3, "items": 2}
PRIORS = {  # arguments, and laws of the latent sites as the page writes them, given all draws
    linear_regression: (
        lambda: {"x": torch.ones(3, 2), "scale": 7.0},
        lambda at: {
            "intercept": Normal(0.0, 7.0),
            "slope": Normal(0.0, 7.0),
            "noise": HalfNormal(7.0),
        },
    ),
    logistic_regression: (
        lambda: {"x": torch.ones(3, 2), "scale": 7.0},
        lambda at: {"intercept": Normal(0.0, 7.0), "slope": Normal(0.0, 7.0)},
    ),
    hierarchical_regression: (
        lambda: {"x": torch.ones(3, 1), "group": torch.tensor([0, 1, 1]), "groups": 2},
        lambda at: {
            "mean": Normal(0.0, 5.0),
            "spread": HalfNormal(5.0),
            "noise": HalfNormal(5.0),
            "beta": Normal(at["mean"], at["spread"]),
        },
    ),
    eight_schools: (
        lambda: {"sigma": torch.ones(3)},
        lambda at: {"mu": Normal(0.0, 5.0), "tau": HalfCauchy(5.0), "eta": Normal(0.0, 1.0)},
    ),
    eight_schools_centred: (
        lambda: {"sigma": torch.ones(3)},
        lambda at: {
            "mu": Normal(0.0, 5.0),
            "tau": HalfCauchy(5.0),
            "theta": Normal(at["mu"], at["tau"]),
        },
    ),
    bayesian_neural_network: (
        lambda: {"x": torch.ones(3, 4), "hidden": 9, "scale": 3.0},
        lambda at: {
            "weight": Normal(0.0, 3.0 / 2),
            "bias": Normal(0.0, 3.0),
            "readout": Normal(0.0, 1 / 3),
            "offset": Normal(0.0, 1.0),
            "noise": HalfNormal(1.0),
        },
    ),
    poisson_gaussian_process: (
        lambda: {"x": torch.linspace(0.0, 6.0, 5)},
        lambda at: {
            "rho": LogNormal(math.log(6.0 / 4), 1.0),
            "alpha": HalfNormal(2.0),
            "mean": Normal(0.0, 2.0),
            "f_tilde": Normal(0.0, 1.0),
        },
    ),
    stochastic_volatility: (
        lambda: {"y": torch.ones(5)},
        lambda at: {
            "mu": Normal(0.0, 3.0),
            "persistence": Beta(20.0, 1.5),
            "sigma": HalfNormal(1.0),
            "first": Normal(at["mu"], at["sigma"] / (1 - at["phi"] ** 2).sqrt()),
            "innovation": Normal(0.0, 1.0),
        },
    ),
    item_response: (
        lambda: ANSWERS,
        lambda at: {
            "ability": Normal(0.0, 1.0),
            "difficulty": Normal(0.0, 2.0),
            "discrimination": LogNormal(0.0, 0.5),
        },
    ),
}


@pytest.mark.parametrize("story", PRIORS, ids=lambda story: story.__name__)
def test_priors_are_those_that_the_pages_give(story):
    given, laws = PRIORS[story]
    trace = pyro.poutine.trace(story).get_trace(**given())
    drawn = {name: node["value"] for name, node in trace.nodes.items() if "fn" in node}
    expected = laws(drawn)
    latent = {name for name in trace.stochastic_nodes if is_latent(trace.nodes[name])}
    assert latent - {"y", "k"} == set(expected)
    for name, law in expected.items():
        found = trace.nodes[name]["fn"].log_prob(drawn[name])
        torch.testing.assert_close(found.sum(), law.log_prob(drawn[name]).sum())


def test_integrating_the_coefficients_of_groups_out_leaves_a_normal():
    """log p(y, beta | rest) - log p(beta | y, rest) is log p(y | rest), whatever beta."""
    given = groups_data()
    program = Program(hierarchical_regression, **given)
    x, group, y = given["x"], given["group"], given["y"]
    design = torch.zeros(len(y), 6, 2)
    design[torch.arange(len(y)), group] = torch.cat([torch.ones(len(y), 1), x], 1)
    design = design.flatten(1)
    point = program.constrain(torch.randn(1, program.dim), deterministic=True)
    mean, spread, noise = (point[n][0] for n in ("mean", "spread", "noise"))
    beta = point["beta"][0].flatten()
    prior = normal(mean.repeat(6), spread.square().repeat(6).diag())
    posterior_cov = torch.linalg.inv(design.T @ design / noise**2 + prior.precision_matrix)
    posterior_mean = posterior_cov @ (design.T @ y / noise**2 + prior.precision_matrix @ prior.mean)
    posterior = normal(posterior_mean, posterior_cov)
    marginal = normal(
        design @ prior.mean,
        design @ prior.covariance_matrix @ design.T + noise**2 * torch.eye(len(y)),
    )
    found = likelihood(program, program.unconstrain(point))
    found = found + prior.log_prob(beta) - posterior.log_prob(beta)
    torch.testing.assert_close(found, marginal.log_prob(y))


def kernel(x, rho, alpha):
    return alpha**2 * torch.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)


def test_gaussian_process_regression_has_its_exact_marginal_likelihood():
    given = gaussian_process_data()
    x, y = given["x"], given["y"]
    program = Program(gaussian_process, **given)
    z = torch.randn(1, 3)
    rho, alpha, sigma = (v[0] for v in program.constrain(z).values())
    noise = (sigma**2 + JITTER * alpha**2) * torch.eye(len(x))
    law = normal(torch.zeros(25), kernel(x, rho, alpha) + noise)
    prior = dist.LogNormal(math.log(1.5), 1.0).log_prob(rho)
    prior = prior + dist.HalfNormal(2.0).log_prob(alpha) + dist.HalfNormal(1.0).log_prob(sigma)
    torch.testing.assert_close(
        program.log_density(z)[0],
        law.log_prob(y) + prior + z.sum(),  # Jacobians of three exp
    )
    # p(y1, y2) = p(y1) p(y2 | y1)
    half = normal(torch.zeros(15), (kernel(x, rho, alpha) + noise)[:15, :15])
    rest = predictive(x[:15], y[:15], x[15:], rho, alpha, sigma)
    torch.testing.assert_close(half.log_prob(y[:15]) + rest.log_prob(y[15:]), law.log_prob(y))


def test_the_rates_of_a_poisson_process_have_the_covariance_of_the_kernel():
    """The density of f is that of its standard normals over the Jacobian |L|."""
    given = counts()
    x, k = given["x"][::4], given["k"][::4]  # few points, far apart: a kernel of good condition
    program = Program(poisson_gaussian_process, x, k)
    z = 0.3 * torch.randn(1, program.dim)
    point = {n: v[0] for n, v in program.constrain(z, deterministic=True).items()}
    rho, alpha, mean, f = (point[n] for n in ("rho", "alpha", "mean", "f"))
    whole = kernel(x, rho, alpha) + JITTER * alpha**2 * torch.eye(len(x))
    law = normal(mean.expand(len(x)), whole)
    standard = Normal(0.0, 1.0).log_prob(point["f_tilde"]).sum()
    jacobian = torch.linalg.cholesky(whole).diagonal().log().sum()
    torch.testing.assert_close(law.log_prob(f), standard - jacobian, rtol=1e-5, atol=1e-5)
    poisson = (k * f - f.exp() - torch.lgamma(k + 1)).sum()
    torch.testing.assert_close(likelihood(program, z[0]), poisson)


def test_integrating_the_last_layer_of_a_network_out_leaves_a_normal():
    given = network_data()
    x, y = given["x"], given["y"]
    program = Program(bayesian_neural_network, **given)
    point = program.constrain(torch.randn(1, program.dim), deterministic=True)
    weight, bias, noise = (point[n][0] for n in ("weight", "bias", "noise"))
    hidden = torch.cat([torch.tanh(x @ weight + bias), torch.ones(24, 1)], 1)
    torch.testing.assert_close(point["activation"][0], hidden[:, :5])
    last = torch.cat([point["readout"][0], point["offset"][0, None]])
    prior = normal(torch.zeros(6), torch.tensor([0.2] * 5 + [1.0]).diag())
    cov = torch.linalg.inv(hidden.T @ hidden / noise**2 + prior.precision_matrix)
    posterior = normal(cov @ hidden.T @ y / noise**2, cov)
    marginal = normal(
        torch.zeros(24), hidden @ prior.covariance_matrix @ hidden.T + noise**2 * torch.eye(24)
    )
    found = likelihood(program, program.unconstrain(point))
    found = found + prior.log_prob(last) - posterior.log_prob(last)
    torch.testing.assert_close(found, marginal.log_prob(y))


def test_hidden_units_may_change_places_and_signs():
    program = Program(bayesian_neural_network, **network_data())
    point = program.constrain(torch.randn(1, program.dim), deterministic=True)
    order, sign = torch.randperm(5), torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0])
    parts = {n: (point[n] * sign)[..., order] for n in ("weight", "bias", "readout")}
    z = torch.cat([program.unconstrain(point), program.unconstrain({**point, **parts})])
    one, other = program.constrain(z, deterministic=True)["f"]
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(*program.log_density(z))


def test_log_volatility_is_a_stationary_autoregression():
    given = volatility_data(12)
    program = Program(stochastic_volatility, **given)
    z = torch.randn(1, program.dim)
    point = {n: v[0] for n, v in program.constrain(z, deterministic=True).items()}
    mu, phi, sigma, h = (point[n] for n in ("mu", "phi", "sigma", "h"))
    lag = (torch.arange(12) - torch.arange(12)[:, None]).abs()
    law = normal(mu.expand(12), sigma**2 / (1 - phi**2) * phi**lag)
    standard = Normal(0.0, 1.0).log_prob(point["innovation"]).sum()
    standard = standard + Normal(mu, sigma / (1 - phi**2).sqrt()).log_prob(point["first"])
    # |d h / d (first, innovations)|: triangular, sigma on the diagonal but for the first
    torch.testing.assert_close(law.log_prob(h), standard - 11 * sigma.log())
    returns = Normal(0.0, (h / 2).exp()).log_prob(given["y"]).sum()
    torch.testing.assert_close(likelihood(program, z[0]), returns)


def test_log_volatilities_of_many_draws_are_those_of_each():
    phi, sigma, first = torch.rand(3, 4)
    innovations = torch.randn(4, 7)
    each = [log_volatility(*args) for args in zip(phi, sigma, first, innovations, strict=True)]
    torch.testing.assert_close(log_volatility(phi, sigma, first, innovations), torch.stack(each))


def test_a_long_series_costs_logarithmically_many_operations():
    counts = []
    for length in (64, 1024):
        program = Program(stochastic_volatility, **volatility_data(length))
        program.value_and_grad(torch.zeros(2, program.dim))
        counts.append(program.operations)
    assert counts[1] < 2 * counts[0]


def test_item_response_is_the_formula_and_keeps_its_symmetry():
    person, item = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    y = torch.tensor([1.0, 0.0, 1.0, 1.0])
    program = Program(item_response, person, item, y, persons=3, items=2)
    z = torch.randn(1, program.dim)
    values = {n: v[0] for n, v in program.constrain(z).items()}
    ability, difficulty, slope = (values[n] for n in ("ability", "difficulty", "discrimination"))
    logits = slope[item] * (ability[person] - difficulty[item])
    answers = (y * logits - torch.nn.functional.softplus(logits)).sum()
    torch.testing.assert_close(likelihood(program, z[0]), answers)
    shifted = {**values, "ability": ability + 0.7, "difficulty": difficulty + 0.7}
    torch.testing.assert_close(likelihood(program, program.unconstrain(shifted)), answers)


def test_the_funnel_has_its_marginal():
    """Integrating nine normals out of exp(log_density) leaves N(v; 0, 3)."""
    program = Program(neals_funnel)
    v = torch.tensor([-6.0, 0.0, 4.0])
    z = torch.cat([v[:, None], torch.zeros(3, 9)], 1)
    # the integral over x of a normal is its peak times (2 pi)^(9/2) e^(9 v / 2)
    volume = 4.5 * (math.log(2 * math.pi) + v)
    marginal = program.log_density(z) + volume
    torch.testing.assert_close(marginal, Normal(0.0, 3.0).log_prob(v))


def test_the_banana_has_the_moments_that_its_page_gives():
    """By quadrature: Simpson's rule over eight standard deviations, to 1e-6."""
    scale, bend = 2.2, 0.4
    program = Program(banana, scale=scale, bend=bend)
    first = torch.linspace(-16, 16, 401)
    e = torch.linspace(-8, 8, 201)
    x1, x2 = torch.broadcast_tensors(
        first[:, None], e + bend * (first.square() - scale**2)[:, None]
    )
    weight = program.log_density(torch.stack([x1, x2], -1).flatten(0, 1)).exp().reshape(x1.shape)
    weight = weight * (first[1] - first[0]) * (e[1] - e[0])
    moments = [(weight * f).sum() for f in (x1**0, x1, x2, x1**2, x2**2, x1 * x2)]
    truth = [1.0, 0.0, 0.0, scale**2, 1 + 2 * bend**2 * scale**4, 0.0]
    torch.testing.assert_close(torch.stack(moments), torch.tensor(truth), rtol=1e-6, atol=1e-6)


def test_the_correlated_normal_has_the_precision_that_its_page_gives():
    rho, widest = 0.8, 10.0
    sigma = neighbours(5, rho, widest)
    program = Program(correlated_gaussian, dimension=5, correlation=rho, widest=widest)
    z = torch.randn(4, 5)
    law = normal(torch.zeros(5), sigma)
    torch.testing.assert_close(program.log_density(z), law.log_prob(z))
    assert sigma.diagonal().sqrt()[[0, -1]].tolist() == pytest.approx([1.0, widest])
    narrow = 1 / (torch.linalg.inv(sigma).diagonal() * sigma.diagonal())
    inside = (1 - rho**2) / (1 + rho**2)
    torch.testing.assert_close(
        narrow, torch.tensor([1 - rho**2, inside, inside, inside, 1 - rho**2])
    )


def test_predictions_need_no_outcome():
    x = torch.linspace(-1.0, 1.0, 7)
    network = pyro.poutine.trace(bayesian_neural_network).get_trace(x[:, None])
    assert network.nodes["y"]["value"].shape == (7,)
    counts = pyro.poutine.trace(poisson_gaussian_process).get_trace(x)
    assert counts.nodes["k"]["value"].shape == (7,)
