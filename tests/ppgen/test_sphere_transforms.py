"""Flows on circles, tori and spheres: laws with respect to the surface, at any parameters."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from perturbation import perturbed
from ppgen.distributions import SphereUniform
from ppgen.distributions.sphere import log_area
from ppgen.transforms.autoregressive import Autoregressive
from ppgen.transforms.circle import TURN, CircularSpline, Moebius, invert, wrap
from ppgen.transforms.coupling import Coupling
from ppgen.transforms.moebius import Moebius as MoebiusMap
from ppgen.transforms.pushforward import Pushforward
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.scalar import LinearSpline
from ppgen.transforms.sphere import ExponentialMap, Recursive, Rotation, _series
from ppgen.transforms.stereographic import Stereographic, sphere

FAILURE_RATE = 2e-5  # as in tests/conftest.py
SPREADS = (0.0, 0.3, 1.0)
CIRCLES = {
    "one Moebius": lambda: Moebius(1),
    "Moebius": lambda: Moebius(5),
    "circular spline": lambda: CircularSpline(5),
}
SPHERES = {
    **{
        f"exponential map on S^{n} from {side}": lambda n=n, side=side: ExponentialMap(
            n, 4, start=side
        )
        for n in (1, 2, 3, 5)
        for side in ("base", "data")
    },
    "recursive, splines": lambda: Recursive(RationalQuadratic(5, None), CircularSpline(5), (8,)),
    "recursive, Moebius": lambda: Recursive(LinearSpline(4), Moebius(4), (8,)),
    **{f"Moebius on S^{n}": lambda n=n: MoebiusMap(n) for n in (1, 2, 3, 5)},
    "rotation": lambda: Rotation(torch.linalg.qr(torch.randn(3, 3))[0]),
}


def test_trigonometry_of_short_walks_is_the_power_series():
    """On both sides of where it changes to cosines: sums of (-s)^k times a rational number."""
    s = torch.tensor([0.0, 1e-12, 1e-6, 5e-4, 9.99e-4, 1.01e-3])
    found = _series(s)
    ways = (
        lambda k: 1 / math.factorial(2 * k),
        lambda k: 1 / math.factorial(2 * k + 1),
        lambda k: -2 * (k + 1) / math.factorial(2 * k + 3),
    )
    for value, coefficient, last in zip(found, ways, (1e-15, 1e-15, 1e-12), strict=True):
        expected = sum((-s) ** k * coefficient(k) for k in range(8))
        error = (value - expected).abs()
        assert error[:-1].max() < 1e-15
        assert error[-1] < last  # the difference of two numbers near 1, over 1e-3


def points(transform, count):
    size = getattr(transform, "dim", 2) + 1
    return F.normalize(torch.randn(count, size), dim=-1)


def around(a, b):
    """The distance of two angles."""
    return (wrap(a - b + math.pi) - math.pi).abs()


def frame(x):
    """An orthonormal basis of the tangents at `x`, ``(n + 1, n)``."""
    return torch.linalg.svd(x[None])[2][1:].T


# --- the circle


@pytest.mark.parametrize("f", CIRCLES)
@pytest.mark.parametrize("spread", SPREADS)
def test_circle_maps_close_their_round_trip_and_have_the_slope_of_autograd(f, spread):
    scalar_map = CIRCLES[f]()
    raw = spread * torch.randn(200, scalar_map.parameters)
    y = (TURN * torch.rand(200)).requires_grad_()
    x, slope = scalar_map.to_base(y, raw)
    (exact,) = torch.autograd.grad(x.sum(), y)
    assert torch.allclose(slope, exact.log(), atol=1e-9)
    back, up = scalar_map.to_data(x, raw)
    # the error of x times the steepness of the inverse, e^10 at most
    assert (around(back, y) < 1e-14 * (1 + (-slope).exp()) * 100).all()
    assert torch.allclose(up, -slope, atol=1e-7)
    for value in (x, back):
        assert ((value >= 0) & (value <= TURN)).all()


@pytest.mark.parametrize("f", CIRCLES)
def test_circle_maps_join_at_a_turn_with_equal_slopes(f):
    scalar_map = CIRCLES[f]()
    raw = torch.randn(scalar_map.parameters)
    tiny = 1e-9
    seams = (torch.tensor(0.0), raw[-1])  # of the angles, and where the spline begins
    for seam in seams:
        sides = wrap(seam + torch.tensor([-tiny, tiny]))
        x, slope = scalar_map.to_base(sides, raw)
        assert around(x[0], x[1]) < 1e-5  # the slope, below 5,000, times the step
        assert abs(slope[0] - slope[1]) < 1e-4
    t = torch.linspace(0, TURN, 1001)
    x = scalar_map.to_base(t, raw)[0]
    rise = wrap(x[1:] - x[:-1])
    assert rise.sum().item() == pytest.approx(TURN, abs=1e-9)  # one turn, increasing


@pytest.mark.parametrize("f", CIRCLES)
def test_zeros_are_the_identity_or_as_near_as_said(f):
    scalar_map = CIRCLES[f]()
    y = TURN * torch.rand(50)
    x, slope = scalar_map.to_base(y, torch.zeros(scalar_map.parameters))
    allowed = 2 * 0.3**5 if f == "Moebius" else 1e-12
    assert (slope.exp() - 1).abs().max() < allowed
    assert around(x, y).max() < max(allowed, 1e-12)


def test_a_moebius_map_is_the_formula_of_the_paper():
    raw = torch.randn(3 + 1)
    a, b, _ = Moebius(1)._shape(raw)
    omega, y = torch.complex(a, b), TURN * torch.rand(20)
    z = torch.polar(torch.ones(20), wrap(y - raw[-1]))
    h = (1 - omega.abs() ** 2) / (z - omega).abs() ** 2 * (z - omega) - omega
    one = torch.ones(1, dtype=h.dtype)
    h0 = (1 - omega.abs() ** 2) / (one - omega).abs() ** 2 * (one - omega) - omega
    expected = wrap((h / h0).angle())
    assert around(Moebius(1).to_base(y, raw)[0], expected).max() < 1e-12


@pytest.mark.parametrize("f", CIRCLES)
def test_gradients_through_the_inverse_are_those_of_finite_differences(f):
    scalar_map = CIRCLES[f]()
    raw, x = torch.randn(scalar_map.parameters), torch.tensor(2.0)

    def both(raw, x):
        y, slope = scalar_map.to_data(x, raw)
        return y.sin() + slope

    assert torch.autograd.gradcheck(both, (raw.requires_grad_(), x.requires_grad_()), rtol=1e-5)


def test_invert_finds_roots_at_the_ends_too():
    x = torch.tensor([0.0, 0.3, 1.0])
    y, slope = invert(lambda t: (t**3 + t, 3 * t**2 + 1), 2 * x, 0.0, 1.0)
    assert torch.allclose(y**3 + y, 2 * x, atol=1e-14)
    assert torch.allclose(slope, 3 * y**2 + 1)


# --- tori


@pytest.mark.parametrize("f", CIRCLES)
def test_coupling_over_circle_maps_is_a_normalised_flow_on_the_torus(f):
    layers = [Coupling(2, CIRCLES[f](), (8,), fixed=[i]) for i in (0, 1)]
    flow = Pushforward(
        dist.Uniform(torch.zeros(2), TURN * torch.ones(2)).to_event(1),
        [perturbed(layer, 0.3) for layer in layers],
    )
    t = TURN * (torch.arange(300) + 0.5) / 300
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(t, t)).exp()
        # the midpoint rule on a torus: exact but for the splines' kinks
        assert density.mean().item() * TURN**2 == pytest.approx(1, abs=1e-3)
        seam = torch.tensor([[0.0, 2.0], [TURN, 2.0], [2.0, 0.0], [2.0, TURN]])
        values = flow.log_prob(seam)
    assert values[0].item() == pytest.approx(values[1].item(), abs=1e-9)
    assert values[2].item() == pytest.approx(values[3].item(), abs=1e-9)
    y = flow.sample(torch.Size([50]))
    x, log_det = layers[0].inverse_with_log_det(y)
    assert around(layers[0](x), y).max() < 1e-10
    assert torch.allclose(layers[0].log_abs_det_jacobian(x, y), -log_det, atol=1e-7)
    # an angle is told from its reflections, which have one coordinate of it each
    t = torch.tensor([0.5, math.pi - 0.5, TURN - 0.5])
    moved = layers[0](torch.stack([t, torch.ones(3)], -1))[:, 1]
    assert (moved[1:] - moved[0]).abs().min() > 1e-6


# --- spheres


@pytest.mark.parametrize("name", SPHERES)
@pytest.mark.parametrize("spread", SPREADS)
def test_sphere_maps_have_the_log_det_of_the_tangent_frames(name, spread):
    transform = perturbed(SPHERES[name](), spread)
    x = points(transform, 8)
    y, log_det = transform.forward_with_log_det(x)
    assert torch.allclose(y.norm(dim=-1), torch.ones(8), atol=1e-12)
    # Jacobians by the closed direction: through a root they are the implicit function's
    closed, start, end, sign = (
        (transform.inverse_with_log_det, y, x, -1)
        if getattr(transform, "start", "data") == "data"
        else (transform.forward_with_log_det, x, y, 1)
    )
    ambient = torch.autograd.functional.jacobian(
        lambda v: closed(F.normalize(v, dim=-1))[0].sum(0), start
    ).transpose(0, 1)
    for i in range(8):
        J = frame(end[i]).T @ ambient[i] @ frame(start[i])
        expected = sign * torch.linalg.slogdet(J).logabsdet
        # 1e-8: splines of random parameters have slopes up to 1e4
        assert log_det[i].item() == pytest.approx(expected.item(), abs=1e-8, rel=1e-9)
    back, down = transform.inverse_with_log_det(y)
    assert torch.allclose(back, x, atol=1e-8)
    assert torch.allclose(down, -log_det, atol=1e-7)
    assert torch.allclose(transform.log_abs_det_jacobian(x, y), log_det, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in SPHERES if "S^5" not in n])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_densities_integrate_to_one(name, spread):
    # splines with wilder parameters have bins of a thousandth, below what the grid resolves
    transform = perturbed(SPHERES[name](), spread if "map" in name else spread / 2)
    if "S^3" in name:
        # importance weights under uniform points: mean one within 4.27 standard errors
        x = SphereUniform(3).sample(torch.Size([4000]))
        with torch.no_grad():
            weights = transform.inverse_with_log_det(x)[1].exp()
        assert (weights.mean() - 1).abs() < 4.27 * weights.std() / 4000**0.5 + 1e-12
        return
    if "S^1" in name:
        t = TURN * (torch.arange(2000) + 0.5) / 2000
        with torch.no_grad():
            circle = torch.stack([t.cos(), t.sin()], -1)
            mass = transform.inverse_with_log_det(circle)[1].exp().mean()
        assert mass.item() == pytest.approx(1, abs=1e-3)
        return
    # Archimedes: midpoints of height and longitude are of equal area
    h = (torch.arange(300) + 0.5) / 150 - 1
    t = TURN * (torch.arange(300) + 0.5) / 300
    h, t = torch.cartesian_prod(h, t).T
    across = (1 - h * h).sqrt()
    grid = torch.stack([across * t.cos(), across * t.sin(), h], -1)
    with torch.no_grad():
        mass = transform.inverse_with_log_det(grid)[1].exp().mean()
    assert mass.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", [n for n in SPHERES if "S^" not in n or "S^2" in n])
def test_draws_fit_the_density(name):
    # exponential maps are gentle: at 3 their log-determinants vary by .24 to .7 nats
    transform = perturbed(SPHERES[name](), 3.0 if "exponential" in name else 0.15)
    flow, count = Pushforward(SphereUniform(2), [transform]), 20_000
    # 6 x 8 cells of equal area, the mass of each by 30 x 30 midpoints
    h = (torch.arange(180) + 0.5) / 90 - 1
    t = TURN * (torch.arange(240) + 0.5) / 240
    height, angle = torch.meshgrid(h, t, indexing="ij")
    across = (1 - height * height).sqrt()
    grid = torch.stack([across * angle.cos(), across * angle.sin(), height], -1)
    with torch.no_grad():
        mass = flow.log_prob(grid).exp().reshape(6, 30, 8, 30).mean((1, 3)).flatten()
        x = flow.sample(torch.Size([count]))
    expected = count * mass * math.exp(log_area(2)) / 48
    row = ((x[:, 2] + 1) * 3).long().clamp(max=5)
    column = (wrap(torch.atan2(x[:, 1], x[:, 0])) / TURN * 8).long().clamp(max=7)
    observed = torch.bincount(8 * row + column, minlength=48).double()
    assert expected.min() > 5
    square = ((observed - expected) ** 2 / expected).sum().item()
    assert stats.chi2.sf(square, 47) > FAILURE_RATE


@pytest.mark.parametrize("name", SPHERES)
def test_single_precision_agrees_with_double(name):
    # splines with wilder parameters have slopes up to 1e4, which magnify rounding as much
    transform = perturbed(SPHERES[name](), 1.0 if "S^" in name else 0.1)
    x = points(transform, 50).float()
    y, log_det = transform.forward_with_log_det(x.double())
    single = transform.float()
    y32, log_det32 = single.forward_with_log_det(x)
    assert ((log_det32 - log_det).abs() <= 1e-5 * (1 + log_det.abs())).all()
    assert torch.allclose(y32.double(), y, atol=1e-4)
    assert torch.allclose(single.inverse_with_log_det(y32)[0], x, atol=1e-4)


@pytest.mark.parametrize("f", CIRCLES)
def test_no_angle_and_no_parameter_makes_a_nan_in_float32(f):
    scalar_map = CIRCLES[f]()
    value = torch.logspace(-8, 4, 200) * torch.randn(200).sign()
    for spread in (0.0, 1.0, 100.0):
        raw = (spread * torch.randn(200, scalar_map.parameters)).float().requires_grad_()
        angles = value.float().requires_grad_()
        for way in (scalar_map.to_base, scalar_map.to_data):
            out, slope = way(angles, raw)
            for tensor in (
                out,
                slope,
                *torch.autograd.grad(out.sum() + slope.sum(), (angles, raw)),
            ):
                assert not tensor.isnan().any()


@pytest.mark.parametrize("name", SPHERES)
def test_gradients_of_both_directions_are_those_of_finite_differences(name):
    transform = perturbed(SPHERES[name](), 0.3)
    x = points(transform, 2)
    parameters = [p for p in transform.parameters()] or [x.clone().requires_grad_()]
    toward = torch.randn_like(x)

    def value(direction):
        end, log_det = getattr(transform, direction)(x)
        return (end * toward).sum() + log_det.sum()

    step = 1e-5
    for direction in ("forward_with_log_det", "inverse_with_log_det"):
        transform.zero_grad()
        if not list(transform.parameters()):
            continue
        gradients = torch.autograd.grad(value(direction), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert gradient is not None
            move = torch.randn_like(parameter)
            with torch.no_grad():
                values = []
                for side in (step, -2 * step, step):
                    parameter.add_(side * move)
                    values.append(value(direction).item())
            slope = (values[0] - values[1]) / (2 * step)
            # the difference is off by step^2 and rounding / step
            assert (gradient * move).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", SPHERES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtypes_poles_and_empty_batches(name, dtype):
    transform = perturbed(SPHERES[name](), 0.3).to(dtype)
    size = points(transform, 1).shape[-1]
    poles = torch.cat([torch.eye(size), -torch.eye(size)]).to(dtype)
    for x in (poles, poles[0], poles[:0], poles[:, None].expand(-1, 2, -1)):
        for way in (transform.forward_with_log_det, transform.inverse_with_log_det):
            y, log_det = way(x)
            assert y.shape == x.shape
            assert log_det.shape == x.shape[:-1]
            assert y.dtype == log_det.dtype == dtype
            assert sphere.check(y).all()
            assert log_det.isfinite().all()
            total = y.sum() + log_det.sum()
            if list(transform.parameters()) and len(x):
                transform.zero_grad()
                total.backward()
                assert all(p.grad.isfinite().all() for p in transform.parameters())


def test_extreme_parameters_of_an_exponential_map_are_inverted():
    """Shares of nearly one and sharpness of hundreds: Newton's plain steps would overshoot."""
    transform = ExponentialMap(2, 3)
    with torch.no_grad():
        transform.share.fill_(6.0)
        transform.sharpness.copy_(torch.tensor([1.0, 50.0, 400.0]))
    x = points(transform, 500)
    y, _ = transform.forward_with_log_det(x)
    back, _ = transform.inverse_with_log_det(y)
    assert torch.allclose(transform.forward_with_log_det(back)[0], y, atol=1e-12)
    # slopes down to 1 - sum of shares = 1e-3 magnify rounding
    assert torch.allclose(back, x, atol=1e-9)


def test_a_parameter_update_is_never_missed():
    transform = perturbed(SPHERES["recursive, splines"](), 0.3)
    flow, y = Pushforward(SphereUniform(2), [transform]), points(transform, 5)
    before = flow.log_prob(y)
    perturbed(transform, 0.1)
    assert not torch.allclose(flow.log_prob(y), before)


def test_the_stereographic_chart_in_a_flow_is_normalised_and_without_its_log_det_is_not():
    """Gemici's point: the mass of a plane's density, read as one on the sphere, is not one."""
    base = dist.MultivariateStudentT(4.0, torch.zeros(2), 0.8 * torch.eye(2))
    flow = Pushforward(base, [Stereographic()])
    h = (torch.arange(400) + 0.5) / 200 - 1
    t = TURN * (torch.arange(100) + 0.5) / 100
    h, t = torch.cartesian_prod(h, t).T
    across = (1 - h * h).sqrt()
    grid = torch.stack([across * t.cos(), across * t.sin(), h], -1)
    area = math.exp(log_area(2))
    mass = flow.log_prob(grid).exp().mean().item() * area
    assert mass == pytest.approx(1, abs=1e-4)
    dropped = base.log_prob(Stereographic().inv(grid)).exp().mean().item() * area
    assert dropped > 1.2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ExponentialMap(2, 3, start="middle"), "'base' or 'data'"),
        (lambda: Rotation(torch.ones(3, 3)), "orthogonal"),
        (lambda: Rotation(torch.eye(3)[:2]), r"got \(2, 3\)"),
        (lambda: Rotation(torch.full((3, 3), math.nan)), "orthogonal"),
        (lambda: Autoregressive(2, CircularSpline(4)), "use Coupling"),
    ],
)
def test_what_cannot_be_built_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
