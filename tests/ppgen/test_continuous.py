"""Continuous flows are the exact solution to within their tolerance."""

import math

import pyro.distributions as dist
import pytest
import torch

from ppgen.transforms.continuous import Continuous
from ppgen.transforms.pushforward import Pushforward
from ppgen.transforms.vector import ConditionedTransform, VectorTransform


def raws(flow, spread, *count):
    """Parameters whose field is about `spread` long, with other ones in each row."""
    raw = flow.initial() + spread * torch.randn(*count, flow.parameters)
    w, u, b, c = raw.split(flow._sizes, -1)
    return torch.cat([w, u / math.sqrt(flow.hidden), b, c], -1)


def test_one_linear_wave_drifts_as_the_formula_says():
    # d sinh(x) / dt = u sinh(x) for dx/dt = u tanh(x): x(1) = arcsinh(exp(u) sinh(x(0)))
    flow, u = Continuous(1, 1), 0.7
    x = torch.linspace(-3, 3, 25)[:, None].requires_grad_()
    y, log_det = flow.to_data(x, torch.tensor([1.0, u, 0.0, 0.0]))
    exact = torch.asinh(math.exp(u) * torch.sinh(x))
    (slope,) = torch.autograd.grad(exact.sum(), x)
    assert torch.allclose(y, exact, atol=1e-9, rtol=0)
    assert torch.allclose(log_det, slope.squeeze(-1).log(), atol=1e-9, rtol=0)


def test_errors_fall_with_the_eighth_power_of_the_steps():
    raw, y = raws(Continuous(3, 8), 1.0), torch.randn(20, 3)
    exact = Continuous(3, 8, tolerance=1e-12).to_base(y, raw)
    errors = []
    for steps in (2, 4, 8):
        found = Continuous(3, 8, steps=steps).to_base(y, raw)
        errors.append([(a - b).abs().max() for a, b in zip(found, exact, strict=True)])
    coarse, middle, fine = torch.tensor(errors)
    # a factor of 256 for twice the steps, once these are small; a third of it is asked for
    assert (fine < middle / 80 + 1e-13).all()
    assert (middle < coarse / 40 + 1e-13).all()
    assert (fine < 1e-5).all()


@pytest.mark.slow
def test_steps_are_chosen_so_that_the_log_det_is_that_of_the_map():
    """A field of length 10, which 16 steps of fourth order left 0.04 nats off."""
    flow = Continuous(3, 32)
    raw, y = flow.initial() + torch.randn(flow.parameters), 2 * torch.randn(5, 3)
    x, log_det = flow.to_base(y, raw)
    summed = torch.autograd.functional.jacobian(lambda y: flow.to_base(y, raw)[0].sum(0), y)
    expected = torch.linalg.slogdet(summed.transpose(0, 1)).logabsdet
    assert ((log_det - expected).abs() <= 1e-9 * (1 + expected.abs())).all()
    assert torch.allclose(flow.to_data(x, raw)[0], y, atol=1e-9)


def test_an_input_that_is_not_a_number_ends():
    x, _ = Continuous(2, 4).to_data(torch.full((1, 2), math.nan), raws(Continuous(2, 4), 1.0))
    assert x.isnan().all()


def test_density_integrates_to_one():
    flow = VectorTransform(Continuous(2, 8))
    with torch.no_grad():
        flow.raw.copy_(raws(flow.vector_map, 1.0))
    density = Pushforward(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow])
    side = (torch.arange(100) + 0.5) / 5 - 10
    with torch.no_grad():
        mass = density.log_prob(torch.cartesian_prod(side, side)).exp().sum() / 25
    # the midpoint rule's own error is 2e-5 here
    assert abs(mass.item() - 1) < 1e-4


def test_rows_have_their_own_parameters_and_extremes_stay_finite():
    flow = Continuous(3, 8)
    raw, y = raws(flow, 1.0, 4), torch.randn(6, 4, 3)
    x, log_det = flow.to_base(y, raw)
    for row in range(4):
        alone, log_det_alone = flow.to_base(y[:, row], raw[row])
        assert torch.allclose(x[:, row], alone, atol=1e-12)
        assert torch.allclose(log_det[:, row], log_det_alone, atol=1e-12)
    far = torch.tensor([1e4, -1e4, 0.0], dtype=torch.float32).requires_grad_()
    for way in (flow.to_base, flow.to_data):
        value, log_det = way(far, 30 * raw.float())
        assert value.isfinite().all()
        assert log_det.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum() + log_det.sum(), far)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(dtype):
    flow = VectorTransform(Continuous(3, 4)).to(dtype)
    for shape in [(3,), (0, 3), (2, 4, 3)]:
        x, log_det = flow.inverse_with_log_det(torch.randn(shape, dtype=dtype))
        assert x.shape == shape
        assert log_det.shape == shape[:-1]
        assert x.dtype == log_det.dtype == dtype


def test_starts_as_the_identity_and_refuses_nothing_to_do():
    flow, y = Continuous(3), torch.randn(4, 3)
    transform = ConditionedTransform(flow, flow.initial())
    x, log_det = transform.inverse_with_log_det(y)
    assert torch.allclose(x, y, atol=1e-14)
    assert torch.equal(log_det, torch.zeros(4))
    with pytest.raises(ValueError, match="at least 1"):
        Continuous(3, steps=0)
