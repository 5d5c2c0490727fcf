"""The fully visible machine against enumeration: laws, kernels, gradients and fits."""

import math

import pyro
import pytest
import torch
from pyro.infer import MCMC, SVI, Predictive, Trace_ELBO
from scipy import stats

import ppgen
from ppgen.inference import PseudoLikelihood, SingleSiteDivergence, SingleSiteGibbs
from ppgen.inference import pairwise_learning as learning
from ppgen.inference import single_site_gibbs as single
from ppgen.models import RBM, FullyVisibleBoltzmannMachine
from ppgen.types import ExactDensity, PairwiseMachine

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5
DRAWS = 20_000
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def states(units):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * units).reshape(-1, units)


def machine(units=4, scale=2.0):
    made = FullyVisibleBoltzmannMachine(units, weight_scale=scale)
    torch.nn.init.normal_(made.visible_bias)
    return made.requires_grad_(False)


def test_it_meets_the_protocols():
    assert isinstance(machine(), PairwiseMachine)
    assert isinstance(machine(), ExactDensity)


def test_energy_and_conditionals_are_those_of_the_pairs():
    made, x = machine(), states(4)
    W = made.weight
    torch.testing.assert_close(made.log_partition(), (-made.energy(x)).logsumexp(0), **EXACT)
    pairs = sum(W[i, j] * x[:, i] * x[:, j] for i in range(4) for j in range(i))
    torch.testing.assert_close(made.energy(x), -pairs - x @ made.visible_bias, **EXACT)
    for i in range(4):
        on, off = x.clone(), x.clone()
        on[:, i], off[:, i] = 1.0, 0.0
        odds = made.log_prob(on) - made.log_prob(off)
        torch.testing.assert_close(made.unit_logits(x)[:, i], odds, **EXACT)


def test_pseudo_likelihood_is_the_sum_of_the_conditionals():
    made, x = machine(), states(4)
    total = torch.zeros(16)
    for i in range(4):
        flipped = x.clone()
        flipped[:, i] = 1 - x[:, i]
        total -= torch.nn.functional.softplus(made.log_prob(flipped) - made.log_prob(x))
    torch.testing.assert_close(made.pseudo_log_likelihood(x), total, **EXACT)


def test_an_rbm_summed_over_x_has_pairs_of_its_own():
    """Where a hidden unit of an RBM has two inputs, it is a pair: the same law of x."""
    rbm = RBM(2, 1, weight_scale=2.0).requires_grad_(False)
    p = rbm.marginal().log_prob(states(2)).reshape(2, 2)
    pair = FullyVisibleBoltzmannMachine(2).requires_grad_(False)
    pair.pairs.copy_((p[1, 1] - p[1, 0] - p[0, 1] + p[0, 0]).reshape(1))
    pair.visible_bias.copy_(torch.stack([p[1, 0] - p[0, 0], p[0, 1] - p[0, 0]]))
    torch.testing.assert_close(pair.log_prob(states(2)), p.flatten(), **EXACT)


# Single-site Gibbs


def p_value(x, made):
    expected = made.log_prob(states(4)).exp() * len(x)
    observed = torch.bincount((x @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long(), minlength=16)
    rare = expected < 10
    observed = observed.double()
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    return stats.chisquare(observed.numpy(), expected.numpy()).pvalue


def update(made, i):
    """Transition matrix of drawing unit i given the others, ``(16, 16)``."""
    x, T = states(4), torch.zeros(16, 16)
    index = (x @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
    on = torch.sigmoid(made.unit_logits(x)[:, i])
    bit = 2 ** (3 - i)
    T[torch.arange(16), index | bit] = on
    T[torch.arange(16), index & ~bit] = 1 - on
    return T


@pytest.mark.parametrize("scan", ["sequential", "random"])
def test_one_sweep_from_each_state_has_the_law_of_the_transition_matrix(scan):
    made = machine()
    updates = [update(made, i) for i in range(4)]
    if scan == "sequential":
        T = updates[0] @ updates[1] @ updates[2] @ updates[3]
    else:
        T = torch.linalg.matrix_power(torch.stack(updates).mean(0), 4)
    p = made.log_prob(states(4)).exp()
    torch.testing.assert_close(p @ T, p, rtol=0, atol=1e-12)
    for start in (0, 5, 15):
        x = states(4)[start].expand(DRAWS, 4)
        if scan == "sequential":
            x = single.step(x, machine=made)
        else:  # one order is shared by the chains of a call: many calls of few chains
            x = torch.cat([single.step(x[:10], machine=made, scan="random") for _ in range(500)])
        found = torch.bincount((x @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long(), minlength=16)
        # 48 comparisons: z = 5.0; chains that share an order count as a tenth in the worst case
        count = len(x) if scan == "sequential" else len(x) / 10
        error = (T[start] * (1 - T[start]) / count).sqrt()
        assert ((found / len(x) - T[start]).abs() < 5.0 * error + 5 / count).all()


@pytest.mark.parametrize("scan", ["sequential", "random"])
@pytest.mark.parametrize("sweeps", [1, 8])
def test_exact_draws_stay_exact(scan, sweeps):
    made = machine()
    kernel = SingleSiteGibbs(made, made.marginal().sample((DRAWS,)), scan=scan, sweeps=sweeps)
    assert p_value(kernel.sample(kernel.initial_params)["x"], made) > FAILURE_RATE


@pytest.mark.parametrize("scan", ["sequential", "random"])
def test_clamped_units_stay_and_the_others_have_their_enumerated_conditional(scan):
    made, x = machine(), states(4)
    clamp = torch.tensor([True, False, True, False])
    p = made.log_prob(x).exp() * (x[:, clamp] == torch.tensor([1.0, 0.0])).all(1)
    p = p / p.sum()
    start = x[torch.multinomial(p, DRAWS, replacement=True)]
    kernel = SingleSiteGibbs(made, start, scan=scan, sweeps=3, clamp=clamp)
    found = kernel.sample(kernel.initial_params)["x"]
    assert torch.equal(found[:, clamp], start[:, clamp])
    assert (found != start).any()
    index = (found @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
    frequency = torch.bincount(index, minlength=16) / DRAWS
    # 32 comparisons: z = 4.9; + 5/n for rare states
    assert ((frequency - p).abs() < 4.9 * (p * (1 - p) / DRAWS).sqrt() + 5 / DRAWS).all()
    with pytest.raises(ValueError, match="0 or 1, got nan"):
        SingleSiteGibbs(made, torch.full((2, 4), math.nan), clamp=clamp)


def test_updating_all_units_at_once_is_caught():
    """The planted bug: what is right for a side of a restricted machine is wrong here."""
    made = machine()
    x = made.marginal().sample((DRAWS,))
    x = (torch.rand(DRAWS, 4) < torch.sigmoid(made.unit_logits(x))).double()
    assert p_value(x, made) < FAILURE_RATE


def geweke(rounds=10):
    """p-values of x in the rows of each of two machines, and of the share of the first.

    In turn the machine of each row is drawn given x, and x moved given the machine: as
    `test_invariance` has it for machines of two sides.
    """
    pair = (machine(), machine())
    theta, rows = torch.arange(DRAWS) % 2, torch.arange(DRAWS)
    x = torch.stack([made.marginal().sample((DRAWS,)) for made in pair])[theta, rows]
    for k in range(rounds):
        for index, made in enumerate(pair):
            of = theta == index
            scan = "random" if k % 2 else "sequential"
            x[of] = SingleSiteGibbs(made, x[of], scan=scan).sample({"x": x[of]})["x"]
        odds = pair[1].log_prob(x) - pair[0].log_prob(x)
        theta = (torch.rand_like(odds) < odds.sigmoid()).long()
    share = stats.binomtest(int(theta.sum()), DRAWS).pvalue
    return min(share, *(p_value(x[theta == index], made) for index, made in enumerate(pair)))


def test_geweke_s_joint_test():
    assert geweke() > FAILURE_RATE / 3


def test_geweke_s_joint_test_catches_fields_that_are_not_kept_up_to_date(monkeypatch):
    """Each unit then goes by what the others were before the sweep."""

    def stale(x, *, machine, scan, clamp):
        return torch.bernoulli(machine.unit_logits(x).sigmoid())

    monkeypatch.setattr(single, "step", stale)
    assert geweke() < FAILURE_RATE / 3


def test_it_runs_under_mcmc():
    made = machine()
    mcmc = MCMC(
        SingleSiteGibbs(made, torch.zeros(20, 4)),
        num_samples=5,
        warmup_steps=2,
        disable_progbar=True,
    )
    mcmc.run()
    assert mcmc.get_samples()["x"].shape == (5, 20, 4)


# Learning


def test_gradient_of_exact_draws_is_that_of_the_likelihood():
    made, x = machine(scale=1.0), (torch.rand(30, 4) < 0.4).double()
    made.requires_grad_()
    (-made.log_prob(x).mean()).backward()
    p = made.log_prob(states(4)).exp().detach()
    moments = 16 * p[:, None] * states(4)  # 16 weighted states stand for one count each
    weight = moments.T @ states(4) / 16 - x.T @ x / 30
    by_name = made.by_parameter(weight, p @ states(4) - x.mean(0))
    for name, value in by_name.items():
        torch.testing.assert_close(value, made.get_parameter(name).grad, **EXACT)
    found, bias = learning.gradient(x, states(4))
    torch.testing.assert_close(bias, torch.full((4,), 0.5) - x.mean(0))
    torch.testing.assert_close(found, states(4).T @ states(4) / 16 - x.T @ x / 30)


@pytest.mark.parametrize(
    "loss",
    [SingleSiteDivergence(2), SingleSiteDivergence(1, True), PseudoLikelihood(), Trace_ELBO()],
)
def test_svi_and_train_move_every_parameter(loss):
    x = (torch.rand(30, 4) < 0.4).double()
    for by_svi in (True, False):
        made = FullyVisibleBoltzmannMachine.from_data(x, weight_scale=0.1)
        before = {name: p.detach().clone() for name, p in made.named_parameters()}
        if by_svi:
            with pyro.get_param_store().scope():
                svi = SVI(made.model, made.guide, pyro.optim.SGD({"lr": 0.1}), loss)
                svi.step(x)
                assert math.isfinite(svi.evaluate_loss(x))
        else:
            ppgen.train(made, x, loss=loss, epochs=1, batch_size=7)
        assert all((p != before[name]).any() for name, p in made.named_parameters())


@pytest.mark.parametrize("name", ["exact", "pseudo", "PCD"])
def test_every_loss_comes_near_the_machine_that_made_the_data(name):
    """The maximum likelihood of N examples is log p of the truth plus about D(D+1)/2 / 2N nats."""
    truth = machine(5, 1.0)
    x = truth.marginal().sample((4000,))
    loss = {
        "exact": Trace_ELBO(),
        "pseudo": PseudoLikelihood(),
        "PCD": SingleSiteDivergence(1, True),
    }
    made = FullyVisibleBoltzmannMachine.from_data(x)
    ppgen.train(made, x, loss=loss[name], epochs=150, batch_size=4000, learning_rate=0.05)
    with torch.no_grad():
        law = truth.log_prob(states(5)).exp()
        loss_of = (law * (truth.log_prob(states(5)) - made.log_prob(states(5)))).sum()
    # 2 N KL is chi-square with 15 degrees of freedom (quantile 2e-5: 50) for the exact maximum;
    # ten times that allows for the noise of PCD and the efficiency of the pseudo-likelihood
    assert loss_of < 10 * 50 / (2 * 4000)


def test_likelihood_and_predictive_are_exact():
    made = machine()
    x = states(4)
    found = ppgen.log_likelihood(made, x)
    assert found.kind == "exact"
    assert math.isclose(found.lower, made.log_prob(x).mean().item())
    drawn = Predictive(made.model, num_samples=1)(examples=DRAWS)["x"].squeeze(0)
    assert p_value(drawn, made.requires_grad_(False)) > FAILURE_RATE


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: FullyVisibleBoltzmannMachine(1), "at least 2, got 1"),
        (lambda: machine(21).log_prob(torch.ones(21)), "21 units, and at most 20"),
        (lambda: machine().energy(torch.ones(2, 5)), "expected units"),
        (lambda: SingleSiteGibbs(machine(), torch.ones(4)), "start"),
        (lambda: SingleSiteGibbs(machine(), torch.ones(2, 4), scan="up"), "scan"),
        (lambda: SingleSiteDivergence(0), "gibbs_steps"),
        (lambda: PseudoLikelihood().loss(machine().model, None, torch.ones(2, 5)), r"\(B, 4\)"),
    ],
)
def test_wrong_calls_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_data_that_is_no_state_of_the_machine_is_refused():
    """Grey levels are means of draws to the moments, but no state that a conditional is given."""
    machine, grey = FullyVisibleBoltzmannMachine(3), torch.full((2, 3), 0.5)
    SingleSiteDivergence().loss_and_grads(machine.model, machine.guide, grey)
    with pytest.raises(ValueError, match=r"expected 0 or 1, got 0\.5 in row 0"):
        PseudoLikelihood().loss_and_grads(machine.model, machine.guide, grey)
    with pytest.raises(ValueError, match="from 0 to 1, got 7 in row 0"):
        SingleSiteDivergence().loss_and_grads(machine.model, machine.guide, 14 * grey)


def test_the_contrast_is_the_difference_of_mean_energies():
    """Units that are all but fixed at one: where the sweep ends is known."""
    made = FullyVisibleBoltzmannMachine(3).requires_grad_(False)
    made.pairs.zero_()
    made.visible_bias.fill_(60.0)
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])  # 0, -60, -180 nats
    found = SingleSiteDivergence().loss(made.model, made.guide, x)
    assert found == pytest.approx(-80.0 + 180.0)


def test_another_story_is_refused_by_name():
    rbm = RBM(4, 2)
    with pytest.raises(TypeError, match="ContrastiveDivergence"):
        SingleSiteDivergence().loss(rbm.model, rbm.guide, torch.ones(2, 4))
