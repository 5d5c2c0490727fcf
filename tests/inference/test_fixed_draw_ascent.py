"""Guides by draws that are fixed once: exact on normals, settled only where they are."""

import math

import pytest
import torch

from ppgen.inference.fixed_draw_ascent import fixed_draw_ascent
from ppgen.inference.fixed_draws import matched_normal
from ppgen.inference.frame import Frame
from ppgen.inference.guides import FullRank, MeanField
from ppgen.inference.mode import Batched
from ppgen.inference.vi_fit import Fit
from ppgen.models import neals_funnel
from ppgen.program import Program

DIM = 6
REST = 1e-4  # nats below the top at which a climb rests


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

    def estimates(self, z):
        return self(z)[0]


def fit(guide, function):
    frame = Frame(torch.zeros(guide.dim).double(), torch.ones(guide.dim).double())
    return Fit(guide.double(), frame, function, True)


@pytest.mark.parametrize("count", [4, 2 * DIM, 4 * DIM, 1024])
def test_matched_draws_have_exact_moments(count):
    noise = matched_normal(count, torch.zeros(DIM).double(), DIM)
    assert noise.shape == (count, DIM)
    assert noise.mean(0).abs().max() < 1e-12
    covariance = noise.mT @ noise / count
    if count < 4 * DIM:  # too few for all of it
        covariance = covariance.diagonal().diag()
    assert torch.allclose(covariance, torch.eye(DIM).double(), atol=1e-12)


def test_independent_normals_for_a_normal_are_exact_and_settled_at_once():
    target, guide = Normal(), MeanField(DIM)
    ascent = fixed_draw_ascent(fit(guide, target), 1e-3)
    assert ascent is not None
    assert ascent.settled
    assert len(ascent.history) == 2
    sd = target.precision.diagonal().rsqrt()
    # (P_ii d_i^2 + 2 d_log_sd^2) / 2 of each coordinate is lost
    assert ((guide.loc - target.mean) / sd).abs().max() < math.sqrt(2 * REST)
    assert (guide.log_scale - sd.log()).abs().max() < math.sqrt(REST)
    # E[log p] = -D / 2 there, so that the ELBO is sum log sd + D log(2 pi) / 2
    elbo = float(sd.log().sum()) + 0.5 * DIM * math.log(2 * math.pi)
    assert abs(ascent.history[-1] - elbo) < REST


def test_a_normal_for_a_normal_is_that_normal():
    target, guide = Normal(), FullRank(DIM)
    ascent = fixed_draw_ascent(fit(guide, target), 1e-3)
    assert ascent is not None
    assert ascent.settled
    log_z = 0.5 * (DIM * math.log(2 * math.pi) - float(torch.logdet(target.precision)))
    assert abs(ascent.history[-1] - log_z) < REST


@pytest.mark.parametrize(("tolerance", "sets"), [(10.0, 2), (3e-4, 5)])
def test_sets_of_draws_go_on_until_they_gain_less_than_the_tolerance(tolerance, sets):
    program = Program(neals_funnel)
    ascent = fixed_draw_ascent(fit(MeanField(program.dim), Batched(program, 64)), tolerance)
    assert ascent is not None
    assert len(ascent.history) == sets
    assert ascent.settled == (tolerance > 1)


def test_sets_that_cannot_become_as_good_are_not_tried():
    program = Program(neals_funnel)
    ascent = fixed_draw_ascent(fit(MeanField(program.dim), Batched(program, 64)), 1e-9)
    assert ascent is not None
    assert len(ascent.history) == 2
    assert not ascent.settled


def test_a_climb_that_is_stuck_is_not_settled(monkeypatch):
    monkeypatch.setattr("ppgen.inference.fixed_draw_ascent._ASCENT", 20)
    guide = MeanField(DIM)
    ascent = fixed_draw_ascent(fit(guide, Normal(turned=True)), 1e-3)
    assert ascent is not None
    assert not ascent.settled
    assert not guide.loc.any()  # where it began
