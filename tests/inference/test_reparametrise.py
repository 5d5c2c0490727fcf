"""Other coordinates, the same posterior: hierarchies found by differentiating, and rewritten."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen import diagnostics
from ppgen.inference import HMC, NUTS, Laplace
from ppgen.inference.hierarchies import hierarchies, non_centred
from ppgen.inference.reparametrise import reparametrised
from ppgen.models.eight_schools import data, eight_schools, eight_schools_centred
from ppgen.posterior import Posterior
from ppgen.program import Program

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5  # as in tests/conftest.py
SCHOOLS = tuple(v.double() for v in data().values())  # sigma, y


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("k", 9):
        pyro.sample("x", dist.Normal(0.0, torch.exp(v / 2)))


def groups(sizes, y):
    """Normal groups of known noise 1; sizes of the groups differ."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("group", len(sizes)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sizes.rsqrt()), obs=y)


FAMILIES = {
    "Normal": lambda m, s: dist.Normal(m, s).expand([3]).to_event(1),
    "StudentT": lambda m, s: dist.StudentT(4.0, m, s).expand([3]).to_event(1),
    "Laplace": lambda m, s: dist.Laplace(m, s).expand([3]).to_event(1),
    "Logistic": lambda m, s: dist.Logistic(m, s).expand([3]).to_event(1),
    "Gumbel": lambda m, s: dist.Gumbel(m, s).expand([3]).to_event(1),
    "LogNormal": lambda m, s: dist.LogNormal(m, s).expand([3]).to_event(1),
    "MultivariateNormal": lambda m, s: dist.MultivariateNormal(
        m.expand(3), s.square() * (torch.eye(3) + 0.5)
    ),
}


def hierarchy(family):
    def story():
        m = pyro.sample("m", dist.Normal(1.0, 2.0))
        s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
        pyro.sample("x", FAMILIES[family](m, s))

    return story


def test_what_is_observed_cannot_be_written_non_centred():
    def story():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m, 1.0), obs=torch.tensor(0.3))

    with pytest.raises(ValueError, match=r"'y' \(Normal\) cannot be written non-centred"):
        Program(non_centred(story, {"y": 0.0}))


def test_draws_that_say_of_themselves_that_they_are_wrong_are_not_trusted():
    def weighted(scale, **fields):
        x = scale * torch.randn(1, 4000)
        standard = dist.Normal(0.0, 1.0).log_prob(x)
        guide = dist.Normal(0.0, scale).log_prob(x)
        return Posterior({"x": x}, "q", log_density=standard, log_guide=guide, **fields)

    assert weighted(1.1, kind="independent").trusted
    assert not weighted(0.1, kind="independent").trusted  # a k-hat near one, of hardly any worth
    assert not weighted(1.1, kind="independent", converged=False).trusted
    chains = {"x": torch.randn(4, 100)}
    assert Posterior(chains, "HMC", "chains").trusted
    assert not Posterior(chains, "HMC", "chains", converged=False).trusted


@pytest.mark.parametrize("family", FAMILIES)
def test_the_density_is_the_same_in_other_coordinates(family):
    """Difference of the log densities = log |d z / d z'|, here by automatic differentiation."""
    story = hierarchy(family)
    (found,) = hierarchies(Program(story))
    assert (found.name, found.location, found.scale) == ("x", ("m",), ("s",))
    c = 0.0 if family == "MultivariateNormal" else torch.tensor([0.0, 0.3, 1.0])
    inner, outer = Program(non_centred(story, {"x": c})), Program(story)
    z = torch.randn(5, 5)

    def back(point):
        m, s, e = point[0], point[1].exp(), point[2:]
        if family == "MultivariateNormal":
            x = m + s * torch.linalg.cholesky(torch.eye(3) + 0.5) @ e
        else:
            x = m + s ** (1 - c) * (e - c * m)
        return torch.cat([point[:2], x])  # LogNormal: on its log scale

    jacobian = torch.func.vmap(torch.func.jacrev(back))(z)
    there = outer.log_density(torch.func.vmap(back)(z))
    torch.testing.assert_close(inner.log_density(z), there + torch.linalg.slogdet(jacobian)[1])
    sites = inner.constrain(z, deterministic=True)
    torch.testing.assert_close(outer.unconstrain(sites), torch.func.vmap(back)(z))


def test_what_is_no_hierarchy_is_left_alone():
    def flat(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.HalfCauchy(1.0))
        pyro.sample("b", dist.HalfNormal(s))  # of no location-scale family on the line
        pyro.sample("y", dist.Normal(a, s), obs=y)  # observed

    assert hierarchies(Program(flat, torch.tensor(1.0))) == ()
    assert reparametrised(flat, torch.tensor(1.0)) is None


def test_a_class_that_only_calls_its_parameters_loc_and_scale_is_left_alone():
    class Squared(dist.Normal):
        def log_prob(self, value):
            return super().log_prob(value) - self.scale * value.square()

    def story():
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", Squared(0.0, s))

    assert hierarchies(Program(story)) == ()


def test_trainable_parameters_are_no_latents():
    def story():
        scale = pyro.param("scale", torch.tensor(1.0), dist.constraints.positive)
        pyro.sample("x", dist.Normal(0.0, scale))

    assert hierarchies(Program(story)) == ()


def test_a_hierarchy_of_three_levels_is_found_in_order():
    def story(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.HalfNormal(1.0))
        with pyro.plate("schools", 4):
            school = pyro.sample("school", dist.Normal(m, s))
            with pyro.plate("pupils", 3):
                pupil = pyro.sample("pupil", dist.Normal(school, 0.5))
                pyro.sample("y", dist.Normal(pupil, 1.0), obs=y)

    found = hierarchies(Program(story, torch.zeros(3, 4)))
    assert [(h.name, h.location, h.scale) for h in found] == [
        ("school", ("m",), ("s",)),
        ("pupil", ("school",), ()),
    ]


@pytest.mark.slow
def test_the_data_decide_how_far_to_go():
    """Known noise: a group of n says n / (n + 1 / tau^2) of what is known about its mean."""
    sizes = torch.tensor([1e-3] * 5 + [1e4] * 5)
    y = torch.cat([torch.zeros(5), torch.linspace(-1.5, 1.5, 5)])
    found = reparametrised(groups, sizes, y)
    assert found is not None
    c = found.centredness["theta"]
    assert (c[:5] == 0).all()  # tau < 5: at most 0.025, which counts as nothing
    assert (c[5:] > 0.99).all()  # tau is about 1, surely above 0.1: 100 / 101


@pytest.mark.slow
def test_where_the_data_say_nearly_all_the_story_stays_as_it_is():
    sizes, y = torch.full((5,), 1e4), torch.linspace(-1.5, 1.5, 5)
    assert reparametrised(groups, sizes, y) is None


def spread_out(story, *args, draws=200):
    """Any draws, with any density: those of a standard normal."""
    program = Program(story, *args)
    z = torch.randn(1, draws, program.dim)
    return Posterior.from_program(
        program,
        z,
        engine="normal",
        kind="independent",
        log_density=program.log_density(z),
        log_guide=dist.Normal(0.0, 1.0).log_prob(z).sum(-1),
    )


@pytest.mark.slow
def test_draws_and_importance_weights_survive_the_way_back():
    """Weights are a ratio of densities: the same in any coordinates."""
    found = reparametrised(eight_schools_centred, *SCHOOLS)
    assert found is not None
    inner = spread_out(found.story, *SCHOOLS, draws=2000)
    outer = found.restored(inner)
    assert set(outer.draws) == {"mu", "tau", "theta"}
    assert abs(outer.log_weights - inner.log_weights).max() < 1e-8
    assert torch.equal(outer["theta"], inner["theta"])
    program = Program(eight_schools_centred, *SCHOOLS)
    torch.testing.assert_close(program.constrain(outer.unconstrained)["theta"], outer["theta"])
    predicted = outer.predict(eight_schools_centred, SCHOOLS[0], draws=2000)
    # y | theta ~ N(theta, sigma): eight means at 4.8 of their errors, p = 2e-5 together
    shift = predicted["y"].mean(0) - outer["theta"].mean((0, 1))
    assert (shift.abs() < 4.8 * SCHOOLS[0] / math.sqrt(2000)).all()


def test_a_posterior_of_another_story_is_not_restored():
    found = reparametrised(funnel)
    with pytest.raises(ValueError, match=r"no site 'v'.*\.story"):
        found.restored(spread_out(eight_schools, *SCHOOLS))

    def more():
        found.story()
        pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="not 10 unconstrained dimensions"):
        found.restored(spread_out(more))


@pytest.mark.slow
def test_the_funnel_is_sampled_to_its_ends():
    """v ~ N(0, 3), whatever is beneath it; as written, HMC does not converge."""
    posterior = ppgen.fit(funnel, using=HMC(draws=100, warmup=100), reparametrise=True)
    white = posterior["v"] / 3.0
    # mean and second moment at 4.4 standard errors: p = 2e-5 together
    assert abs(white.mean()) < 4.4 * diagnostics.mcse_mean(white)
    squares = white.square()
    assert abs(squares.mean() - 1) < 4.4 * diagnostics.mcse_mean(squares)
    x = posterior["x"] * (-posterior["v"] / 2).exp().unsqueeze(-1)
    squares = x.square()
    # nine second moments of standard normals: p = 2e-5 together at 4.8
    assert (abs(squares.mean((0, 1)).numpy() - 1) < 4.8 * diagnostics.mcse_mean(squares)).all()


@pytest.mark.slow
def test_a_failed_run_proposes_what_would_help():
    engine = HMC(chains=8, draws=20, warmup=20)
    posterior = ppgen.fit(eight_schools_centred, *SCHOOLS, using=engine)
    assert not posterior.converged
    assert "reparametrise=True" in posterior.messages[-1]
    assert "theta (Normal; location on mu, scale on tau)" in posterior.headline()
    with pytest.raises(ValueError, match="no mode") as error:
        ppgen.fit(eight_schools_centred, *SCHOOLS, using=Laplace())
    assert "reparametrise=True" in error.value.__notes__[0]


def test_auto_leaves_a_run_that_works_alone():
    engine = HMC(chains=32, draws=100, warmup=100)

    def story():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m, 1.0))

    posterior = ppgen.fit(story, using=engine, reparametrise="auto")
    assert posterior.converged, posterior.messages
    assert not any("non-centred" in m for m in posterior.messages)


@pytest.mark.slow
def test_auto_finds_a_way_where_an_engine_refuses():
    posterior = ppgen.fit(eight_schools_centred, *SCHOOLS, using=Laplace(), reparametrise="auto")
    assert posterior.messages[0] == "Laplace failed on the story as written"
    assert set(posterior.draws) == {"mu", "tau", "theta"}


def test_errors_of_the_story_are_not_hidden():
    with pytest.raises(ValueError, match="reparametrise must be"):
        ppgen.fit(funnel, reparametrise="yes")
    with pytest.raises(ValueError, match="no latent site"):
        ppgen.fit(lambda: None, reparametrise="auto")

    def changing():
        if pyro.sample("m", dist.Normal(0.0, 1.0)) > 0:
            pyro.sample("extra", dist.Normal(0.0, 1.0))

    for choice in (False, "auto"):  # and no warning beside it that the story is slow
        with pytest.raises(ValueError, match="'extra' appears only on some paths"):
            ppgen.fit(changing, reparametrise=choice, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [HMC(), NUTS()], ids=["HMC", "NUTS"])
def test_auto_samples_centred_eight_schools_as_the_non_centred_story(engine):
    """Within the Monte Carlo errors of both: 10 means, p = 2e-5 together at 4.9."""
    auto = ppgen.fit(eight_schools_centred, *SCHOOLS, using=engine, reparametrise="auto")
    truth = ppgen.fit(eight_schools, *SCHOOLS, using=HMC(draws=400), seed=1)
    assert auto.messages[0] == "the run on the story as written did not converge"
    assert auto.diagnosis()["rhat"] <= 1.01
    found, reference = auto.summary(), truth.summary()
    for name in [row.name for row in found.rows]:
        a, b = found[name], reference[name]
        assert abs(a.mean - b.mean) < 4.9 * math.hypot(a.mcse, b.mcse), name
