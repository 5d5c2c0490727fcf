"""Deep belief networks against sums over all states of all units."""

import itertools
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from scipy import stats

from ppgen.inference import UpDown
from ppgen.models.dbn import DBN
from ppgen.models.rbm import RBM
from ppgen.types import DirectedLayers, UnnormalisedDensity

FAILURE_RATE = 2e-5
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SIZES = [(4, 3), (4, 3, 2), (4, 3, 2, 3)]


def states(units):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)))


def network(sizes=(4, 3, 2), tied=False):
    dbn = DBN(sizes[0], sizes[1:], tied=tied)
    for p in dbn.parameters():
        torch.nn.init.normal_(p)
    return dbn


def bernoulli(logits, value):
    p = torch.sigmoid(logits)
    return (value * p + (1 - value) * (1 - p)).prod(-1)


def evidence(dbn, x):
    """``log p(x)``: the top's law of its visible side, then a table for each directed layer."""
    side = states(dbn.top.visible)
    joint = torch.exp(-dbn.top.energy(side[:, None], states(dbn.top.hidden)[None])).sum(1)
    p = joint / joint.sum()
    for layer in range(len(dbn.hidden) - 1, 0, -1):
        weight, bias = getattr(dbn, f"weight_{layer}"), getattr(dbn, f"bias_{layer - 1}")
        below = states(len(bias))
        p = p @ bernoulli((side @ weight.T + bias)[:, None], below[None])
        side = below
    return p[(x @ 2.0 ** torch.arange(x.shape[1] - 1, -1, -1.0)).long()].log()


@pytest.mark.parametrize("sizes", SIZES)
def test_probabilities_of_new_data_are_the_enumerated_ones(sizes):
    dbn = network(sizes)
    x = states(4)
    expected = evidence(dbn, x).exp().detach()
    torch.testing.assert_close(expected.sum(), torch.ones(()), **EXACT)
    drawn = Predictive(dbn.model, num_samples=1)(examples=20_000)["x"].squeeze(0)
    assert p_value(drawn, expected) > FAILURE_RATE
    # long chains of the top and one pass down: a way of its own to the same law
    start = x if len(sizes) == 3 else None
    drawn = dbn.sample(20_000, gibbs_steps=60, start=start)
    assert p_value(drawn, expected) > FAILURE_RATE
    drawn = dbn.generate(dbn.top.marginal().sample((20_000,)))[0]
    assert p_value(drawn, expected) > FAILURE_RATE


def p_value(x, p):
    counts = torch.bincount((x @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long(), minlength=16).double()
    rare = p * len(x) < 10
    expected = torch.cat([p[~rare], p[rare].sum()[None]]) * len(x)
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    keep = expected > 0
    return stats.chisquare(observed[keep].numpy(), expected[keep].numpy()).pvalue


@pytest.mark.parametrize("sizes", SIZES)
def test_importance_weights_are_unbiased_and_bounds_stay_below_the_evidence(sizes):
    dbn = network(sizes)
    assert isinstance(dbn, UnnormalisedDensity)
    assert isinstance(dbn, DirectedLayers)
    x, samples = states(4), 40_000
    exact = evidence(dbn, x)
    weights = (dbn.unnormalised_log_weights(x, samples) - dbn.top.log_partition()).detach()
    ratios = (weights - exact).exp()
    z = stats.norm.isf(FAILURE_RATE / 2 / 16)
    assert ((ratios.mean(0) - 1).abs() < z * ratios.std(0) / samples**0.5 + 1e-12).all()
    error = z * weights.std(0) / samples**0.5
    assert (weights.mean(0) < exact + error + 1e-12).all()
    # tighter with more draws, on average
    many = weights.reshape(-1, 20, 16).logsumexp(1) - math.log(20)
    assert (many.mean(0) > weights.mean(0) - error - 1e-12).all()


def test_a_transposed_top_leaves_the_machine_below_as_it_is_and_the_bound_tight():
    rbm = RBM(4, 3, weight_scale=1.5)
    torch.nn.init.normal_(rbm.visible_bias)
    torch.nn.init.normal_(rbm.hidden_bias)
    dbn = DBN.from_rbms([rbm, rbm.transposed()])
    x = states(4)
    expected = rbm.marginal().log_prob(x)
    torch.testing.assert_close(evidence(dbn, x), expected, **EXACT)
    weights = dbn.unnormalised_log_weights(x, 50) - dbn.top.log_partition()
    torch.testing.assert_close(weights, expected.expand(50, -1), **EXACT)


def test_further_units_of_a_transposed_top_hardly_change_the_law():
    """Whatever their number: they are at one half, and their mean pull is taken back."""
    rbm = RBM(4, 3, weight_scale=1.5)
    x = states(4)
    expected = rbm.marginal().log_prob(x)
    top = rbm.transposed(10, weight_scale=1e-3)
    # the mean pull alone would change log p by up to 3 * 6 * 1e-3 / 2; what is left is quadratic
    found = evidence(DBN.from_rbms([rbm, top]), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert (top.weight[:, 4:] != 0).all()
    with pytest.raises(ValueError, match="at least 4 hidden units"):
        rbm.transposed(3)


def test_log_densities_of_the_layers_are_those_of_the_pair():
    dbn = network((4, 3, 2, 3))
    x = states(4)
    drawn = pyro.poutine.trace(dbn.guide).get_trace(x)
    scored = pyro.poutine.trace(pyro.poutine.replay(dbn.model, trace=drawn)).get_trace(x)
    layers = [x, drawn.nodes["h1"]["value"], drawn.nodes["h2"]["value"]]
    torch.testing.assert_close(drawn.log_prob_sum(), dbn.log_recognition(layers).sum(), **EXACT)
    joint = dbn.log_generative(layers) + dbn.top.marginal().log_prob(layers[-1])
    torch.testing.assert_close(scored.log_prob_sum(), joint.sum(), **EXACT)


def test_recognition_draws_have_the_law_of_the_guide():
    dbn, x = network(), states(4)[6]
    h = dbn.recognise(x.expand(20_000, 4))[1]
    expected = bernoulli(dbn.recognition_logits(1, x), states(3)).detach()
    counts = torch.bincount((h @ torch.tensor([4.0, 2.0, 1.0])).long(), minlength=8).double()
    keep = expected * 20_000 > 10
    observed = torch.cat([counts[keep], counts[~keep].sum()[None]])
    law = torch.cat([expected[keep], expected[~keep].sum()[None]]) * 20_000
    chosen = law > 0
    assert stats.chisquare(observed[chosen].numpy(), law[chosen].numpy()).pvalue > FAILURE_RATE


def test_untying_changes_nothing_until_training_does():
    dbn = network(tied=True)
    layers = dbn.recognise(states(4))
    before = dbn.log_recognition(layers)
    dbn.untie()
    assert torch.equal(dbn.log_recognition(layers), before)
    assert dbn.recognition_weight_1 is not dbn.weight_1
    with torch.no_grad():
        dbn.weight_1.add_(1.0)
    assert torch.equal(dbn.log_recognition(layers), before)
    other = DBN(4, (3, 2), tied=False)
    other.load_state_dict(dbn.state_dict())
    assert torch.equal(other.log_recognition(layers), before)


def test_a_stack_is_taken_over_whole():
    stack = [RBM(4, 3, weight_scale=1.0), RBM(3, 2, weight_scale=1.0)]
    dbn = DBN(4, (3, 2), tied=False)
    dbn.assemble(stack)
    x = states(4)
    torch.testing.assert_close(dbn.recognition_logits(1, x), stack[0].hidden_logits(x))
    h = states(3)
    torch.testing.assert_close(dbn.generative_logits(1, h), stack[0].visible_logits(h))
    torch.testing.assert_close(dbn.top.free_energy(h), stack[1].free_energy(h))


@pytest.mark.parametrize(("loss", "steps"), [(Trace_ELBO, 3), (UpDown, 30)])
def test_svi_trains_it_twice_in_one_process(loss, steps):
    x = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(10, 1)
    for _ in range(2):
        dbn = network()
        start = {name: p.detach().clone() for name, p in dbn.named_parameters()}
        before = evidence(dbn, x).mean().item()
        with pyro.get_param_store().scope():
            svi = SVI(dbn.model, dbn.guide, pyro.optim.Adam({"lr": 0.1}), loss=loss())
            for _ in range(steps):
                svi.step(x)
            assert set(pyro.get_param_store().keys()) == set(start)
        assert all((p != start[name]).any() for name, p in dbn.named_parameters())
        if loss is UpDown:  # the ELBO's score function is too noisy to show in so few steps
            assert evidence(dbn, x).mean().item() > before + 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: DBN(4, ()),
        lambda: DBN.from_rbms([]),
        lambda: DBN.from_rbms([RBM(4, 3), RBM(4, 3)]),
        lambda: DBN(4, (3, 2)).assemble([RBM(4, 3)]),
        lambda: network().recognise(torch.ones(2, 5)),
    ],
)
def test_wrong_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"expected|at least one layer"):
        call()
