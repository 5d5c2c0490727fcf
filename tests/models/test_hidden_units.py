"""RBMs of Gaussian and rectified hidden units: quadrature, closed forms, bounds, training."""

import itertools
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

import ppgen
from ppgen.distributions import (
    Boltzmann,
    OneHot,
    Rectified,
    UnitGaussian,
)
from ppgen.distributions.units import softplus
from ppgen.inference import (
    BlockGibbs,
    ContrastiveDivergence,
    GibbsLangevin,
    greedy,
)
from ppgen.inference.annealed_importance_sampling import annealed_importance_sampling
from ppgen.models import DBM, DBN, RBM, GaussianRBM
from ppgen.models.duplicated_rbm import DuplicatedRBM

pytestmark = pytest.mark.usefixtures("silent")

EXACT = {"rtol": 1e-10, "atol": 1e-10}
KINDS = {"gaussian": UnitGaussian(), "rectified": Rectified()}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def states(units):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)))


def machine(kind, visible=4, hidden=2, make=RBM, scale=0.6):
    rbm = make(visible, hidden, hidden_units=kind)
    for p in rbm.parameters():
        torch.nn.init.normal_(p, std=scale)
    return rbm


def grid(kind, units):
    """Nodes and log weights of Gauss-Legendre quadrature over the hidden side, ``(*, units)``."""
    from numpy.polynomial.legendre import leggauss

    nodes, weights = (torch.as_tensor(a) for a in leggauss(120))
    low, high = (0.0, 14.0) if isinstance(kind, Rectified) else (-14.0, 14.0)
    nodes, weights = low + (nodes + 1) * (high - low) / 2, weights * (high - low) / 2
    h = torch.cartesian_prod(*[nodes] * units).reshape(-1, units)
    return h, torch.cartesian_prod(*[weights.log()] * units).reshape(-1, units).sum(-1)


def test_free_energy_and_conditionals_equal_quadrature_over_the_hidden_side(kind):
    rbm = machine(kind).requires_grad_(False)
    x, (h, w) = states(4), grid(kind, 2)
    joint = -rbm.energy(x[:, None], h) + w
    torch.testing.assert_close(-rbm.free_energy(x), joint.logsumexp(1), **EXACT)
    mean = joint.softmax(1) @ h
    torch.testing.assert_close(rbm.statistics(x).hidden, mean, **EXACT)
    law = rbm.hidden_given_visible(x)
    torch.testing.assert_close(law.mean, mean, **EXACT)
    torch.testing.assert_close(law.variance, joint.softmax(1) @ h.square() - mean**2, **EXACT)
    density = law.expand((len(h), 16)).log_prob(h[:, None])
    torch.testing.assert_close(density, (joint.log_softmax(1) - w).T, **EXACT)


def test_log_partition_is_that_of_the_other_side_and_of_quadrature(kind):
    rbm = machine(kind).requires_grad_(False)
    h, w = grid(kind, 2)
    other = h @ rbm.hidden_bias - h.square().sum(1) / 2 + softplus(rbm.visible_logits(h)).sum(1)
    torch.testing.assert_close(rbm.log_partition(), (other + w).logsumexp(0), **EXACT)


def test_softplus_in_the_place_of_the_cumulant_function_is_caught(kind):
    """A planted bug: the free energy of binary units."""
    rbm = machine(kind).requires_grad_(False)
    wrong = RBM.free_energy(_as_binary(rbm), states(4))
    assert (rbm.free_energy(states(4)) - wrong).abs().max() > 0.1


def _as_binary(rbm):
    copy = RBM(rbm.visible, rbm.hidden)
    copy.load_state_dict(rbm.state_dict())
    return copy


@pytest.mark.parametrize("make", [RBM, GaussianRBM])
def test_the_gradient_of_statistics_is_that_of_autograd(kind, make):
    rbm = machine(kind, make=make, scale=0.3)
    x = states(4)[3:9] if make is RBM else torch.randn(6, 4)
    phase = rbm.statistics(x)
    found = rbm.by_parameter(phase.visible.T @ phase.hidden / 6, phase.visible_mean,
                             phase.hidden_mean)  # fmt: skip
    expected = torch.autograd.grad(-rbm.free_energy(x).mean(), list(rbm.parameters()))
    torch.testing.assert_close(phase.free_energy, rbm.free_energy(x).mean().detach(), **EXACT)
    for (name, _), gradient in zip(rbm.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name].detach(), gradient, **EXACT)


# Gaussian hidden units


def test_gaussian_hidden_units_are_hopfield_couplings():
    rbm = machine(UnitGaussian()).requires_grad_(False)
    pairs = rbm.weight @ rbm.weight.T
    bias = rbm.visible_bias + rbm.weight @ rbm.hidden_bias + pairs.diagonal() / 2
    hopfield = Boltzmann(pairs - torch.diag(pairs.diagonal()), bias)
    x = states(4)
    torch.testing.assert_close(rbm.marginal().log_prob(x), hopfield.log_prob(x), **EXACT)


def test_two_gaussian_sides_are_one_gaussian():
    rbm = machine(UnitGaussian(), 3, 2, GaussianRBM, scale=0.3).requires_grad_(False)
    precision = torch.block_diag(torch.diag(1 / rbm.variance), torch.eye(2))
    precision[:3, 3:], precision[3:, :3] = -rbm.weight, -rbm.weight.T
    linear = torch.cat([rbm.visible_bias, rbm.hidden_bias])
    log_z = (5 * math.log(2 * math.pi) - torch.logdet(precision)) / 2
    log_z = log_z + linear @ torch.linalg.solve(precision, linear) / 2
    torch.testing.assert_close(rbm.log_partition(), log_z, **EXACT)
    covariance = torch.linalg.inv(precision)
    law = pyro.distributions.MultivariateNormal((covariance @ linear)[:3], covariance[:3, :3])
    x = torch.randn(7, 3)
    torch.testing.assert_close(rbm.marginal().log_prob(x), law.log_prob(x), **EXACT)
    measured = ppgen.log_likelihood(rbm, x)
    assert (measured.kind, measured.method) == ("exact", "log Z in closed form")
    draws = rbm.marginal().sample((20_000,))
    moved = BlockGibbs(rbm, draws, sweeps=4).sample({"x": draws})["x"]
    for found in (draws, moved, GibbsLangevin(rbm, draws).sample({"x": draws})["x"]):
        white = torch.linalg.solve_triangular(law.scale_tril, (found - law.loc).T, upper=False).T
        # 9 numbers, three times: means with error 1 / sqrt(n), covariances at most sqrt(2 / n)
        assert white.mean(0).abs().max() < 4.9 / math.sqrt(20_000)
        assert (white.T.cov() - torch.eye(3)).abs().max() < 4.9 * math.sqrt(2 / 20_000)


def test_two_gaussian_sides_that_are_coupled_too_strongly_have_no_density():
    rbm = GaussianRBM(3, 2, hidden_units=UnitGaussian()).requires_grad_(False)
    rbm.weight[0, 0] = 1.01
    with pytest.raises(ValueError, match="not positive definite"):
        rbm.log_partition()
    rbm.weight[0, 0] = 0.99
    assert rbm.log_partition().isfinite()


# Log Z and likelihoods


@pytest.mark.parametrize("make", [RBM, GaussianRBM])
def test_annealing_brackets_log_z(kind, make):
    rbm = machine(kind, 4, 2, make, scale=0.3).requires_grad_(False)
    if make is RBM:
        exact = rbm.log_partition().item()
    else:  # x is integrated out: a quadratic form in h
        h, w = grid(kind, 2)
        natural = rbm.visible_natural(h)
        inside = rbm.units.log_normaliser(natural) + h @ rbm.hidden_bias - h.square().sum(1) / 2
        exact = (inside + w).logsumexp(0).item()
    found = annealed_importance_sampling(rbm, chains=400, temperatures=50, burn_in=50)
    assert found.lower < exact + 4.3 * found.lower_error
    assert found.upper > exact - 4.3 * found.upper_error
    assert abs(found.lower - exact) < 4.3 * found.lower_error + 0.02
    assert abs(found.upper - exact) < 4.3 * found.upper_error + 0.02


def test_without_couplings_annealing_is_exact(kind):
    rbm = machine(kind).requires_grad_(False)
    rbm.weight.zero_()
    base = rbm.visible_bias.clone()
    found = annealed_importance_sampling(rbm, chains=5, temperatures=400, base=base)
    torch.testing.assert_close(torch.tensor(found.lower), rbm.log_partition(), **EXACT)
    torch.testing.assert_close(torch.tensor(found.upper), rbm.log_partition(), **EXACT)


def test_a_likelihood_is_exact_where_the_visible_side_is_summed(kind):
    rbm = machine(kind).requires_grad_(False)
    x = states(4)
    found = ppgen.log_likelihood(rbm, x)
    assert found.kind == "exact"
    assert abs(rbm.marginal().log_prob(x).exp().sum().item() - 1) < 1e-10
    large = ppgen.log_likelihood(machine(kind, 24, 3), torch.ones(2, 24), temperatures=20)
    assert large.kind == "bounds"


# Stories and training


def test_the_pair_s_elbo_is_log_p(kind):
    rbm = machine(kind)
    x = states(4)
    exact = rbm.marginal().log_prob(x).sum().item()
    assert abs(-Trace_ELBO().loss(rbm.model, rbm.guide, x) - exact) < 1e-9


@pytest.mark.parametrize(
    ("kind", "rate", "persistent"), [(UnitGaussian(), 0.05, False), (Rectified(), 0.1, True)]
)
def test_contrastive_divergence_finds_the_machine_that_made_the_data(kind, rate, persistent):
    teacher = RBM(6, 2, hidden_units=kind).requires_grad_(False)
    teacher.weight.copy_(torch.block_diag(torch.ones(3, 1), torch.ones(3, 1)))
    teacher.visible_bias.fill_(-1.5)
    x = teacher.marginal().sample((500,))
    rbm = RBM.from_data(x, 2, weight_scale=0.1, hidden_units=kind)
    before = rbm.marginal().log_prob(x).mean().item()
    loss = ContrastiveDivergence(2, persistent)
    optim = pyro.optim.SGD({"lr": rate, "momentum": 0.9})
    with pyro.get_param_store().scope():
        svi = SVI(rbm.model, rbm.guide, optim, loss=loss)
        for _ in range(160):
            svi.step(x)
    goal = teacher.marginal().log_prob(x).mean().item()
    assert before < goal - 0.04  # there is something to learn
    # the best machine beats the teacher by about 20 parameters / 1000 = 0.02 nats
    assert rbm.marginal().log_prob(x).mean().item() > goal - 0.02


def test_other_visible_units_have_them_too(kind):
    rbm = RBM(6, 2, units=OneHot(3), hidden_units=kind).requires_grad_(False)
    assert rbm.sweep(torch.eye(6)[:1] + torch.eye(6)[3:4]).shape == (1, 6)
    draws = ppgen.fit(rbm.model, using=ppgen.inference.Gibbs(chains=3, draws=4)).draws
    assert draws["h"].shape == (3, 4, 1, 2)


@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_a_sweep_at_a_temperature_leaves_its_law_invariant(kind, temperature):
    rbm, x, count = machine(kind, scale=1.0).requires_grad_(False), states(4), 20_000
    # log of the integral of exp((theta h - h^2 / 2) / T) is that of a unit of theta / sqrt(T)
    theta = rbm.hidden_logits(x) / temperature**0.5
    p = (x @ rbm.visible_bias / temperature + kind.log_normaliser(theta)).softmax(0)
    start = x[torch.multinomial(p, count, replacement=True)]
    kernel = BlockGibbs(rbm, start, temperature=temperature, sweeps=2)
    found = kernel.sample(kernel.initial_params)["x"]
    seen = (found @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long().bincount(minlength=16) / count
    # 16 states, two kinds and two temperatures share a failure rate of 2e-5: z = 5.0
    assert ((seen - p).abs() < 5.0 * (p * (1 - p) / count).sqrt() + 5 / count).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda rbm: rbm.transposed(),
        lambda rbm: DuplicatedRBM(rbm, "visible"),
        lambda rbm: DBN.from_rbms([rbm]),
        lambda rbm: DBM(4, (2, 2)).start_from(rbm),
        lambda rbm: greedy([rbm, RBM(2, 2)], torch.ones(3, 4), epochs=1),
        lambda _: GaussianRBM(3, 2, hidden_units=Rectified()).log_partition(),
        lambda _: GaussianRBM(3, 2, hidden_units=Rectified()).hidden_marginal(),
        lambda _: RBM(3, 2, units=Rectified()),
    ],
)
def test_what_is_written_for_binary_units_refuses_others(call):
    with pytest.raises(ValueError, match=r"binary|summed|not written|discrete ones"):
        call(machine(Rectified()))
