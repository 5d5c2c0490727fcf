import pytest
import torch
from torch import nn

from ppgen.networks.masked import MADE
from ppgen.networks.mlp import MLP
from ppgen.networks.posteriors import DiagonalNormal


@pytest.mark.parametrize("hidden", [(), (7,), (16, 16)])
@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]])
def test_made_sees_what_comes_before_and_nothing_else(hidden, order):
    made = MADE(4, 3, hidden, order=order)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    jacobian = torch.autograd.functional.jacobian(lambda x: made(x).sum(-1), torch.randn(4))
    rank = torch.argsort(torch.tensor(order or [0, 1, 2, 3]))
    before = rank[None, :] < rank[:, None]
    assert torch.equal(jacobian != 0, before)


def test_made_starts_at_zero_and_keeps_batch_shapes():
    made = MADE(3, 2, (8,))
    for shape in [(3,), (0, 3), (5, 2, 3)]:
        assert torch.equal(made(torch.randn(shape)), torch.zeros(*shape, 2))


def test_made_refuses_an_order_that_is_no_permutation():
    with pytest.raises(ValueError, match=r"permutation of range\(3\)"):
        MADE(3, 1, order=[0, 1, 1])


def test_the_first_coordinate_of_one_dimension_depends_on_nothing():
    made = MADE(1, 2, (8,))
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    assert torch.equal(made(torch.zeros(1)), made(torch.ones(1)))


def test_log_variance_is_bounded_and_the_scale_finite():
    posterior = DiagonalNormal(2, 3, log_variance_bound=10.0)
    scale = posterior(1e8 * torch.randn(50, 2)).stddev
    assert scale.shape == (50, 3)
    # exp(+-10 / 2), up to rounding
    assert scale.min() > 0.0067
    assert scale.max() < 148.5


def test_mlp_refuses_one_width():
    with pytest.raises(ValueError, match="input and an output width"):
        MLP((3,))
