"""Every kernel of a Boltzmann machine, every kind of units: exact draws stay exact, and Geweke.

`test_gibbs`, `test_parallel_tempering` and `test_trajectory_tempering` look at each kernel closely;
this table holds all of them to one law.
"""

import copy

import pytest
import torch
from scipy import stats

from ppgen.distributions import (
    Beside,
    Binary,
    OneHot,
    Rectified,
    RestrictedBoltzmann,
    UnitGaussian,
)
from ppgen.inference import BlockGibbs, GibbsLangevin, ParallelTempering, TrajectoryTempering
from ppgen.inference import parallel_tempering as pt
from ppgen.inference import trajectory_tempering as tt
from ppgen.models import DBM, RBM, GaussianRBM
from ppgen.models.bipartite import Bipartite

FAILURE_RATE = 2e-5
DRAWS = 20_000


def states(units):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * units).reshape(-1, units)


MACHINES = {
    "binary": lambda: RBM(4, 3),
    "one-hot": lambda: RBM(6, 3, units=OneHot(3)),
    "labels": lambda: RBM(5, 3, units=Beside(((Binary(), 2), (OneHot(3), 3)))),
    "deep": lambda: DBM(3, (3, 2)),
    "real": lambda: GaussianRBM(2, 2),
    "gaussian hidden": lambda: RBM(4, 3, hidden_units=UnitGaussian()),
    "rectified hidden": lambda: RBM(4, 3, hidden_units=Rectified()),
}


def machine(kind, scale=1.0):
    made = MACHINES[kind]()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=scale)
    return made.requires_grad_(False)


def replicas(laws, x):
    """Exact draws on every rung, `x` on the last."""
    return torch.stack([*(law.sample((len(x),)) for law in laws[:-1]), x])


def block(made, x):
    return BlockGibbs(made, x)


def clamped(made, x):
    """The last variable stays, at the value that it has in each exact draw."""
    variables = made.units.variables(x.shape[1])
    return BlockGibbs(made, x, clamp=variables == variables[-1])


def tempered(made, x):
    base = 0.3 * torch.randn_like(made.visible_natural())
    if isinstance(made, GaussianRBM):
        base = None  # its own biases: not every number is a precision
    kernel = ParallelTempering(made, x, temperatures=3, base=base)
    parts = made.marginal()
    laws = [
        RestrictedBoltzmann(
            beta * parts.weight,
            torch.lerp(kernel.base, parts.visible_bias, beta),
            beta * parts.hidden_bias,
            units=made.units,
            hidden_units=made.hidden_units,
        )
        for beta in kernel.betas
    ]
    kernel.state = pt.State(replicas(laws, x))
    return kernel


def along_a_trajectory(made, x):
    early = copy.deepcopy(made)
    for name, p in early.named_parameters():
        p *= 1.0 if name == "raw_variance" else 0.6
    kernel = TrajectoryTempering([early, made], x)
    kernel.state = tt.State(replicas(kernel.laws, x))
    return kernel


def langevin(made, x):
    return GibbsLangevin(made, x)


KERNELS = {
    "block": block,
    "clamped": clamped,
    "tempered": tempered,
    "trajectory": along_a_trajectory,
    "langevin": langevin,
}
CASES = [
    (kind, kernel)
    for kind in MACHINES
    for kernel in KERNELS
    if kernel != "langevin" or kind == "real"
]
COSTLY = ("gaussian hidden", "rectified hidden")  # to draw


def p_value(made, x):
    """Of goodness of fit to the exact law of the visible side."""
    law = made.marginal()
    if made.units.support.is_discrete:
        every = states(x.shape[1])
        if not made.units.binary:
            every = torch.stack([s for s in every if allowed(made, s)])
        expected = law.log_prob(every).exp() * len(x)
        places = 2.0 ** torch.arange(x.shape[1] - 1, -1, -1)
        order = torch.searchsorted((every @ places).long(), (x @ places).long())
        observed = torch.bincount(order, minlength=len(every)).double()
        rare = expected < 10
        if rare.any():
            expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
            observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
        return stats.chisquare(observed.numpy(), expected.numpy()).pvalue
    # a mixture over h: its marginal distribution functions are known, and make x uniform
    h = states(len(made.hidden_bias))
    weights = made.hidden_marginal().log_prob(h).exp()
    given = made.visible_given_hidden(h).base_dist
    uniform = (given.cdf(x[:, None]) * weights[:, None]).sum(1)
    # Bonferroni over the columns
    return len(uniform.T) * min(stats.kstest(u.numpy(), "uniform").pvalue for u in uniform.T)


def allowed(made, state):
    try:
        made.units.require(state, len(state))
    except ValueError:
        return False
    return True


def moved(kind, kernel, steps):
    made = machine(kind)
    x = made.marginal().sample((DRAWS,))
    sampler = KERNELS[kernel](made, x)
    params = {"x": x}
    for _ in range(steps):
        params = sampler.sample(params)
    assert (params["x"] != x).any(1).double().mean() > 0.01  # a kernel that rests keeps any law
    return p_value(made, params["x"])


@pytest.mark.parametrize(
    ("kind", "kernel", "steps"),
    [
        pytest.param(*case, steps, marks=[pytest.mark.slow] * (steps > 4))
        for steps in (1, 4, 16)
        for case in CASES
    ],
)
def test_exact_draws_stay_exact(kind, kernel, steps):
    assert moved(kind, kernel, steps) > FAILURE_RATE


@pytest.mark.parametrize("kind", MACHINES)
def test_means_of_the_hidden_side_are_caught(kind, monkeypatch):
    """The planted bug, for every kind of units: means drive the chain."""

    def sweep(self, s):
        return self.sample_visible(self.statistics(s).hidden)

    monkeypatch.setattr(Bipartite, "sweep", sweep)
    assert moved(kind, "block", 4) < FAILURE_RATE


@pytest.mark.parametrize("kind", [kind for kind in MACHINES if "hidden" not in kind])
@pytest.mark.parametrize("temperature", [0.6, 2.0])
def test_a_temperature_is_that_of_the_energy(kind, temperature):
    """Long chains of the kernel against the machine whose parameters are all divided by T."""
    made, cold = machine(kind), machine(kind)
    for p, q in zip(made.parameters(), cold.parameters(), strict=True):
        q.copy_(p / temperature)
    if kind == "real":
        cold.raw_variance.copy_((temperature * made.variance - cold.least_scale**2).log())
    kernel = BlockGibbs(made, cold.marginal().sample((DRAWS,)), temperature=temperature, sweeps=4)
    assert p_value(cold, kernel.sample(kernel.initial_params)["x"]) > FAILURE_RATE
    assert p_value(made, kernel.sample(kernel.initial_params)["x"]) < FAILURE_RATE


# Geweke's joint test: theta, one of two machines, given x, and x given theta, in turn


def geweke(kind, kernel, rounds=10):
    """p-values of x in the rows of each machine, and of the share of the first.

    Alternating an exact draw of theta given x with one move of x given theta leaves the joint law
    of both as it is, if the kernel is right for each machine; where it is wrong for one of them, x
    drags theta along.
    """
    first = machine(kind)
    second = copy.deepcopy(first)
    for p in second.parameters():
        p += 0.4 * torch.randn_like(p)
    pair = (first, second)
    theta = torch.arange(DRAWS) % 2
    x = torch.stack([m.marginal().sample((DRAWS,)) for m in pair])[theta, torch.arange(DRAWS)]
    for _ in range(rounds):
        for index, made in enumerate(pair):
            rows = theta == index
            x[rows] = KERNELS[kernel](made, x[rows].clone()).sample({"x": x[rows]})["x"]
        odds = second.marginal().log_prob(x) - first.marginal().log_prob(x)
        theta = (torch.rand_like(odds) < odds.sigmoid()).long()
    share = stats.binomtest(int(theta.sum()), DRAWS).pvalue
    return min(share, *(p_value(made, x[theta == index]) for index, made in enumerate(pair)))


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [pytest.param(*c, marks=[pytest.mark.slow] * (c[0] in COSTLY)) for c in CASES],
)
def test_geweke_s_joint_test(kind, kernel):
    assert geweke(kind, kernel) > FAILURE_RATE / 3


def test_geweke_s_joint_test_catches_a_kernel_of_the_wrong_temperature(monkeypatch):
    def sweep(self, s):
        hidden = torch.bernoulli((0.5 * self.hidden_logits(s)).sigmoid())
        return self.sample_visible(hidden)

    monkeypatch.setattr(RBM, "sweep", sweep)
    assert geweke("binary", "block") < FAILURE_RATE / 3
