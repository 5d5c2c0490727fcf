"""Bugs planted into the sampler's own source, each caught by the test of invariance.

From exact draws, any number of correct transitions leads to exact draws. Bugs in what a story and
its data are (a wrong prior, shifted data, swapped parameters) are planted in `test_calibrate`. A
gradient of the wrong sign is no such bug: the Metropolis step keeps the target, at a poor rate.
"""

import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from ppgen.inference import hmc
from ppgen.program import Program

FAILURE_RATE = 2e-5
CHAINS = 4000


def story():
    scale = pyro.sample("scale", dist.Gamma(3.0, 2.0))
    pyro.sample("x", dist.Normal(0.0, scale))


def mutant(module, name, old, new):
    """The function of this name with `old` replaced by `new` in its source."""
    source = inspect.getsource(getattr(module, name))
    assert old in source, f"{name} no longer reads {old!r}: plant the bug where it would be now"
    space = dict(vars(module))
    exec(compile(source.replace(old, new), "<planted>", "exec"), space)  # noqa: S102
    return space[name]


BUGS = {
    "flipped accept sign": ("step", "torch.exp(-error)", "torch.exp(error)"),
    "no Metropolis step": ("step", "torch.rand_like(acceptance) < acceptance", "acceptance > -1"),
    "wrong momentum scale": ("step", "torch.randn_like(", "1.5 * torch.randn_like("),
    "metric left out of the kinetic energy": (
        "step", "0.5 * start.square()", "0.5 * metric.push(start).square()",
    ),
    "stale gradient": (
        "step", "torch.where(moved, proposal.gradient, state.gradient)", "proposal.gradient",
    ),
    "stale density": (
        "step",
        "torch.where(accepted, proposal.log_density, state.log_density)",
        "state.log_density",
    ),
    "half kick left out": (
        "trajectory", "return z, log_density, gradient, add(r, 0.5 * gradient, scaled)",
        "return z, log_density, gradient, r",
    ),
}  # fmt: skip


def p_values(step, part="density"):
    """Goodness of fit of both coordinates after ten transitions from exact draws."""
    program = Program(story)
    scale = dist.Gamma(3.0, 2.0).sample((CHAINS,))
    z = torch.stack([scale.log(), scale * torch.randn(CHAINS)], -1)

    def value_and_grad(z):
        return program.value_and_grad(z, part=part)

    state = hmc.init(z, value_and_grad)
    metric = hmc.Metric(torch.tensor([0.6, 1.6]))
    for leapfrogs in (3, 1, 2, 4, 2) * 2:
        state, _ = step(
            state,
            value_and_grad=value_and_grad,
            metric=metric,
            step_size=0.9,  # long enough that a third of the proposals are rejected
            leapfrogs=leapfrogs,
        )
    found = program.constrain(state.z)
    if not all(bool(torch.isfinite(x).all()) for x in found.values()):
        return [0.0]  # it ran away
    scale, white = found["scale"], found["x"] / found["scale"]
    return [
        stats.kstest(scale.numpy(), stats.gamma(3.0, scale=0.5).cdf).pvalue,
        stats.kstest(white.numpy(), stats.norm.cdf).pvalue,
    ]


def test_the_sampler_as_it_is_leaves_exact_draws_exact():
    assert min(p_values(hmc.step)) > FAILURE_RATE / 2


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug, monkeypatch):
    name, old, new = BUGS[bug]
    planted = mutant(hmc, name, old, new)
    if name != "step":
        monkeypatch.setattr(hmc, name, planted)
        planted = hmc.step
    assert min(p_values(planted)) < FAILURE_RATE / 2


def test_a_dropped_jacobian_is_caught():
    """The density on the sites' own scale in the place of that of the flat vector."""
    assert min(p_values(hmc.step, part="map")) < FAILURE_RATE / 2
