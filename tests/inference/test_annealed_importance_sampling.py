"""AIS against enumeration: unbiased weights, calibrated errors, bounds on the right sides."""

import importlib
import math

import pytest
import torch
from scipy import stats

from ppgen.distributions.units import sample_units
from ppgen.inference import annealed_importance_sampling as ais
from ppgen.inference.annealed_importance_sampling import annealed_importance_sampling
from ppgen.inference.boltzmann_likelihood import boltzmann_likelihood
from ppgen.likelihood import Likelihood
from ppgen.models.gaussian_rbm import GaussianRBM
from ppgen.models.rbm import RBM
from ppgen.progress import Progress

pytestmark = pytest.mark.usefixtures("silent")

# the package has a function of this name, too
likelihood = importlib.import_module("ppgen.inference.boltzmann_likelihood")

FAILURE_RATE = 2e-5
Z = stats.norm.isf(FAILURE_RATE / 2)  # 4.27


def machine(visible=6, hidden=4, scale=1.0):
    rbm = RBM(visible, hidden, weight_scale=scale)
    torch.nn.init.normal_(rbm.visible_bias)
    torch.nn.init.normal_(rbm.hidden_bias)
    return rbm.requires_grad_(False)


def log_base(base, hidden):
    return (torch.nn.functional.softplus(base).sum() + hidden * math.log(2)).item()


def passes(rbm, base, betas, chains):
    """Log weights of many forward and reverse chains, of the reverse ones from exact draws."""
    with Progress("test") as progress:
        forward, _ = ais.forward_pass(rbm, base, betas, chains, progress)
        exact = rbm.marginal().sample((chains,))
        return forward, ais.reverse_pass(rbm, base, betas, exact, progress)


@pytest.mark.parametrize("temperatures", [1, 2, 5])
def test_weights_of_both_passes_are_unbiased_at_few_temperatures(temperatures):
    """E[w] Z_0 = Z forward, E[1 / w] / Z_0 = 1 / Z reverse.

    A pass that moves before it weights (or the other way round in reverse) is biased by whole
    nats at one temperature.
    """
    rbm, base, chains = machine(scale=0.6), torch.randn(6), 200_000
    forward, reverse = passes(rbm, base, ais.schedule(temperatures), chains)
    truth = rbm.log_partition().item() - log_base(base, 4)
    for ratios in ((forward - truth).exp(), (truth - reverse).exp()):
        assert abs(ratios.mean() - 1) < Z * ratios.std() / math.sqrt(chains)


def test_planted_order_error_is_caught():
    """The test above has the power to see it: at one temperature moving first is far off."""
    rbm, base, chains = machine(scale=0.6), torch.randn(6), 200_000
    side = sample_units(base.sigmoid().expand(chains, -1))
    side = ais.move(rbm, base, rbm.hidden_logits(side), 1.0)
    wrong = ais.increment(rbm, base, side, rbm.hidden_logits(side), 0.0, 1.0)
    ratios = (wrong - rbm.log_partition() + log_base(base, 4)).exp()
    assert abs(ratios.mean() - 1) > 2 * Z * ratios.std() / math.sqrt(chains)


def test_standard_errors_are_calibrated_over_200_runs():
    """Chains are independent, so that 200 runs of 100 chains are one run of 20,000."""
    rbm, runs, chains = machine(), 200, 100
    base = rbm.visible_bias
    truth = rbm.log_partition().item() - log_base(base, 4)
    forward, reverse = passes(rbm, base, ais.schedule(60), runs * chains)
    for log_weights, sign in ((forward, 1), (-reverse, -1)):
        pairs = [ais._log_mean_exp(w) for w in log_weights.reshape(runs, chains)]
        estimates, errors = map(torch.tensor, zip(*pairs, strict=True))
        assert errors.max() < 0.1
        z = (sign * estimates - truth) / errors
        # The log of a mean is low by error^2 / 2, that is error / 2 <= 0.05 in z
        assert abs(z.mean()) < Z / math.sqrt(runs) + 0.05
        # sd of z: chi quantiles of 199 degrees of freedom; 1 % for the estimated error
        assert abs(z.std() - 1) < Z / math.sqrt(2 * runs) + 0.01


@pytest.mark.slow
def test_the_public_function_is_calibrated_over_200_seeds():
    rbm = machine()
    truth = rbm.log_partition().item()
    results = [
        annealed_importance_sampling(rbm, temperatures=100, seed=seed) for seed in range(200)
    ]
    for side in ("lower", "upper"):
        errors = torch.tensor([getattr(r, f"{side}_error") for r in results])
        z = (torch.tensor([getattr(r, side) for r in results]) - truth) / errors
        assert errors.max() < 0.1
        assert abs(z.mean()) < Z / math.sqrt(200) + 0.05
        assert abs(z.std() - 1) < Z / math.sqrt(400) + 0.01


def test_bounds_lie_on_their_sides_on_average():
    """With few temperatures and chains the bias is plain: a wrong sign shows."""
    rbm, base, runs, chains = machine(scale=1.5), torch.zeros(6), 2000, 5
    truth = rbm.log_partition().item() - log_base(base, 4)
    forward, reverse = passes(rbm, base, ais.schedule(5), runs * chains)
    lower = torch.logsumexp(forward.reshape(runs, chains), 1) - math.log(chains)
    upper = math.log(chains) - torch.logsumexp(-reverse.reshape(runs, chains), 1)
    assert lower.mean() < truth - Z * lower.std() / math.sqrt(runs)
    assert upper.mean() > truth + Z * upper.std() / math.sqrt(runs)
    # P(lower > truth + c) <= exp(-c), at c = 1, with a binomial margin
    assert (lower > truth + 1).double().mean() < math.exp(-1) + Z * 0.5 / math.sqrt(runs)


def test_reverse_weights_are_averaged_as_inverses(monkeypatch):
    """Weights averaged in the reverse pass too would give a log Z that is high for no reason."""
    rbm, w = machine(), torch.tensor([0.5, 2.0, 4.0])
    monkeypatch.setattr(ais, "forward_pass", lambda *_: (w.log(), torch.zeros(3, 6)))
    monkeypatch.setattr(ais, "reverse_pass", lambda *_: w.log())
    found = annealed_importance_sampling(rbm, chains=3, temperatures=2)
    base = ais.base_log_partition(rbm, torch.zeros(6))
    assert found.lower == pytest.approx(base + w.mean().log())
    assert found.upper == pytest.approx(base - (1 / w).mean().log())


@pytest.mark.slow
def test_reported_estimates_of_z_and_its_inverse_are_unbiased():
    """E[exp(lower)] = Z and E[exp(-upper)] = 1 / Z; averaging reverse weights would break it."""
    rbm, runs = machine(scale=0.7), 300
    results = [annealed_importance_sampling(rbm, chains=20, temperatures=5) for _ in range(runs)]
    truth = rbm.log_partition()
    for ratios in (
        (torch.tensor([r.lower for r in results]) - truth).exp(),
        (truth - torch.tensor([r.upper for r in results])).exp(),
    ):
        assert abs(ratios.mean() - 1) < Z * ratios.std() / math.sqrt(runs)


def test_weights_vanish_where_the_base_is_the_machine():
    rbm = RBM(6, 4, weight_scale=0.0).requires_grad_(False)
    torch.nn.init.normal_(rbm.visible_bias)
    for log_weights in passes(rbm, rbm.visible_bias, ais.schedule(10), 20):
        torch.testing.assert_close(log_weights, torch.zeros(20), rtol=0, atol=1e-10)
    result = annealed_importance_sampling(rbm, base=rbm.visible_bias, temperatures=10)
    assert abs(result.lower - rbm.log_partition().item()) < 1e-10
    assert abs(result.upper - rbm.log_partition().item()) < 1e-10
    assert abs(result.effective_chains - 100) < 1e-6


def test_an_independent_machine_is_nearly_exact():
    """Without weights each unit anneals alone; the hidden biases alone leave a small error."""
    rbm = machine(scale=0.0)
    result = annealed_importance_sampling(rbm, base=rbm.visible_bias, temperatures=50)
    assert result.exact
    assert abs(result.lower - rbm.log_partition().item()) < Z * result.lower_error + 1e-10


def test_float32_machines_get_float64_weights():
    rbm = machine().float()
    forward, reverse = passes(rbm, torch.zeros(6, dtype=torch.float32), ais.schedule(5), 10)
    assert forward.dtype == reverse.dtype == torch.float64


# The schedule


@pytest.mark.parametrize("temperatures", [1, 3, 7, 1000, 199_999])
def test_the_last_beta_is_exactly_one(temperatures):
    betas = ais.schedule(temperatures)
    assert betas[0] == 0
    assert betas[-1] == 1
    assert len(betas) == temperatures + 1


def test_betas_may_be_a_list():
    assert ais.schedule([0.0, 0.25, 1.0]) == ais.schedule(torch.tensor([0.0, 0.25, 1.0]))


@pytest.mark.parametrize(
    ("temperatures", "match"),
    [
        (0, "at least 1"),
        (torch.tensor([0.0, 0.5, 0.999]), "exactly 1"),
        (torch.tensor([0.1, 1.0]), "start at 0"),
        (torch.tensor([0.0, 0.6, 0.6, 1.0]), "increase"),
        ([0.0, 0.5], "exactly 1"),
        (1e3, "a whole number"),
    ],
)
def test_schedules_that_would_bias_are_refused(temperatures, match):
    with pytest.raises(ValueError, match=match):
        annealed_importance_sampling(machine(), temperatures=temperatures)


def test_a_given_schedule_is_used():
    betas = torch.cat([torch.linspace(0, 0.5, 11), torch.linspace(0.5, 1, 41)[1:]])
    assert annealed_importance_sampling(machine(), temperatures=betas).temperatures == 50


# The likelihood


def binary(rows, visible, rate=0.3):
    return (torch.rand(rows, visible) < rate).double()


def test_a_small_machine_is_exact():
    rbm, x = machine(), binary(20, 6)
    answer = boltzmann_likelihood(rbm, x)
    expected = rbm.marginal().log_prob(x).mean().item()
    assert answer.kind == "exact"
    assert answer.lower == answer.upper
    assert abs(answer.lower - expected) < 1e-10
    assert answer.examples == 20


def test_effective_chains_are_those_of_the_forward_weights():
    rbm, base = machine(), torch.randn(6)
    torch.manual_seed(3)
    weights = passes(rbm, base, ais.schedule(2), 50)[0].exp()
    found = annealed_importance_sampling(rbm, chains=50, temperatures=2, base=base, seed=3)
    expected = weights.sum().square() / weights.square().sum()
    assert math.isclose(found.effective_chains, expected.item(), rel_tol=1e-10)
    assert 2 < found.effective_chains < 49


def test_reverse_chains_start_at_the_ends_of_forward_ones_drawn_by_their_weights():
    """From there the upper side is log Z, if there are enough; from the ends as they are it is not.

    Sweeps stay in one of two modes, between which the base divides the chains evenly.
    """
    small, chains = RBM(3, 3, weight_scale=0.0).requires_grad_(False), 20_000
    small.weight.fill_(2.5)
    small.visible_bias.fill_(-3.2)
    small.hidden_bias.fill_(-3.75)
    rbm = RBM(21, 21, weight_scale=0.0).requires_grad_(False)  # too large to be summed
    rbm.weight[:3, :3], rbm.visible_bias[:3], rbm.hidden_bias[:3] = (
        small.weight, small.visible_bias, small.hidden_bias,
    )  # fmt: skip
    exact = small.log_partition().item() + 36 * math.log(2)
    found = annealed_importance_sampling(rbm, chains=chains, temperatures=1, burn_in=0)
    assert not found.exact
    # resampling adds the noise of the weights: as if there were so many fewer chains
    error = found.upper_error * (1 + chains / found.effective_chains) ** 0.5
    assert abs(found.upper - exact) < Z * error < 0.25  # without, it is 0.5 too low


@pytest.mark.slow
def test_a_large_machine_has_bounds_that_hold_the_exact_value():
    """21 units a side: one more than AIS sums by itself, and still enumerable here."""
    rbm, x = machine(21, 21, scale=0.3), binary(10, 21)
    exact = (-rbm.free_energy(x)).mean().item() - rbm.log_partition(21).item()
    answer = boltzmann_likelihood(rbm, x, temperatures=300, burn_in=100, seed=0)
    assert answer.kind == "bounds"
    assert answer.lower - Z * answer.lower_error < exact < answer.upper + Z * answer.upper_error
    assert answer.upper - answer.lower < 0.5
    z = answer.details["log_partition"]
    assert not z.exact
    assert "nominal" in str(answer)
    assert "base rates of the data" in str(answer)
    score = -rbm.free_energy(x).mean().item()
    # a high log Z is a low score; the two passes cross here, by less than their errors
    assert z.upper < z.lower < z.upper + Z * (z.upper_error + z.lower_error)
    assert math.isclose(answer.lower, score - z.lower, abs_tol=1e-9)
    assert math.isclose(answer.upper, score - z.upper, abs_tol=1e-9)
    assert (answer.lower_error, answer.upper_error) == (z.lower_error, z.upper_error)


def test_the_base_is_named_in_the_result():
    rbm = machine()
    uniform = annealed_importance_sampling(rbm, temperatures=2)
    assert uniform.base == "uniform"
    assert "uniform" in str(uniform)
    given = annealed_importance_sampling(rbm, temperatures=2, base=rbm.visible_bias)
    assert given.base == "given biases"


def test_of_real_units_the_base_is_normal_laws():
    machine = GaussianRBM(25, 25, weight_scale=0.1)
    answer = boltzmann_likelihood(machine, torch.randn(4, 25), temperatures=5, burn_in=2, seed=0)
    assert "normal laws of the data's columns" in str(answer)


def test_same_seed_same_score_and_the_global_generator_stays():
    rbm, x = machine(21, 21, scale=0.3), binary(5, 21)
    before = torch.get_rng_state()
    scores = [
        boltzmann_likelihood(rbm, x, chains=5, temperatures=3, burn_in=2, seed=7) for _ in range(2)
    ]
    assert scores[0] == scores[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_grey_images_have_no_likelihood():
    x = binary(5, 6)
    x[3, 2] = 0.7
    with pytest.raises(ValueError, match=r"got 0\.7 in row 3, column 2"):
        boltzmann_likelihood(machine(), x)
    with pytest.raises(ValueError, match="raise_chains: expected 0 or more"):
        boltzmann_likelihood(machine(), binary(5, 6), raise_chains=-1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"chains": 1}, "chains: expected at least 2"),
        ({"burn_in": -1}, "burn_in: expected 0 or more"),
        ({"base": torch.zeros(5)}, "base: expected 6 finite biases"),
        ({"base": torch.full((6,), float("inf"))}, "finite"),
    ],
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        annealed_importance_sampling(machine(), **options)


def test_an_estimate_below_the_sum_over_the_data_is_refused(monkeypatch):
    machine = RBM(24, 24)
    x = torch.eye(24)
    good = boltzmann_likelihood(machine, x, chains=50, temperatures=200, seed=0)
    assert good.kind == "bounds"
    with torch.no_grad():  # a deep mode at each row of the data, which no chain finds
        machine.weight.copy_(40.0 * torch.eye(24))
        machine.visible_bias.fill_(-10.0)
        machine.hidden_bias.fill_(-30.0)
    low = ais.LogPartition(1.0, 0.01, 1.1, 0.01, 50.0, 50, 200, "base rates of the data", False)
    monkeypatch.setattr(likelihood, "annealed_importance_sampling", lambda *_, **__: low)
    with pytest.raises(ValueError, match="missed modes"):
        boltzmann_likelihood(machine, x)
    # a side above what the data sum to, or within 4.3 of its errors of it, contradicts nothing
    known = (-machine.free_energy(x)).logsumexp(0).item()
    for upper, error, refused in ((1.0, 0.01, False), (-1.0, 0.3, False), (-1.0, 0.2, True)):
        sides = 1.0, 0.01, known + upper, error
        z = ais.LogPartition(*sides, 50.0, 50, 200, "base rates of the data", False)
        monkeypatch.setattr(likelihood, "annealed_importance_sampling", lambda *_, z=z, **__: z)
        if refused:
            with pytest.raises(ValueError, match="missed modes"):
                boltzmann_likelihood(machine, x)
        else:
            assert boltzmann_likelihood(machine, x).kind == "bounds"


def test_two_sides_that_disagree_are_no_likelihood():
    """The first words say so; bounds within a nat and their errors stay bounds."""

    def text(lower, upper, error=0.1):
        return str(Likelihood("bounds", lower, upper, error, error, "AIS", 10))

    assert text(-90.0, -86.0).startswith("no likelihood: the two sides disagree by 3.6 nats")
    assert text(-86.0, -90.0).startswith("no likelihood")  # crossed beyond their errors
    assert text(-86.9, -86.0).startswith("between -86.90")
    assert text(-90.0, -86.0, error=2.0).startswith("between")


def test_of_a_lower_bound_the_sides_are_those_of_log_z():
    def text(lower, upper):
        z = ais.LogPartition(lower, 0.1, upper, 0.1, 9.0, 10, 50, "uniform", False)
        bound = Likelihood("lower", -90.0, None, 0.1, None, "AIS", 10, {"log_partition": z})
        return str(bound)

    assert text(80.0, 84.0).startswith("no likelihood: two sides of log Z disagree by 3.6 nats, >=")
    assert text(84.0, 80.0).startswith("no likelihood")
    assert text(80.0, 80.9).startswith(">= -90.00")


def test_a_machine_that_annealing_cannot_follow_has_no_likelihood():
    """Two temperatures to couplings of standard deviation 2: the passes never meet."""
    rbm = machine(30, 30, scale=2.0)
    x = (torch.rand(4, 30) < 0.5).double()
    found = boltzmann_likelihood(rbm, x, temperatures=2, chains=20, burn_in=100, seed=0)
    assert found.kind == "bounds"
    assert str(found).startswith("no likelihood: the two sides disagree by")
