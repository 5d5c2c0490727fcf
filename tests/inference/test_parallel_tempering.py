"""Parallel tempering leaves every replica's law invariant, and crosses where Gibbs does not."""

import itertools

import pytest
import torch
from pyro.infer import MCMC
from scipy import stats

from ppgen.distributions import RestrictedBoltzmann
from ppgen.inference import BlockGibbs, ContrastiveDivergence, ParallelTempering, Tempered
from ppgen.inference import contrastive_divergence as cd
from ppgen.inference import parallel_tempering as pt
from ppgen.inference.annealed_importance_sampling import schedule
from ppgen.models.dbm import DBM
from ppgen.models.rbm import RBM

FAILURE_RATE = 2e-5
DRAWS = 20_000


def states(units):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)))


def machine(kind="RBM"):
    made = RBM(5, 3) if kind == "RBM" else DBM(3, (3, 2))
    for p in made.parameters():
        torch.nn.init.normal_(p, std=2.0)
    return made.requires_grad_(False)


def tempered(made, base, beta):
    """The law of a replica: an RBM with these parameters, to be enumerated."""
    bias = (1 - beta) * base + beta * made.visible_bias
    return RestrictedBoltzmann(beta * made.weight, bias, beta * made.hidden_bias)


def p_value(side, law):
    expected = law.log_prob(states(5)).exp() * len(side)
    index = (side @ 2.0 ** torch.arange(4, -1, -1.0)).long()
    observed = torch.bincount(index, minlength=32).double()
    rare = expected < 10
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    return stats.chisquare(observed.numpy(), expected.numpy()).pvalue


def moved(made, steps):
    """p-value of every replica after `steps` from exact draws at every temperature."""
    base, betas = torch.randn(5), schedule(4)
    laws = [tempered(made, base, beta) for beta in betas]
    state = pt.State(torch.stack([law.sample((DRAWS,)) for law in laws]))
    for _ in range(steps):
        state, info = pt.step(state, machine=made, base=base, betas=betas)
    assert (info.accepted > 0.05).all()  # there are swaps to be wrong about
    return [p_value(side, law) for side, law in zip(state.ladder, laws, strict=True)]


def test_the_swap_ratio_is_that_of_the_tempered_marginals():
    made, base = machine(), torch.randn(5)
    hot, cold = tempered(made, base, 0.3), tempered(made, base, 0.8)
    pairs = states(10).reshape(-1, 2, 5).transpose(0, 1)
    ratio = pt.swap_log_ratio(made, base, pairs, made.hidden_logits(pairs), 0.3, 0.8)
    a, b = pairs
    expected = hot.log_prob(b) + cold.log_prob(a) - hot.log_prob(a) - cold.log_prob(b)
    torch.testing.assert_close(ratio, expected, rtol=0, atol=1e-12)


def test_swaps_are_in_detailed_balance():
    """Over all pairs of states of two temperatures: their product law is left as it is."""
    made, base = machine(), torch.randn(5)
    hot, cold = tempered(made, base, 0.3), tempered(made, base, 0.8)
    x = states(5)
    s, t = x.repeat_interleave(32, 0), x.repeat(32, 1)
    pairs = torch.stack([s, t])
    ratio = pt.swap_log_ratio(made, base, pairs, made.hidden_logits(pairs), 0.3, 0.8)
    joint = (hot.log_prob(s) + cold.log_prob(t)).exp()
    flow = (joint * ratio.clamp_max(0).exp()).reshape(32, 32)
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["RBM", "DBM"])
@pytest.mark.parametrize("steps", [1, 16])
def test_exact_draws_stay_exact_at_every_temperature(kind, steps):
    assert min(moved(machine(kind), steps)) > FAILURE_RATE / 5


def test_swaps_on_a_scaled_free_energy_are_caught(monkeypatch):
    """The planted bug of a peer: beta F(s) in place of the tempered marginal."""

    def scaled(machine, base, side, logits, previous, current):
        return (current - previous) * (-machine.free_energy(side) - side @ base)

    monkeypatch.setattr(pt, "increment", scaled)
    assert min(moved(machine(), 16)) < FAILURE_RATE / 5


def test_it_recovers_the_weights_of_two_modes_between_which_gibbs_never_crosses():
    """x all zeros or all ones; the modes differ by 1 nat, the barrier between them by about 15."""
    rbm = RBM(8, 8, weight_scale=0.0).requires_grad_(False)
    rbm.weight.fill_(1.2)
    rbm.visible_bias.fill_(-4.8)
    rbm.hidden_bias.fill_(-4.8)
    rbm.visible_bias[0] += 1.0
    mean = rbm.marginal().log_prob(states(8)).exp() @ (states(8).mean(1) > 0.5).double()
    start = torch.zeros(400, 8)
    shares = {}
    for kernel in (BlockGibbs(rbm, start), ParallelTempering(rbm, start, temperatures=10)):
        mcmc = MCMC(kernel, num_samples=40, warmup_steps=60, disable_progbar=True)
        mcmc.run()
        last = mcmc.get_samples()["x"][-1]  # chains are independent: a binomial count
        shares[type(kernel).__name__] = (last.mean(1) > 0.5).double().mean()
    z = stats.norm.isf(FAILURE_RATE / 2)
    assert shares["BlockGibbs"] < 0.1 < 0.6 < mean
    assert abs(shares["ParallelTempering"] - mean) < z * (mean * (1 - mean) / 400) ** 0.5 + 1 / 400
    assert len(mcmc.diagnostics()["swap acceptance"]["chain 0"]) == 10


@pytest.mark.parametrize(
    "options",
    [
        {"start": torch.ones(2, 4)},
        {"temperatures": 0},
        {"temperatures": torch.tensor([0.0, 0.5])},
        {"base": torch.zeros(3)},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        ParallelTempering(machine(), **{"start": torch.ones(2, 5), **options})


# As the negative phase of contrastive divergence


def test_a_tempered_negative_phase_of_exact_chains_gives_the_exact_gradient():
    made, base, betas = machine(), torch.randn(5), schedule(4)
    exact = [tempered(made, base, beta).sample((DRAWS,)) for beta in betas]
    x = (torch.rand(10, 5) < 0.5).double()
    state = cd.State(torch.stack(exact), torch.zeros(5), torch.zeros(3))
    state, gradient, info = cd.step(
        state, x, machine=made, gibbs_steps=3, centred=False, sampler=Tempered(4, base)
    )
    p, v = made.marginal().log_prob(states(5)).exp(), states(5)
    q = torch.sigmoid(made.hidden_logits(v))
    model = p @ v, p @ q
    second = p @ q**2
    errors = (p @ v * (1 - p @ v) / DRAWS).sqrt(), ((second - model[1] ** 2) / DRAWS).sqrt()
    positive = made.positive_phase(x)
    means = positive.visible_mean, positive.hidden_mean
    for found, mean, of_model, error in zip(gradient[1:], means, model, errors, strict=True):
        # 8 comparisons: normal quantile of 1 - 1e-5 / 8 is 4.7
        assert ((found - (of_model - mean)).abs() < 4.7 * error + 1e-12).all()
    assert state.chains.shape == (5, DRAWS, 5)
    assert min(
        p_value(s, tempered(made, base, b)) for s, b in zip(state.chains, betas, strict=True)
    ) > (FAILURE_RATE / 5)
    assert torch.equal(info.fantasies, state.chains[-1])


def test_a_tempered_negative_phase_crosses_where_persistent_chains_do_not():
    """Chains that start in one of two equal modes: their share is what the gradient sees."""
    rbm = RBM(8, 8, weight_scale=0.0).requires_grad_(False)
    rbm.weight.fill_(1.2)
    rbm.visible_bias.fill_(-4.8)
    rbm.hidden_bias.fill_(-4.8)
    share = {}
    for name, sampler in (("Gibbs", None), ("tempered", Tempered(10))):
        loss = ContrastiveDivergence(persistent=True, sampler=sampler, gibbs_steps=60)
        state = cd.init(rbm, torch.zeros(400, 8), persistent=True, sampler=sampler)
        _, _, info = cd.step(state, torch.zeros(4, 8), machine=rbm, gibbs_steps=60, sampler=sampler)
        share[name] = (info.fantasies.mean(1) > 0.5).double().mean()
        assert loss.sampler is sampler
    assert share["Gibbs"] < 0.1
    assert abs(share["tempered"] - 0.5) < 0.15  # binomial: 4.3 standard errors are 0.11


def test_a_tempered_run_resumes_bit_for_bit():
    x, runs = (torch.rand(9, 5) < 0.5).double(), []
    for stop in (4, 2):
        torch.manual_seed(0)
        rbm = RBM(5, 3)
        loss = ContrastiveDivergence(persistent=True, sampler=Tempered(3))
        for batch in range(4):
            if batch == stop:
                kept = loss.state_dict()
                loss = ContrastiveDivergence(persistent=True, sampler=Tempered(3))
                loss.load_state_dict(kept)
            rbm.zero_grad()
            loss.loss_and_grads(rbm.model, rbm.guide, x)
            with torch.no_grad():
                for p in rbm.parameters():
                    p -= 0.1 * p.grad
        runs.append(rbm.weight.detach().clone())
    assert torch.equal(*runs)
