"""The Gaussian RBM against its mixture of 2^H Gaussians, in every inference that machines have."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from scipy import stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.func import functional_call

import ppgen
from ppgen.distributions import Binary, UnitGaussian
from ppgen.inference import ContrastiveDivergence
from ppgen.inference import annealed_importance_sampling as ais
from ppgen.inference import parallel_tempering as pt
from ppgen.inference import phase_gradient as pg
from ppgen.models import GaussianRBM
from ppgen.progress import Progress
from ppgen.types import BoltzmannMachine, UnnormalisedDensity

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5
Z = 4.9  # up to 20 comparisons share the failure rate


def states(units):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * units).reshape(-1, units)


def machine(kind=GaussianRBM, visible=3, hidden=4):
    rbm = kind(visible, hidden, weight_scale=1.0)
    for p in (rbm.visible_bias, rbm.hidden_bias, rbm.raw_variance):
        torch.nn.init.normal_(p)
    return rbm.requires_grad_(False)


def mixture(rbm):
    """p(x) by the formula with means in units of x: ``(x - a)^2 / 2 sigma^2``, components W."""
    h, a, W = states(rbm.hidden), rbm.loc, rbm.components
    mean = a + h @ W.T
    weights = h @ rbm.hidden_bias + ((mean**2 - a**2) / (2 * rbm.variance)).sum(-1)
    laws = Independent(Normal(mean, rbm.variance.sqrt()), 1)
    return MixtureSameFamily(Categorical(logits=weights), laws), weights


def test_it_is_a_boltzmann_machine():
    assert isinstance(machine(), BoltzmannMachine)
    assert isinstance(machine(), UnnormalisedDensity)


def test_log_p_and_log_z_are_those_of_the_mixture():
    rbm, x = machine(), 2 * torch.randn(7, 3)
    law, weights = mixture(rbm)
    torch.testing.assert_close(rbm.marginal().log_prob(x), law.log_prob(x))
    constant = (rbm.loc**2 / (2 * rbm.variance)).sum()  # by which the two energies differ
    expected = (2 * math.pi * rbm.variance).log().sum() / 2 + weights.logsumexp(0) + constant
    torch.testing.assert_close(rbm.log_partition(), expected, rtol=1e-10, atol=1e-10)
    prior = rbm.hidden_marginal().log_prob(states(4))
    torch.testing.assert_close(prior, weights.log_softmax(0), rtol=1e-10, atol=1e-10)


def test_log_z_is_the_integral():
    rbm = machine(visible=1)
    grid = torch.linspace(-60, 60, 200_001)[:, None]  # the trapezium converges exponentially here
    integral = torch.trapezoid((-rbm.free_energy(grid)).exp(), grid[:, 0])
    torch.testing.assert_close(rbm.log_partition(), integral.log(), rtol=1e-8, atol=1e-8)


def test_conditionals_are_those_of_the_energy():
    rbm, x, h = machine(), torch.randn(5, 3), states(4)
    joint = -rbm.energy(x[:, None], h[None])
    torch.testing.assert_close(-rbm.free_energy(x), joint.logsumexp(1))
    given_x = rbm.hidden_given_visible(x[:, None]).log_prob(h.expand(5, 16, 4))
    torch.testing.assert_close(given_x, joint.log_softmax(1))
    given_h = rbm.visible_given_hidden(h).log_prob(x[:, None])
    flat = given_h - joint  # p(x | h) / p*(x, h) is free of x
    torch.testing.assert_close(flat, flat[:1].expand_as(flat))


def moved(rbm, steps, count=20_000):
    x = rbm.marginal().sample((count,))
    for _ in range(steps):
        x = rbm.sweep(x)
    return x


def smallest_p_value(x, rbm):
    """Of the coordinates against their mixtures of normals (KS), and of h given x (chi-square)."""
    law, _ = mixture(rbm)
    weights, scale = law.mixture_distribution.probs, rbm.variance.sqrt()
    cdf = Normal(law.component_distribution.base_dist.loc, scale).cdf(x[:, None])
    uniform = torch.einsum("nkd,k->nd", cdf, weights)
    p = [stats.kstest(u.numpy(), "uniform").pvalue for u in uniform.T]
    # x - mean(h) given h drawn from x: variances sigma^2, so that sums of squares are chi-square
    h = rbm.hidden_given_visible(x).sample()
    residuals = (x - rbm.loc - h @ rbm.components.T) / scale
    p += [stats.kstest(r.numpy(), "norm").pvalue for r in residuals.T]
    index = (h @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
    expected, found = weights * len(x), torch.bincount(index, minlength=16).double()
    rare = expected < 10
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        found = torch.cat([found[~rare], found[rare].sum()[None]])
    return min([*p, stats.chisquare(found.numpy(), expected.numpy()).pvalue])


@pytest.mark.parametrize("steps", [0, 1, 8])
def test_gibbs_leaves_exact_draws_exact(steps):
    rbm = machine()
    assert smallest_p_value(moved(rbm, steps), rbm) > FAILURE_RATE / 7


class Means(GaussianRBM):
    """A planted bug: the mean stands for a draw of x."""

    def sample_visible(self, t):
        return self.visible_given_hidden(t).mean


class Unscaled(GaussianRBM):
    """A planted bug: the noise of x has unit variance."""

    def sample_visible(self, t):
        mean = self.visible_given_hidden(t).mean
        return mean + torch.randn_like(mean)


@pytest.mark.parametrize("kind", [Means, Unscaled])
def test_wrong_noise_is_caught(kind):
    rbm = machine(kind)
    assert smallest_p_value(moved(rbm, 1), rbm) < FAILURE_RATE / 7


# Learning


def test_the_gradient_is_that_of_the_free_energies_also_in_the_variances():
    rbm, x, v = machine(), torch.randn(5, 3), torch.randn(8, 3)
    rbm.requires_grad_()
    (rbm.free_energy(x).mean() - rbm.free_energy(v).mean()).backward()
    whole = pg.difference(rbm.positive_phase(x), rbm.statistics(v), None)
    for name, value in rbm.by_parameter(*whole).items():
        torch.testing.assert_close(value, rbm.get_parameter(name).grad)
    contrast = rbm.positive_phase(x).free_energy - rbm.statistics(v).free_energy
    expected = rbm.free_energy(x).mean() - rbm.free_energy(v).mean()
    torch.testing.assert_close(contrast, expected.detach())


def test_the_negative_phase_of_exact_draws_gives_the_gradient_of_the_likelihood():
    rbm, x = machine(), torch.randn(50, 3)
    law = rbm.marginal()

    def objective(parameters):
        return functional_call(_NegativeLogLikelihood(rbm), parameters, (x,))

    exact = torch.func.grad(objective)({f"rbm.{k}": p for k, p in rbm.named_parameters()})
    batches = [
        rbm.by_parameter(
            *pg.difference(rbm.positive_phase(x), rbm.statistics(law.sample((2000,))), None)
        )
        for _ in range(50)
    ]
    for name, value in exact.items():
        found = torch.stack([batch[name.removeprefix("rbm.")] for batch in batches])
        # t with 49 degrees of freedom and 22 comparisons: quantile of 1 - 1e-5 / 22 is 6.2
        assert ((found.mean(0) - value).abs() < 6.2 * found.std(0) / 50**0.5).all()


class _NegativeLogLikelihood(torch.nn.Module):
    def __init__(self, rbm):
        super().__init__()
        self.rbm = rbm

    def forward(self, x):
        return -self.rbm.marginal().log_prob(x).mean()


@pytest.mark.parametrize("centred", [True, False])
def test_centring_leaves_the_gradient_in_the_variances(centred):
    """And the variance's statistic has no offset: only W and the biases are centred."""
    rbm, x, v = machine(), torch.randn(5, 3), torch.randn(8, 3)
    centre = pg.Offsets(torch.rand(6), torch.rand(4)) if centred else None
    plain = pg.difference(rbm.positive_phase(x), rbm.statistics(v), None)
    found = pg.difference(rbm.positive_phase(x), rbm.statistics(v), centre)
    torch.testing.assert_close(found.visible_bias[3:], plain.visible_bias[3:])
    if centre is not None:
        mu, lam = centre.visible[:3], centre.hidden
        W = (
            plain.weight
            - torch.outer(plain.visible_bias[:3], lam)
            - torch.outer(mu, plain.hidden_bias)
        )
        torch.testing.assert_close(found.weight, W)
        torch.testing.assert_close(found.visible_bias[:3], plain.visible_bias[:3] - W @ lam)
        torch.testing.assert_close(found.hidden_bias, plain.hidden_bias - W.T @ mu)


@pytest.mark.parametrize("persistent", [False, True])
def test_svi_and_train_move_every_parameter(persistent):
    x = torch.randn(20, 3)
    loss = {"gibbs_steps": 2, "persistent": persistent}
    for by_svi in (True, False):
        rbm = GaussianRBM.from_data(x, 4)
        before = {name: p.detach().clone() for name, p in rbm.named_parameters()}
        if by_svi:
            with pyro.get_param_store().scope():
                optimizer = pyro.optim.SGD({"lr": 0.1})
                SVI(rbm.model, rbm.guide, optimizer, ContrastiveDivergence(**loss)).step(x)
        else:
            ppgen.train(rbm, x, loss=ContrastiveDivergence(**loss), epochs=1, batch_size=7)
        assert all((p != before[name]).any() for name, p in rbm.named_parameters())


def test_the_pair_is_exact_and_predicts():
    rbm, x = machine(), torch.randn(5, 3)
    expected = rbm.marginal().log_prob(x).sum().item()
    assert abs(-Trace_ELBO().loss(rbm.model, rbm.guide, x) - expected) < 1e-9
    new = Predictive(rbm.model, num_samples=1)(examples=20_000)["x"].squeeze(0)
    rbm.requires_grad_(False)  # which Pyro has set
    assert smallest_p_value(new, rbm) > FAILURE_RATE / 7


def test_it_starts_at_the_means_and_variances_of_the_data():
    x = torch.randn(100, 3) * torch.tensor([0.5, 1.0, 2.0]) + 1
    rbm = GaussianRBM.from_data(x, 4, weight_scale=0.0)
    expected = Normal(x.mean(0), x.std(0, correction=0)).log_prob(x).sum(-1)
    torch.testing.assert_close(rbm.marginal().log_prob(x), expected)


@pytest.mark.parametrize("hidden_units", [Binary(), UnitGaussian()], ids=str)
def test_missing_units_are_integrated_out(hidden_units):
    rbm = GaussianRBM(3, 2, weight_scale=0.4, hidden_units=hidden_units).requires_grad_(False)
    for name in ("visible_bias", "raw_variance"):
        torch.nn.init.normal_(getattr(rbm, name), std=0.3)
    x, observed = torch.tensor([0.7, math.nan, -1.1]), torch.tensor([True, False, True])
    grid = torch.linspace(-15, 15, 3001)
    filled = x.expand(3001, -1).clone()
    filled[:, 1] = grid
    joint_of = -rbm.free_energy(filled)
    expected = torch.trapezoid(joint_of.exp(), grid).log()
    torch.testing.assert_close(rbm.log_observed(x[None], observed), expected[None])
    law = rbm.missing_given_observed(x, observed)
    torch.testing.assert_close(law.log_prob(grid[:, None]), joint_of - expected)


def test_a_constant_column_leaves_everything_finite():
    x = torch.randn(50, 3)
    x[:, 1] = 0.0
    rbm = GaussianRBM.from_data(x, 4)
    ppgen.train(rbm, x, epochs=20, batch_size=10, learning_rate=0.05)
    assert all(p.isfinite().all() for p in rbm.parameters())
    assert rbm.variance.min() >= 0.01


# Likelihood


@pytest.mark.parametrize("temperatures", [1, 5])
@pytest.mark.parametrize("own", [True, False])
def test_annealing_is_unbiased_from_both_sides(temperatures, own):
    rbm, chains = machine(), 100_000
    rbm.weight.mul_(0.3)
    x = rbm.marginal().sample((200,))
    base = ais.base_biases(rbm, None if own else rbm.units.fitted(x))
    with Progress("test") as progress:
        betas = ais.schedule(temperatures)
        forward, _ = ais.forward_pass(rbm, base, betas, chains, progress)
        exact = rbm.marginal().sample((chains,))
        reverse = ais.reverse_pass(rbm, base, betas, exact, progress)
    truth = rbm.log_partition() - rbm.units.log_normaliser(base) - 4 * math.log(2)
    for ratios in ((forward - truth).exp(), (truth - reverse).exp()):
        assert abs(ratios.mean() - 1) < Z * ratios.std() / math.sqrt(chains)


def test_tempering_keeps_exact_draws_exact_at_temperature_one():
    rbm, betas, count = machine(), ais.schedule(3), 20_000
    base = rbm.visible_natural()
    ladder = []
    for beta in betas:
        hot = GaussianRBM(3, 4)
        for name, p in hot.named_parameters():
            share = beta if name in ("weight", "hidden_bias") else 1.0
            p.data.copy_(share * rbm.get_parameter(name))
        ladder.append(hot.marginal().sample((count,)))
    state, info = pt.step(pt.State(torch.stack(ladder)), machine=rbm, base=base, betas=betas)
    assert (info.accepted > 0.05).all()
    assert smallest_p_value(state.ladder[-1], rbm) > FAILURE_RATE / 7


def test_the_likelihood_is_exact_for_few_hidden_units_and_bounded_for_many():
    rbm, x = machine(), torch.randn(10, 3)
    found = ppgen.log_likelihood(rbm, x)
    assert found.kind == "exact"
    assert math.isclose(found.lower, rbm.marginal().log_prob(x).mean().item())
    large = machine(hidden=21)
    large.weight.mul_(0.3)
    exact = -large.free_energy(x).mean().item() - large.log_partition(21).item()
    found = ppgen.log_likelihood(large, x, temperatures=300, burn_in=100, seed=0)
    assert found.kind == "bounds"
    assert found.lower - Z * found.lower_error < exact < found.upper + Z * found.upper_error
    assert found.upper - found.lower < 0.5


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: GaussianRBM(3, 2, least_scale=0.0), "least_scale"),
        (lambda: machine().transposed(), "binary units"),
        (lambda: ppgen.log_likelihood(machine(), torch.tensor([[1.0, math.inf, 0.0]])), "column 1"),
        (
            lambda: ppgen.log_likelihood(machine(hidden=21), torch.ones(2, 3), base=torch.zeros(6)),
            "natural parameters",
        ),
    ],
)
def test_wrong_calls_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.slow
def test_digits_are_better_than_independent_gaussians():
    """Grey 8x8 digits, dequantised and standardised: -71.6 nats, independent Gaussians -90.2."""
    x, held_out = standardised_digits()
    rbm = GaussianRBM.from_data(x, 100)
    base = rbm.units.fitted(x)
    independent = rbm.units.law(base).log_prob(held_out).mean().item()
    ppgen.train(rbm, x, epochs=60, batch_size=100, learning_rate=3e-3, averaging=0.99)
    found = ppgen.log_likelihood(rbm, held_out, temperatures=2000, burn_in=500, seed=0)
    assert all(p.isfinite().all() for p in rbm.parameters())
    assert found.lower > independent + 10


def standardised_digits():
    """Uniform noise makes the 17 grey levels a density; 3 sd of it is a constant pixel's range."""
    parts = [ppgen.data.load("digits", split, binarisation="none").x for split in ("train", "test")]
    noisy = [(16 * x.double() + torch.rand(x.shape)) / 17 for x in parts]
    mean, sd = noisy[0].mean(0), noisy[0].std(0)
    return [(x - mean) / sd for x in noisy]
