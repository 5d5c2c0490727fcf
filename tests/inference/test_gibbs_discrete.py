"""Engine `Gibbs` on Boltzmann machines and binary sites: enumerated laws, and honest diagnoses."""

import dataclasses
import inspect
import math

import arviz_stats
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen import diagnostics
from ppgen.distributions import RestrictedBoltzmann
from ppgen.inference import Gibbs, binary_gibbs, machine_gibbs
from ppgen.inference import parallel_tempering as tempering
from ppgen.models import (
    DBM,
    DBN,
    RBM,
    RBMVAE,
    ClassificationRBM,
    FullyVisibleBoltzmannMachine,
    GaussianRBM,
    NormalGamma,
)

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5  # as in tests/conftest.py
CHAINS = 4000
NAN = float("nan")
ONE_DRAW = Gibbs(chains=CHAINS, draws=1, warmup=40)  # chains are independent: a plain sample
SHORT = Gibbs(chains=CHAINS, draws=1, warmup=10)  # units one by one take longer, and mix faster


def states(units):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * units).reshape(-1, units)


def random(machine):
    for p in machine.parameters():
        torch.nn.init.normal_(p)
    return machine.requires_grad_(False)


def z_scores(draws, law):
    """Of the frequency of each state, ``(CHAINS, units)``; exact binomial errors."""
    units = draws.shape[-1]
    index = (draws @ 2.0 ** torch.arange(units - 1, -1, -1.0)).long()
    frequency = torch.bincount(index, minlength=2**units) / len(draws)
    error = (law * (1 - law) / len(draws)).sqrt() + 1e-12
    # 5 / n covers the discreteness of rare states
    return ((frequency - law).abs() - 5 / len(draws)).clamp_min(0) / error


def limit(count):
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - FAILURE_RATE / count)))


def whole_machine():
    rbm = random(RBM(4, 3))
    posterior = ppgen.fit(rbm.model, using=ONE_DRAW)
    both = torch.cat([posterior["x"], posterior["h"]], -1)[:, 0, 0]
    every = states(7)
    return both, (-rbm.energy(every[:, :4], every[:, 4:])).softmax(0)


def missing_units():
    rbm = random(RBM(4, 3))
    x = torch.tensor([[1.0, NAN, 0.0, NAN]])
    posterior = ppgen.fit(rbm.model, x, using=ONE_DRAW)
    assert (posterior["x"][..., [0, 2]] == torch.tensor([1.0, 0.0])).all()
    law = rbm.missing_given_observed(x[0], torch.tensor([True, False, True, False]))
    return posterior["x"][:, 0, 0, [1, 3]], law.log_prob(states(2)).exp()


def tempered_machine():
    rbm = random(RBM(4, 3))
    posterior = ppgen.fit(rbm.model, using=dataclasses.replace(ONE_DRAW, temperatures=3))
    both = torch.cat([posterior["x"], posterior["h"]], -1)[:, 0, 0]
    every = states(7)
    return both, (-rbm.energy(every[:, :4], every[:, 4:])).softmax(0)


def tempered_missing_units():
    rbm = random(RBM(4, 3))
    x = torch.tensor([[1.0, NAN, 0.0, NAN]])
    posterior = ppgen.fit(rbm.model, x, using=dataclasses.replace(ONE_DRAW, temperatures=2))
    assert (posterior["x"][..., [0, 2]] == torch.tensor([1.0, 0.0])).all()
    law = rbm.missing_given_observed(x[0], torch.tensor([True, False, True, False]))
    return posterior["x"][:, 0, 0, [1, 3]], law.log_prob(states(2)).exp()


def hidden_of_a_real_machine():
    rbm, x = random(GaussianRBM(2, 3)), torch.tensor([[0.3, -1.0], [0.5, 2.0]])
    posterior = ppgen.fit(rbm.model, x, using=ONE_DRAW)
    assert set(posterior.draws) == {"h"}
    return posterior["h"][:, 0, 1], rbm.hidden_given_visible(x[1]).log_prob(states(3)).exp()


def deep_machine():
    dbm, x = random(DBM(3, (2, 3))), torch.tensor([[1.0, 0.0, 1.0]])
    posterior = ppgen.fit(dbm.model, x, using=ONE_DRAW)
    both = torch.cat([posterior["odd"], posterior["even"]], -1)[:, 0, 0]
    every = states(5)
    side = torch.cat([x.expand(32, -1), every[:, 2:]], -1)
    return both, (-dbm.energy(side, every[:, :2])).softmax(0)


def prior(rbm, y):
    """An RBM prior, larger than is summed, over a code of which y is a noisy reading."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", rbm)
        pyro.sample("y", dist.Normal(z.sum(-1) - z[..., 0] * z[..., 2], 0.7), obs=y)


def inside_another_story():
    law = RestrictedBoltzmann(torch.randn(4, 21), torch.randn(4), torch.randn(21))
    y = torch.tensor([0.2, 2.5])
    posterior = ppgen.fit(prior, law, y, using=SHORT)
    z = states(4)
    like = dist.Normal(z.sum(-1) - z[:, 0] * z[:, 2], 0.7).log_prob(y[1])
    return posterior["z"][:, 0, 1], (like - law.free_energy(z)).softmax(0)


def switches(y):
    """Plain binary sites, in a plate and out of it, one the parent of the others."""
    on = pyro.sample("on", dist.Bernoulli(0.3))
    with pyro.plate("data", 2):
        a = pyro.sample("a", dist.Bernoulli(0.2 + 0.6 * on))
        pyro.sample("y", dist.Normal(a + on, 0.5), obs=y)


def plain_sites():
    y = torch.tensor([0.9, 1.3])
    posterior = ppgen.fit(switches, y, using=SHORT)
    every = states(3)
    on, a = every[:, :1], every[:, 1:]
    log_p = dist.Bernoulli(0.3).log_prob(on[:, 0])
    log_p = log_p + dist.Bernoulli(0.2 + 0.6 * on).log_prob(a).sum(-1)
    log_p = log_p + dist.Normal(a + on, 0.5).log_prob(y).sum(-1)
    return torch.cat([posterior["on"][..., None], posterior["a"]], -1)[:, 0], log_p.softmax(0)


def tied_units():
    machine = random(FullyVisibleBoltzmannMachine(4))
    posterior = ppgen.fit(machine.model, using=SHORT)
    return posterior["x"][:, 0, 0], machine.log_prob(states(4)).exp()


def tied_missing_units():
    machine = random(FullyVisibleBoltzmannMachine(4))
    posterior = ppgen.fit(machine.model, torch.tensor([[1.0, NAN, 0.0, NAN]]), using=SHORT)
    assert (posterior["x"][..., [0, 2]] == torch.tensor([1.0, 0.0])).all()
    every = states(2)
    whole = torch.stack([torch.ones(4), every[:, 0], torch.zeros(4), every[:, 1]], -1)
    return posterior["x"][:, 0, 0, [1, 3]], machine.log_prob(whole).softmax(0)


def missing_under_directed_layers():
    """In each row of the data other units are missing, in the first one none."""
    dbn = random(DBN(3, (2, 2)))
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, NAN, 0.0], [NAN, NAN, 1.0]])
    posterior = ppgen.fit(dbn.model, x, using=SHORT)
    assert (posterior["x"] == x)[..., ~x.isnan()].all()
    every = states(4)
    below = torch.cat([every[:, :2], torch.ones(16, 1)], -1)
    joint = -dbn.top.free_energy(every[:, 2:]) + dbn.log_generative([below, every[:, 2:]])
    found = torch.cat([posterior["x"][:, 0, 2, :2], posterior["h1"][:, 0, 2]], -1)
    return found, joint.softmax(0)


CASES = {
    case.__name__: case
    for case in (
        *(whole_machine, missing_units, hidden_of_a_real_machine, deep_machine),
        *(tempered_machine, tempered_missing_units),
        *(inside_another_story, plain_sites, tied_units, tied_missing_units),
        missing_under_directed_layers,
    )
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_draws_have_their_enumerated_law(case):
    draws, law = case()
    assert z_scores(draws, law).max() < limit(len(law))


BUGS = {
    "clamped after the sweep is forgotten": (
        machine_gibbs, "step", "visible if clamp is None else torch.where(*clamp, visible)",
        "visible", missing_units,
    ),
    "hidden side of the start": (
        machine_gibbs, "step", "return State(visible if", "hidden = state.hidden\n    return State("
        "visible if", whole_machine,
    ),
    "replicas are not clamped": (
        tempering, "step", "if clamp is not None:", "if False:", tempered_missing_units,
    ),
    "stale density": (
        binary_gibbs, "step", "current = torch.where(moves, other, current)", "pass", tied_units,
    ),
    "Metropolis ratio for a heat bath": (
        binary_gibbs, "step", "torch.sigmoid(other - current)", "(other - current).exp() / 2",
        inside_another_story,
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug, monkeypatch):
    module, name, old, new, case = BUGS[bug]
    source = inspect.getsource(getattr(module, name))
    assert old in source, f"{name} no longer reads {old!r}: plant the bug where it would be now"
    space = dict(vars(module))
    exec(compile(source.replace(old, new), "<planted>", "exec"), space)  # noqa: S102
    monkeypatch.setattr(module, name, space[name])
    if case in (missing_units, tempered_missing_units):
        with pytest.raises(AssertionError):
            case()
        return
    draws, law = case()
    assert z_scores(draws, law).max() > limit(len(law))


def test_the_density_is_that_of_both_sides():
    rbm = random(RBM(4, 3))
    posterior = ppgen.fit(rbm.model, examples=2, using=Gibbs(chains=3, draws=5))
    expected = -rbm.energy(posterior["x"], posterior["h"]).sum(-1)
    torch.testing.assert_close(posterior.stats["lp"], expected)


def test_a_vae_s_code_is_drawn_and_used():
    vae = RBMVAE(6, RBM(3, 2), hidden=(4,))
    x = states(6)[:3]
    posterior = ppgen.fit(vae.model, x, using=Gibbs(chains=5, draws=4, warmup=1))
    assert posterior["z"].shape == (5, 4, 3, 3)
    assert posterior.predict(vae.model, x, draws=7)["x"].shape == (7, 3, 6)


# Diagnoses of discrete chains


def switching(chains, draws, scalars, stay=0.8, up=0.3):
    """Two-state Markov chains at their stationary law: mean `up`, autocorrelation stay ** lag."""
    x = torch.rand(chains, scalars) < up
    kept = []
    for _ in range(draws):
        x = torch.where(torch.rand(x.shape) < stay, x, torch.rand(x.shape) < up)
        kept.append(x)
    return torch.stack(kept, 1).double().numpy()


def test_standard_errors_of_binary_chains_are_calibrated():
    x = switching(4, 500, 400)
    z = (x.mean((0, 1)) - 0.3) / diagnostics.mcse_mean(x)
    # z^2 has mean 1, over 400 independent scalars with standard deviation sqrt(2 / 400)
    tolerance = 4.3 * math.sqrt(2 / 400)
    assert abs((z**2).mean() - 1) < tolerance
    # the planted bug: draws taken to be independent
    naive = (x.mean((0, 1)) - 0.3) / (x.std((0, 1)) / math.sqrt(2000))
    assert abs((naive**2).mean() - 1) > tolerance
    # for a binary scalar bulk, tail and mean ask for the same thing: 2000 (1 - 0.8) / (1 + 0.8)
    for found in (diagnostics.ess_bulk(x), diagnostics.ess_tail(x), diagnostics.ess_mean(x)):
        assert abs(float(found.mean()) / 222.2 - 1) < 0.1


def test_chains_that_stand_still_and_disagree_have_an_infinite_rhat():
    """Units that are 0 in some chains and 1 in others for good; a rare one that moves has none."""
    x = torch.zeros(30, 40, 3)
    x[:7, :, 0] = 1.0
    x[3, :, 1] = 1.0
    x[5, 12, 2] = 1.0
    found = diagnostics.rhat(x.numpy())
    assert (found[:2] == math.inf).all()
    assert abs(found[2] - 1) < 0.01
    assert (diagnostics.ess_bulk(x.numpy())[:2] < 60).all()


def two_modes():
    rbm = RBM(6, 2, weight_scale=0.0).requires_grad_(False)
    rbm.weight += 8.0
    rbm.visible_bias -= 8.0
    rbm.hidden_bias -= 24.0
    return rbm


def test_replicas_at_other_temperatures_carry_chains_from_mode_to_mode():
    rbm = two_modes()
    tempered = Gibbs(chains=100, draws=60, warmup=20, temperatures=10)
    posterior = ppgen.fit(rbm.model, using=tempered)
    x = posterior["x"].mean(-1).squeeze(-1)
    every = states(6)
    exact = rbm.marginal().log_prob(every).exp() @ every.mean(-1)
    assert abs(x.mean() - exact) < 4.3 * diagnostics.mcse_mean(x.numpy())
    assert diagnostics.rhat(x.numpy()) < 1.2  # above 1.5 without replicas, as below


def test_a_machine_with_two_modes_is_not_converged():
    rbm = two_modes()
    posterior = ppgen.fit(rbm.model, using=Gibbs(chains=20, draws=100))
    assert not posterior.converged
    assert posterior.diagnosis()["rhat"] > 1.5
    assert 0.1 < float(posterior["x"].mean()) < 0.9  # chains in both


def test_units_that_never_change_are_counted_but_for_data():
    rbm = RBM(3, 2, weight_scale=0.0).requires_grad_(False)
    rbm.visible_bias[1] = 50.0  # as good as certain
    posterior = ppgen.fit(rbm.model, torch.tensor([[1.0, NAN, NAN]]), using=Gibbs(draws=200))
    assert posterior.converged
    assert "1 of 3 units of x never change" in posterior.headline()
    row = posterior.summary()["x[0,0]"]
    assert row.mean == 1
    assert math.isnan(row.rhat)
    assert math.isnan(row.mcse)
    assert abs(posterior.summary()["x[0,2]"].mean - 0.5) < 0.05


def test_arviz_takes_many_short_chains_with_constant_units():
    posterior = ppgen.fit(
        RBM(3, 2).model, torch.tensor([[1.0, NAN, 0.0]]), using=Gibbs(chains=50, draws=20)
    )
    tree = posterior.to_datatree()
    assert tree["posterior"]["x"].shape == (50, 20, 1, 3)
    assert tree["sample_stats"]["lp"].shape == (50, 20)
    # constants are left out: ArviZ divides by their variance, where ours has NaN without a word
    table = arviz_stats.summary(tree["posterior"].to_dataset()[["x"]].isel(x_dim_1=[1]))
    assert len(table) == 1
    assert math.isfinite(float(table["r_hat"].iloc[0]))


def test_the_same_seed_gives_the_same_chains_and_they_are_kept(tmp_path):
    rbm = random(RBM(4, 3))
    one, two = (ppgen.fit(rbm.model, using=Gibbs(chains=2, draws=5), seed=3) for _ in range(2))
    assert torch.equal(one["h"], two["h"])
    one.save(tmp_path)
    assert torch.equal(ppgen.Posterior.load(tmp_path)["x"], one["x"])


def mixes_rows(law, y):
    with pyro.plate("data", 3):
        z = pyro.sample("z", law)
    pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)


def mixes_rows_inside(law, y):
    with pyro.plate("data", 3):
        z = pyro.sample("z", law)
        pyro.sample("y", dist.Normal(z.sum(-1).cumsum(0), 1.0), obs=y)


def depends(y):
    on = pyro.sample("on", dist.Bernoulli(0.5))
    z = pyro.sample("z", RestrictedBoltzmann(on + torch.ones(25, 25), torch.zeros(25),
                    torch.zeros(25)))  # fmt: skip
    pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


@pytest.mark.parametrize(
    ("story", "args", "said"),
    [
        (RBM(4, 3).model, (torch.ones(4),), r"shape \(N, 4\)"),
        (RBM(4, 3).model, (torch.full((2, 4), 0.5),), "0 or 1, got 0.5 in row 0"),
        (
            mixes_rows,
            (RestrictedBoltzmann(torch.ones(2, 2), *torch.ones(2, 2)), torch.zeros(())),
            "plate",
        ),
        (
            mixes_rows_inside,
            (RestrictedBoltzmann(torch.ones(2, 2), *torch.ones(2, 2)), torch.zeros(3)),
            "not independent of each other",
        ),
        (depends, (torch.tensor(1.0),), "log Z of a machine with 25 x 25 units is unknown"),
        (switches, (torch.tensor([0.9, NAN]),), "site 'y' has NaN among its data"),
        (lambda: None, (), "no latent site"),
        (lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), (), "Gibbs needs a story that declares"),
    ],
)
def test_what_does_not_fit_is_refused(story, args, said):
    with pytest.raises(ValueError, match=said):
        ppgen.fit(story, *args, using=Gibbs(chains=2, draws=2))


@pytest.mark.parametrize("story", [switches, NormalGamma().model], ids=["binary", "conjugate"])
def test_temperatures_are_for_machines_alone(story):
    with pytest.raises(ValueError, match="this story is no Boltzmann machine"):
        ppgen.fit(story, torch.zeros(2), using=Gibbs(chains=2, draws=2, temperatures=3))


def test_rows_that_are_masked_out_may_be_missing():
    def story(y):
        with pyro.plate("data", 2), pyro.poutine.mask(mask=~y.isnan()):
            a = pyro.sample("a", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(a, 0.5), obs=y)

    posterior = ppgen.fit(story, torch.tensor([0.9, NAN]), using=Gibbs(chains=2, draws=2))
    assert posterior["a"].shape == (2, 2, 2)
    assert not any("nothing is observed" in message for message in posterior.messages)


def test_rows_under_a_mask_may_be_missing_in_part():
    def story(x):
        with pyro.plate("data", 2), pyro.poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("x", dist.Bernoulli(torch.tensor([0.999, 0.001])).to_event(1), obs=x)

    x = torch.tensor([[NAN, 0.0], [NAN, NAN]])
    posterior = ppgen.fit(story, x, using=Gibbs(chains=50, draws=1, warmup=3))
    # 50 draws of .999: no more than five differ, but for 2e-11
    assert posterior["x"][:, 0, 0, 0].sum() >= 45
    assert posterior["x"][:, 0, 0, 1].sum() == 0


def test_units_have_the_dtype_of_their_law():
    """Whatever else the story holds: here numbers of float32, of which it makes float64."""
    weight = torch.ones(3, 2, dtype=torch.float32)

    def story():
        W = weight.double()
        z = pyro.sample("z", RestrictedBoltzmann(W, torch.zeros(3).to(W), torch.zeros(2).to(W)))
        pyro.sample("y", dist.Normal(z @ torch.ones(3).to(W), 1.0), obs=torch.ones(()).to(W))

    assert ppgen.fit(story, using=Gibbs(chains=2, draws=2))["z"].dtype == torch.float64


def test_a_dbn_s_layers_are_binary_sites_too():
    dbn = random(DBN(3, (2, 2)))
    x = torch.tensor([[1.0, 0.0, 1.0]])
    posterior = ppgen.fit(dbn.model, x, using=SHORT)
    h = states(2)
    joint = -dbn.top.free_energy(h) + dbn.log_generative([x.expand(4, -1), h])
    assert z_scores(posterior["h1"][:, 0, 0], joint.softmax(0)).max() < limit(4)


@pytest.mark.parametrize(
    "story",
    [RBM(30, 25), DBM(30, (25, 24)), DBN(30, (25, 24)), ClassificationRBM(30, 25, classes=3)],
    ids=lambda story: type(story).__name__,
)
def test_runs_where_log_z_is_out_of_reach(story):
    x = torch.zeros(2, 30)
    x[:, -1] = 1.0  # a label
    posterior = ppgen.fit(story.model, x, using=Gibbs(chains=2, draws=2, warmup=1))
    assert all(values.shape[:3] == (2, 2, 2) for values in posterior.draws.values())
