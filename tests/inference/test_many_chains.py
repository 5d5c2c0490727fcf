"""When chains go on, where more draws are all that is missing, and when they begin again."""

import os
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference import HMC, NUTS
from ppgen.inference.many_chains import diverged_at_times, missing
from ppgen.posterior import Posterior


def chains(*, apart, divergences):
    """16 chains of 100 independent draws whose means differ: R-hat is about 1 + apart^2 / 2."""
    x = torch.randn(16, 100) + apart * torch.linspace(-1.7, 1.7, 16)[:, None]
    diverging = torch.zeros(16, 100, dtype=torch.bool)
    diverging[0, :divergences] = True
    return Posterior({"x": x}, "HMC", "chains", converged=False, stats={"diverging": diverging})


@pytest.mark.parametrize(
    ("apart", "divergences", "goes_on"),
    [
        (0.25, 0, True),
        (0.25, 1, True),  # 1 in 1,600 says little of the whole
        (0.25, 5, False),  # a region that chains cannot enter
        (0.0, 1, False),  # nothing is missing that draws could bring
        (2.0, 0, False),  # R-hat would take more than is allowed
    ],
)
def test_chains_go_on_where_draws_are_what_is_missing(apart, divergences, goes_on):
    more = missing(chains(apart=apart, divergences=divergences), 2000)
    assert 0 < more <= 1900 if goes_on else more == 0


def normal():
    pyro.sample("x", dist.Normal(3.0, 2.0))


def run(*divergences, stopped=None, engine=HMC):
    """A run whose series of chains report so many divergences, and the step of each series.

    Somebody stops the second after so many draws.
    """
    steps = []

    class Reporting(engine):
        def _chains(self, tuned, *rest):
            chains, series = super()._chains(tuned, *rest), len(steps)
            read, go_on = chains.read, chains.go_on

            def reported():
                z, stats = read()
                diverging = torch.zeros_like(stats["diverging"])
                diverging[0, : divergences[series]] = True
                return z, {**stats, "diverging": diverging}

            def interrupted(draws):
                if stopped is None or not series:
                    return go_on(draws)
                if stopped:
                    go_on(stopped)
                os.kill(os.getpid(), signal.SIGINT)
                return None if stopped else go_on(draws)

            chains.read, chains.go_on = reported, interrupted
            steps.append(tuned.step_size)
            return chains

    return Reporting(chains=16, draws=200, warmup=60).run(normal), steps


@pytest.mark.parametrize(
    ("still", "apart", "elsewhere", "begins_again"),
    [
        (1, 0.0, 0, True),
        (1, 0.0, 15, True),  # 1 in 100 of the others' draws
        (1, 0.0, 30, False),
        (1, 2.0, 0, False),  # nor do the others mix
        (2, 0.0, 0, False),  # of 16 chains no few
        (0, 0.0, 0, False),
    ],
)
def test_chains_begin_again_where_few_of_them_hardly_move(still, apart, elsewhere, begins_again):
    found = chains(apart=apart, divergences=0)
    found.draws["x"][:still] = 3.0
    found.stats["diverging"][:still, :95] = True
    found.stats["diverging"][2, :elsewhere] = True
    assert diverged_at_times(found) is begins_again


def horseshoe(x, y):
    scale = pyro.sample("scale", dist.HalfCauchy(0.1))
    with pyro.plate("columns", x.shape[1]):
        local = pyro.sample("local", dist.HalfCauchy(1.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ (slope * local * scale), sigma), obs=y)


@pytest.mark.slow
def test_a_horseshoe_whose_ridge_holds_chains_fast_is_sampled_all_the_same():
    torch.manual_seed(0)
    x = torch.randn(80, 20)
    y = 2 * x[:, 0] - x[:, 1] + 0.5 * torch.randn(80)
    posterior = HMC().run(horseshoe, x, y)
    found = posterior.diagnosis()
    assert found["rhat"] < 1.05  # infinite where three chains of 64 stayed where they began
    assert found["divergences"] < 0.002 * posterior.count
    weights = posterior["slope"] * posterior["local"] * posterior["scale"][..., None]
    least_squares = torch.linalg.lstsq(x.double(), y.double()).solution
    assert (weights.mean((0, 1)) - least_squares)[:2].abs().max() < 0.1


@pytest.mark.parametrize(
    ("divergences", "series", "converged"),
    [((0,), 1, True), ((2, 0), 2, True), ((2, 1), 2, False), ((40,), 1, False)],
    ids=["none", "mended", "not mended", "too many"],
)
def test_chains_that_mix_and_diverge_at_times_begin_again_with_half_the_step(
    divergences, series, converged
):
    posterior, steps = run(*divergences)
    assert len(steps) == series
    assert posterior.converged is converged, posterior.messages
    assert posterior["x"].shape == (16, 200)
    assert (posterior.stats["step_size"] == steps[-1]).all()
    said = "2 of 3200 transitions diverged: all draws were taken again, with half the step"
    assert (said in posterior.messages) is (series == 2)
    if series == 2:
        assert steps[1] == steps[0] / 2
    error = 2.0 / posterior.diagnosis()["ess_bulk"] ** 0.5
    assert abs(posterior["x"].mean() - 3.0) < 4.3 * error


@pytest.mark.parametrize(
    ("engine", "stopped", "divergences", "kept"),
    [
        (HMC, 0, 0, "first"),
        (HMC, 60, 1, "first"),
        (HMC, 60, 0, "second"),  # fewer draws, but enough
        (HMC, 200, 1, "second"),  # not converged either, but as many
        (NUTS, 0, 0, "first"),  # before any draw
    ],
)
def test_who_stops_the_second_series_keeps_it_where_it_will_do(engine, stopped, divergences, kept):
    posterior, steps = run(2, divergences, stopped=stopped, engine=engine)
    assert len(steps) == 2
    which = ("first", "second").index(kept)
    assert posterior["x"].shape == (16, stopped if which else 200)
    assert (posterior.stats["step_size"] == steps[which]).all()
    assert posterior.converged is (kept == "second" and not divergences)
    said = "stopped before as many draws were taken again, with half the step"
    assert (said in posterior.messages) is (kept == "first")
