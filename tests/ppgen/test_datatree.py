"""A posterior in ArviZ's format: its dimensions, and densities that are what they are called."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.autoname import scope
from scipy.stats import norm

from ppgen.models import eight_schools
from ppgen.models.eight_schools import data as schools
from ppgen.posterior import Posterior
from ppgen.program import Program

pytestmark = pytest.mark.filterwarnings("ignore")  # ArviZ's own dependencies deprecate things
Y = torch.tensor([1.0, 2.0, 4.0])


def of(story, *args, chains=2, draws=6, **kwargs):
    program = Program(story, *args, **kwargs)
    z = torch.randn(chains, draws, program.dim, dtype=program.dtype)
    return Posterior.from_program(program, z, engine="test", kind="chains", stats={"lp": z[..., 0]})


def nested(y, w):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("group", 3, dim=-2):
        a = pyro.sample("a", dist.Normal(mu[..., 0], 1.0))
        s = pyro.sample("s", dist.HalfNormal(1.0))
        with pyro.plate("row", 5, dim=-1):
            mean = pyro.deterministic("mean", a + torch.zeros(3, 5))
            pyro.sample("y", dist.Normal(mean, s), obs=y)
    with pyro.plate("other", 4):
        v = pyro.sample("v", dist.Dirichlet(torch.ones(3)))
        pyro.sample("w", dist.Normal(v, 1.0).to_event(1), obs=w)
    pyro.sample("b", dist.Gamma(torch.ones(3), 1.0))


NESTED = nested, torch.randn(3, 5), torch.randn(4, 3)


def mixture(x):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        m = pyro.sample("m", dist.Normal(0.0, 5.0))
    with pyro.plate("row", len(x)):
        z = pyro.sample("z", dist.Categorical(p))
        pyro.sample("x", dist.Normal(m[z], 1.0), obs=x)


def odd_plates(y):
    with pyro.plate("draw", 2):
        pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)
        pyro.deterministic("square", torch.ones(3, 3))


def test_dimensions_are_those_of_the_plates():
    tree = of(*NESTED).to_datatree(*NESTED)
    dims = {
        (group, name): value.dims[2:] if group != "observed_data" else value.dims
        for group in tree.children
        for name, value in tree[group].data_vars.items()
    }
    rows = ("group", "row")
    assert dims == {
        ("sample_stats", "lp"): (),
        ("posterior", "mu"): ("mu_dim_0",),
        ("posterior", "a"): ("group", "a_dim_1"),
        ("posterior", "s"): ("group", "s_dim_1"),
        ("posterior", "mean"): rows,
        ("posterior", "v"): ("other", "v_dim_1"),
        ("posterior", "b"): ("b_dim_0",),
        ("log_prior", "mu"): (),
        ("log_prior", "a"): ("group", "a_dim_1"),
        ("log_prior", "s"): ("group", "s_dim_1"),
        ("log_prior", "v"): ("other",),
        ("log_prior", "b"): ("b_dim_0",),
        ("log_likelihood", "y"): rows,
        ("log_likelihood", "w"): ("other",),
        ("observed_data", "y"): rows,
        ("observed_data", "w"): ("other", "w_dim_1"),
        ("posterior_predictive", "y"): rows,
        ("posterior_predictive", "w"): ("other", "w_dim_1"),
    }
    np.testing.assert_array_equal(tree["observed_data"]["w"], NESTED[2])


def test_a_plate_that_cannot_name_a_dimension_does_not():
    tree = of(odd_plates, Y).to_datatree(odd_plates, Y)["posterior"]
    assert tree["a"].dims == ("chain", "draw", "a_dim_0")  # "draw" is taken
    assert tree["square"].dims[2:] == ("square_dim_0", "square_dim_1")  # which is the plate's?


def test_without_the_story_dimensions_are_counted():
    tree = of(*NESTED).to_datatree()
    assert set(tree.children) == {"posterior", "sample_stats"}
    assert tree["posterior"]["v"].dims == ("chain", "draw", "v_dim_0", "v_dim_1")


@pytest.mark.parametrize("case", [NESTED, (eight_schools, *schools().values())])
def test_prior_and_likelihood_are_the_whole_joint_on_the_scale_of_the_sites(case):
    story, *data = case
    posterior = of(story, *data)
    tree = posterior.to_datatree(story, *data)
    found = sum(
        tree[group][name].sum([d for d in tree[group][name].dims if d not in ("chain", "draw")])
        for group in ("log_prior", "log_likelihood")
        for name in tree[group].data_vars
    )
    for chain, draw in ((0, 0), (1, 5)):
        at = {name: posterior[name][chain, draw] for name in posterior.latent}
        in_double = [torch.as_tensor(x).double() for x in data]
        conditioned = pyro.condition(story, data=at)
        joint = pyro.poutine.trace(conditioned).get_trace(*in_double).log_prob_sum()
        assert float(found[chain, draw]) == pytest.approx(float(joint), abs=1e-10)


def counts(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


@pytest.mark.parametrize("power", [0.8, 1.25])
def test_draws_weighed_by_a_power_of_the_prior_are_those_of_that_posterior(power):
    exact = torch.distributions.Gamma(2.0 + Y.sum().double(), 0.5 + len(Y)).sample((1, 20_000))
    program = Program(counts, Y)
    z = program.unconstrain({"rate": exact})
    posterior = Posterior.from_program(program, z, engine="exact", kind="independent")
    tree = posterior.to_datatree(counts, Y)
    rate = tree["posterior"]["rate"].values
    weight = np.exp((power - 1) * tree["log_prior"]["rate"].values)
    weight /= weight.sum()
    mean = (weight * rate).sum()
    error = np.sqrt((weight**2 * (rate - mean) ** 2).sum())
    # Gamma(2, 1/2) to a power is Gamma(power (2 - 1) + 1, power / 2), but for a constant
    truth = (power + 1 + Y.sum()) / (power / 2 + len(Y))
    assert abs(mean - truth) < 4.3 * error  # two-sided failure rate 2e-5
    with_jacobian = (2 * power + Y.sum()) / (power / 2 + len(Y))
    assert abs(mean - with_jacobian) > 4.3 * error


def test_a_mixture_has_the_priors_of_what_is_not_summed_out():
    posterior = of(mixture, Y)
    tree = posterior.to_datatree(mixture, Y)
    assert set(tree["log_prior"].data_vars) == {"p", "m"}
    m = posterior["m"].numpy()
    np.testing.assert_allclose(tree["log_prior"]["m"], norm.logpdf(m, 0, 5))
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "row")


def hangs_on_a_summed_out_site(y):
    z = pyro.sample("z", dist.Bernoulli(0.3))
    mu = pyro.sample("mu", dist.Normal(z, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_a_prior_that_hangs_on_a_summed_out_site_is_left_out_with_all_others():
    tree = of(hangs_on_a_summed_out_site, Y).to_datatree(hangs_on_a_summed_out_site, Y)
    assert "log_prior" not in tree.children


def test_arviz_scales_prior_and_likelihood():
    from arviz_stats import loo, psense_summary

    posterior = of(eight_schools, **schools(), chains=4, draws=100)
    tree = posterior.to_datatree(eight_schools, **schools())
    assert list(psense_summary(tree, var_names=["mu"]).index) == ["mu"]
    assert loo(tree).n_data_points == 8


def positive(y):
    """Rows of a normal of which only the positive were kept."""
    with scope(prefix="law"):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.factor("soft", -(mu**2))  # of no row
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        pyro.factor("kept", -torch.special.log_ndtr(mu))


def test_a_factor_of_rows_is_in_the_likelihood_and_predictions_warn_of_it():
    program = Program(positive, Y)
    z = torch.randn(2, 6, program.dim)
    posterior = Posterior.from_program(program, z, engine="test", kind="chains")
    tree = posterior.to_datatree(positive, Y)
    found = tree["log_likelihood"]
    assert sorted(found.data_vars) == ["kept", "y"]
    mu = tree["posterior"]["law.mu"].values[..., None]
    truncated = norm.logpdf(Y, mu) - norm.logcdf(mu)
    np.testing.assert_allclose(found["y"] + found["kept"].values, truncated)
    with pytest.warns(UserWarning, match="'kept' cannot be drawn"):
        posterior.predict(positive, Y, draws=3)
