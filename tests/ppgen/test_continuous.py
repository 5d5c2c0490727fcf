"""Continuous flows approach the exact solution at the order of their solver."""

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
    flow, u = Continuous(1, 1, steps=64), 0.7
    x = torch.linspace(-3, 3, 25)[:, None].requires_grad_()
    y, log_det = flow.to_data(x, torch.tensor([1.0, u, 0.0, 0.0]))
    exact = torch.asinh(math.exp(u) * torch.sinh(x))
    (slope,) = torch.autograd.grad(exact.sum(), x)
    # fourth order: (1 / 64)^4 = 6e-8, times derivatives of order one over 5!
    assert torch.allclose(y, exact, atol=1e-8, rtol=0)
    assert torch.allclose(log_det, slope.squeeze(-1).log(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_errors_fall_with_the_fourth_power_of_the_steps(spread):
    raw, y = raws(Continuous(3, 8), spread), torch.randn(20, 3)
    errors = []
    for steps in (8, 32, 128):
        flow = Continuous(3, 8, steps=steps)
        x, log_det = flow.to_base(y, raw)
        back, _ = flow.to_data(x, raw)
        summed = torch.autograd.functional.jacobian(
            lambda y, flow=flow: flow.to_base(y, raw)[0].sum(0), y
        )
        expected = torch.linalg.slogdet(summed.transpose(0, 1)).logabsdet
        errors.append([(back - y).abs().max(), (log_det - expected).abs().max()])
    coarse, middle, fine = torch.tensor(errors)
    # a factor of 256 for four times the steps, once these are small; half of it is asked for
    assert (fine < middle / 128 + 1e-13).all()
    assert (middle < coarse / 64 + 1e-13).all()
    assert (fine < 1e-7).all()


def test_density_integrates_to_one():
    flow = VectorTransform(Continuous(2, 8))
    with torch.no_grad():
        flow.raw.copy_(raws(flow.vector_map, 1.0))
    density = Pushforward(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow])
    side = (torch.arange(100) + 0.5) / 5 - 10
    with torch.no_grad():
        mass = density.log_prob(torch.cartesian_prod(side, side)).exp().sum() / 25
    # the midpoint rule is exact to 1e-6 here; the rest is the solver's, 1e-5
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
    assert torch.equal(x, y)
    assert torch.equal(log_det, torch.zeros(4))
    with pytest.raises(ValueError, match="at least 1"):
        Continuous(3, steps=0)
