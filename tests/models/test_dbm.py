"""Deep Boltzmann machines, and the RBM as their case, against sums over all states of all units."""

import itertools
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from scipy import stats

from ppgen.distributions.units import softplus
from ppgen.inference import ContrastiveDivergence
from ppgen.inference import phase_gradient as pg
from ppgen.models.dbm import DBM
from ppgen.models.duplicated_rbm import DuplicatedRBM, pretraining_machines
from ppgen.models.rbm import RBM
from ppgen.types import BoltzmannMachine, Statistics, UnnormalisedDensity

FAILURE_RATE = 2e-5
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SIZES = {
    "one hidden layer": (4, 3),
    "two hidden layers": (4, 3, 2),
    "three hidden layers": (3, 3, 2, 2),
    "four hidden layers": (3, 2, 2, 2, 2),
}


def states(units):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)))


def machine(sizes, scale=1.0):
    """Weights of standard deviation 1: far from independent, so that wrong laws show."""
    made = RBM(*sizes) if len(sizes) == 2 else DBM(sizes[0], sizes[1:], mean_field_steps=200)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=scale)
    return made


@pytest.fixture(params=SIZES.values(), ids=SIZES.keys())
def story(request):
    return machine(request.param)


def layer_parameters(story):
    if isinstance(story, RBM):
        return (story.weight,), (story.visible_bias, story.hidden_bias)
    return story.weights, story.biases


def sizes_of(story):
    return (story.visible, story.hidden) if isinstance(story, RBM) else story.sizes


def joint(story):
    """All states layer by layer, and minus their energies, summed layer by layer."""
    weights, biases = layer_parameters(story)
    layers = states(sum(sizes_of(story))).split(sizes_of(story), -1)
    value = sum(h @ b for h, b in zip(layers, biases, strict=True))
    for below, W, above in zip(layers, weights, layers[1:], strict=False):
        value = value + torch.einsum("si,ij,sj->s", below, W, above)
    return layers, value


def marginal(story, x):
    """``log p(x)`` by the sum over all states of all units, for each row."""
    layers, value = joint(story)
    alike = (layers[0][None] == x[:, None]).all(-1)
    masked = torch.where(alike, value, -math.inf)
    return masked.logsumexp(1) - value.logsumexp(0)


def sides(layers):
    return torch.cat(layers[::2], -1), torch.cat(layers[1::2], -1)


# The sides


def test_it_is_a_boltzmann_machine(story):
    assert isinstance(story, BoltzmannMachine)
    assert isinstance(story, UnnormalisedDensity)


def test_energy_of_the_sides_is_the_sum_over_the_layers(story):
    layers, value = joint(story)
    torch.testing.assert_close(-story.energy(*sides(layers)), value, **EXACT)


def test_free_energy_and_conditionals_of_a_side_equal_the_enumerated_joint(story):
    even, odd = (states(len(b)) for b in (story.visible_bias, story.hidden_bias))
    table = -story.energy(even[:, None].expand(-1, len(odd), -1), odd.expand(len(even), -1, -1))
    torch.testing.assert_close(-story.free_energy(even), table.logsumexp(1), **EXACT)
    up = story.hidden_given_visible(even[:, None]).log_prob(odd.expand(len(even), -1, -1))
    torch.testing.assert_close(up, table.log_softmax(1), **EXACT)
    down = story.visible_given_hidden(odd[:, None]).log_prob(even.expand(len(odd), -1, -1))
    torch.testing.assert_close(down, table.T.log_softmax(1), **EXACT)
    on_odd = -story.hidden_marginal().free_energy(odd)
    torch.testing.assert_close(on_odd, table.logsumexp(0), **EXACT)


def test_log_partition_and_its_gradient_equal_brute_force(story):
    _, value = joint(story)
    exact = value.logsumexp(0)
    parameters = list(story.parameters())
    for found in (story.log_partition(), story.hidden_marginal().log_partition()):
        torch.testing.assert_close(found, exact, **EXACT)
        torch.testing.assert_close(
            torch.autograd.grad(found, parameters),
            torch.autograd.grad(exact, parameters, retain_graph=True),
            **EXACT,
        )


def test_assembled_weights_are_those_between_the_layers_and_zero_elsewhere(story):
    s, t = torch.randn(5, len(story.visible_bias)), torch.randn(5, len(story.hidden_bias))
    torch.testing.assert_close(story.hidden_logits(s), s @ story.weight + story.hidden_bias)
    torch.testing.assert_close(story.visible_logits(t), t @ story.weight.T + story.visible_bias)
    assert (
        story.by_parameter(story.weight, story.visible_bias, story.hidden_bias).keys()
        == dict(story.named_parameters()).keys()
    )
    for name, value in story.by_parameter(
        story.weight, story.visible_bias, story.hidden_bias
    ).items():
        torch.testing.assert_close(value, dict(story.named_parameters())[name])


def test_probabilities_of_the_data_add_up_to_one(story):
    x = states(story.visible)
    log_p = story.log_unnormalised(x) - story.log_partition()
    torch.testing.assert_close(log_p, marginal(story, x), **EXACT)
    torch.testing.assert_close(log_p.exp().sum(), torch.ones(()), **EXACT)


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_the_sweep_leaves_exact_draws_exact(story, steps):
    side = story.marginal().sample((20_000,))
    for _ in range(steps):
        side = story.sweep(side)
    assert goodness_of_fit(side, story) > FAILURE_RATE


def test_the_transition_matrix_leaves_the_law_of_the_side_invariant(story):
    even, odd = (states(len(b)) for b in (story.visible_bias, story.hidden_bias))
    up = story.hidden_given_visible(even[:, None]).log_prob(odd.expand(len(even), -1, -1)).exp()
    down = story.visible_given_hidden(odd[:, None]).log_prob(even.expand(len(odd), -1, -1)).exp()
    p = story.marginal().log_prob(even).exp()
    torch.testing.assert_close(p @ up @ down, p, rtol=0, atol=1e-12)


def test_keeping_x_alone_is_another_chain():
    """A planted bug that the test of invariance catches: h2 is set anew in every sweep."""
    dbm = machine((4, 3, 2), scale=2.0)
    side = dbm.marginal().sample((20_000,))
    for _ in range(4):
        x = side[:, :4]
        side = dbm.sweep(torch.cat([x, torch.zeros(len(x), 2)], -1))
    assert goodness_of_fit(side, dbm) < FAILURE_RATE


def goodness_of_fit(side, story):
    """Chi-square p-value; states that are expected less than 10 times are pooled."""
    units = side.shape[1]
    expected = story.marginal().log_prob(states(units)).exp().detach() * len(side)
    index = (side @ 2.0 ** torch.arange(units - 1, -1, -1.0)).long()
    counts = torch.bincount(index, minlength=2**units).double()
    rare = expected < 10
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    return stats.chisquare(counts.numpy(), expected.numpy()).pvalue


# Special cases


def test_without_upper_weights_it_is_an_rbm_and_free_units():
    dbm, rbm = machine((4, 3, 2)), RBM(4, 3)
    with torch.no_grad():
        dbm.weight_2.zero_()
        dbm.bias_2.zero_()
        rbm.weight.copy_(dbm.weight_1)
        rbm.visible_bias.copy_(dbm.bias_0)
        rbm.hidden_bias.copy_(dbm.bias_1)
    x = states(4)
    expected = rbm.log_partition() + 2 * math.log(2)
    torch.testing.assert_close(dbm.log_partition(), expected, **EXACT)
    torch.testing.assert_close(
        dbm.log_unnormalised(x) - 2 * math.log(2), -rbm.free_energy(x), **EXACT
    )
    # mean field is exact, since the units of h1 are independent given x
    torch.testing.assert_close(dbm.bound(x) - 2 * math.log(2), -rbm.free_energy(x), **EXACT)


def test_a_dbm_is_an_rbm_between_its_sides():
    dbm = machine((3, 3, 2, 2))
    rbm = RBM(5, 5)
    with torch.no_grad():
        rbm.weight.copy_(dbm.weight)
        rbm.visible_bias.copy_(dbm.visible_bias)
        rbm.hidden_bias.copy_(dbm.hidden_bias)
    side = states(5)
    torch.testing.assert_close(dbm.free_energy(side), rbm.free_energy(side), **EXACT)
    torch.manual_seed(1)
    moved = dbm.sweep(side)
    torch.manual_seed(1)
    torch.testing.assert_close(moved, rbm.sweep(side))


# Given the data


def test_the_mean_field_bound_never_falls_and_stays_below_the_evidence():
    torch.manual_seed(2)
    for sizes in ((4, 3, 2), (3, 3, 2, 2), (3, 2, 2, 2, 2)):
        dbm = machine(sizes, scale=2.0)
        x = states(dbm.visible)
        exact = marginal(dbm, x) + dbm.log_partition()
        previous = torch.full((len(x),), -math.inf)
        for steps in (1, 2, 3, 5, 10, 100):
            dbm.mean_field_steps, dbm.tolerance = steps, 0.0
            bound = dbm.bound(x).detach()
            assert (bound >= previous - 1e-10).all()
            assert (bound <= exact + 1e-10).all()
            previous = bound


@pytest.mark.parametrize("steps", [1, 200])
def test_the_bound_is_the_elbo_of_its_means_summed_over_all_states(steps):
    """Also long before they converge: those of the odd layers are exact given the even ones."""
    dbm = machine((4, 3, 2))
    dbm.mean_field_steps, dbm.tolerance = steps, 0.0
    x = torch.tensor([[1.0, 0, 1, 1]])
    means = torch.cat(dbm.mean_field(x)[1:], -1)[0]
    h = states(5)
    q = (h * means + (1 - h) * (1 - means)).prod(-1)
    s, t = torch.cat([x.expand(32, -1), h[:, 3:]], -1), h[:, :3]
    expected = (q * (-dbm.energy(s, t) - q.log())).sum()
    torch.testing.assert_close(dbm.bound(x)[0], expected, **EXACT)
    phase = dbm.positive_phase(x)
    torch.testing.assert_close(phase.free_energy, -expected.detach(), **EXACT)


def test_means_are_a_fixed_point():
    dbm = machine((3, 3, 2, 2), scale=0.7)
    dbm.tolerance = 0.0
    means = dbm.mean_field(states(3))
    s, t = torch.cat(means[::2], -1), torch.cat(means[1::2], -1)
    assert (torch.sigmoid(dbm.hidden_logits(s)) - t).abs().max() < 1e-10
    assert (torch.sigmoid(dbm.visible_logits(t)) - s)[:, 3:].abs().max() < 1e-10


def test_importance_weights_are_unbiased_and_their_bound_is_tighter():
    dbm = machine((4, 3, 2))
    x, samples = states(4), 20_000
    exact = marginal(dbm, x) + dbm.log_partition()
    weights = dbm.unnormalised_log_weights(x, samples)
    assert weights.shape == (samples, 16)
    ratios = (weights - exact).exp()
    z = stats.norm.isf(FAILURE_RATE / 2 / 16)
    assert ((ratios.mean(0) - 1).abs() < z * ratios.std(0) / samples**0.5 + 1e-12).all()
    # one draw: E log w = the bound with h2 summed out, above the mean-field one by Jensen
    error = z * weights.std(0) / samples**0.5
    assert (weights.mean(0) > dbm.bound(x) - error - 1e-12).all()
    assert (weights.mean(0) < exact + error + 1e-12).all()


# The gradient


def exact_statistics(story):
    """Of the machine's own states: weighted, so that the count of states stands for one each."""
    even = states(len(story.visible_bias))
    p = story.marginal().log_prob(even).exp().detach()
    hidden = torch.sigmoid(story.hidden_logits(even)).detach()
    count = len(even)
    return Statistics(count * p[:, None] * even, hidden, p @ even, p @ hidden, torch.zeros(()))


def test_exact_negative_phase_gives_the_gradient_of_the_bound(story):
    """For the RBM, whose positive phase is exact, that of the log-likelihood."""
    if isinstance(story, DBM):
        story.tolerance, story.mean_field_steps = 0.0, 500
    x = states(story.visible)[1:6]
    if isinstance(story, RBM):
        objective = (story.log_partition() + story.free_energy(x)).mean()
    else:
        objective = (story.log_partition() - story.bound(x)).mean()
    objective.backward()
    gradient = pg.difference(
        story.positive_phase(x), exact_statistics(story), None, None, story.couplings
    )
    for name, value in story.by_parameter(*gradient).items():
        torch.testing.assert_close(value, dict(story.named_parameters())[name].grad, **EXACT)


@pytest.mark.parametrize("sizes", [(4, 3, 2), (3, 3, 2, 2)], ids=["two", "three"])
def test_a_sampled_positive_phase_gives_the_gradient_of_the_likelihood(sizes):
    """Where that of the mean field is another one."""
    dbm = machine(sizes, scale=1.5)
    x, count = states(dbm.visible)[3:6], 60_000
    even = states(len(dbm.visible_bias) - dbm.visible)
    sides = torch.cat([x.repeat_interleave(len(even), 0), even.repeat(len(x), 1)], -1)
    log_unnormalised = (-dbm.free_energy(sides)).view(len(x), -1).logsumexp(1)
    (dbm.log_partition() - log_unnormalised.mean()).backward()
    exact = torch.cat([p.grad.flatten() for p in dbm.parameters()])
    negative = exact_statistics(dbm)

    def gradient(positive):
        found = pg.difference(positive, negative, None, None, dbm.couplings)
        return torch.cat([g.flatten() for g in dbm.by_parameter(*found).values()])

    phase = pg.positive_phase(dbm, x.repeat(count // 3, 1), sweeps=40)
    assert torch.equal(phase.visible[:, : dbm.visible], x.repeat(count // 3, 1))
    noise = stats.norm.isf(FAILURE_RATE / 2 / len(exact)) * 0.5 / count**0.5  # sd at most 1/2
    assert ((gradient(phase) - exact).abs() < noise).all()
    assert ((gradient(pg.positive_phase(dbm, x)) - exact).abs() > 3 * noise).any()
    # of a sampled side there is no entropy: the contrast is between states, as of the chains
    assert phase.entropy == 0.0


def test_a_sampled_positive_phase_needs_layers_that_depend_on_each_other():
    rbm, x = machine((4, 3)), states(4)
    with pytest.raises(ValueError, match="posterior_sweeps: all latent units"):
        ContrastiveDivergence(posterior_sweeps=1).loss_and_grads(rbm.model, rbm.guide, x)
    with pytest.raises(ValueError, match=r"posterior_sweeps=.*a whole number"):
        ContrastiveDivergence(posterior_sweeps=-1)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_the_contrast_of_a_machine_with_its_own_draws_is_near_zero(sizes):
    weak, count = machine(sizes, scale=0.3), 20_000  # its posterior nearly factorises
    x = weak.model(examples=count).detach()
    spread = weak.free_energy(weak.marginal().sample((count,))).std().item()
    contrast = ContrastiveDivergence().loss(weak.model, weak.guide, x)
    error = stats.norm.isf(FAILURE_RATE / 2) * spread * (2 / count) ** 0.5
    assert abs(contrast) < error + 0.02  # the entropy of h2 is some 1.3 nats


def test_centred_gradient_is_the_jacobian_image_over_the_layers():
    """theta(W, b') with b'_l less the neighbours' offsets through W; the image is J J^T grad."""
    dbm = machine((3, 3, 2, 2))
    offsets = pg.Offsets(torch.rand(5), torch.rand(5))
    centres = dbm.layers(*offsets)

    def standard(*centred):
        weights, biases = centred[:3], list(centred[3:])
        for layer, W in enumerate(weights):
            biases[layer] = biases[layer] - W @ centres[layer + 1]
            biases[layer + 1] = biases[layer + 1] - W.T @ centres[layer]
        return (*weights, *biases)

    phases = dbm.positive_phase(states(3)), dbm.statistics(states(5)[3:17])
    plain, centred = (
        tuple(dbm.by_parameter(*pg.difference(*phases, o, None, dbm.couplings)).values())
        for o in (None, offsets)
    )
    at = tuple(torch.zeros(p.shape, requires_grad=True) for p in plain)
    # the map is linear: J v by its value, J^T v by its gradient
    pulled = torch.autograd.grad(standard(*at), at, plain)
    for value, expected in zip(centred, standard(*pulled), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)


def test_centring_moves_no_log_probability():
    """With the biases that compensate it, the centred energy differs by a constant."""
    dbm = machine((3, 3, 2, 2))
    mu, lam = torch.rand(5), torch.rand(5)
    a, b = dbm.visible_bias + dbm.weight @ lam, dbm.hidden_bias + mu @ dbm.weight
    s, t = torch.rand(2, 50, 5).round()
    centred = (
        -(s - mu) @ a - (t - lam) @ b - torch.einsum("ni,ij,nj->n", s - mu, dbm.weight, t - lam)
    )
    shift = centred - dbm.energy(s, t)
    torch.testing.assert_close(shift, shift[:1].expand(50), **EXACT)


def test_loss_writes_a_contiguous_gradient_that_adds_up():
    dbm = machine((3, 3, 2, 2))
    x = states(3)
    grads = []
    for _ in range(2):
        loss = ContrastiveDivergence(persistent=True, centred=False)
        torch.manual_seed(1)
        loss.loss_and_grads(dbm.model, dbm.guide, x)
        grads.append([p.grad.clone() for p in dbm.parameters()])
        assert all(p.grad.is_contiguous() for p in dbm.parameters())
    for once, twice in zip(*grads, strict=True):
        torch.testing.assert_close(twice, 2 * once)
    before = [p.grad.clone() for p in dbm.parameters()]
    loss.loss(dbm.model, dbm.guide, x)
    loss._scratch.weight.fill_(9.0)  # memory of the loss is no gradient's memory
    for p, kept in zip(dbm.parameters(), before, strict=True):
        assert torch.equal(p.grad, kept)


# The pair


@pytest.mark.parametrize("hidden", [(3, 2), (2, 2, 2, 2)])
def test_elbo_of_the_pair_is_the_mean_field_bound_on_average(hidden):
    dbm = machine((4, *hidden))
    x = torch.tensor([[1.0, 0, 1, 1]]).expand(20_000, 4)
    drawn = pyro.poutine.trace(dbm.guide).get_trace(x)
    scored = pyro.poutine.trace(pyro.poutine.replay(dbm.model, trace=drawn)).get_trace(x)
    drawn.compute_log_prob()
    scored.compute_log_prob()
    elbo = sum(scored.nodes[n]["log_prob"] for n in ("odd", "x", "even"))
    elbo = elbo - drawn.nodes["odd"]["log_prob"] - drawn.nodes["even"]["log_prob"]
    expected = dbm.bound(x[:1])[0] - dbm.log_partition()
    error = stats.norm.isf(FAILURE_RATE / 2) * elbo.std() / len(elbo) ** 0.5
    assert abs(elbo.mean() - expected) < error


def test_new_data_have_the_law_of_x():
    dbm = machine((4, 3, 2))
    x = Predictive(dbm.model, num_samples=1)(examples=20_000)["x"].squeeze(0)
    expected = marginal(dbm, states(4)).exp().detach() * len(x)
    counts = torch.bincount((x @ torch.tensor([8.0, 4, 2, 1])).long(), minlength=16).double()
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > FAILURE_RATE


@pytest.mark.parametrize(("loss", "steps"), [(Trace_ELBO, 3), (ContrastiveDivergence, 30)])
def test_svi_trains_it_twice_in_one_process(loss, steps):
    x = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(10, 1)
    for _ in range(2):
        dbm = machine((4, 3, 2), scale=0.3)
        dbm.mean_field_steps = 5
        start = {name: p.detach().clone() for name, p in dbm.named_parameters()}
        before = marginal(dbm, x).mean().item()
        with pyro.get_param_store().scope():
            svi = SVI(dbm.model, dbm.guide, pyro.optim.Adam({"lr": 0.1}), loss=loss())
            for _ in range(steps):
                svi.step(x)
            assert set(pyro.get_param_store().keys()) == set(start)
        assert all((p != start[name]).any() for name, p in dbm.named_parameters())
        if loss is ContrastiveDivergence:
            assert marginal(dbm, x).mean().item() > before + 0.5


def test_an_estimate_of_log_z_serves_both_sides():
    dbm = DBM(30, (25, 2), weight_scale=0.0)
    dbm.normalise(57 * math.log(2))
    with torch.no_grad():
        for law in (dbm.marginal(), dbm.hidden_marginal()):
            units = law.event_shape[0]
            value = law.log_prob(torch.ones(units))
            torch.testing.assert_close(value, torch.tensor(-units * math.log(2)), **EXACT)


# Pretraining


@pytest.mark.parametrize("side", ["visible", "hidden"])
def test_a_duplicated_rbm_has_the_energy_and_gradient_of_its_copies(side):
    rbm = machine((3, 2))
    twin = DuplicatedRBM(rbm, side)
    x = states(3)[1:6]
    W, a, b = rbm.weight, rbm.visible_bias, rbm.hidden_bias
    if side == "visible":
        expected = 2 * x @ a + softplus(2 * x @ W + b).sum(-1)
    else:
        expected = x @ a + 2 * softplus(x @ W + b).sum(-1)
    torch.testing.assert_close(twin.log_unnormalised(x), expected, **EXACT)
    (twin.log_partition() - expected.mean()).backward()
    gradient = pg.difference(twin.positive_phase(x), exact_statistics(twin), None)
    named = dict(twin.named_parameters())
    for name, value in twin.by_parameter(*gradient).items():
        torch.testing.assert_close(value, named[name].grad, **EXACT)


@pytest.mark.parametrize("hidden", [(3, 4), (3, 4, 2)], ids=["two layers", "three layers"])
def test_started_from_an_rbm_it_has_its_law_and_a_tight_bound(hidden):
    """Up to the square of the weights above, as their mean pull is taken back."""
    rbm = machine((4, 3))
    dbm = DBM(4, hidden, weight_scale=1e-3)
    dbm.start_from(rbm)
    x, expected = states(4), rbm.marginal().log_prob(states(4))
    # the pull alone would change log p by up to 3 * 4 * 1e-3 / 2 in one layer
    close = {"rtol": 0, "atol": 2e-5}
    torch.testing.assert_close(dbm.log_unnormalised(x) - dbm.log_partition(), expected, **close)
    torch.testing.assert_close(dbm.bound(x) - dbm.log_partition(), expected, **close)
    with pytest.raises(ValueError, match=r"layers of \(4, 3\) units, got \(5, 3\)"):
        dbm.start_from(RBM(5, 3))


def test_assembling_halves_inner_weights_and_averages_shared_biases():
    stack = pretraining_machines((4, 3, 3, 2))
    rbms = [stack[0].rbm, stack[1], stack[2].rbm]
    for rbm in rbms:
        for p in rbm.parameters():
            torch.nn.init.normal_(p)
    dbm = DBM(4, (3, 3, 2))
    dbm.assemble(stack)
    assert torch.equal(dbm.weight_1, rbms[0].weight)
    assert torch.equal(dbm.weight_2, rbms[1].weight / 2)
    assert torch.equal(dbm.weight_3, rbms[2].weight)
    assert torch.equal(dbm.bias_0, rbms[0].visible_bias)
    assert torch.equal(dbm.bias_1, (rbms[0].hidden_bias + rbms[1].visible_bias) / 2)
    assert torch.equal(dbm.bias_3, rbms[2].hidden_bias)


def test_a_stack_of_doubled_machines_drives_each_layer_as_the_assembled_one():
    """h1 given x twice has the logits of h1 given x and an h2 that agrees with it, and so on."""
    stack = pretraining_machines((4, 3, 2), weight_scale=1.0)
    dbm = DBM(4, (3, 2))
    dbm.assemble(stack)
    x, h2 = states(4)[5], states(2)[1]
    below = stack[0].hidden_logits(torch.cat([x, x])) / 2
    above = stack[1].visible_logits(torch.cat([h2, h2])) / 2
    torch.testing.assert_close(dbm.hidden_logits(torch.cat([x, h2])), below + above)


@pytest.mark.parametrize(
    "call",
    [
        lambda: DBM(4, (3,)),
        lambda: DBM.from_data(torch.ones(4), (3, 2)),
        lambda: machine((4, 3, 2)).free_energy(torch.ones(2, 4)),
        lambda: DBM(4, (3, 2)).assemble(pretraining_machines((4, 2, 2))),
        lambda: pretraining_machines((4, 3)),
        lambda: DuplicatedRBM(RBM(2, 2), "x"),
    ],
)
def test_wrong_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"expected|at least two layers"):
        call()
