"""RAISE against the annealing model itself, by its transition matrices."""

import math

import pytest
import torch
from scipy import stats

import ppgen
from ppgen.distributions import RestrictedBoltzmann
from ppgen.inference import annealed_importance_sampling as ais
from ppgen.inference import raise_bounds
from ppgen.inference import reverse_annealing as raised
from ppgen.models import DBM, RBM, GaussianRBM

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5
Z = stats.norm.isf(FAILURE_RATE / 2 / 16)  # 16 examples


def states(units):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * units).reshape(-1, units)


def machine(scale=1.0):
    rbm = RBM(4, 3, weight_scale=scale)
    torch.nn.init.normal_(rbm.visible_bias)
    torch.nn.init.normal_(rbm.hidden_bias)
    return rbm.requires_grad_(False)


def annealed(rbm, base, betas):
    """``log p_ann`` of all states: the base moved by a block Gibbs update at each beta."""
    x, h = states(4), states(3)
    p = torch.distributions.Bernoulli(logits=base).log_prob(x).sum(1).exp()
    for beta in betas[1:]:
        bias = torch.lerp(base, rbm.visible_bias, beta)
        law = RestrictedBoltzmann(beta * rbm.weight, bias, beta * rbm.hidden_bias)
        pair = x @ (beta * rbm.weight) @ h.T + (x @ bias)[:, None] + h @ (beta * rbm.hidden_bias)
        torch.testing.assert_close(pair.logsumexp(1), -law.free_energy(x))
        up, down = pair.softmax(1), pair.softmax(0)  # p(h | x), p(x | h)
        p = p @ up @ down.T
    return p.log()


def errors(rbm, base, steps, chains=40_000):
    """z-score of the mean weight of each example: the bound with many chains."""
    truth = annealed(rbm, base, ais.schedule(steps))
    x = states(4)
    weights = torch.stack(
        [
            raise_bounds(rbm, x, chains=chains // 100, temperatures=steps, base=base)
            for _ in range(100)
        ]
    )
    ratios = (weights - truth).exp()
    return (ratios.mean(0) - 1) / (ratios.std(0) / 10), weights, truth


@pytest.mark.parametrize("steps", [1, 4])
def test_the_weights_are_unbiased_for_the_annealing_model(steps):
    z, _, _ = errors(machine(0.7), torch.randn(4), steps)
    # means of 100: t with 99 degrees of freedom, whose quantile is above the normal one by 15 %
    assert z.abs().max() < 1.15 * Z


def test_weighting_before_moving_is_caught(monkeypatch):
    """The planted bug: increments at the state before its move."""

    def wrong(machine, base, betas, side, progress):
        log_weights = side.new_zeros(len(side))
        for current, previous in zip(betas[::-1], betas[-2::-1], strict=False):
            logits = machine.hidden_logits(side)
            log_weights += ais.increment(machine, base, side, logits, previous, current)
            side = ais.move(machine, base, logits, current)
        return log_weights

    monkeypatch.setattr(raised, "reverse_pass", wrong)
    rbm, base, x = machine(0.7), torch.randn(4), states(4)
    found = raise_bounds(rbm, x, chains=2000, temperatures=1, base=base)
    truth = annealed(rbm, base, ais.schedule(1))
    assert (found - truth).abs().max() > 0.2


def test_few_chains_bound_from_below_and_many_steps_reach_the_machine():
    rbm, base = machine(), torch.zeros(4)
    x = states(4)
    few = torch.stack([raise_bounds(rbm, x, chains=1, temperatures=4) for _ in range(400)])
    truth = annealed(rbm, base, ais.schedule(4))
    mean, error = few.mean(), few.mean(1).std() / 20
    assert mean < truth.mean() - Z * error
    exact = rbm.marginal().log_prob(x)
    long = raise_bounds(rbm, x, chains=50, temperatures=1000)
    # measured with this seed: 0.02; the spread of a log of a mean of 50 weights
    assert (long - exact).abs().max() < 0.2


def test_it_is_an_option_of_the_likelihood():
    rbm, x = machine(), states(4)
    found = ppgen.log_likelihood(rbm, x, raise_chains=20, temperatures=300, seed=0)
    assert found.kind == "exact"
    answer = found.details["raise"]
    assert answer["each"].shape == (16,)
    assert math.isclose(answer["bound"], answer["each"].mean().item())
    assert abs(answer["bound"] - found.lower) < 0.2
    gaussian = GaussianRBM(3, 2, weight_scale=0.5)
    x = torch.randn(5, 3)
    found = ppgen.log_likelihood(gaussian, x, raise_chains=20, temperatures=300, seed=0)
    assert abs(found.details["raise"]["bound"] - found.lower) < 0.2
    assert "raise" not in ppgen.log_likelihood(gaussian, x).details


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: raise_bounds(DBM(4, (3, 2)), states(4)), "4 of the 6 units"),
        (lambda: raise_bounds(machine(), states(4), chains=0), "chains"),
        (lambda: raise_bounds(machine(), states(4) / 2), "expected 0 or 1"),
    ],
)
def test_wrong_calls_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
