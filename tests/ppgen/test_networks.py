import math

import pytest
import torch
from torch import nn

from ppgen.networks.convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from ppgen.networks.initial import he_
from ppgen.networks.masked import MADE
from ppgen.networks.mlp import MLP, conditioner, hidden_layers
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
    assert 0.0067 < scale.min() < 0.0068
    assert 148.3 < scale.max() < 148.5


def test_a_slice_of_an_mlp_is_a_network():
    mlp, x = MLP((3, 5, 4, 2)), torch.randn(6, 3)
    assert torch.equal(mlp[-1](mlp[:-1](x)), mlp(x))


def test_mlp_refuses_one_width():
    with pytest.raises(ValueError, match="input and an output width"):
        MLP((3,))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Linear(200, 300), (500, 200)),
        (lambda: nn.Conv2d(20, 300, 3), (4, 20, 18, 18)),
        (lambda: nn.Conv2d(20, 300, 4, stride=2), (4, 20, 18, 18)),
        # its border, of fewer summands, is cut off
        (lambda: nn.ConvTranspose2d(40, 300, 4, stride=2, padding=3), (4, 40, 9, 9)),
    ],
)
def test_layers_keep_the_size_of_what_a_rectifier_gives(build, shape):
    torch.manual_seed(0)
    layer = build()
    he_(layer)
    size = layer(math.sqrt(2) * torch.randn(shape).relu()).square().mean()
    assert abs(size.item() - 2) < 0.1  # whose positive half has a mean square of 1 again


def sizes(network):
    """Largest weight of each layer, in units of the bound of torch's own."""
    layers = [m for m in network.modules() if hasattr(m, "weight")]
    return [(m.weight.abs().max() * m.weight[0].numel() ** 0.5).item() for m in layers]


@pytest.mark.parametrize(
    "build",
    [
        lambda: MLP((30, 80, 90, 7)),
        lambda: ConvolutionalDecoder((1, 8, 8), 5),
        lambda: ConvolutionalDecoder((1, 8, 8), 5, refine=0, parameters_each=2),
        lambda: nn.Sequential(hidden_layers((30, 80, 90)), nn.Linear(90, 7)),
        lambda: nn.Sequential(ConvolutionalEncoder((1, 8, 8), 90), nn.Linear(90, 7)),
    ],
)
def test_layers_between_nonlinearities_start_larger_than_the_first_and_the_last(build):
    first, *between, last = sizes(build())
    assert max(first, last) <= 1.0
    assert min(between) > 1.5


def test_a_conditioner_says_nothing_at_first_and_learns():
    network = conditioner((3, 8, 8, 2))
    assert not network(torch.randn(5, 3)).any()
    assert max(sizes(network)) <= 1.0
    (network(torch.randn(5, 3)) - 1).square().sum().backward()
    assert network[-1].weight.grad.any()


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
