"""Targets and frames: rows that fail do so alone, and affine maps have their inverse and slope."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.inference.frame import Frame
from ppgen.inference.target import InPieces, Target
from ppgen.program import Program


def correlated():
    """A normal pair times sqrt(1 - z^2 / 16), by a factorisation that fails where |z| > 4."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    factor = torch.linalg.cholesky(torch.eye(2) + z[0] / 4 * (1 - torch.eye(2)))
    pyro.factor("width", factor.diagonal().log().sum())


def test_rows_whose_factorisation_fails_have_density_zero_and_leave_the_others_alone():
    z = torch.randn(7, 2)
    bad = torch.tensor([2, 5, 6])
    target = Target(Program(correlated))
    with pytest.raises(torch.linalg.LinAlgError):
        target(torch.full((7, 2), 5.0))  # no point is known yet where it works
    target(z)
    target.value(z)
    slope = target.slope_like(z)
    slope(z)
    assert target.gradients == 4 * 7
    z[bad, 0] = torch.tensor([4.5, -5.0, 30.0])
    value, gradient = target(z)
    a = z[:, 0]
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum(1) + 0.5 * torch.log1p(-a.square() / 16)
    slopes = -z - torch.stack([a / (16 - a.square()), torch.zeros_like(a)], 1)
    expected[bad], slopes[bad] = -torch.inf, 0.0
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slopes)
    torch.testing.assert_close(target.value(z), expected)
    torch.testing.assert_close(slope(z), slopes)
    assert target.gradients == 7 * 7


@pytest.mark.parametrize("count", [1, 4, 6])
def test_pieces_are_the_whole(count):
    def function(z):
        assert len(z) == 4
        return z.square().sum(1), 2 * z

    z = torch.randn(count, 3)
    value, gradient = InPieces(function, 4)(z)
    torch.testing.assert_close((value, gradient), (z.square().sum(1), 2 * z))
    torch.testing.assert_close(InPieces(function, 4).value(z), value)


@pytest.mark.parametrize(
    "factor",
    [torch.tensor([0.5, 3.0]), torch.tensor([[0.5, 0.0], [-2.0, 3.0]])],
    ids=["diagonal", "triangle"],
)
def test_a_frame_has_its_inverse_its_slope_and_its_volume(factor):
    frame = Frame(torch.tensor([1.0, -4.0]), factor.double())
    u, gradient = torch.randn(2, 5, 2)
    z = frame.push(u)
    torch.testing.assert_close(frame.back(z), u)
    jacobian = torch.autograd.functional.jacobian(lambda u: frame.push(u[None])[0], u[0])
    torch.testing.assert_close(z[1] - z[0], jacobian @ (u[1] - u[0]))
    torch.testing.assert_close(frame.pull(gradient), gradient @ jacobian)
    torch.testing.assert_close(frame.log_det, torch.linalg.slogdet(jacobian)[1])
