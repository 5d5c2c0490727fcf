"""HMC within Gibbs: laws that can be enumerated, planted bugs, and what is refused."""

import inspect
import itertools
import math
import textwrap

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from scipy import stats

import ppgen
from ppgen.distributions import RestrictedBoltzmann
from ppgen.inference import HMC, Gibbs, HMCWithinGibbs, discrete_joint, hmc_within_gibbs
from ppgen.program import Program

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5  # as in tests/conftest.py
CHAINS = 1000
ONE_DRAW = Gibbs(chains=CHAINS, draws=1, warmup=12)  # chains are independent: a plain sample
SHORT = Gibbs(chains=4, draws=20, warmup=10)
SHARES = (0.2, 0.3, 0.5)
NOISE = 0.8
SLOW = pytest.mark.slow


def plated(y):
    """Units in an event and in the rows of a plate, around one continuous site."""
    on = pyro.sample("on", dist.Bernoulli(torch.tensor([0.3, 0.6])).to_event(1))
    mu = pyro.sample("mu", dist.Normal(1.5 * on[0] - on[1], 1.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(torch.tensor(SHARES)))
        pyro.sample("y", dist.Normal(mu + k, NOISE), obs=y)


def summed(y):
    """The rows of a plate meet again in one observation: they must not be drawn at once."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 2):
        k = pyro.sample("k", dist.Categorical(torch.tensor(SHARES)))
    pyro.sample("y", dist.Normal(mu + k.sum(-1), NOISE), obs=y)


def chained(y):
    """The last row heeds the second; the first is by itself."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        k = pyro.sample("k", dist.Categorical(torch.tensor(SHARES)))
        before = torch.nn.functional.pad(k[..., 1:2].double(), (2, 0))
        pyro.sample("y", dist.Normal(mu + k + before, NOISE), obs=y)


def nested(y):
    """Each row is observed twice, in a plate within that of the rows."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 2):
        k = pyro.sample("k", dist.Categorical(torch.tensor(SHARES)))
        with pyro.plate("again", len(y), dim=-2):
            pyro.sample("y", dist.Normal(mu + k, NOISE), obs=y)


def with_machine(law, y):
    """A machine whose log Z is out of reach, as the prior of four units."""
    x = pyro.sample("x", law)
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu + x.sum(-1), NOISE), obs=y)


def machine():
    generator = torch.Generator().manual_seed(0)
    sizes = ((4, 21), (4,), (21,))
    return RestrictedBoltzmann(*(0.3 * torch.randn(s, generator=generator) for s in sizes))


def all_of_plated(y):
    """Every state of the units: prior log probability, mean of mu, shift of each observation."""
    for on, k in itertools.product(
        itertools.product((0.0, 1.0), repeat=2), itertools.product(range(3), repeat=2)
    ):
        prior = sum(math.log(p if o else 1 - p) for o, p in zip(on, (0.3, 0.6), strict=True))
        prior += sum(math.log(SHARES[i]) for i in k)
        yield (*on, *k), prior, 1.5 * on[0] - on[1], torch.tensor([float(i) for i in k]), y


def all_of_summed(y):
    for k in itertools.product(range(3), repeat=2):
        prior = sum(math.log(SHARES[i]) for i in k)
        yield k, prior, 0.0, torch.tensor([float(sum(k))]), y[None]


def all_of_chained(y):
    for k in itertools.product(range(3), repeat=3):
        prior = sum(math.log(SHARES[i]) for i in k)
        yield k, prior, 0.0, torch.tensor([float(k[0]), float(k[1]), float(k[1] + k[2])]), y


def all_of_nested(y):
    for k in itertools.product(range(3), repeat=2):
        prior = sum(math.log(SHARES[i]) for i in k)
        yield k, prior, 0.0, torch.tensor([float(i) for i in k]).repeat(len(y)), y.flatten()


def all_of_machine(law, y):
    for x in itertools.product((0.0, 1.0), repeat=4):
        unit = torch.tensor(x)
        yield x, -float(law.free_energy(unit)), 0.0, unit.sum()[None], y[None]


def exact(states):
    """Probability of each state, and the normal law of mu given it."""
    names, weights, laws = [], [], []
    for name, prior, mean, shift, y in states:
        rest, count = y - shift, len(y)
        # y given the state: mu is integrated out; the evidence of equicorrelated normals
        cover = NOISE**2 * torch.eye(count) + torch.ones(count, count)
        evidence = dist.MultivariateNormal(torch.full((count,), mean), cover).log_prob(rest)
        precision = 1 + count / NOISE**2
        names.append(tuple(float(v) for v in name))
        weights.append(prior + float(evidence))
        laws.append((float((mean + rest.sum() / NOISE**2) / precision), precision**-0.5))
    return names, torch.tensor(weights).softmax(0).tolist(), laws


CASES = {
    "plate": (plated, lambda: (torch.tensor([0.4, 2.2]),), ("on", "k"), all_of_plated),
    "rows that meet": (summed, lambda: (torch.tensor(2.4),), ("k",), all_of_summed),
    "a chain": (chained, lambda: (torch.tensor([0.3, 1.0, 2.4]),), ("k",), all_of_chained),
    "nested plates": (
        nested, lambda: (torch.tensor([[0.3, 1.4], [0.9, 2.6]]),), ("k",), all_of_nested,
    ),
    "machine": (with_machine, lambda: (machine(), torch.tensor(1.8)), ("x",), all_of_machine),
}  # fmt: skip


def p_values(case, found):
    """Of the states' frequencies by chi-square, and of mu by Kolmogorov and Smirnov."""
    _, args, sites, every = CASES[case]
    names, shares, laws = exact(every(*args()))
    units = torch.cat([found[n].double().reshape(CHAINS, -1) for n in sites], -1)
    seen = [tuple(row) for row in units.tolist()]
    counts = torch.tensor([float(seen.count(name)) for name in names])
    expected = CHAINS * torch.tensor(shares)
    rare = expected < 8  # taken together
    pairs = [torch.cat([t[~rare], t[rare].sum()[None]]) for t in (counts, expected)]
    if float(pairs[1][-1]) == 0:
        pairs = [t[:-1] for t in pairs]
    p = stats.chisquare(pairs[0], pairs[1], sum_check=False).pvalue

    def cdf(x):
        parts = zip(shares, laws, strict=True)
        return sum(w * stats.norm.cdf(x, mean, sd) for w, (mean, sd) in parts)

    return p, stats.kstest(found["mu"].double().flatten().numpy(), cdf).pvalue


def run(case):
    story, args, *_ = CASES[case]
    return p_values(case, ppgen.fit(story, *args(), using=ONE_DRAW).draws)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c == "rows that meet" else SLOW) for c in CASES]
)
def test_draws_have_their_enumerated_law(case):
    assert min(run(case)) > FAILURE_RATE / 2


def test_a_machine_without_a_known_log_z_counts_by_its_free_energy():
    law, y = machine(), torch.tensor(1.8)
    joint = discrete_joint.Joint(with_machine, (law, y), {})
    points = torch.randn(6, 5)
    points[:, joint.columns["x"]] = torch.bernoulli(torch.full((6, 4), 0.5))
    x, mu = (joint.draws(points)[name] for name in ("x", "mu"))
    expected = dist.Normal(0.0, 1.0).log_prob(mu) - law.free_energy(x)
    expected += dist.Normal(mu + x.sum(-1), NOISE).log_prob(y)
    torch.testing.assert_close(joint.program.log_density(points), expected)


Joint, Sweeps, Hold = (
    hmc_within_gibbs.Joint, hmc_within_gibbs.Sweeps, discrete_joint._Hold,
)  # fmt: skip
BUGS = {
    "tempered units": (
        hmc_within_gibbs, "draw", "logits=logits", "logits=0.6 * logits", "rows that meet",
    ),
    "rows in the opposite order": (
        hmc_within_gibbs, "draw", "drawn.to(point)", "drawn.flip(1).to(point)", "plate",
    ),
    "rows that meet drawn at once": (
        Joint, "_rows_are_independent", "return bool(", "return True or bool(", "rows that meet",
    ),
    "trajectory given the first state": (
        Sweeps, "_move", "joint.given(point)", "joint.given(self.start)", "rows that meet",
    ),
    "sign of the free energy": (Hold, "apply", "-free_energy(", "free_energy(", "machine"),
}  # fmt: skip


def plant(bug, monkeypatch):
    """The case that has to find it."""
    owner, name, old, new, case = BUGS[bug]
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    assert old in source, f"{name} no longer reads {old!r}: plant the bug where it would be now"
    space = dict(vars(inspect.getmodule(getattr(owner, name))))
    exec(compile(source.replace(old, new), "<planted>", "exec"), space)  # noqa: S102
    monkeypatch.setattr(owner, name, space[name])
    return case


@SLOW  # 5 s
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug, monkeypatch):
    assert min(run(plant(bug, monkeypatch))) < FAILURE_RATE / 2


def geweke(rounds=5):
    """p-values of k, of mu, and of mu where k is large, after sweeps and fresh data in turn.

    With y among the sites, each chain has data of its own: a sweep holds them, and then they are
    drawn anew given the rest. Where the sweep is right that leaves the prior as it is.
    """

    def story():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            k = pyro.sample("k", dist.Categorical(torch.tensor(SHARES)))
        pyro.sample("y", dist.Normal(mu + k.sum(-1), NOISE))

    joint = Joint(story, (), {})
    mu, y = (joint.program.anatomy.sites[name].start for name in ("mu", "y"))
    joint.continuous = torch.tensor([mu])
    moves = Sweeps(joint, CHAINS, 0)
    point = moves.start.clone()
    point[:, mu] = torch.randn(CHAINS)
    k = dist.Categorical(torch.tensor(SHARES)).sample((CHAINS, 2))
    point[:, joint.columns["k"]] = k.to(point)

    def simulate():
        total = point[:, joint.columns["k"]].sum(-1)
        point[:, y] = point[:, mu] + total + NOISE * torch.randn(CHAINS)
        return total

    for _ in range(rounds):
        simulate()
        point, _ = moves.sweep(point)
    total = simulate()
    law = torch.zeros(5)
    for i, j in itertools.product(range(3), repeat=2):
        law[i + j] += SHARES[i] * SHARES[j]
    counts = torch.stack([(total == t).sum() for t in range(5)])
    return (
        stats.chisquare(counts, CHAINS * law, sum_check=False).pvalue,
        stats.kstest(point[:, mu].numpy(), stats.norm.cdf).pvalue,
        stats.kstest(point[total >= 3, mu].numpy(), stats.norm.cdf).pvalue,
    )


@SLOW  # 1 s
def test_geweke_s_joint_test():
    assert min(geweke()) > FAILURE_RATE / 3


@SLOW  # 1 s
def test_geweke_s_joint_test_catches_units_at_another_temperature(monkeypatch):
    plant("tempered units", monkeypatch)
    assert min(geweke()) < FAILURE_RATE / 3


@SLOW  # 2 s
def test_the_kernel_runs_under_mcmc():
    story, args, *_ = CASES["rows that meet"]
    kernel = HMCWithinGibbs(story, *args(), chains=CHAINS)
    mcmc = MCMC(kernel, num_samples=1, warmup_steps=12, disable_progbar=True)
    mcmc.run()
    found = {name: draws.movedim(0, 1) for name, draws in mcmc.get_samples().items()}
    assert min(p_values("rows that meet", found)) > FAILURE_RATE / 2


def test_the_posterior_is_diagnosed_and_keeps_all_sites():
    posterior = SHORT.run(Program(summed, torch.tensor(2.4)))
    shapes = {name: tuple(x.shape) for name, x in posterior.draws.items()}
    assert shapes == {"mu": (4, 20), "k": (4, 20, 2)}
    assert set(posterior.stats) == {"lp", "acceptance_rate", "diverging"}
    assert posterior.diagnosis()["divergences"] == 0
    assert posterior.predict(summed, torch.tensor(2.4), draws=3)["y"].shape == (3,)


def test_deterministic_sites_follow_from_the_others_in_predictions():
    def story(x, y=None):
        on = pyro.sample("on", dist.Bernoulli(0.5))
        slope = pyro.sample("slope", dist.Normal(on, 1.0))
        mean = pyro.deterministic("mean", slope * x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, NOISE), obs=y)

    posterior = ppgen.fit(story, torch.ones(2), torch.ones(2), using=SHORT)
    assert posterior.deterministic == ("mean",)
    found = posterior.predict(story, torch.tensor([10.0, 20.0]), draws=80)["mean"]
    torch.testing.assert_close(
        found.mean(0), posterior["slope"].mean() * torch.tensor([10.0, 20.0])
    )


def mixture(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(torch.tensor(SHARES)))
        mean = pyro.deterministic("mean", mu + k)  # of engines that sum k out, none has it
        pyro.sample("y", dist.Normal(mean, NOISE), obs=y)


@SLOW  # 4 s
def test_it_is_compared_with_engines_that_sum_the_discrete_sites_out():
    engines = {"HMC": HMC(chains=32), "Gibbs": Gibbs(draws=400)}
    found = ppgen.compare(mixture, torch.tensor([0.4, 2.2]), using=engines, reference="HMC")
    (mu,) = found.marginals["Gibbs"]
    assert mu.name == "mu"
    assert abs(mu.shift_z) < 4.3  # two-sided normal quantile of FAILURE_RATE: 4.26


def one_hot():
    pyro.sample("which", dist.OneHotCategorical(torch.tensor(SHARES)))
    pyro.sample("x", dist.Normal(0.0, 1.0))


def counted():
    pyro.sample("count", dist.Poisson(2.0))
    pyro.sample("x", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("story", "said"),
    [
        (one_hot, "'which' is OneHotCategorical: .* written as a Categorical"),
        (counted, "'count' is Poisson: Gibbs draws units of finitely many values"),
    ],
    ids=["one-hot", "infinite"],
)
def test_units_that_cannot_be_drawn_are_refused_by_name(story, said):
    with pytest.raises(ValueError, match=said):
        ppgen.fit(story, using=Gibbs())


def test_the_kernel_wants_discrete_sites():
    with pytest.raises(ValueError, match="no latent site of the story is discrete"):
        HMCWithinGibbs(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
