"""The engine: stories in, posteriors out, with the statistics of each transition."""

import math
import os
import signal

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from pyro.infer import NUTS as PyroNUTS
from scipy import stats as scipy_stats

from ppgen import diagnostics
from ppgen.inference.hmc import Metric, init
from ppgen.inference.hmc_warmup import Tuned
from ppgen.inference.nuts import NUTS, _Chains, _Noise
from ppgen.inference.nuts_tree import Trees
from ppgen.inference.target import Target
from ppgen.models.eight_schools import data, eight_schools
from ppgen.program import Program
from ppgen.progress import Interrupt, Progress

FAILURE_RATE = 2e-5  # of one correct statistical test, as in conftest

STATISTICS = {
    "lp",
    "acceptance_rate",
    "step_size",
    "n_steps",
    "tree_depth",
    "diverging",
    "energy",
    "reached_max_treedepth",
}


def conjugate(y):
    """Posterior of mu: N(sum y / (n + 1 / 4), 1 / (n + 1 / 4))."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def pair():
    pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.LogNormal(0.0, 0.5))


Y = torch.tensor([1.0, 2.0, 4.0])


def fit(story, *data, **options):
    """A run of exactly `draws`, unless `max_draws` says otherwise."""
    options = {"chains": 2, "draws": 60, "warmup": 60} | options
    return NUTS(**({"max_draws": options["draws"]} | options)).run(story, *data)


SCHOOLS = tuple(data().values())  # sigma, y


def z_limit(comparisons):
    """Two-sided normal quantile for that many comparisons at the common failure rate."""
    return scipy_stats.norm.isf(FAILURE_RATE / (2 * comparisons))


@pytest.mark.slow
@pytest.mark.parametrize("dense", [False, True])
def test_an_ill_scaled_correlated_gaussian_is_found(dense):
    scale = torch.tensor([1e-3, 1.0, 50.0])
    correlation = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.3], [0.0, 0.3, 1.0]])
    factor = scale[:, None] * torch.linalg.cholesky(correlation)
    mean = torch.tensor([1.0, -2.0, 300.0])

    def gaussian():
        pyro.sample("x", dist.MultivariateNormal(mean, scale_tril=factor))

    posterior = fit(gaussian, chains=16, draws=125, warmup=100, metric="dense" if dense else "diag")
    assert posterior.diagnosis()["rhat"] < 1.05
    white = torch.linalg.solve_triangular(factor, (posterior["x"] - mean)[..., None], upper=False)
    white = white[..., 0]
    products = white[..., [0, 0, 1]] * white[..., [1, 2, 2]]
    for values, truth in ((white, 0.0), (white.square(), 1.0), (products, 0.0)):
        error = diagnostics.mcse_mean(values)
        assert (abs(values.mean((0, 1)).numpy() - truth) < z_limit(9) * error).all()


@pytest.mark.slow
def test_eight_schools_agree_with_published_draws():
    """Reference moments: 10,000 published draws of a long run of another sampler."""
    posterior = NUTS().run(eight_schools, *SCHOOLS)
    rows = posterior.summary()
    for name, mean, sd in (("mu", 4.411, 3.309), ("tau", 3.602, 3.198)):
        assert rows[name].rhat <= 1.01
        assert rows[name].mcse <= 0.02 * sd
        # the reference's error is .01 sd
        assert abs(rows[name].mean - mean) < z_limit(2) * np.hypot(rows[name].mcse, 0.01 * sd)
        # tau has a heavy tail: its sd is known to 2 % at best
        assert 0.95 < rows[name].sd / sd < 1.05


@pytest.mark.slow
def test_steps_that_accept_as_those_of_pyro_are_as_long():
    """Other random numbers, the same algorithm but for the extra checks: close, not equal."""
    ours = fit(eight_schools, *SCHOOLS, chains=16, draws=60, warmup=100)
    accepted = float(ours.stats["acceptance_rate"].mean())
    kernel = PyroNUTS(eight_schools, target_accept_prob=accepted)
    MCMC(kernel, num_samples=10, warmup_steps=250, disable_progbar=True).run(*SCHOOLS)
    ratio = float(ours.stats["step_size"].mean()) / float(kernel.step_size)
    assert 0.5 < ratio < 2.0


def scales():
    """25 independent normals with standard deviations from 0.01 to 100."""
    pyro.sample("x", dist.Normal(torch.zeros(25), torch.logspace(-2, 2, 25)).to_event(1))


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.7, 0.9])
def test_trees_are_accepted_as_asked_for_and_the_scales_are_found(target):
    posterior = fit(scales, chains=32, draws=50, warmup=200, target_accept=target)
    # .7 and .9 of whole trajectories, by the harmonic mean: of leaves, within trees, more
    assert target < float(posterior.stats["acceptance_rate"].mean()) < (2 + target) / 3
    # standard normals need trees of 3 or 7 leaves, 15 with short steps; unscaled ones thousands
    assert float(posterior.stats["n_steps"].double().mean()) < 16
    assert len(set(posterior.stats["step_size"].flatten().tolist())) == 1, "frozen, of all chains"


@pytest.mark.slow
def test_a_dense_metric_removes_correlations():
    """Correlation .9995: the condition number is 4000, and diagonal trees some 60 times longer."""

    def narrow():
        covariance = torch.tensor([[1.0, 0.9995], [0.9995, 1.0]])
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance))

    steps = {}
    for metric in ("dense", "diag", "auto"):
        posterior = fit(narrow, chains=8, draws=50, warmup=100, metric=metric)
        steps[metric] = float(posterior.stats["n_steps"].double().mean())
    assert max(steps["dense"], steps["auto"]) < 8
    assert steps["diag"] > 5 * steps["dense"]


@pytest.mark.parametrize("dense", [False, True])
def test_chains_leave_the_target_invariant_whatever_the_metric(dense):
    """From exact draws, with a metric that is not the target's and draws far from the origin."""
    target = torch.tensor([[1.0, 0.0], [1.0, 0.6]])
    story = dist.MultivariateNormal(torch.tensor([3.0, -40.0]), scale_tril=target)
    program = Program(lambda: pyro.sample("x", story))
    chains, draws = 2000, 4
    value_and_grad = Target(program)
    factor = torch.tensor([[1.2, 0.0], [0.8, 0.8]]) if dense else torch.tensor([1.0, 1.3])
    step_size = 0.6 if dense else 0.4
    exact = init(story.sample((chains,)), value_and_grad)
    tuned = Tuned(exact, Metric(factor), step_size, 1.0, moved=0, thin=1)
    with torch.no_grad(), Progress("NUTS") as progress:
        moving = _Chains(NUTS(), tuned, value_and_grad, Interrupt(), progress)
        moving.go_on(draws)
    z, stats = moving.read()
    assert z.shape == (chains, draws, 2)
    torch.testing.assert_close(stats["lp"], program.log_density(z))
    assert 0.75 < stats["acceptance_rate"].mean() < 0.99, "the gradient is that of the target"
    assert (z[:, -1] != exact.z).any(1).double().mean() > 0.9
    white = torch.linalg.solve_triangular(target, (z[:, -1] - story.loc).mT, upper=False)
    # one draw of each chain, independent: the standard errors are known
    for values, truth, sd in (
        *((x, 0.0, 1.0) for x in white),
        *((x.square(), 1.0, 2**0.5) for x in white),
        (white.prod(0), 0.0, 1.0),
    ):
        assert abs(values.mean() - truth) < z_limit(5) * sd / chains**0.5


def test_a_conjugate_posterior_is_found():
    posterior = fit(conjugate, Y, chains=8, draws=150, warmup=100)
    assert posterior.diagnosis()["rhat"] < 1.05
    white = (posterior["mu"] - 7 / 3.25) * 3.25**0.5
    # a draw comes with its momentum, standard normal in the coordinates of the metric
    kinetic = posterior.stats["energy"] + posterior.stats["lp"]
    for values, truth in ((white, 0.0), (white.square(), 1.0), (kinetic, 0.5)):
        assert abs(values.mean() - truth) < z_limit(3) * diagnostics.mcse_mean(values)


def test_statistics_are_those_of_each_transition():
    posterior = fit(pair)
    stats = posterior.stats
    assert set(stats) == STATISTICS
    assert {tuple(x.shape) for x in stats.values()} == {(2, 60)}
    torch.testing.assert_close(stats["lp"], Program(pair).log_density(posterior.unconstrained))
    assert (stats["acceptance_rate"] >= 0).all()
    assert (stats["acceptance_rate"] <= 1).all()
    # single values, not a running mean: that moves by less than 1 / t at draw t
    assert stats["acceptance_rate"][:, 40:].diff().abs().max() > 1 / 40
    assert (stats["n_steps"] >= 1).all()
    # 2^(depth - 1) <= n_steps < 2^depth: also where the last doubling was left half done
    assert (stats["n_steps"] < 2 ** stats["tree_depth"]).all()
    assert (2 ** (stats["tree_depth"] - 1) <= stats["n_steps"]).all()
    # energy of the draw with the momentum that it came with
    assert (stats["energy"] > -stats["lp"]).all()
    kept = int(stats["n_steps"].sum())
    assert posterior.cost.gradients > kept
    assert min(posterior.cost.adapting, posterior.cost.sampling, posterior.cost.recording) > 0


def test_divergences_are_marked_at_their_draw():
    def cliff():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("cliff", torch.where(x > 0.5, -1e5, 0.0))

    posterior = fit(cliff, warmup=20, draws=40)
    assert posterior.stats["diverging"].any()
    assert not posterior.stats["diverging"].all()
    assert not posterior.converged
    assert "divergences" in posterior.headline()
    assert any("raise target_accept=0.85" in message for message in posterior.messages)


def test_the_depth_limit_is_reported():
    posterior = fit(pair, max_tree_depth=1, draws=20, warmup=20)
    assert (posterior.stats["n_steps"] <= 1).all()
    assert any("max_tree_depth=1" in message for message in posterior.messages)


def test_the_same_seed_gives_the_same_draws():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(fit(pair, draws=10, warmup=20, chains=1)["a"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def interrupt_trees(monkeypatch, *, after=math.inf):
    """Ctrl-C as the trees grow for the `after`-th time; returns how often they have grown."""
    calls, grow = [0], Trees.grow

    def counting(self, *args):
        calls[0] += 1
        if calls[0] == after:
            os.kill(os.getpid(), signal.SIGINT)
        return grow(self, *args)

    monkeypatch.setattr(Trees, "grow", counting)
    return calls


def test_chains_do_not_wait_for_each_other(monkeypatch):
    def heavy():  # trees of very different sizes
        pyro.sample("x", dist.StudentT(1.5).expand([2]).to_event(1))

    grown = interrupt_trees(monkeypatch)
    steps = fit(heavy, chains=8, draws=60, warmup=20).stats["n_steps"]
    # in lock-step it would be the longest of the chains' trees, draw by draw
    assert int(steps.sum(1).max()) <= grown[0] < int(steps.max(0).values.sum())


@pytest.mark.parametrize("chains", [1, 3])
def test_an_interrupt_keeps_the_draws_that_every_chain_has(monkeypatch, chains):
    interrupt_trees(monkeypatch, after=300)
    posterior = fit(pair, chains=chains, draws=1000)
    kept = posterior["a"].shape[1]
    assert posterior["a"].shape == (chains, kept)
    assert 10 < kept < 1000
    assert f"stopped after {kept} of 1000 draws" in posterior.messages[0]
    assert torch.isfinite(posterior["a"]).all()
    assert {tuple(x.shape) for x in posterior.stats.values()} == {(chains, kept)}


def test_an_interrupt_before_the_first_draw_leaves_nothing(monkeypatch):
    interrupt_trees(monkeypatch, after=1)
    with pytest.raises(KeyboardInterrupt, match="before every chain"):
        fit(pair, chains=8)


def test_draws_have_the_dtype_of_the_story():
    network = torch.nn.Linear(1, 1).float()

    def story():
        pyro.module("network", network)
        x = pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(network(x), 1.0).to_event(1), obs=torch.ones(1))

    posterior = fit(story, draws=20, warmup=30)
    assert posterior["x"].dtype == torch.float32
    assert posterior["x"].std() > 0.1


def test_momenta_are_standard_normal_and_never_the_same():
    noise = _Noise(chains=3, dim=2, dtype=torch.float64)
    momenta = np.concatenate([noise.momenta(1 + i % 3) for i in range(20_000)])
    assert len(np.unique(momenta)) == momenta.size  # more than one block of them
    for column in momenta.T:
        assert scipy_stats.kstest(column, scipy_stats.norm.cdf).pvalue > FAILURE_RATE / 3
    uniforms = np.stack([noise.uniforms() for _ in range(8000)]).ravel()
    assert len(np.unique(uniforms)) == uniforms.size
    assert scipy_stats.kstest(uniforms, scipy_stats.uniform.cdf).pvalue > FAILURE_RATE / 3


def test_a_ready_program_is_taken():
    assert fit(Program(conjugate, Y), draws=10, warmup=20)["mu"].shape == (2, 10)


@pytest.mark.slow
def test_chains_go_on_until_they_have_converged_and_stop_where_that_would_not_help():
    posterior = fit(conjugate, Y, chains=8, draws=30, warmup=100, max_draws=1000)
    kept = posterior["mu"].shape[1]
    assert posterior.converged, posterior.messages
    assert 30 < kept <= 1000
    assert f"{kept} draws of each chain: 30 had not converged" in posterior.messages
    assert all(x.shape == (8, kept) for x in posterior.stats.values())
    lp = Program(conjugate, Y).log_density(posterior.unconstrained)
    torch.testing.assert_close(posterior.stats["lp"], lp)
    # the draws before and after the break are of one chain, without a start in between
    white = (posterior["mu"] - 7 / 3.25) * 3.25**0.5
    assert white.abs().max() < z_limit(8 * kept)

    def modes():
        x = pyro.sample("x", dist.Normal(0.0, 100.0))
        pyro.factor("modes", torch.logaddexp(-50 * (x - 1.9) ** 2, -50 * (x + 1.9) ** 2))

    apart = fit(modes, chains=8, draws=30, max_draws=200)
    assert apart["x"].shape == (8, 30), "sampling on would not help"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 50, "max_draws": 40}, r"max_draws=.*at least draws=50, got 40"),
        ({"chains": 0}, r"chains=.*at least 1, got 0"),
        ({"draws": True}, r"draws=.*whole number.*True"),
        ({"max_tree_depth": 40}, r"at most 30, got 40"),
        ({"max_tree_depth": 0}, r"max_tree_depth=.*at least 1, got 0"),
        ({"target_accept": 0.0}, r"between 0 and 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NUTS(**options)


def test_a_story_without_latent_sites_is_refused():
    def story():
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="no latent site"):
        fit(story)
