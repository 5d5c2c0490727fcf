"""Block Gibbs leaves the machine's law invariant; a sweep on means instead of samples does not."""

import itertools
import math

import pyro
import pytest
import torch
from pyro.infer import MCMC
from scipy import stats

from ppgen.distributions import OneHot
from ppgen.inference import (
    BlockGibbs,
    GibbsLangevin,
    ParallelTempering,
    SingleSiteGibbs,
    TrajectoryTempering,
    parallel_tempering,
)
from ppgen.inference.annealed_importance_sampling import annealed_importance_sampling
from ppgen.models import DBN, RBM, FullyVisibleBoltzmannMachine, GaussianRBM

FAILURE_RATE = 2e-5
DRAWS = 20_000


def states(units):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)))


def machine(kind=RBM):
    rbm = kind(4, 3, weight_scale=2.0)
    torch.nn.init.normal_(rbm.visible_bias)
    torch.nn.init.normal_(rbm.hidden_bias)
    return rbm.requires_grad_(False)


def law(rbm):
    return rbm.marginal().log_prob(states(4)).exp()


def counts(x):
    return torch.bincount((x @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long(), minlength=16).double()


def p_value(x, rbm):
    """Chi-square; states that are expected less than 10 times are pooled."""
    expected, observed = law(rbm) * len(x), counts(x)
    rare = expected < 10
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    return stats.chisquare(observed.numpy(), expected.numpy()).pvalue


def moved(rbm, steps):
    """Exact draws, moved by the kernel."""
    kernel = BlockGibbs(rbm, rbm.marginal().sample((DRAWS,)), sweeps=steps)
    return kernel.sample(kernel.initial_params)["x"]


def test_the_transition_matrix_leaves_the_law_invariant():
    rbm, x, h = machine(), states(4), states(3)
    up = rbm.hidden_given_visible(x[:, None]).log_prob(h.expand(16, 8, 3)).exp()
    down = rbm.visible_given_hidden(h[:, None]).log_prob(x.expand(8, 16, 4)).exp()
    torch.testing.assert_close(law(rbm) @ up @ down, law(rbm), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_the_sampled_kernel_leaves_exact_draws_exact(steps):
    rbm = machine()
    x = moved(rbm, steps)
    assert p_value(x, rbm) > FAILURE_RATE
    # Total variation: half the sum of |frequency - p|, each of expectation
    # below sqrt(p (1 - p) / n); four times the sum of those bounds is far above its mean.
    p = law(rbm)
    bound = 4 * 0.5 * (p * (1 - p) / DRAWS).sqrt().sum()
    assert 0.5 * (counts(x) / DRAWS - p).abs().sum() < bound


def test_one_sweep_from_each_state_has_the_law_of_the_transition_matrix():
    """Invariance alone is also satisfied by a kernel that never moves."""
    rbm, x, h = machine(), states(4), states(3)
    up = rbm.hidden_given_visible(x[:, None]).log_prob(h.expand(16, 8, 3)).exp()
    down = rbm.visible_given_hidden(h[:, None]).log_prob(x.expand(8, 16, 4)).exp()
    for start in (0, 5, 15):
        kernel = BlockGibbs(rbm, x[start].expand(DRAWS, 4))
        frequency = counts(kernel.sample(kernel.initial_params)["x"]) / DRAWS
        p = (up @ down)[start]
        # 48 comparisons at 2e-5 in all: z = 5.0; + 5/n covers the discreteness of rare states
        assert ((frequency - p).abs() < 5.0 * (p * (1 - p) / DRAWS).sqrt() + 5 / DRAWS).all()


class MeansForSamples(RBM):
    """A planted bug: hidden probabilities drive the chain."""

    def sweep(self, x):
        return self.sample_visible(self.hidden_logits(x).sigmoid())


def test_the_invariance_test_catches_means_in_place_of_samples():
    rbm = machine(MeansForSamples)
    assert p_value(moved(rbm, 4), rbm) < FAILURE_RATE


def test_block_gibbs_runs_under_mcmc():
    rbm = machine()
    kernel = BlockGibbs(rbm, rbm.marginal().sample((50,)))
    mcmc = MCMC(kernel, num_samples=20, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["x"]
    assert draws.shape == (20, 50, 4)
    assert ((draws == 0) | (draws == 1)).all()
    assert (draws[1:] != draws[:-1]).any(-1).float().mean() > 0.01  # the chains move
    assert set(mcmc.diagnostics()) >= {"x"}
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize("start", [torch.ones(4), torch.ones(2, 5), torch.ones(0, 4)])
def test_wrong_starts_are_refused(start):
    with pytest.raises(ValueError, match="expected"):
        BlockGibbs(machine(), start)


# Clamped units


def conditional(rbm, clamp, values):
    """Of all states: zero where a clamped unit has another value."""
    fits = (states(4)[:, clamp] == values[clamp]).all(1)
    p = law(rbm) * fits
    return p / p.sum()


@pytest.mark.parametrize("units", [[0], [1, 3], [0, 1, 2]])
def test_clamped_units_stay_and_the_others_have_their_enumerated_conditional(units):
    rbm, clamp = machine(), torch.zeros(4, dtype=torch.bool)
    clamp[units] = True
    values = torch.tensor([1.0, 0.0, 1.0, 1.0])
    p = conditional(rbm, clamp, values)
    start = states(4)[torch.multinomial(p, DRAWS, replacement=True)]
    kernel = BlockGibbs(rbm, start, sweeps=4, clamp=clamp)
    x = kernel.sample(kernel.initial_params)["x"]
    assert torch.equal(x[:, clamp], start[:, clamp])
    assert (x != start).any()
    frequency = counts(x) / DRAWS
    # 48 comparisons in all: z = 5.0; + 5/n for rare states
    assert ((frequency - p).abs() < 5.0 * (p * (1 - p) / DRAWS).sqrt() + 5 / DRAWS).all()


@pytest.mark.parametrize("tempering", ["temperatures", "trajectory"])
def test_replicas_clamp_the_same_units(tempering):
    rbm, chains = machine(), 5000
    clamp, values = torch.tensor([True, False, False, True]), torch.tensor([0.0, 0, 0, 1])
    x = values.expand(chains, 4)
    if tempering == "temperatures":
        kernel = ParallelTempering(rbm, x, temperatures=2, clamp=clamp)
    else:
        kernel = TrajectoryTempering([machine(), rbm], x, clamp=clamp)
    for _ in range(30):
        x = kernel.sample({"x": x})["x"]
    assert (x[:, clamp] == values[clamp]).all()
    p, frequency = conditional(rbm, clamp, values), counts(x) / chains
    # 32 comparisons: z = 4.9; + 5/n for rare states
    assert ((frequency - p).abs() < 4.9 * (p * (1 - p) / chains).sqrt() + 5 / chains).all()


def test_clamping_once_and_not_in_each_sweep_is_caught():
    """The planted bug: free sweeps, and the values put back at the end."""
    rbm, clamp = machine(), torch.tensor([True, False, True, False])
    values = torch.tensor([1.0, 0.0, 1.0, 1.0])
    p = conditional(rbm, clamp, values)
    start = states(4)[torch.multinomial(p, DRAWS, replacement=True)]
    kernel = BlockGibbs(rbm, start, sweeps=4)
    x = torch.where(clamp, start, kernel.sample(kernel.initial_params)["x"])
    assert (counts(x) / DRAWS - p).abs().max() > 5.0 * 0.5 / DRAWS**0.5


def test_each_chain_may_clamp_its_own_units():
    rbm = machine()
    clamp = torch.eye(4, dtype=torch.bool)
    kernel = BlockGibbs(rbm, torch.ones(4, 4), clamp=clamp, sweeps=20)
    assert (kernel.sample(kernel.initial_params)["x"][clamp] == 1).all()


@pytest.mark.parametrize(
    "clamp", [torch.zeros(3, dtype=torch.bool), torch.zeros(4), torch.ones(3, 4, dtype=torch.bool)]
)
def test_a_mask_that_does_not_fit_is_refused(clamp):
    with pytest.raises(ValueError, match="clamp: expected a bool tensor"):
        BlockGibbs(machine(), torch.ones(2, 4), clamp=clamp)


@pytest.mark.parametrize("value", [0.5, math.nan])
def test_what_is_clamped_is_data_and_what_is_not_may_be_anything(value):
    clamp, start = torch.tensor([True, True, False, False]), torch.ones(3, 4)
    start[1, 2] = value
    kernel = BlockGibbs(machine(), start, clamp=clamp)
    assert set(kernel.sample(kernel.initial_params)["x"].unique().tolist()) <= {0.0, 1.0}
    start[2, 1] = value
    with pytest.raises(ValueError, match=f"0 or 1, got {value} in row 2, column 1"):
        BlockGibbs(machine(), start, clamp=clamp)


def test_missing_units_may_be_nan_where_the_others_are_clamped():
    rbm = machine()
    x = torch.tensor([[1.0, math.nan, 0.0, math.nan]]).expand(DRAWS, 4)
    fully = FullyVisibleBoltzmannMachine(4, weight_scale=0.0)
    for kernel in (
        BlockGibbs(rbm, x, clamp=~x.isnan(), sweeps=50),
        ParallelTempering(rbm, x, clamp=~x[0].isnan(), temperatures=2),
        TrajectoryTempering([rbm], x, clamp=~x.isnan()),
        SingleSiteGibbs(fully, x, clamp=~x.isnan()),
    ):
        found = kernel.sample(kernel.initial_params)["x"]
        assert (found[:, ::2] == x[:, ::2]).all()
        assert ((found == 0) | (found == 1)).all()
        if isinstance(kernel, BlockGibbs):
            fits = (states(4)[:, ::2] == x[0, ::2]).all(1)
            p = torch.where(fits, law(rbm), 0.0) / law(rbm)[fits].sum()
            seen = counts(found) / DRAWS
            assert ((seen - p).abs() < 5.0 * (p * (1 - p) / DRAWS).sqrt() + 5 / DRAWS).all()


@pytest.mark.parametrize("clamp", [None, torch.tensor([True, False, False, False])])
def test_a_start_that_is_not_known_is_refused(clamp):
    x = torch.tensor([[math.nan, 1.0, 0.0, 1.0]])
    with pytest.raises(ValueError, match=r"clamp=~start.isnan\(\)|expected 0 or 1, got nan"):
        BlockGibbs(machine(), x, clamp=clamp)


def test_a_kernel_says_which_machine_it_is_for():
    x, fully = torch.zeros(2, 4), FullyVisibleBoltzmannMachine(4)
    with pytest.raises(TypeError, match="SingleSiteGibbs"):
        BlockGibbs(fully, x)
    with pytest.raises(TypeError, match="DBN's `machine`"):
        ParallelTempering(DBN(4, (3, 2)), x)
    with pytest.raises(TypeError, match="SingleSiteGibbs"):
        annealed_importance_sampling(fully)
    with pytest.raises(TypeError, match="BlockGibbs"):
        SingleSiteGibbs(machine(), x)


def test_a_clamped_group_has_one_category():
    rbm, clamp = RBM(6, 2, units=OneHot(3)), torch.tensor([False] * 3 + [True] * 3)
    BlockGibbs(rbm, torch.tensor([[0.0, 0, 0, 0, 1, 0]]), clamp=clamp)
    with pytest.raises(ValueError, match="one of 3 categories, got 0 in row 0, group 1"):
        BlockGibbs(rbm, torch.zeros(1, 6), clamp=clamp)


# Going on


def pairwise():
    return FullyVisibleBoltzmannMachine(4, weight_scale=1.0).requires_grad_(False)


def uncoupled():
    return RBM(4, 3, weight_scale=0.0)


X = torch.zeros(5, 4)
SWEPT = {
    "BlockGibbs": lambda **o: BlockGibbs(machine(), X, **o),
    "SingleSiteGibbs": lambda **o: SingleSiteGibbs(pairwise(), X, **o),
    "GibbsLangevin": lambda **o: GibbsLangevin(machine(GaussianRBM), X, **o),
    "TrajectoryTempering": lambda **o: TrajectoryTempering([uncoupled()], X, **o),  # one rung
}
KERNELS = {
    **SWEPT,
    "ParallelTempering": lambda: ParallelTempering(machine(), X),
    "TrajectoryTempering": lambda: TrajectoryTempering([machine()], X),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_second_run_goes_on_where_the_first_ended(name):
    def draws(*runs):
        torch.manual_seed(0)
        kernel, found = KERNELS[name](), []
        for count in runs:
            mcmc = MCMC(kernel, num_samples=count, warmup_steps=0, disable_progbar=True)
            mcmc.run()
            found.append(mcmc.get_samples()["x"])
        return torch.cat(found)

    assert torch.equal(draws(6), draws(3, 3))


@pytest.mark.parametrize("name", SWEPT)
def test_a_draw_takes_as_many_sweeps_as_asked_for(name):
    def last(sweeps, draws):
        torch.manual_seed(0)
        kernel = SWEPT[name](sweeps=sweeps)
        for _ in range(draws):
            found = kernel.sample(kernel.initial_params)["x"]
        return found

    assert torch.equal(last(3, 2), last(1, 6))
    assert not torch.equal(last(3, 2), last(1, 2))


def test_replicas_are_swept_as_often_before_they_swap(monkeypatch):
    moves, move = [], parallel_tempering.move

    def counted(*args):
        moves.append(args)
        return move(*args)

    monkeypatch.setattr(parallel_tempering, "move", counted)
    kernel = ParallelTempering(machine(), X, temperatures=3, sweeps=4)
    kernel.sample(kernel.initial_params)
    assert len(moves) == 4


def test_replicas_of_one_law_swap_whenever_they_may():
    same = ParallelTempering(uncoupled(), X, temperatures=3)  # at all temperatures a fair coin
    along = TrajectoryTempering([uncoupled()] * 3, X)
    for kernel, pairs in ((same, 3), (along, 2)):
        for _ in range(5):
            kernel.sample(kernel.initial_params)
        assert kernel.diagnostics() == {"swap acceptance": [1.0] * pairs}
