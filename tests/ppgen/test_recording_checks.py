"""A recording that is not the story is refused, and so is a gradient that got lost."""

import pytest
import torch

from ppgen.recording_checks import refuse_disagreement, refuse_lost_gradient
from ppgen.tape import Unrecordable

ROWS = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 1.1]], dtype=torch.float64)


def square(z):
    return z.square().sum(-1)


def test_a_recording_that_keeps_a_number_of_its_first_run_is_refused():
    refuse_disagreement(square, square, ROWS)
    kept = square(ROWS)
    with pytest.raises(Unrecordable, match="disagrees with Pyro"):
        refuse_disagreement(lambda z: kept, square, ROWS)


def test_any_part_of_what_was_recorded_may_disagree():
    with pytest.raises(Unrecordable):
        refuse_disagreement(lambda z: (square(z), z), lambda z: (square(z), -z), ROWS)


def test_a_lost_gradient_is_told_from_a_right_one():
    refuse_lost_gradient(lambda z: (square(z), 2 * z), ROWS)
    with pytest.raises(ValueError, match="not that of its values"):
        refuse_lost_gradient(lambda z: (square(z), torch.zeros_like(z)), ROWS)


def test_rounding_that_hides_the_slope_over_a_short_distance_is_no_lost_gradient():
    def noisy(z):  # as of a Cholesky factor whose condition is 1e10
        return square(z) + 3e-6 * torch.sin(1e9 * z.sum(-1))

    refuse_lost_gradient(lambda z: (noisy(z), 2 * z), ROWS)
    with pytest.raises(ValueError, match="not that of its values"):
        refuse_lost_gradient(lambda z: (noisy(z), torch.zeros_like(z)), ROWS)
