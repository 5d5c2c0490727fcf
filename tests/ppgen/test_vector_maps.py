"""What vector maps promise beyond the laws of all bijections: gradients of inverses, amortising."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform

from ppgen.transforms.hyperbolic import tanh_root
from ppgen.transforms.planar import Planar
from ppgen.transforms.pushforward import Pushforward
from ppgen.transforms.radial import Radial
from ppgen.transforms.ridge import push_score
from ppgen.transforms.sylvester import Sylvester
from ppgen.transforms.vector import ConditionedTransform, VectorChain, VectorTransform

MAPS = {
    "planar": Planar,
    "radial": Radial,
    "sylvester": Sylvester,
    "sylvester of two columns": lambda dim: Sylvester(dim, 2, reflections=3),
    "triangular sylvester": lambda dim: Sylvester(dim, reflections=0, flip=True),
    "chain": lambda dim: VectorChain([Planar(dim), Radial(dim), Sylvester(dim)]),
}


def normal(*shape):
    return dist.Normal(torch.zeros(shape), 1.0).to_event(1)


def raws(vector_map, count, spread=1.0):
    return vector_map.initial() + spread * torch.randn(count, vector_map.parameters)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("way", ["to_base", "to_data"])
def test_first_and_second_derivatives_are_those_of_finite_differences(name, way):
    vector_map = MAPS[name](3)
    value = torch.randn(3, requires_grad=True)
    raw = raws(vector_map, 1)[0].requires_grad_()
    apply = getattr(vector_map, way)
    assert torch.autograd.gradcheck(apply, (value, raw), rtol=1e-5, atol=1e-7)
    assert torch.autograd.gradgradcheck(apply, (value, raw), rtol=1e-4, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("name", MAPS)
def test_each_row_may_have_its_own_parameters(name):
    vector_map = MAPS[name](3)
    raw, y = raws(vector_map, 4), torch.randn(6, 4, 3)
    x, log_det = vector_map.to_base(y, raw)
    back, log_det_back = vector_map.to_data(x, raw)
    for row in range(4):
        alone, log_det_alone = vector_map.to_base(y[:, row], raw[row])
        assert torch.allclose(x[:, row], alone, atol=1e-10, rtol=0)
        assert torch.allclose(log_det[:, row], log_det_alone, atol=1e-10, rtol=0)
    assert torch.allclose(back, y, atol=1e-8)
    assert torch.allclose(log_det_back, -log_det, atol=1e-8)


@pytest.mark.parametrize("name", ["planar", "sylvester of two columns", "radial"])
@pytest.mark.parametrize("rows", [(), (1,), (5,), (7, 1), (7, 5)])
def test_a_repeated_map_is_that_map_layer_by_layer(name, rows):
    vector_map = MAPS[name](4)
    chain = VectorChain([vector_map] * 3)
    raw = chain.initial() + torch.randn(*rows, chain.parameters)
    x = torch.randn(2, 7, 5, 4)
    y, log_det = chain.to_data(x, raw)
    z, total = x, 0
    for part in raw.chunk(3, -1):
        z, log_det_part = vector_map.to_data(z, part)
        total = total + log_det_part
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(log_det, total)
    back, log_det_back = chain.to_base(y, raw)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)


@pytest.mark.parametrize("name", ["planar", "sylvester", "sylvester of two columns"])
def test_a_score_goes_with_the_values_through_all_layers(name):
    vector_map = MAPS[name](4)
    chain = VectorChain([vector_map] * 3)
    raw = chain.initial() + torch.randn(chain.parameters)
    x = torch.randn(5, 4)
    y = chain.to_data(x, raw)[0].requires_grad_()
    back, log_det = chain.to_base(y, raw)
    (expected,) = torch.autograd.grad((normal(4).log_prob(back) + log_det).sum(), y)
    found = push_score(x, -x, vector_map.ridges(raw.unflatten(0, (3, -1))))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MAPS)
def test_rows_of_parameters_broadcast_against_one_value(name):
    vector_map = MAPS[name](3)
    raw, y = raws(vector_map, 4), torch.randn(3)
    for way in (vector_map.to_base, vector_map.to_data):
        value, log_det = way(y, raw)
        assert value.shape == (4, 3)
        assert log_det.shape == (4,)


@pytest.mark.parametrize("name", MAPS)
def test_initial_parameters_are_the_identity(name):
    vector_map, x = MAPS[name](4), 3 * torch.randn(10, 4)
    y, log_det = vector_map.to_data(x, vector_map.initial())
    assert torch.allclose(y, x, atol=1e-13)
    assert torch.allclose(log_det, torch.zeros(10), atol=1e-13)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("spread", [0.0, 1.0, 100.0])
def test_no_input_and_no_parameter_makes_a_nan_in_float32(name, spread):
    vector_map = MAPS[name](3)
    raw = raws(vector_map, 300, spread).float()
    raw[0] = 0  # an encoder that says nothing
    raw.requires_grad_()
    scales = torch.logspace(-8, 4, 300)[:, None]
    value = (scales * torch.randn(300, 3).sign()).float()
    value[:20] = 0
    value.requires_grad_()
    for way in (vector_map.to_base, vector_map.to_data):
        out, log_det = way(value, raw)
        gradients = torch.autograd.grad(out.sum() + log_det.sum(), (value, raw))
        for tensor in (out, log_det, *gradients):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("name", MAPS)
def test_float32_agrees_with_float64(name):
    vector_map = MAPS[name](3)
    raw, y = raws(vector_map, 200, 0.3), torch.randn(200, 3)
    x, log_det = vector_map.to_base(y, raw)
    x32, log_det32 = vector_map.to_base(y.float(), raw.float())
    # rounding, 6e-8 of numbers up to 10, times a steepness that is about 10 at spread 0.3
    assert torch.allclose(x32.double(), x, atol=1e-4)
    assert torch.allclose(log_det32.double(), log_det, atol=1e-4)
    back, _ = vector_map.to_data(x32, raw.float())
    assert torch.allclose(back.double(), y, atol=1e-4)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", ["planar", "radial", "sylvester"])
def test_strongly_perturbed_maps_stay_invertible(name, dim):
    # the constraint done wrong (the norm not squared, say) folds space: round trips fail
    vector_map = MAPS[name](dim)
    raw, x = raws(vector_map, 2000, 3.0), 2 * torch.randn(2000, dim)
    y, log_det = vector_map.to_data(x, raw)
    back, log_det_back = vector_map.to_base(y, raw)
    # the least slope of a factor is 1e-3, and shears of Sylvester's triangles come on top
    assert ((back - x).abs().amax(-1) <= 1e-12 * (1 + y.abs().amax(-1)) * 1e3**dim).all()
    assert ((log_det + log_det_back).abs() <= 1e-12 * (1 + y.abs().amax(-1)) * 1e3**dim).all()


def test_planar_flow_without_stretch_shears_only():
    # w.u = log(e - 1), with MIN_SLOPE: m = 0, so the map moves along the plane and keeps volume
    vector_map = Planar(2)
    w = torch.tensor([1.0, 0.0])
    raw = torch.cat([w, torch.tensor([math.log(math.expm1(0.999)), 2.0, 0.5])])
    y, log_det = vector_map.to_data(torch.tensor([0.3, -1.0]), raw)
    assert torch.allclose(y, torch.tensor([0.3, -1.0 + 2 * math.tanh(0.8)]), atol=1e-14)
    assert abs(log_det.item()) < 1e-14


def test_the_scalar_equation_is_solved_for_all_slopes_and_sizes():
    m = torch.cat([-1 + torch.logspace(-3, 0, 40), torch.logspace(-3, 6, 60)])[:, None]
    s = torch.cat([-torch.logspace(3, -8, 60), torch.zeros(1), torch.logspace(-8, 7, 90)])
    r = s + m * s.tanh()
    # the rounding of r and of its two terms, magnified by the inverse slope, 1000 at most
    allowed = 1e-15 * (s.abs() + m.abs() * s.tanh().abs()) * 4
    slope = 1 + m * (1 - s.tanh() ** 2).clamp(min=0)
    assert ((tanh_root(r, m) - s).abs() <= allowed / slope + 1e-13 * s.abs()).all()


@pytest.mark.parametrize("name", MAPS)
def test_draws_come_with_the_log_prob_of_the_inverse(name):
    vector_map = MAPS[name](3)
    shift = AffineTransform(torch.tensor([1.0, 2.0, 3.0]), 2.0)  # scored by the other two calls
    flow = Pushforward(
        normal(4, 3), [ConditionedTransform(vector_map, raws(vector_map, 4, 0.3)), shift]
    )
    y, log_prob = flow.rsample_with_log_prob(torch.Size([5]))
    assert y.shape == (5, 4, 3)
    assert log_prob.shape == (5, 4)
    assert torch.allclose(flow.log_prob(y), log_prob, atol=1e-8)


@pytest.mark.parametrize("name", ["planar", "sylvester"])
def test_maximum_likelihood_through_the_inverse_recovers_the_flow(name):
    # data of a known flow; the entropy that they are scored with is the best any model can do
    truth = MAPS[name](2)
    raw = raws(truth, 1, 0.7)[0]
    flow = Pushforward(normal(2), [ConditionedTransform(truth, raw)])
    y, log_prob = (t.detach() for t in flow.rsample_with_log_prob(torch.Size([500])))
    learned = VectorTransform(truth)
    with torch.no_grad():  # from nearby: this is about the gradient, not about the optimiser
        learned.raw.copy_(raw + 0.2 * torch.randn_like(raw))
    density = Pushforward(normal(2), [learned])
    optimizer = torch.optim.LBFGS(learned.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -density.log_prob(y).mean()
        loss.backward()
        return loss

    before = closure().item()
    optimizer.step(closure)
    after = closure().item()
    # the best fit gains half a chi-square with P degrees of freedom on the truth: at most 30
    # nats in 500 examples with probability above 1 - 2e-5, for P up to 12
    assert -30 / 500 < after + log_prob.mean().item() < 1e-6
    assert after < before - 0.001


@pytest.mark.parametrize("base_rows", [(), (4,)])
def test_one_base_serves_rows_of_parameters(base_rows):
    vector_map = Planar(3)
    transform = ConditionedTransform(vector_map, raws(vector_map, 4))
    flow = Pushforward(normal(*base_rows, 3), [transform])
    assert flow.batch_shape == (4,)
    y, log_prob = flow.rsample_with_log_prob()
    assert y.shape == (4, 3)
    assert log_prob.shape == flow.log_prob(y).shape == (4,)


def test_learned_parameters_travel_in_the_state():
    one, other = (VectorTransform(Sylvester(3)) for _ in range(2))
    y = torch.randn(5, 3)
    with torch.no_grad():
        one.raw.add_(torch.randn_like(one.raw))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.inv(y), other.inv(y))
    assert one.with_cache(1) is one


def test_complaints_say_what_was_expected():
    with pytest.raises(ValueError, match="7 raw parameters"):
        ConditionedTransform(Planar(3), torch.zeros(4, 6))
    with pytest.raises(ValueError, match="of 3 dimensions, the last axis"):
        VectorTransform(Planar(3)).inverse_with_log_det(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="at most dim=3"):
        Sylvester(3, 4)
    with pytest.raises(ValueError, match="all of the same dimension"):
        VectorChain([Planar(2), Radial(3)])
