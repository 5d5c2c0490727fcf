"""The engine: stories in, posteriors out, and what happens when something goes wrong."""

import math
import os
import signal
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen import diagnostics
from ppgen.inference.hmc import Metric, State
from ppgen.inference.hmc_engine import HMC, _Chains, _Record
from ppgen.inference.hmc_warmup import Stage, Tuned, hopeless
from ppgen.inference.target import Target
from ppgen.models.eight_schools import data, eight_schools, eight_schools_centred
from ppgen.program import Program

STATISTICS = {
    "lp",
    "acceptance_rate",
    "step_size",
    "n_steps",
    "diverging",
    "energy",
    "energy_error",
    "int_time",
}


def conjugate(y):
    """Normal mean with known variance: posterior N(sum y / (n + 1 / 4), 1 / (n + 1 / 4))."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def regression(x, y):
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 100.0).to_event(1))
    a = pyro.sample("a", dist.Normal(0.0, 1000.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a + x @ b, 2.0), obs=y)


SCHOOLS = tuple(data().values())  # sigma, y


def fit(story, *data, **options):
    options = {"chains": 16, "draws": 50, "warmup": 60} | options
    options = {"max_draws": options["draws"]} | options
    return HMC(**options).run(story, *data)


def test_a_conjugate_posterior_is_found():
    y = torch.tensor([1.0, 2.0, 4.0])
    posterior = fit(conjugate, y, chains=64, draws=100)
    assert posterior.converged, posterior.messages
    assert posterior["mu"].shape == (64, 100)
    white = (posterior["mu"] - 7 / 3.25) * math.sqrt(3.25)
    # 4.3 standard errors: p = 2e-5, two-sided
    assert abs(white.mean()) < 4.3 * diagnostics.mcse_mean(white)
    squares = white.square()
    assert abs(squares.mean() - 1) < 4.3 * diagnostics.mcse_mean(squares)


def test_raw_predictors_of_very_different_scale_are_no_obstacle():
    """Linear-Gaussian: the exact posterior is known, its correlations are above .99."""
    x = torch.stack([1000 + 5 * torch.randn(60), torch.rand(60)], 1)
    y = 3 + x @ torch.tensor([0.5, -4.0]) + 2 * torch.randn(60)
    posterior = fit(regression, x, y, chains=64, draws=100, warmup=200)
    assert posterior.converged, posterior.messages
    design = torch.cat([x, torch.ones(60, 1)], 1)
    precision = design.mT @ design / 4 + torch.tensor([1e-4, 1e-4, 1e-6]).diag()
    mean = torch.linalg.solve(precision, design.mT @ y / 4)
    draws = torch.cat([posterior["b"], posterior["a"].unsqueeze(-1)], -1)
    factor = torch.linalg.cholesky(precision)
    white = (draws - mean) @ factor
    # 6 comparisons at 4.7 standard errors: p = 2e-5 together
    for values, truth in ((white, 0.0), (white.square(), 1.0)):
        error = diagnostics.mcse_mean(values)
        assert (abs(values.mean((0, 1)).numpy() - truth) < 4.7 * error).all()


@pytest.mark.slow
def test_eight_schools_with_default_options():
    """Reference moments: 10,000 published draws of a long run of another sampler."""
    posterior = HMC().run(eight_schools, *SCHOOLS)
    assert posterior.converged, posterior.messages
    rows = posterior.summary()
    for name, mean, sd in (("mu", 4.411, 3.309), ("tau", 3.602, 3.198)):
        assert rows[name].rhat <= 1.01
        assert rows[name].mcse <= 0.02 * sd
        assert abs(rows[name].mean - mean) < 0.05 * sd
        # tau has a heavy tail: its sd is known to 2 % at best
        assert 0.95 < rows[name].sd / sd < 1.05


def test_statistics_bear_arviz_names_and_agree_with_the_program():
    posterior = fit(eight_schools, *SCHOOLS)
    assert set(posterior.stats) == STATISTICS
    assert {tuple(x.shape) for x in posterior.stats.values()} == {(16, 50)}
    program = Program(eight_schools, *SCHOOLS)
    torch.testing.assert_close(posterior.stats["lp"], program.log_density(posterior.unconstrained))
    assert posterior["theta"].shape == (16, 50, 8)
    stats = posterior.stats
    torch.testing.assert_close(stats["int_time"], stats["n_steps"] * stats["step_size"])
    assert (stats["energy"] > -stats["lp"]).all()
    assert posterior.cost.gradients % 16 == 0
    assert posterior.cost.gradients > 16 * int(stats["n_steps"][0].sum())
    assert min(posterior.cost.adapting, posterior.cost.sampling, posterior.cost.recording) > 0


@pytest.mark.slow
def test_a_draw_of_several_transitions_counts_them_all():
    def heavy():
        pyro.sample("x", dist.StudentT(2.0).expand([5]).to_event(1))

    posterior = fit(heavy, chains=32, warmup=200)
    (thinned,) = [m for m in posterior.messages if m.endswith("transitions to a draw")]
    transitions = int(thinned.split()[0])
    assert transitions > 1
    assert (posterior.stats["n_steps"] >= transitions).all()
    assert 0.5 < posterior.stats["acceptance_rate"].mean() <= 1
    assert posterior.stats["acceptance_rate"].max() <= 1
    lp = Program(heavy).log_density(posterior.unconstrained)
    torch.testing.assert_close(posterior.stats["lp"], lp)


def test_the_statistics_of_a_draw_are_those_of_all_its_transitions():
    state = State(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2, 1))
    tuned = Tuned(state, Metric(torch.ones(1)), 0.1, 4.0, 0, thin=2)
    record = _Record.allocate(3, state)
    for t, accepted in ((0, [0.2, 1.0]), (0, [0.6, 1.0]), (1, [0.5, 0.0]), (1, [0.1, 0.0])):
        share = torch.tensor(accepted)
        info = SimpleNamespace(acceptance=share, energy=share, energy_error=-share,
                               diverging=share == 0.2)  # fmt: skip
        record.put(t, info, leapfrogs=3)
    _, stats = record.read(2, tuned)
    torch.testing.assert_close(stats["acceptance_rate"], torch.tensor([[0.4, 0.3], [1.0, 0.0]]))
    assert stats["diverging"].tolist() == [[True, False], [False, False]]
    assert stats["n_steps"].tolist() == [[6, 6]] * 2
    torch.testing.assert_close(stats["int_time"], torch.full((2, 2), 0.6))
    for limit, said in ((30, 0), (29, 1)):  # 3/4 of 4.0 in steps of 0.1
        chains = SimpleNamespace(tuned=tuned._replace(thin=1), max_leapfrog=limit)
        assert len(_Chains.messages(chains, stats)) == said


def test_the_same_seed_gives_the_same_draws():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(fit(conjugate, torch.tensor([1.0]))["mu"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_ready_program_is_taken():
    program = Program(conjugate, torch.tensor([1.0]))
    assert fit(program)["mu"].shape == (16, 50)


def test_constrained_supports():
    def story():
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 5.0])))
        pyro.sample(
            "counts", dist.Categorical(p).expand([4]).to_event(1), obs=torch.tensor([0] * 4)
        )

    posterior = fit(story, chains=64, draws=100)
    truth = torch.tensor([6.0, 3.0, 5.0]) / 14
    error = torch.as_tensor(diagnostics.mcse_mean(posterior["p"]))
    # three comparisons at 4.6 standard errors: p = 1.3e-5 together
    assert (abs(posterior["p"].mean((0, 1)) - truth) < 4.6 * error).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*point by point")
def test_a_kink_or_a_flat_stretch_where_the_curvature_is_taken_does_not_set_the_step():
    """Laplace priors have no second derivative: the first metric was 1e10 times too wide."""

    def story():
        pyro.sample("x", dist.Laplace(0.0, 1.0))

    posterior = HMC(chains=32, draws=100, warmup=150).run(story)
    x = posterior["x"].flatten()
    # |x| is exponential of mean 1; 5 standard errors at an effective size of a tenth, 320
    assert abs(float(x.abs().mean()) - 1) < 5 / math.sqrt(320)
    assert posterior.stats["n_steps"].double().mean() < 32  # 256 before


@pytest.mark.slow
def test_a_factorisation_that_fails_costs_one_proposal_not_the_run():
    """A correlation of 1/2 or -1 and beyond makes the matrix below indefinite: hard walls."""

    def story():
        r = pyro.sample("r", dist.Normal(0.0, 3.0))
        matrix = torch.eye(3) - 0.2 * r * (1 - torch.eye(3))
        pyro.factor("wall", 0.0 * torch.linalg.cholesky(matrix).sum())

    program = Program(story)
    target = Target(program)
    target(torch.zeros(4, 1))
    value, gradient = target(torch.tensor([[0.9], [2.6], [2.4], [9.0]]))
    assert torch.isfinite(value).tolist() == [True, False, True, False]
    torch.testing.assert_close(gradient[0], torch.tensor([-0.1]))
    assert target.gradients == 8
    posterior = fit(program, chains=8, draws=100, warmup=20)
    assert 2.0 < posterior["r"].max() < 2.5
    assert -5.0 < posterior["r"].min() < -4.0


@pytest.mark.slow
def test_modes_far_apart_are_not_called_converged():
    def story():
        x = pyro.sample("x", dist.Normal(0.0, 100.0))
        pyro.factor("modes", torch.logaddexp(-50 * (x - 1.9) ** 2, -50 * (x + 1.9) ** 2))

    posterior = fit(story, draws=20)
    assert not posterior.converged
    assert "R-hat" in posterior.headline()


@pytest.mark.slow
def test_a_run_that_almost_mixes_goes_on_until_it_has_and_one_that_does_not_stops():
    """Few draws of many chains: R-hat is short of its limit, and nothing else is wrong."""
    sigma = torch.tensor([1.0, 1e-2, 1e-4])

    def story():
        pyro.sample("x", dist.StudentT(3.0, 0.0, sigma).to_event(1))

    short = fit(story, chains=32, draws=24, warmup=100)
    assert not short.converged, "the story has to be hard for so few draws"
    longer = fit(story, chains=32, draws=24, warmup=100, max_draws=400)
    kept = longer["x"].shape[1]
    assert longer.converged, longer.messages
    assert 24 < kept <= 400
    assert f"{kept} draws of each chain: 24 had not converged" in longer.messages
    assert all(x.shape == (32, kept) for x in longer.stats.values())
    lp = Program(story).log_density(longer.unconstrained)
    torch.testing.assert_close(longer.stats["lp"], lp)

    def modes():
        x = pyro.sample("x", dist.Normal(0.0, 100.0))
        pyro.factor("modes", torch.logaddexp(-50 * (x - 1.9) ** 2, -50 * (x + 1.9) ** 2))

    assert fit(modes, max_draws=200)["x"].shape == (16, 50), "sampling on would not help"


@pytest.mark.slow
def test_a_centred_hierarchy_is_given_up_early_and_a_non_centred_one_is_not():
    """The whole warm-up and 200 draws cost 4.1 million gradients, and end with the same answer."""
    centred = HMC().run(eight_schools_centred, *SCHOOLS)
    assert not centred.converged
    assert "trajectories diverged (a funnel, or" in centred.headline()
    assert centred.cost.gradients < 4.1e6 / 3
    assert HMC().run(eight_schools, *SCHOOLS).converged


def test_there_is_no_hope_where_two_stages_diverge_and_come_no_nearer():
    apart, near = Stage(2.0, 0.02), Stage(1.2, 0.02)
    assert hopeless([near, apart, Stage(math.inf, 0.02)])
    assert not hopeless([apart]), "one stage says nothing"
    assert not hopeless([apart, near])
    assert not hopeless([Stage(3.5, 0.02), Stage(1.6, 0.02)]), "it falls"
    assert not hopeless([Stage(2.0, 0.0), Stage(2.0, 0.0)]), "modes apart, no funnel"


def test_starts_in_a_mode_without_mass_are_reported():
    def story():
        x = pyro.sample("x", dist.Normal(0.0, 100.0))
        pyro.factor("modes", torch.logaddexp(-50 * (x - 1.5) ** 2, -80 - 50 * (x + 1.5) ** 2))

    posterior = fit(story, draws=100)
    assert posterior.converged, posterior.messages
    assert "where the mass is" in " ".join(posterior.messages)
    assert (posterior["x"] > 0).all()


@pytest.mark.parametrize("after", [70, 130])
def test_an_interrupt_keeps_the_draws_that_there_are(after):
    """The first Ctrl-C ends the run: with draws if there are any, else as KeyboardInterrupt."""
    calls = [0]

    class Interrupting(Program):
        def value_and_grad(self, z, **options):
            calls[0] += 1
            if calls[0] == after * 10:
                os.kill(os.getpid(), signal.SIGINT)
            return super().value_and_grad(z, **options)

        def gradient(self, z, **options):
            return self.value_and_grad(z, **options)[1]

    program = Interrupting(conjugate, torch.tensor([1.0]))
    if after == 70:
        with pytest.raises(KeyboardInterrupt, match="before its first draw"):
            fit(program, warmup=2000)
    else:
        posterior = fit(program, draws=5000)
        kept = posterior["mu"].shape[1]
        assert 0 < kept < 5000
        assert f"stopped after {kept} of 5000 draws" in posterior.messages
        assert torch.isfinite(posterior["mu"]).all()


def test_draws_that_do_not_fit_into_memory_are_refused_before_the_run():
    def story():
        x = pyro.sample("x", dist.Normal(torch.zeros(1000), 1.0).to_event(1))
        pyro.deterministic("big", x.unsqueeze(-1).expand(1000, 1000))

    with pytest.raises(ValueError, match=r"64 chains x 200 draws .* GB"):
        HMC().run(story)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 0}, r"chains=.*at least 1, got 0"),
        ({"draws": 2.5}, r"draws=.*whole number.*2\.5"),
        ({"draws": 50, "max_draws": 40}, r"max_draws=.*at least draws=50, got 40"),
        ({"warmup": 5}, r"warmup=.*at least 20"),
        ({"target_accept": 1.0}, r"between 0 and 1"),
        ({"metric": "full"}, r"'auto', 'diag' or 'dense', got 'full'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HMC(**options)


def test_a_story_without_latent_sites_is_refused():
    def story():
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="no latent site"):
        fit(story)


def test_one_chain():
    posterior = fit(conjugate, torch.tensor([1.0]), chains=1, draws=200)
    assert posterior["mu"].shape == (1, 200)
    assert 0.3 < posterior["mu"].std() < 2
