"""The RBM against enumeration, and under every inference that its table lists."""

import itertools
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.inspect import get_model_relations
from scipy import stats

from ppgen.distributions import OneHot, RestrictedBoltzmann, UnitGaussian
from ppgen.distributions.units import Gaussian, softplus
from ppgen.models.rbm import RBM
from ppgen.types import BoltzmannMachine

FAILURE_RATE = 2e-5
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def states(units):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)))


def machine(visible=4, hidden=3, scale=2.0):
    """Weights of standard deviation 2: far from independent, so that wrong laws show."""
    rbm = RBM(visible, hidden, weight_scale=scale)
    torch.nn.init.normal_(rbm.visible_bias)
    torch.nn.init.normal_(rbm.hidden_bias)
    return rbm


def joint(rbm):
    """Minus energies of all states, summed term by term: ``(2**D, 2**H)``."""
    x, h = states(rbm.visible), states(rbm.hidden)
    pairs = torch.einsum("xi,ij,hj->xh", x, rbm.weight, h)
    return pairs + (x @ rbm.visible_bias)[:, None] + (h @ rbm.hidden_bias)[None]


def test_rbm_is_a_boltzmann_machine():
    assert isinstance(machine(), BoltzmannMachine)


def test_energy_and_free_energy_equal_the_enumerated_sums():
    rbm = machine()
    x, h = states(4), states(3)
    torch.testing.assert_close(-rbm.energy(x[:, None], h[None]), joint(rbm), **EXACT)
    torch.testing.assert_close(-rbm.free_energy(x), joint(rbm).logsumexp(1), **EXACT)
    torch.testing.assert_close(rbm.marginal().free_energy(x), rbm.free_energy(x), **EXACT)


def test_conditionals_equal_the_enumerated_joint():
    rbm, x, h = machine(), states(4), states(3)
    given_x = rbm.hidden_given_visible(x[:, None]).log_prob(h[None].expand(16, 8, 3))
    given_h = rbm.visible_given_hidden(h[:, None]).log_prob(x[None].expand(8, 16, 4))
    torch.testing.assert_close(given_x, joint(rbm).log_softmax(1), **EXACT)
    torch.testing.assert_close(given_h, joint(rbm).T.log_softmax(1), **EXACT)


@pytest.mark.parametrize(("visible", "hidden"), [(5, 3), (3, 5), (13, 14), (14, 13)])
def test_log_partition_and_its_gradient_equal_enumeration_by_the_other_side(visible, hidden):
    """13 units on the smaller side are summed in two blocks, 3 in one."""
    rbm = machine(visible, hidden, scale=0.5)
    parameters = list(rbm.parameters())
    x, h = states(visible), states(hidden)
    if visible < hidden:  # enumerate the side that log_partition sums out in closed form
        other = h @ rbm.hidden_bias + softplus(h @ rbm.weight.T + rbm.visible_bias).sum(-1)
    else:
        other = -rbm.free_energy(x)
    expected = other.logsumexp(0)
    value = rbm.log_partition()
    torch.testing.assert_close(value, expected, **EXACT)
    gradients = torch.autograd.grad(value, parameters)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters), **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(rbm.log_partition(), expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_add_up_to_one(dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    total = machine().to(dtype).marginal().log_prob(states(4).to(dtype)).exp().sum()
    assert abs(total.item() - 1) < tolerance


def test_without_weights_the_machine_is_its_base_rates():
    x = (torch.rand(50, 6) < 0.3).double()
    x[:, 0] = 1  # a constant pixel
    rbm = RBM.from_data(x, 4, weight_scale=0.0)
    rates = x.mean(0).clamp(1e-4, 1 - 1e-4)
    expected = pyro.distributions.Bernoulli(rates).to_event(1).log_prob(x)
    torch.testing.assert_close(rbm.marginal().log_prob(x), expected, **EXACT)


@pytest.mark.parametrize("shape", [(), (5,), (2, 5)])
def test_batch_shapes(shape):
    rbm = machine()
    x, h = torch.ones(*shape, 4), torch.ones(*shape, 3)
    for value in (rbm.energy(x, h), rbm.free_energy(x), rbm.marginal().log_prob(x)):
        assert value.shape == shape
    assert rbm.hidden_given_visible(x).sample().shape == h.shape
    assert rbm.visible_given_hidden(h).sample().shape == x.shape
    assert rbm.sweep(x).shape == x.shape
    assert rbm.marginal().expand(shape).sample().shape == x.shape
    assert rbm.marginal().expand(shape).log_prob(torch.ones(4)).shape == shape


def test_free_energy_is_finite_and_smooth_at_large_logits():
    logits = torch.tensor([-1e4, -100.0, 10.0, 20.0, 20.0001, 39.9999, 40.0001, 100.0, 1e4])
    logits.requires_grad_()
    values = softplus(logits)
    expected = torch.logaddexp(logits, torch.zeros(()))
    torch.testing.assert_close(values, expected, rtol=1e-15, atol=1e-15)
    (slope,) = torch.autograd.grad(values.sum(), logits)
    torch.testing.assert_close(slope, torch.sigmoid(logits), rtol=1e-14, atol=1e-15)
    rbm = RBM(2, 2)
    torch.nn.init.constant_(rbm.weight, 1e4)
    rbm.free_energy(torch.ones(2)).backward()
    assert all(p.grad.isfinite().all() for p in rbm.parameters() if p.grad is not None)


@pytest.mark.parametrize(("visible", "hidden"), [(4, 3), (3, 4)])
def test_exact_samples_have_the_law_of_the_machine(visible, hidden):
    rbm = machine(visible, hidden)
    draws = rbm.marginal().sample((20_000,))
    assert goodness_of_fit(draws, rbm) > FAILURE_RATE


def goodness_of_fit(draws, rbm):
    """Chi-square p-value; states that are expected less than 10 times are pooled."""
    expected = rbm.marginal().log_prob(states(rbm.visible)).exp().detach() * len(draws)
    index = (draws @ 2.0 ** torch.arange(rbm.visible - 1, -1, -1.0)).long()
    counts = torch.bincount(index, minlength=2**rbm.visible).double()
    rare = expected < 10
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    return stats.chisquare(counts.numpy(), expected.numpy()).pvalue


# What the pair runs under


def test_elbo_equals_log_p_for_every_draw():
    rbm = machine()
    x = states(4)
    exact = rbm.marginal().log_prob(x).sum().item()
    for _ in range(5):
        assert abs(-Trace_ELBO().loss(rbm.model, rbm.guide, x) - exact) < 1e-9


def test_trace_elbo_trains_a_small_machine_twice_in_one_process():
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]).repeat(10, 1)
    for _ in range(2):
        rbm = RBM(4, 2, weight_scale=0.1)
        before = rbm.marginal().log_prob(x).mean().item()
        with pyro.get_param_store().scope():
            svi = SVI(rbm.model, rbm.guide, pyro.optim.Adam({"lr": 0.05}), loss=Trace_ELBO())
            for _ in range(60):
                svi.step(x)
        assert rbm.marginal().log_prob(x).mean().item() > before + 0.5


def test_elbo_on_an_unnormalised_density_raises():
    rbm = RBM(30, 25)
    x = torch.ones(2, 30)
    with pytest.raises(ValueError, match="site 'x'") as error:
        Trace_ELBO().loss_and_grads(rbm.model, rbm.guide, x)
    assert "ContrastiveDivergence" in str(error.value.__cause__ or error.value)


def test_predictive_draws_hidden_units_given_data_and_new_data():
    rbm = machine()
    x = states(4)
    given = Predictive(rbm.model, guide=rbm.guide, num_samples=3)(x)
    assert given["h"].shape == (3, 16, 3)
    new = Predictive(rbm.model, num_samples=1)(examples=20_000)["x"].squeeze(0)
    assert goodness_of_fit(new, rbm) > FAILURE_RATE


def test_pyro_reads_the_structure_of_the_model():
    relations = get_model_relations(machine().model, (states(4),))
    assert set(relations["sample_sample"]) == {"x", "h"}
    assert relations["observed"] == ["x"]


def test_gradients_reach_every_parameter():
    rbm = machine()
    rbm.marginal().log_prob(states(4)).mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-6 for p in rbm.parameters())


def test_state_dict_round_trip():
    rbm, other = machine(), machine()
    other.load_state_dict(rbm.state_dict())
    x = states(4)
    assert torch.equal(rbm.free_energy(x), other.free_energy(x))


# Log Z that was estimated


def test_an_estimate_holds_until_a_parameter_moves():
    rbm = RBM(30, 25, weight_scale=0.0)  # its exact log Z is known: 55 log 2
    rbm.normalise(55 * math.log(2))
    x = torch.ones(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(
            rbm.marginal().log_prob(x), torch.full((2,), -30 * math.log(2)), **EXACT
        )
    rbm.weight.requires_grad_(False)  # the biases are trained still
    with pytest.raises(ValueError, match="has no gradient"):
        rbm.marginal().log_prob(x)
    with torch.no_grad():
        rbm.hidden_bias[3] += 1e-6
        with pytest.raises(ValueError, match="parameters have moved"):
            rbm.marginal().log_prob(x)


def test_states_that_are_all_but_certain_are_drawn():
    """Weights beyond the exponent of a float: both units are on, in both of its sides."""
    law = RestrictedBoltzmann(torch.full((2, 2), 400.0), torch.zeros(2), torch.zeros(2))
    assert torch.equal(law.sample((3,)), torch.ones(3, 2))


def test_what_is_too_large_says_what_to_do_instead():
    law = RBM(30, 25).marginal()
    with pytest.raises(ValueError, match="annealed importance sampling"):
        law.log_prob(torch.ones(30))
    with pytest.raises(ValueError, match=r"25 units, and at most 20.*BlockGibbs"):
        law.sample()


@pytest.mark.parametrize("bad", [0.5, float("nan"), 2.0, -1.0])
def test_entries_that_are_not_binary_are_named(bad):
    x = torch.ones(3, 4)
    x[1, 2] = bad
    with pytest.raises(ValueError, match=f"got {bad:g} in row 1, column 2"):
        machine().marginal().log_prob(x)


def test_log_density_is_convex_so_that_a_grey_score_would_flatter():
    """Why grey images are refused: log p* of a mean is at most the mean of log p*."""
    rbm, x = machine(), states(4)
    grey = x.mean(0)
    assert rbm.free_energy(x).mean() < rbm.free_energy(grey)


@pytest.mark.parametrize(
    "call",
    [
        lambda: RBM(4, 2, units=Gaussian()),
        lambda: RBM(4, 2, units=UnitGaussian()),
        lambda: RBM.from_data(torch.ones(4), 2),
        lambda: RBM.from_data(torch.full((3, 4), math.nan), 2),
        lambda: machine().free_energy(torch.ones(2, 5)),
        lambda: RestrictedBoltzmann(torch.zeros(2, 3), torch.zeros(3), torch.zeros(2)),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


# Missing units


@pytest.mark.parametrize(("visible", "hidden"), [(4, 3), (4, 5)])
def test_missing_units_have_their_enumerated_conditional_and_are_summed_out(visible, hidden):
    rbm, observed = machine(visible, hidden), torch.tensor([True, False, True, False])
    x = torch.tensor([1.0, float("nan"), 0.0, float("nan")])
    filled = x.expand(4, -1).clone()
    filled[:, ~observed] = states(2)
    joint_of = -rbm.free_energy(filled)
    law = rbm.missing_given_observed(x, observed)
    torch.testing.assert_close(law.log_prob(states(2)), joint_of.log_softmax(0), **EXACT)
    rows = torch.stack([x, filled[1]])
    masks = torch.stack([observed, torch.ones(4, dtype=torch.bool)])
    expected = torch.stack([joint_of.logsumexp(0), joint_of[1]])
    torch.testing.assert_close(rbm.log_observed(rows, masks), expected, **EXACT)
    torch.testing.assert_close(rbm.log_observed(x[None], observed), expected[:1], **EXACT)


# Categorical units


def test_missing_categories_are_summed_out():
    rbm = RBM(6, 3, weight_scale=2.0, units=OneHot(3)).requires_grad_(False)
    torch.nn.init.normal_(rbm.visible_bias)
    x, observed = torch.tensor([0.0, 1, 0, math.nan, 1, 7]), torch.arange(6) < 3
    filled = torch.cat([x[:3].expand(3, -1), torch.eye(3)], 1)
    joint_of = -rbm.free_energy(filled)
    law = rbm.missing_given_observed(x, observed)
    torch.testing.assert_close(law.log_prob(torch.eye(3)), joint_of.log_softmax(0), **EXACT)
    found = rbm.log_observed(x[None], observed)
    torch.testing.assert_close(found, joint_of.logsumexp(0)[None], **EXACT)
    with pytest.raises(ValueError, match="observed in part"):
        rbm.log_observed(x[None], torch.arange(6) < 2)


def test_softmax_units_equal_the_enumerated_machine():
    rbm = RBM(6, 3, weight_scale=2.0, units=OneHot(3)).requires_grad_(False)
    torch.nn.init.normal_(rbm.visible_bias)
    groups = torch.eye(3)
    x = torch.cat([groups.repeat_interleave(3, 0), groups.repeat(3, 1)], 1)  # all nine
    joint_of = -rbm.energy(x[:, None], states(3)[None])
    torch.testing.assert_close(rbm.log_partition(), joint_of.flatten().logsumexp(0), **EXACT)
    log_p = rbm.marginal().log_prob(x)
    torch.testing.assert_close(log_p, joint_of.logsumexp(1) - rbm.log_partition(), **EXACT)
    draws = rbm.marginal().sample((20_000,))
    for _ in range(4):
        draws = rbm.sweep(draws)
    index = 3 * draws[:, :3].argmax(1) + draws[:, 3:].argmax(1)
    expected = log_p.exp() * 20_000
    keep = expected >= 10
    observed = torch.bincount(index, minlength=9)[keep]
    z = (observed - expected[keep]) / (expected[keep] * (1 - log_p.exp()[keep])).sqrt()
    assert z.abs().max() < 4.8  # 9 comparisons: normal quantile of 1 - 1e-5 / 9
    with pytest.raises(ValueError, match="one of 3 categories"):
        rbm.marginal().log_prob(torch.ones(6))
    start = RBM.from_data(x[:2], 3, units=OneHot(3), weight_scale=0.0)
    share = torch.softmax(start.visible_bias[:3], 0)
    torch.testing.assert_close(share, torch.tensor([1.0, 0.0, 0.0]), rtol=0, atol=3e-4)
