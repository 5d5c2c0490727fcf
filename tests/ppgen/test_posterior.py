"""Posterior: what it says about draws, and that it comes back from disk."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen import checkpoint
from ppgen.posterior import Cost, Posterior
from ppgen.program import Program

Y = torch.tensor([1.0, 2.0, 4.0])
ONES = torch.ones(3)


def story(y=None, x=ONES):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    twice = pyro.deterministic("twice", 2 * mu * x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(twice, sigma), obs=y)


def of_chains(chains=4, draws=500, **fields):
    program = Program(story, Y)
    z = torch.randn(chains, draws, program.dim)
    return program, Posterior.from_program(program, z, engine="test", kind="chains", **fields)


def test_independent_chains_pass_and_their_summary_is_right():
    _, posterior = of_chains()
    assert posterior.converged, posterior.messages
    row = posterior.summary()["mu"]
    assert abs(row.mean) < 4.3 / math.sqrt(2000)  # 4.3 se: two-sided failure rate 2e-5
    assert row.mcse == pytest.approx(1 / math.sqrt(2000), rel=0.2)
    assert 1200 < row.ess_bulk < 3200
    twice = posterior.summary()["twice[1]"]
    assert twice.mean == pytest.approx(2 * row.mean)
    assert "converged" in str(posterior)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda z: z + torch.arange(4.0)[:, None, None], "R-hat"),
        (lambda z: z.cumsum(1), "ESS"),
        (lambda z: torch.zeros_like(z), "R-hat"),
        (
            lambda z: torch.cat([z[:3], z[3:, :1].expand(1, 500, 2)]),
            "R-hat is inf (limit 1.01): 1 of 4 chains never moved",
        ),
        (lambda z: z[:, :3], "R-hat"),
        (lambda z: torch.where(torch.rand_like(z) < 1e-3, torch.inf, z), "R-hat"),
    ],
    ids=["chains apart", "random walk", "stuck", "one stuck", "three draws", "infinite"],
)
def test_chains_that_cannot_be_trusted_say_so_in_the_first_line(spoil, says):
    program, good = of_chains()
    z = spoil(good.unconstrained)
    bad = Posterior.from_program(program, z, engine="test", kind="chains")
    assert not bad.converged
    first = str(bad).split("\n", maxsplit=1)[0]
    assert "NOT CONVERGED" in first
    assert says in first


def test_divergences_and_poor_energies_are_reported():
    diverging = torch.zeros(4, 500, dtype=torch.bool)
    diverging[1, 7] = True
    energy = torch.randn(4, 500).cumsum(1)  # hardly changes from draw to draw
    _, posterior = of_chains(stats={"diverging": diverging, "energy": energy})
    assert "divergences is 1" in posterior.headline()
    assert "E-BFMI" in posterior.headline()


def test_khat_and_elbo_of_a_known_approximation():
    program = Program(story, Y)
    z = torch.randn(1, 4000, program.dim)
    log_q = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    posterior = Posterior.from_program(
        program,
        z,
        engine="test",
        kind="independent",
        log_guide=log_q,
        log_density=log_q - 3.25,  # the approximation is exact, log evidence -3.25
    )
    found = posterior.diagnosis()
    assert found["elbo"] == pytest.approx(-3.25)
    assert found["relative_is_ess"] == pytest.approx(1.0)
    assert math.isnan(posterior.summary()["mu"].rhat)


def test_prediction_runs_the_story_forward_and_recomputes_what_follows():
    _, posterior = of_chains()
    new = posterior.predict(story, x=torch.tensor([0.0, 10.0]), draws=800, seed=3)
    assert new["y"].shape == (800, 2)
    assert torch.equal(new["twice"][:, 0], torch.zeros(800))
    # y[1] ~ N(20 mu, sigma), mu ~ N(0, 1): sd of y is that of 20 mu, up to sigma's e^z
    assert new["twice"][:, 1].std() == pytest.approx(20.0, rel=0.12)  # 4.3 se of an sd of 800
    again = posterior.predict(story, x=torch.tensor([0.0, 10.0]), draws=800, seed=3)
    assert torch.equal(new["y"], again["y"])
    replicated = posterior.predict(story, Y, draws=5)["y"]
    assert replicated.shape == (5, 3)
    assert not torch.equal(replicated[0], Y)


def test_prediction_takes_data_of_another_dtype():
    _, posterior = of_chains()
    assert posterior.predict(story, x=torch.ones(2, dtype=torch.float32), draws=3)["y"].dtype == (
        torch.float64
    )


def test_another_story_is_not_drawn_from_its_prior_as_if_it_had_been_fitted():
    def other():
        pyro.sample("other", dist.Normal(pyro.sample("location", dist.Normal(0.0, 1.0)), 1.0))

    posterior = Posterior({"mu": torch.randn(2, 10)}, "test", "independent")
    with pytest.raises(ValueError, match=r"none of the posterior's sites \['mu'\]"):
        posterior.predict(other)


def test_prediction_draws_nothing_from_an_improper_prior():
    def story(x):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu * x, 1.0).to_event(1))

    posterior = Posterior({"mu": torch.randn(2, 10)}, "test", "independent")
    assert posterior.predict(story, torch.ones(3))["y"].shape == (20, 3)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    _, posterior = of_chains(
        stats={"lp": torch.randn(4, 500)},
        history={"elbo": torch.randn(7)},
        cost=Cost(recording=0.5, gradients=12),
        options={"chains": 4, "odd": torch.float64},
        messages=("something to say",),
    )
    posterior.save(tmp_path / "run")
    back = Posterior.load(tmp_path / "run")
    assert back.engine == "test"
    assert back.cost == posterior.cost
    assert back.messages == posterior.messages
    assert back.deterministic == ("twice",)
    assert all(torch.equal(back[n], posterior[n]) for n in posterior.draws)
    assert torch.equal(back.stats["lp"], posterior.stats["lp"])
    assert torch.equal(back.history["elbo"], posterior.history["elbo"])
    assert str(back) == str(posterior)


def test_a_foreign_checkpoint_is_no_posterior(tmp_path):
    checkpoint.save(tmp_path, {"x": torch.ones(1)}, {"format": "else"})
    with pytest.raises(checkpoint.CheckpointError, match="holds no posterior"):
        Posterior.load(tmp_path)


def test_a_site_that_is_not_there_is_named_with_those_that_are():
    _, posterior = of_chains()
    with pytest.raises(KeyError, match=r"'nu'.*'mu', 'sigma', 'twice'"):
        posterior["nu"]


def test_draws_that_are_not_finite_are_never_converged():
    program, good = of_chains()
    z = torch.where(torch.rand_like(good.unconstrained) < 1e-2, 1e4, good.unconstrained)
    bad = Posterior.from_program(program, z, engine="test", kind="independent")
    assert not bad.converged
    assert "draws of sigma are not finite" in bad.headline()


def test_a_story_that_observes_nothing_says_that_it_is_the_prior():
    program = Program(story)  # y was forgotten: it is a latent site now
    z = torch.randn(4, 500, program.dim)
    posterior = Posterior.from_program(program, z, engine="test", kind="chains")
    assert posterior.converged
    assert "nothing is observed: this is the prior" in posterior.headline()


def test_predictions_below_a_deterministic_site_in_a_plate_have_the_shape_of_the_data():
    """Pyro's uncondition draws such a site anew, once for each element of its plate."""

    def story(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + eta)
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    draws = {"mu": torch.zeros(1, 5), "eta": torch.zeros(1, 5, 3)}
    found = Posterior(draws, "test", "independent").predict(story, torch.zeros(3))
    assert found["theta"].shape == found["y"].shape == (5, 3)


def test_some_sites_alone_keep_their_diagnosis_and_lose_the_flat_vector():
    _, posterior = of_chains()
    kept = posterior.only("mu", "twice")
    assert list(kept.draws) == ["mu", "twice"]
    assert kept.deterministic == ("twice",)
    assert kept.unconstrained is None
    assert kept.summary()["mu"].mean == posterior.summary()["mu"].mean
    with pytest.raises(KeyError, match="no site 'tau'"):
        posterior.only("tau")
