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


@pytest.mark.parametrize(
    ("hidden", "context"), [((), 0), ((7,), 0), ((9, 5), 0), ((7,), 3), ((9, 5), 3), ((2, 11), 3)]
)
@pytest.mark.parametrize("dim", [1, 5])
def test_coordinate_by_coordinate_the_numbers_are_those_of_one_pass(dim, context, hidden):
    made = MADE(dim, 2, hidden, order=torch.randperm(dim).tolist(), dropout=0.5, context=context)
    made.eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += torch.randn_like(parameter)
    x = torch.randn(4, 3, dim)
    told = torch.randn(3, context) if context else None
    expected, found = made(x, told), torch.full((4, 3, dim, 2), torch.nan)

    def make(i, numbers):
        found[..., i, :] = numbers
        return x[..., i]

    made.generate(make, x.shape[:-1], told)
    torch.testing.assert_close(found, expected)
