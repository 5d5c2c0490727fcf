"""The up-down gradient against enumeration, and the fit of a toy."""

import itertools
import math
from functools import partial

import pytest
import torch
from scipy import stats

import ppgen
from ppgen.inference import ContrastiveDivergence, TopLayer, UpDown, greedy
from ppgen.models.dbn import DBN
from ppgen.models.rbm import RBM
from ppgen.progress import quiet

FAILURE_RATE = 2e-5


def states(units):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)))


def network(sizes=(3, 2, 2)):
    dbn = DBN(sizes[0], sizes[1:], tied=False)
    for p in dbn.parameters():
        torch.nn.init.normal_(p)
    return dbn


def test_expected_gradient_is_that_of_both_phases():
    """One data point copied often: the mean over its copies estimates the enumerated sums.

    Wake: sum_h q(h|x) log p(x|h). Sleep: sum_s p_top(s) sum_x p(x|s) log q(s|x), of which the
    machine's chains give exact draws, since they start from them.
    """
    dbn, copies = network(), 40_000
    x = states(3)[5].expand(copies, 3)
    h, every = states(2), states(3)
    q = dbn.log_recognition([x[:1].expand(4, 3), h]).exp().detach()
    wake = -(q * dbn.log_generative([x[:1].expand(4, 3), h])).sum()
    top = dbn.top.marginal().log_prob(h).exp().detach()
    pairs = [every[:, None].expand(8, 4, 3), h.expand(8, 4, 2)]
    joint = top * dbn.log_generative(pairs).exp().detach()
    sleep = -(joint * dbn.log_recognition(pairs)).sum()
    names = [n for n, _ in dbn.named_parameters() if not n.startswith("top")]
    wanted = [p for n, p in dbn.named_parameters() if n in names]
    exact = torch.autograd.grad(wake + sleep, wanted)

    loss = UpDown(gibbs_steps=1)
    hidden = dbn.top.hidden_given_visible(dbn.top.marginal().sample((copies,))).sample()
    start = {"chains": hidden, "visible_offset": torch.zeros(2), "hidden_offset": torch.zeros(2)}
    loss.load_state_dict(start)
    loss.loss_and_grads(dbn.model, dbn.guide, x)
    # a gradient of -log Bernoulli is (p - value) * input, within [-1, 1]: its sd is at most 1;
    # 17 entries share the failure rate
    error = stats.norm.isf(FAILURE_RATE / 2 / 17) / copies**0.5
    for value, found in zip(exact, wanted, strict=True):
        assert (found.grad - value).abs().max() < error


def test_the_top_gets_the_gradient_of_contrastive_divergence_at_the_recognised_layer():
    dbn, x = network(), states(3)
    torch.manual_seed(1)
    layers = dbn.recognise(x)
    loss = UpDown(gibbs_steps=2, persistent=False, centred=False)
    info = loss.top.accumulate(dbn.top, layers[-1])
    dreams = dbn.generate(info.fantasies)
    expected = [p.grad.clone() for p in dbn.top.parameters()]
    dbn.zero_grad()
    torch.manual_seed(1)
    value = UpDown(gibbs_steps=2, persistent=False, centred=False).loss_and_grads(
        dbn.model, dbn.guide, x
    )
    for p, g in zip(dbn.top.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)
    seen, dreamt = (dbn.log_recognition(s) - dbn.log_generative(s) for s in (layers, dreams))
    contrast = seen.mean() - dreamt.mean() + info.contrast
    assert math.isclose(value, contrast.item(), abs_tol=1e-10)


def test_the_number_of_a_network_with_its_own_draws_is_near_zero():
    dbn, count = network((3, 2, 2)), 20_000
    with torch.no_grad():  # without couplings recognition can be exact
        for name in ("weight_1", "recognition_weight_1", "top.weight"):
            dbn.get_parameter(name).zero_()
        dbn.recognition_bias_1.copy_(dbn.top.visible_bias)
    x = dbn.model(examples=count).detach()
    spread = dbn.log_generative([x, torch.zeros(count, 2)]).std().item()
    error = stats.norm.isf(FAILURE_RATE / 2) * spread * (2 / count) ** 0.5
    assert abs(UpDown(persistent=False).loss(dbn.model, dbn.guide, x)) < error


def test_the_top_alone_is_trained_as_by_up_down_and_the_layers_below_get_no_gradient():
    dbn, x = network(), states(3)
    gradients = []
    for loss in (TopLayer(2, persistent=False), UpDown(2, persistent=False)):
        dbn.zero_grad()
        torch.manual_seed(1)
        loss.loss_and_grads(dbn.model, dbn.guide, x)
        gradients.append(
            {n: p.grad.clone() for n, p in dbn.named_parameters() if p.grad is not None}
        )
    alone, together = gradients
    assert set(alone) == {n for n in together if n.startswith("top.")}
    for name, value in alone.items():
        torch.testing.assert_close(value, together[name])


def test_evaluating_moves_nothing_and_a_resumed_loss_goes_on():
    dbn, x, loss = network(), states(3), UpDown()
    loss.loss_and_grads(dbn.model, dbn.guide, x)
    kept = {k: v.clone() for k, v in loss.state_dict().items()}
    grads = [p.grad.clone() for p in dbn.parameters()]
    loss.loss(dbn.model, dbn.guide, x)
    assert all(torch.equal(kept[k], v) for k, v in loss.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, dbn.parameters(), strict=True))
    other = UpDown()
    other.load_state_dict(kept)
    again = []
    for this in (loss, other):
        torch.manual_seed(2)
        dbn.zero_grad()
        this.loss_and_grads(dbn.model, dbn.guide, x)
        again.append([p.grad.clone() for p in dbn.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*again, strict=True))


@pytest.mark.slow  # 2 s on a quiet core
def test_greedy_then_up_down_learns_a_toy_to_its_entropy():
    """Three pairs of fair bits, each equal with odds 9 to 1: at best -3 (log 2 + H(0.1)).

    The data's own mean of the true log p is compared, so that their number drops out but for
    overfitting, about parameters / 2 N = 0.04 nats.
    """
    first = torch.rand(600, 3).round()
    second = torch.where(torch.rand(600, 3) < 0.9, first, 1 - first)
    x = torch.cat([first, second], 1)
    alike = (first == second).double()
    best = (math.log(0.5) + torch.where(alike == 1, 0.9, 0.1).log()).sum(1).mean().item()
    stack = [RBM(6, 6, weight_scale=0.1), RBM(6, 4, weight_scale=0.1)]
    falling = {"schedule": lambda epoch: 1 - epoch / 20, "batch_size": 50, "averaging": 0.9}
    cd = partial(ContrastiveDivergence, 3)
    with quiet():
        results = greedy(stack, x, loss=cd, epochs=20, learning_rate=0.05, seed=1, **falling)
        dbn = DBN.from_rbms(stack)
        dbn.untie()
        ppgen.train(dbn, x, epochs=20, learning_rate=0.01, seed=1, **falling)
    assert [r.epochs for r in results] == [20, 20]
    found = ppgen.log_likelihood(dbn, x, samples=500, seed=0)
    assert found.kind == "lower"
    assert found.upper is None
    independent = -6 * math.log(2)  # 1.1 nats below the best
    assert independent + 0.8 < best - 0.15 < found.lower < best + 0.1


def test_what_it_cannot_train_is_refused():
    dbn, x = DBN(3, (2, 2)), states(3)
    with pytest.raises(ValueError, match=r"untie\(\)"):
        UpDown().loss_and_grads(dbn.model, dbn.guide, x)
    with pytest.raises(TypeError, match="ContrastiveDivergence"):
        UpDown().loss_and_grads(RBM(3, 2).model, None, x)
    dbn.untie()
    with pytest.raises(ValueError, match="different networks"):
        UpDown().loss_and_grads(dbn.model, network().guide, x)
    with pytest.raises(ValueError, match=r"shape \(B, 3\)"):
        UpDown().loss_and_grads(dbn.model, dbn.guide, torch.ones(2, 4))
