"""Pyro's NUTS behind our interface: same posterior, with what Pyro throws away."""

import os
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen import diagnostics
from ppgen.inference.nuts import NUTS, Potential
from ppgen.program import Program

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
    return NUTS(**({"chains": 2, "draws": 60, "warmup": 60} | options)).run(story, *data)


def test_the_potential_hands_over_the_gradient_of_the_program():
    program = Program(pair)
    z = torch.randn(2, requires_grad=True)
    value = 3.0 * Potential(program)({"z": z})
    (gradient,) = torch.autograd.grad(value, z)
    expected, slope = program.value_and_grad(z.detach())
    torch.testing.assert_close(value.detach(), -3 * expected)
    torch.testing.assert_close(gradient, -3 * slope)


@pytest.mark.slow
def test_a_conjugate_posterior_is_found():
    posterior = fit(conjugate, Y, chains=4, draws=500, warmup=300)
    assert posterior.converged, posterior.messages
    white = (posterior["mu"] - 7 / 3.25) * 3.25**0.5
    # 4.3 standard errors: p = 2e-5, two-sided
    assert abs(white.mean()) < 4.3 * diagnostics.mcse_mean(white)
    assert abs(white.square().mean() - 1) < 4.3 * diagnostics.mcse_mean(white.square())


def test_statistics_are_those_of_each_transition():
    posterior = fit(pair)
    stats = posterior.stats
    assert set(stats) == STATISTICS
    assert {tuple(x.shape) for x in stats.values()} == {(2, 60)}
    torch.testing.assert_close(stats["lp"], Program(pair).log_density(posterior.unconstrained))
    assert (stats["acceptance_rate"] >= 0).all()
    assert (stats["acceptance_rate"] <= 1).all()
    # single values, not Pyro's running mean: that moves by less than 1 / t at draw t
    assert stats["acceptance_rate"][:, 40:].diff().abs().max() > 1 / 40
    assert (stats["n_steps"] >= 1).all()
    # 2^(depth - 1) <= n_steps < 2^depth: also where the last doubling was left half done
    assert (stats["n_steps"] < 2 ** stats["tree_depth"]).all()
    assert (2 ** (stats["tree_depth"] - 1) <= stats["n_steps"]).all()
    # energy of a trajectory's start: at least the potential of the draw before it
    assert (stats["energy"][:, 1:] > -stats["lp"][:, :-1]).all()
    kept = int(stats["n_steps"].sum())
    assert posterior.cost.gradients > kept
    assert min(posterior.cost.adapting, posterior.cost.sampling, posterior.cost.recording) > 0


def test_divergences_are_marked_at_their_draw():
    def cliff():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("cliff", torch.where(x > 0.5, -1e5, 0.0))

    posterior = fit(cliff, warmup=5, draws=40)
    assert posterior.stats["diverging"].any()
    assert not posterior.stats["diverging"].all()
    assert not posterior.converged
    assert "divergences" in posterior.headline()


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


@pytest.mark.parametrize(("transition", "shape"), [(50, None), (100, (1, 41)), (150, (1, 60))])
def test_an_interrupt_keeps_what_there_is(monkeypatch, transition, shape):
    """In the first warm-up; among the first chain's draws; in the second chain's warm-up."""
    from ppgen.inference import nuts

    calls = [0]

    class Interrupting(nuts._Kernel):
        def sample(self, params):
            if calls[0] == transition:
                os.kill(os.getpid(), signal.SIGINT)
            calls[0] += 1
            return super().sample(params)

    monkeypatch.setattr(nuts, "_Kernel", Interrupting)
    if shape is None:
        with pytest.raises(KeyboardInterrupt, match="before its first draw"):
            fit(pair)
        return
    posterior = fit(pair)
    assert posterior["a"].shape == shape
    assert f"1 of 2 chains with {shape[1]} of 60 draws" in posterior.messages[0]
    assert torch.isfinite(posterior["a"]).all()
    assert posterior["a"].std() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 0}, r"chains=.*at least 1, got 0"),
        ({"draws": True}, r"draws=.*whole number.*True"),
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
