"""Trajectory tempering keeps every rung's law, crosses where Gibbs does not, and resumes."""

import copy
import itertools

import pytest
import torch
from pyro.infer import MCMC
from scipy import stats

import ppgen
from ppgen.inference import (
    BlockGibbs,
    ContrastiveDivergence,
    Trajectory,
    TrajectoryTempering,
    ladder_log_partition,
)
from ppgen.inference import contrastive_divergence as cd
from ppgen.inference import trajectory_tempering as tt
from ppgen.models import DBM, RBM, GaussianRBM

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5
DRAWS = 20_000


def states(units):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * units).reshape(-1, units)


def machine(kind="RBM", scale=2.0):
    made = RBM(5, 3) if kind == "RBM" else DBM(3, (3, 2))
    for p in made.parameters():
        torch.nn.init.normal_(p, std=scale)
    return made.requires_grad_(False)


def trajectory(kind="RBM", rungs=4):
    """From no weights to a machine, biases wandering too."""
    end, found = machine(kind), []
    for k in range(rungs):
        there = copy.deepcopy(end)
        for name, p in there.named_parameters():
            p *= k / (rungs - 1)
            if "bias" in name:
                p += 0.5 * torch.randn_like(p)
        found.append(tt.frozen(there))
    return found


def two_modes():
    """x all zeros or all ones; the modes differ by 1 nat, the barrier between them by about 15."""
    rbm = RBM(8, 8, weight_scale=0.0).requires_grad_(False)
    rbm.weight.fill_(1.2)
    rbm.visible_bias.fill_(-4.8)
    rbm.hidden_bias.fill_(-4.8)
    rbm.visible_bias[0] += 1.0
    return rbm


def p_value(side, law):
    expected = law.log_prob(states(5)).exp() * len(side)
    index = (side @ 2.0 ** torch.arange(4, -1, -1.0)).long()
    observed = torch.bincount(index, minlength=32).double()
    rare = expected < 10
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    return stats.chisquare(observed.numpy(), expected.numpy()).pvalue


def moved(laws, steps):
    """p-value of every rung after `steps` from exact draws everywhere."""
    state = tt.State(torch.stack([law.sample((DRAWS,)) for law in laws]))
    for _ in range(steps):
        state, info = tt.step(state, laws=laws)
    assert (info.accepted > 0.05).all()  # there are swaps to be wrong about
    return min(p_value(side, law) for side, law in zip(state.ladder, laws, strict=True))


# The kernel


def test_swaps_are_in_detailed_balance():
    """Over all pairs of states of two machines: the product law is left invariant to 1e-12."""
    early, late = (tt.frozen(machine()) for _ in range(2))
    x = states(5)
    s, t = x.repeat_interleave(32, 0), x.repeat(32, 1)
    joint = early.log_prob(s) + late.log_prob(t)
    accept = tt.swap_log_ratio(early, late, s, t).clamp_max(0).exp()
    flow = (joint.exp() * accept).reshape(32, 32)
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["RBM", "DBM"])
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_exact_draws_stay_exact_on_every_rung(kind, steps):
    assert moved(trajectory(kind), steps) > FAILURE_RATE / 4


def test_swaps_that_ask_one_machine_alone_are_caught(monkeypatch):
    """A planted bug: whether the late machine likes the exchange."""

    def one_sided(early, late, s, t):
        return late.free_energy(t) - late.free_energy(s)

    monkeypatch.setattr(tt, "swap_log_ratio", one_sided)
    assert moved(trajectory(), 4) < FAILURE_RATE / 4


def test_swaps_on_the_energy_of_a_hidden_state_are_caught(monkeypatch):
    """A planted bug: free energies replaced by energies at the hidden means."""

    def energy(law, x):
        logits = x @ law.weight + law.hidden_bias
        return -x @ law.visible_bias - (logits * logits.sigmoid()).sum(-1)

    def wrong(early, late, s, t):
        return energy(early, s) - energy(early, t) + energy(late, t) - energy(late, s)

    monkeypatch.setattr(tt, "swap_log_ratio", wrong)
    assert moved(trajectory(), 16) < FAILURE_RATE / 4


@pytest.mark.slow
def test_it_crosses_between_two_modes_and_knows_log_z():
    """Of which a Gibbs chain sees the one where it starts; log Z along the ladder within .05."""
    rbm = two_modes()
    past = []
    for k in range(11):
        past.append(copy.deepcopy(rbm))
        for p in past[-1].parameters():
            p *= k / 10
    ones = rbm.marginal().log_prob(states(8)).exp() @ (states(8).mean(1) > 0.5).double()
    start, shares = torch.zeros(1000, 8), {}
    kernel = TrajectoryTempering(past, start)
    for sampler in (BlockGibbs(rbm, start), kernel):
        mcmc = MCMC(sampler, num_samples=40, warmup_steps=60, disable_progbar=True)
        mcmc.run()
        last = mcmc.get_samples()["x"][-1]  # chains are independent: a binomial count
        shares[type(sampler).__name__] = (last.mean(1) > 0.5).double().mean()
    z = stats.norm.isf(FAILURE_RATE / 2)
    assert shares["BlockGibbs"] < 0.1 < 0.6 < ones
    assert abs(shares["TrajectoryTempering"] - ones) < z * (ones * (1 - ones) / 1000) ** 0.5 + 0.001
    found = ladder_log_partition(kernel, draws=20, warmup=0)
    assert found.error < 0.05 / z
    assert abs(found.value - rbm.log_partition()) < z * found.error
    assert len(kernel.laws) == 11  # the first has no weights and stands for itself


def test_real_units_have_rungs_with_variances():
    """The first machine gets an uncoupled copy before it; log Z against the exact sum."""
    rbm = GaussianRBM(3, 2, weight_scale=0.7).requires_grad_(False)
    rbm.raw_variance.normal_()
    kernel = TrajectoryTempering([rbm], torch.zeros(400, 3))
    found = ladder_log_partition(kernel, draws=50, warmup=20)
    z = stats.norm.isf(FAILURE_RATE / 2)
    assert len(kernel.laws) == 2
    assert found.error < 0.05
    assert abs(found.value - rbm.log_partition()) < z * found.error


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"trajectory": []}, "at least one machine"),
        ({"trajectory": [RBM(5, 3), RBM(5, 4)]}, "number 0"),
        ({"start": torch.zeros(2, 4)}, "start"),
        ({"sweeps": 0}, "sweeps"),
    ],
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        TrajectoryTempering(**{"trajectory": [RBM(5, 3)], "start": torch.zeros(2, 5), **options})


# As the negative phase of contrastive divergence


def started():
    """A machine, exact chains and an exact reservoir of an earlier one, and what moves them."""
    rbm = machine(scale=1.0)
    law = tt.frozen(rbm)
    for part in (law.weight, law.visible_bias, law.hidden_bias):
        part += 0.3 * torch.randn_like(part)
    kept = {"chains": rbm.marginal().sample((DRAWS,)), "accepted": torch.ones(())}
    kept |= tt._rung(0, law, law.sample((DRAWS,)))
    return rbm, kept, Trajectory(reservoir=1, freeze=1e-9)


def exchanged(steps):
    """p-values of chains and reservoir after moves from exact draws of both."""
    rbm, kept, sampler = started()
    for _ in range(steps):
        kept, visible = sampler.move(rbm, kept, 1)
    assert torch.equal(visible, kept["chains"])
    law = sampler.laws(rbm, kept)[0]
    return min(p_value(visible, rbm.marginal()), p_value(kept["0/reservoir"], law))


def test_each_update_of_the_chains_is_a_sweep(monkeypatch):
    """What a swap alone would leave as it was."""
    rbm, kept, sampler = started()
    swept, sweep = [], RBM.sweep

    def counted(story, side):
        swept.append(side)
        return sweep(story, side)

    monkeypatch.setattr(RBM, "sweep", counted)
    _, visible = sampler.move(rbm, kept, 3)
    assert len(swept) == 3
    assert (visible != swept[-1]).any()  # the last one's result, and not what went into it


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_chains_and_reservoir_both_keep_their_laws(steps):
    assert exchanged(steps) > FAILURE_RATE / 2


def test_taking_from_the_reservoir_without_a_test_is_caught(monkeypatch):
    monkeypatch.setattr(tt, "swap_log_ratio", lambda early, late, s, t: torch.zeros(len(s)))
    assert exchanged(1) < FAILURE_RATE / 2


@pytest.mark.slow
def test_a_new_rung_is_the_machine_as_it_was_and_its_reservoir_has_its_law():
    """The chains have not moved from the mode in which they started; tempering fills both."""
    rbm, sampler = two_modes(), Trajectory(reservoir=40, freeze=0.9, rounds=30)
    past = []
    for k in range(11):
        past.append(copy.deepcopy(rbm))
        for p in past[-1].parameters():
            p *= k / 10
    kept = sampler.start(past[0], torch.zeros(10, 8))
    for there in past[1:]:
        kept = sampler._with_rung(there, kept)
    assert float(kept["accepted"]) == 1.0
    laws = sampler.laws(rbm, kept)
    assert [torch.equal(law.weight, m.weight) for law, m in zip(laws, past, strict=True)] == [
        True
    ] * 11
    z = stats.norm.isf(FAILURE_RATE / 2 / 11)
    for k, law in enumerate(laws):
        ones = law.log_prob(states(8)).exp() @ (states(8).mean(1) > 0.5).double()
        share = (kept[f"{k}/reservoir"].mean(1) > 0.5).double().mean()
        # the members of a reservoir have met each other: twice the binomial error
        assert abs(share - ones) < 2 * z * (ones * (1 - ones) / 400) ** 0.5


def data():
    return torch.cat([torch.ones(70, 6), torch.zeros(30, 6)])


@pytest.mark.slow
def test_training_learns_the_weights_of_two_modes():
    """70 % ones, 30 % zeros: entropy .611 nats, and rungs are frozen on the way."""
    rbm = RBM(6, 4)
    loss = ContrastiveDivergence(persistent=True, sampler=Trajectory(), chains=100)
    ppgen.inference.train(
        rbm,
        data(),
        loss=loss,
        epochs=1500,
        learning_rate=0.7,
        schedule=lambda epoch: 0.998**epoch,
        optimizer=torch.optim.SGD,
    )
    rbm.requires_grad_(False)
    mean = rbm.marginal().log_prob(data()).mean()
    ones = rbm.marginal().log_prob(torch.ones(6)).exp()
    assert mean > -0.611 - 0.1  # persistent Gibbs chains lose a mode: -0.82 in the same steps
    assert abs(ones - 0.7) < 0.1
    rungs = loss.sampler.laws(rbm, loss.state.chains)
    assert len(rungs) > 1
    found = ladder_log_partition(TrajectoryTempering([*rungs, rbm], torch.zeros(2000, 6)), draws=50)
    assert abs(found.value - rbm.log_partition()) < 0.05


def test_evaluating_moves_nothing_and_a_run_resumes_bit_for_bit():
    x, runs = (torch.rand(9, 5) < 0.5).double(), []
    for stop in (6, 3):
        torch.manual_seed(0)
        rbm = RBM(5, 3, weight_scale=1.0)
        sampler = Trajectory(reservoir=2, freeze=0.98, rounds=2)
        loss = ContrastiveDivergence(persistent=True, sampler=sampler)
        for batch in range(6):
            if batch == stop:
                kept = loss.state_dict()
                loss = ContrastiveDivergence(persistent=True, sampler=sampler)
                loss.load_state_dict(kept)
                before = {name: value.clone() for name, value in kept["chains"].items()}
                with torch.random.fork_rng():
                    loss.loss(rbm.model, rbm.guide, x)
                assert all(torch.equal(v, kept["chains"][k]) for k, v in before.items())
            rbm.zero_grad()
            loss.loss_and_grads(rbm.model, rbm.guide, x)
            with torch.no_grad():
                for p in rbm.parameters():
                    p -= 0.2 * p.grad
        runs.append((rbm.weight.detach().clone(), tt._rungs(loss.state.chains)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1] > 1


def test_a_resumed_training_run_keeps_its_rungs(tmp_path):
    """The dictionary of tensors goes through a checkpoint."""
    ends = []
    for parts in ([4], [2, 4]):
        rbm = RBM(6, 4, weight_scale=0.3)
        torch.nn.init.constant_(rbm.weight, 0.3)
        for epochs in parts:
            loss = ContrastiveDivergence(
                persistent=True, sampler=Trajectory(reservoir=2, freeze=0.9, rounds=2)
            )
            ppgen.inference.train(
                rbm,
                data(),
                loss=loss,
                epochs=epochs,
                batch_size=20,
                learning_rate=0.1,
                optimizer=torch.optim.SGD,
                out=tmp_path / str(len(parts)),
                resume=epochs != parts[0],
            )
        assert tt._rungs(loss.state.chains) > 1
        ends.append(rbm.weight.detach().clone())
    assert torch.equal(*ends)


def leapt(sampler):
    """The chains in one of two modes that the machine has leapt to from no weights at all."""
    there = two_modes()
    start = copy.deepcopy(there)
    for p in start.parameters():
        p.zero_()
    kept = sampler.start(start, torch.zeros(10, 8))
    kept["chains"] = torch.zeros(10, 8)
    kept, _ = sampler.move(there, kept, 1)
    return there, kept


def share_of_ones(there, kept):
    """z of the second mode's share in the last reservoir."""
    ones = there.marginal().log_prob(states(8)).exp() @ (states(8).mean(1) > 0.5).double()
    last = tt._rungs(kept) - 1
    share = (kept[f"{last}/reservoir"].mean(1) > 0.5).double().mean()
    # the members of a reservoir have met each other: twice the binomial error
    return float(abs(share - ones) / (2 * (ones * (1 - ones) / 400) ** 0.5))


def test_a_leap_is_bridged_by_rungs_between():
    there, kept = leapt(Trajectory(reservoir=40, rounds=30))
    laws = Trajectory().laws(there, kept)
    assert len(laws) > 2
    assert torch.equal(laws[-1].weight, there.weight)
    for early, late in itertools.pairwise(laws):  # no gap is left
        x, y = early.sample((4000,)), late.sample((4000,))
        assert tt.swap(early, late, x, y)[2] > 0.05
    assert share_of_ones(there, kept) < stats.norm.isf(FAILURE_RATE / 2)


def test_a_leap_that_is_not_bridged_is_caught(monkeypatch):
    """The planted bug, and why there are bridges: chains stay where they were."""
    monkeypatch.setattr(tt, "LOST", -1.0)
    there, kept = leapt(Trajectory(reservoir=40, rounds=30, freeze=0.9))
    assert tt._rungs(kept) == 2
    assert share_of_ones(there, kept) > stats.norm.isf(FAILURE_RATE / 2)


def test_a_leap_too_far_for_bridges_is_told_to_go_slower(monkeypatch):
    monkeypatch.setattr(tt, "_BRIDGES", 0)
    with pytest.warns(RuntimeWarning, match="smaller learning rate"):
        leapt(Trajectory(reservoir=4, rounds=5))


def test_swaps_are_not_all_accepted():
    with pytest.raises(ValueError, match=r"freeze=.* below 1, got 1"):
        Trajectory(freeze=1.0)


def test_the_gradient_of_exact_chains_is_exact():
    """As one of `Tempered`: moments of 20,000 chains against the enumerated ones."""
    rbm, kept, sampler = started()
    state = cd.State(kept, torch.zeros(5), torch.zeros(3))
    x = (torch.rand(10, 5) < 0.5).double()
    _, gradient, _ = cd.step(state, x, machine=rbm, centred=False, sampler=sampler)
    p, v = rbm.marginal().log_prob(states(5)).exp(), states(5)
    mean = p @ v
    error = (mean * (1 - mean) / DRAWS).sqrt()
    # 5 comparisons: normal quantile of 1 - 1e-5 / 5 is 4.6
    assert ((gradient.visible_bias - (mean - x.mean(0))).abs() < 4.6 * error).all()
