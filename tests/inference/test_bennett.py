"""Bennett's ratio against enumerated log Z: calibrated errors, and ladders of temperatures."""

import copy
import itertools

import pytest
import torch
from scipy import stats

from ppgen.inference import ParallelTempering, bennett, ladder_log_partition
from ppgen.inference.trajectory_tempering import frozen
from ppgen.models import DBM, RBM, GaussianRBM

pytestmark = pytest.mark.usefixtures("silent")

FAILURE_RATE = 2e-5
Z = stats.norm.isf(FAILURE_RATE / 2)


def two_modes():
    """x all zeros or all ones, with a barrier of about 15 nats between them."""
    rbm = RBM(8, 8, weight_scale=0.0)
    for p, value in zip(
        (rbm.weight, rbm.visible_bias, rbm.hidden_bias), (1.2, -4.8, -4.8), strict=True
    ):
        torch.nn.init.constant_(p, value)
    return rbm


def trajectory(rungs=4):
    """Laws from a machine without weights to one of standard deviation 2."""
    end, found = RBM(5, 3, weight_scale=2.0).requires_grad_(False), []
    for k in range(rungs):
        there = copy.deepcopy(end)
        there.weight *= k / (rungs - 1)
        there.visible_bias.normal_(std=0.5)
        found.append(frozen(there))
    return found


def ratios(laws, chains, draws=1):
    """At independent exact draws of every rung."""
    sides = [law.sample((chains, draws)) for law in laws]
    return torch.stack(
        [
            torch.stack([a.free_energy(s) - b.free_energy(s) for s in (sides[k], sides[k + 1])])
            for k, (a, b) in enumerate(itertools.pairwise(laws))
        ]
    )


def z_scores(runs=200, chains=100):
    laws = trajectory()
    truth = (laws[-1].log_partition() - laws[0].log_partition()).item()
    found = []
    for _ in range(runs):
        steps, influence = bennett.bennett(ratios(laws, chains))
        error = (influence.sum(0).square().sum() * chains / (chains - 1)).sqrt()
        found.append((steps.sum() - truth) / error)
    return torch.stack(found)


@pytest.mark.slow
def test_errors_are_calibrated_over_200_runs():
    z = z_scores()
    # the bias of a ratio is of the order of the squared error: 0.1 of a z at most here
    assert abs(z.mean()) < Z / 200**0.5 + 0.1
    # sd of z: 199 degrees of freedom; 3 % for the estimated error and the tails
    assert abs(z.std() - 1) < Z / 400**0.5 + 0.03


def test_an_influence_is_what_one_more_chain_would_change():
    """To first order, 1 / 200 of it; of one step, as the steps of one chain are added up."""
    r = ratios(trajectory(3), 200)
    steps, influence = bennett.bennett(r)
    assert influence.sum(1).abs().max() < 1e-8
    for chain in range(5):
        more, _ = bennett.bennett(torch.cat([r, r[:, :, chain : chain + 1]], 2))
        scale = influence.abs().max()
        torch.testing.assert_close(
            more - steps, influence[:, chain], rtol=0, atol=0.02 * scale.item()
        )


def test_a_wrong_sign_on_one_side_is_caught(monkeypatch):
    """A planted bug: the ratio of the later rung's draws counted from the other side."""

    def wrong(early, late, delta):
        shift = delta[:, None, None]
        return ((early - shift).sigmoid() - (shift + late).sigmoid()).sum(-1)

    monkeypatch.setattr(bennett, "_balance", wrong)
    z = z_scores(runs=20)
    assert abs(z.mean()) > 2 * Z / 20**0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two modes", "DBM", "Gaussian"])
def test_log_z_along_temperatures_is_within_five_hundredths(kind):
    made = {"two modes": two_modes, "DBM": lambda: DBM(5, (4, 3), weight_scale=1.0)}
    made["Gaussian"] = lambda: GaussianRBM(4, 3, weight_scale=1.0)
    machine = made[kind]().requires_grad_(False)
    kernel = ParallelTempering(machine, torch.zeros(1000, len(machine.weight)), temperatures=10)
    found = ladder_log_partition(kernel, draws=20, warmup=60, seed=1)
    assert found.error < 0.05 / Z
    assert abs(found.value - machine.log_partition()) < Z * found.error
    assert f"log Z about {found.value:.2f}" in str(found)
    assert "no bound" in str(found)
    assert torch.equal(kernel.initial_params["x"], kernel.state.ladder[-1])  # it goes on from here


def test_a_ladder_with_clamped_units_has_no_log_z():
    clamp = torch.tensor([True, False, False, False])
    kernel = ParallelTempering(RBM(4, 3), torch.zeros(5, 4), temperatures=2, clamp=clamp)
    with pytest.raises(ValueError, match="units are clamped"):
        ladder_log_partition(kernel)


def test_what_is_no_ladder_is_refused():
    kernel = ParallelTempering(RBM(4, 3), torch.zeros(1, 4), temperatures=2)
    with pytest.raises(ValueError, match="at least 2 chains"):
        ladder_log_partition(kernel)
    with pytest.raises(ValueError, match="draws"):
        ladder_log_partition(kernel, draws=0)
