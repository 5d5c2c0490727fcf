"""Laws of the bijections, at the start and at perturbed parameters."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform
from scipy import stats
from torch.distributions import constraints

from perturbation import perturbed
from ppgen.transforms.actnorm import ActNorm
from ppgen.transforms.autoregressive import Autoregressive, InverseAutoregressive
from ppgen.transforms.continuous import Continuous
from ppgen.transforms.coupling import Coupling
from ppgen.transforms.invertible_linear import InvertibleLinear
from ppgen.transforms.planar import Planar
from ppgen.transforms.pushforward import Pushforward
from ppgen.transforms.radial import Radial
from ppgen.transforms.rational_quadratic import RationalQuadratic
from ppgen.transforms.scalar import Affine, Chain, LinearSpline
from ppgen.transforms.sylvester import Sylvester
from ppgen.transforms.vector import VectorChain, VectorTransform

FAILURE_RATE = 2e-5
MAPS = {
    "affine": Affine,
    "spline": lambda: RationalQuadratic(5, 2.0),
    "spline and affine": lambda: Chain([RationalQuadratic(5, 2.0), Affine()]),
    "cube spline": lambda: RationalQuadratic(5, None),
    "linear spline": lambda: LinearSpline(4),
}
CUBES = ("cube spline", "linear spline")  # those that live on the unit cube
LAYERS = {
    "autoregressive": lambda dim, f: Autoregressive(dim, f, (16,)),
    "reversed": lambda dim, f: Autoregressive(dim, f, (16,), order=range(dim - 1, -1, -1)),
    "coupling": lambda dim, f: Coupling(dim, f, (16,)),
}
VECTOR_MAPS = {
    "planar": Planar,
    "radial": Radial,
    "sylvester": Sylvester,
    "sylvester of one column": lambda dim: Sylvester(dim, 1),
    "triangular sylvester": lambda dim: Sylvester(dim, reflections=0, flip=True),
    "chain": lambda dim: VectorChain([Planar(dim), Radial(dim), Sylvester(dim)]),
}
TRANSFORMS = {
    f"{layer}, {f}": lambda dim, layer=layer, f=f: LAYERS[layer](dim, MAPS[f]())
    for layer in LAYERS
    for f in MAPS
} | {f: lambda dim, f=f: VectorTransform(VECTOR_MAPS[f](dim)) for f in VECTOR_MAPS}
TRANSFORMS |= {
    "actnorm": lambda dim: ActNorm(dim).eval(),
    "linear": InvertibleLinear,
    "inverse autoregressive": lambda dim: InverseAutoregressive(
        Autoregressive(dim, Affine(), (8,))
    ),
    "continuous": lambda dim: VectorTransform(Continuous(dim, 2)),
}
CASES = [
    pytest.param(name, dim, spread, id=f"{name}, dim {dim}, spread {spread}")
    for name in TRANSFORMS
    for dim in (1, 2, 5)
    for spread in (0.0, 0.3, 1.0)
    if not (name.startswith("coupling") and dim == 1)
]


# the order of the coordinates, which the meta device does not know; a continuous map reads the
# errors of its steps
READS_NUMBERS = {
    Autoregressive: ("forward_with_log_det",),
    InverseAutoregressive: ("inverse_with_log_det",),
}


def build(name, dim, spread):
    return perturbed(TRANSFORMS[name](dim), spread)


def in_cube(transform):
    return getattr(transform.domain, "base_constraint", None) is constraints.unit_interval


def points(transform, dim, count=20):
    """Fresh points, in the tails and near the splines' ends too."""
    if in_cube(transform):
        return torch.rand(count, dim).clamp(1e-3, 1 - 1e-3)
    near_ends = torch.tensor([2.0, -2.0]) + torch.tensor([1e-3, -1e-3])
    return torch.cat([2 * torch.randn(count, dim), near_ends[:, None].expand(2, dim)])


@pytest.mark.parametrize(("name", "dim", "spread"), CASES)
def test_log_determinant_is_that_of_autograd_and_the_round_trip_closes(name, dim, spread):
    transform = build(name, dim, spread)
    y = points(transform, dim)
    x, log_det = transform.inverse_with_log_det(y)
    back = transform(x)
    # examples do not mix, so that the sum over them has the Jacobian of each
    summed = torch.autograd.functional.jacobian(lambda y: transform.inv(y).sum(0), y)
    jacobian = summed.transpose(0, 1)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    # 1e-9: the target; slogdet itself is off by about dim * 1e-16 * the condition number
    allowed = 1e-9 + 1e-15 * torch.linalg.cond(jacobian)
    assert ((log_det - expected).abs() <= allowed).all()
    # where y depends on a coupling's x, the rounding of x counts, magnified by the slopes
    again = transform.log_abs_det_jacobian(x, y)
    assert torch.allclose(again, -log_det, atol=1e-7, rtol=0)
    # the error of y is that of x, 1e-11 at worst (measured), times the steepness of the inverse,
    # which random networks make as large as 1e15 in five dimensions
    steepness = torch.linalg.inv(jacobian).abs().amax((1, 2))
    assert ((back - y).abs().amax(1) <= 1e-10 * (1 + steepness)).all()
    assert torch.allclose(transform.inverse_with_log_det(back)[0], x, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtypes_and_empty_batches(name, dtype):
    transform = build(name, 3, 0.3).to(dtype)
    for shape in [(3,), (0, 3), (4, 3), (2, 4, 3)]:
        y = torch.rand(shape, dtype=dtype)
        x, log_det = transform.inverse_with_log_det(y)
        assert x.shape == y.shape
        assert x.dtype == log_det.dtype == dtype
        assert log_det.shape == shape[:-1]
        again, log_det = transform.forward_with_log_det(x)
        assert torch.equal(transform(x), again)
        assert again.shape == y.shape
        assert again.dtype == log_det.dtype == dtype
        assert log_det.shape == shape[:-1]


def normal(dim):
    return dist.Normal(torch.zeros(dim), 1.0).to_event(1)


def cube(dim):
    return dist.Uniform(torch.zeros(dim), torch.ones(dim)).to_event(1)


@pytest.mark.parametrize(
    "names",
    [[f"{layer}, {f}" for layer in ("autoregressive", "reversed")] for f in MAPS]
    + [[f, f] for f in VECTOR_MAPS]
    + [["actnorm", "linear"]],
    ids=str,
)
@pytest.mark.parametrize("dim", [1, 2])
def test_density_integrates_to_one(names, dim):
    transforms = [build(name, dim, 0.2) for name in names]
    unit = in_cube(transforms[0])
    flow = Pushforward(cube(dim) if unit else normal(dim), transforms)
    # midpoint rule: the error is that of the jumps (kinks, for smooth splines) times the cell
    per_side = 20000 if dim == 1 else 400
    low, high = (0.0, 1.0) if unit else (-6.0, 6.0)
    t = low + (high - low) * (torch.arange(per_side) + 0.5) / per_side
    # the real line by y = sinh(t): out to +-200, and fine where the density is
    side, stretch = (t, torch.ones_like(t)) if unit else (t.sinh(), t.cosh())
    grid = torch.cartesian_prod(*[side] * dim).reshape(-1, dim)
    volume = torch.cartesian_prod(*[stretch] * dim).reshape(-1, dim).prod(-1)
    with torch.no_grad():
        mass = (flow.log_prob(grid).exp() * volume).sum() * ((high - low) / per_side) ** dim
    assert abs(mass.item() - 1) < 1e-3


def test_pushforward_scores_like_pyro_and_samples_what_it_scores():
    transforms = [build("autoregressive, spline and affine", 2, 0.3), AffineTransform(1.0, 2.0)]
    ours = Pushforward(normal(2), transforms)
    pyros = dist.TransformedDistribution(normal(2), transforms)
    y = ours.sample(torch.Size([7]))
    assert torch.allclose(ours.log_prob(y), pyros.log_prob(y), atol=1e-12)
    assert ours.expand([4]).log_prob(y[:4]).shape == (4,)


def test_samples_follow_the_density():
    flow = Pushforward(cube(1), [build("autoregressive, linear spline", 1, 1.0)])
    counts = torch.histc(flow.sample(torch.Size([4000])), bins=4, min=0, max=1)
    middles = (torch.arange(4)[:, None] + 0.5) / 4
    expected = 1000 * flow.log_prob(middles).exp().detach()
    # chi square with 3 degrees of freedom exceeds 24.6 with probability 2e-5
    assert ((counts - expected) ** 2 / expected).sum() < 24.6


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if not n.startswith("reversed")])
def test_draws_fit_the_density(name):
    transforms = [build(name, 2, 0.3)]
    if name.startswith("coupling"):  # two of them move both coordinates
        transforms.append(Coupling(2, transforms[0].scalar_map, (8,), fixed=[1]))
    unit = in_cube(transforms[0])
    flow = Pushforward((cube if unit else normal)(2), transforms)
    # 36 cells, their mass by 40 x 40 midpoints, and what lies outside
    low, high = (0.0, 1.0) if unit else (-3.0, 3.0)
    side = low + (high - low) * (torch.arange(240) + 0.5) / 240
    with torch.no_grad():
        y, log_q = flow.rsample_with_log_prob(torch.Size([4000]))
        assert torch.allclose(flow.log_prob(y), log_q, atol=1e-6)
        density = flow.log_prob(torch.cartesian_prod(side, side)).exp()
    mass = density.reshape(6, 40, 6, 40).sum((1, 3)).flatten() * ((high - low) / 240) ** 2
    expected = 4000 * torch.cat([mass, (1 - mass.sum()).clamp(min=0)[None]])
    cell = ((y - low) / (high - low) * 6).floor()
    inside = ((cell >= 0) & (cell < 6)).all(-1)
    number = torch.where(inside, (cell @ torch.tensor([6.0, 1.0])), 36.0).long()
    observed = torch.bincount(number, minlength=37).double()
    small = expected < 5  # those count together
    pairs = [torch.cat([c[~small], c[small].sum()[None]]) for c in (observed, expected)]
    square = ((pairs[0] - pairs[1]) ** 2 / pairs[1].clamp(min=1)).sum().item()
    assert stats.chi2.sf(square, int((~small).sum())) > FAILURE_RATE


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_single_precision_agrees_with_double(name, spread):
    transform = build(name, 2, spread)
    y = points(transform, 2).float().double()
    _, log_det = transform.inverse_with_log_det(y)
    summed = torch.autograd.functional.jacobian(lambda y: transform.inv(y).sum(0), y)
    jacobian = summed.transpose(0, 1)
    rough = torch.linalg.cond(jacobian) * (1 + torch.linalg.inv(jacobian).abs().amax((1, 2)))
    single = transform.float()
    x32, log_det32 = single.inverse_with_log_det(y.float())
    # 1e-5 and 1e-4 are the targets; parameters and inputs are rounded to 6e-8 of themselves, and a
    # map of condition c makes that c times as large, of which log slopes see a bin's width
    error = (log_det32 - log_det).abs() / (1 + log_det.abs())
    assert (error <= 1e-5 + 1e-7 * rough.clamp(max=1e4)).all()
    back, _ = single.forward_with_log_det(x32)
    closes = (back - y).abs().amax(1) / (1 + y.abs().amax(1))
    assert (closes <= 1e-4 + 1e-6 * rough).all()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_nothing_up_to_ten_thousand_makes_a_nan_in_single_precision(name):
    transform = build(name, 3, 1.0).float()
    scales = torch.logspace(-8, 4, 200, dtype=torch.float32)[:, None]
    value = scales * torch.randn(200, 3).sign().float()
    value = (value.clamp(0, 1) if in_cube(transform) else value).requires_grad_()
    for way in (transform.inverse_with_log_det, transform.forward_with_log_det):
        out, log_det = way(value)
        for tensor in (out, log_det, *torch.autograd.grad(log_det.sum() + out.sum(), value)):
            assert not tensor.isnan().any()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_many_rows_are_as_few_and_nothing_is_made_on_another_device(name):
    transform = build(name, 2, 0.3)
    y = torch.rand(20_000, 2)
    x, log_det = transform.inverse_with_log_det(y)
    few, log_det_of_few = transform.inverse_with_log_det(y[-3:])
    assert torch.allclose(x[-3:], few, atol=1e-9)
    assert torch.allclose(log_det[-3:], log_det_of_few, atol=1e-9)
    # the meta device computes no numbers, but refuses a tensor that lives elsewhere
    elsewhere = transform.to("meta")
    for way in (elsewhere.inverse_with_log_det, elsewhere.forward_with_log_det):
        if way.__name__ in READS_NUMBERS.get(type(transform), ()) or name == "continuous":
            continue
        out, log_det = way(y.to("meta"))
        assert out.device == log_det.device == torch.device("meta")


@pytest.mark.parametrize(
    "name", [n for n in TRANSFORMS if "linear spline" not in n and "cube" not in n]
)
def test_a_parameter_update_is_never_missed(name):
    transform = build(name, 3, 0.3)
    flow, y = Pushforward(normal(3), [transform]), torch.randn(5, 3)
    before = flow.log_prob(y)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.1)
    after = flow.log_prob(y)
    assert not torch.allclose(after, before)
    assert torch.equal(after, Pushforward(normal(3), [copy.deepcopy(transform)]).log_prob(y))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients_are_finite_far_away_and_reach_every_parameter(name):
    transform = build(name, 3, 0.3)
    y = torch.tensor([[1e4, -1e4, 0.0], [2.0, -2.0, 2.0], [0.1, 0.2, 0.3], [0.9, 0.4, 0.6]])
    x, log_det = transform.inverse_with_log_det(y)
    (x.sum() + log_det.sum()).backward()
    for name, parameter in transform.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("f", ["spline", "spline and affine"])
@pytest.mark.parametrize("way", ["to_base", "to_data"])
def test_gradients_are_finite_in_the_tails_both_ways(f, way):
    scalar_map = MAPS[f]()
    value = torch.cat([torch.linspace(-9, 9, 181), torch.tensor([-1e4, 1e4])]).requires_grad_()
    raw = 3 * torch.randn(200, 1, scalar_map.parameters, requires_grad=True)
    raw.retain_grad()
    out, slope = getattr(scalar_map, way)(value.expand(200, -1), raw.expand(-1, 183, -1))
    (out.sum() + slope.sum()).backward()
    assert value.grad.isfinite().all()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("f", MAPS)
def test_extreme_parameters_stay_finite_and_invertible_in_float32(f):
    scalar_map = MAPS[f]()
    raw = 100 * torch.randn(200, scalar_map.parameters, dtype=torch.float32)
    y = torch.rand(200, dtype=torch.float32)
    x, down = scalar_map.to_base(y, raw)
    back, up = scalar_map.to_data(x, raw)
    for tensor in (x, down, back, up):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("f", MAPS)
def test_zeros_are_the_identity(f):
    scalar_map = MAPS[f]()
    y = torch.rand(50)
    x, slope = scalar_map.to_base(y, torch.zeros(50, scalar_map.parameters))
    assert torch.allclose(x, y, atol=1e-14)
    assert torch.allclose(slope, torch.zeros(50), atol=1e-12)


def test_spline_slopes_join_at_the_tails():
    scalar_map = RationalQuadratic(6, 2.0)
    raw = torch.randn(scalar_map.parameters)
    for end in (-2.0, 2.0):
        inside = torch.tensor([end * (1 - 1e-9)])
        assert abs(scalar_map.to_base(inside, raw)[1].item()) < 1e-6  # slope one: log 1 = 0


def test_spline_refuses_bins_that_do_not_fit():
    with pytest.raises(ValueError, match="below 1000"):
        RationalQuadratic(1000)


def test_coupling_refuses_to_move_nothing():
    with pytest.raises(ValueError, match="some that move"):
        Coupling(2, Affine(), fixed=[0, 1])


def test_linear_spline_gives_each_level_its_probability():
    scalar_map = LinearSpline(2)
    raw = torch.tensor([math.log(0.2), math.log(0.8)])
    log_density = scalar_map.to_base(torch.tensor([0.25, 0.75]), raw)[1]
    # the floor moves the shares by 1e-6
    assert torch.allclose(log_density.exp(), torch.tensor([0.4, 1.6]), atol=1e-5)


def test_the_end_of_a_spline_bin_that_begins_very_steep_has_a_gradient():
    # at the end of the last bin, of share 1/2 on either side, all terms of its root cancel
    raw = torch.tensor([0.0, 0.0, 0.0, 0.0, 4e7], dtype=torch.float32).requires_grad_()
    x = torch.tensor(4.0).float().requires_grad_()
    y, slope = RationalQuadratic(2, 4.0).to_data(x, raw)
    assert y.item() == 4
    for gradient in torch.autograd.grad(y + slope, (x, raw)):
        assert gradient.isfinite().all()
