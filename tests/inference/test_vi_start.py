"""Independent normals by fixed draws: exact on normals, settled only where they are."""

import pytest
import torch

from ppgen.inference.fixed_draws import matched_normal
from ppgen.inference.frame import Frame
from ppgen.inference.mode import Batched
from ppgen.inference.vi_start import fixed_draw_optimum
from ppgen.models import neals_funnel
from ppgen.program import Program

DIM = 6


def frame_of(dim):
    return Frame(torch.zeros(dim).double(), torch.ones(dim).double())


class Normal:
    """Log density of a correlated normal about (1, 2, ...); `turned`: its gradient is not."""

    def __init__(self, turned=False):
        root = torch.randn(DIM, DIM).double()
        self.precision = root @ root.mT + torch.eye(DIM)
        self.mean = torch.arange(1.0, DIM + 1).double()
        self.sign = -1 if turned else 1

    def __call__(self, z):
        pull = (self.mean - z) @ self.precision
        return 0.5 * (pull * (z - self.mean)).sum(-1), self.sign * pull


@pytest.mark.parametrize("count", [2 * DIM, 4 * DIM, 1024])
def test_matched_draws_have_exact_moments(count):
    noise = matched_normal(count, torch.zeros(DIM).double())
    assert noise.shape == (count, DIM)
    assert noise.mean(0).abs().max() < 1e-12
    covariance = noise.mT @ noise / count
    if count < 4 * DIM:  # too few for all of it
        covariance = covariance.diagonal().diag()
    assert torch.allclose(covariance, torch.eye(DIM).double(), atol=1e-12)


def test_the_optimum_on_a_normal_is_exact_and_settled_at_once():
    target = Normal()
    found = fixed_draw_optimum(target, frame_of(DIM), 1e-3)
    assert found is not None
    assert found.settled
    assert len(found.elbos) == 2
    # the climb rests 1e-4 nats below the top: (P_ii d_i^2 + 2 d_log_sd^2) / 2 of each coordinate
    rest = 1e-4
    sd = target.precision.diagonal().rsqrt()
    assert ((found.loc - target.mean) / sd).abs().max() < (2 * rest) ** 0.5
    assert (found.log_scale - sd.log()).abs().max() < rest**0.5
    # E[log p] = -D / 2 there, so that the ELBO is sum log sd + D log(2 pi) / 2
    elbo = sd.log().sum() + 0.5 * DIM * torch.tensor(2 * torch.pi).log()
    assert abs(found.elbos[-1] - elbo) < rest


@pytest.mark.parametrize(("tolerance", "sets"), [(10.0, 2), (1e-9, 5)])
def test_sets_of_draws_go_on_until_they_gain_less_than_the_tolerance(tolerance, sets):
    program = Program(neals_funnel)
    found = fixed_draw_optimum(Batched(program, 64), frame_of(program.dim), tolerance)
    assert found is not None
    assert len(found.elbos) == sets
    assert found.settled == (tolerance > 1)


def test_a_climb_that_is_stuck_is_not_settled():
    found = fixed_draw_optimum(Normal(turned=True), frame_of(DIM), 1e-3)
    assert found is not None
    assert not found.settled
    assert not found.loc.any()  # where it began
