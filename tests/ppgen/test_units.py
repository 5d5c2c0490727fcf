"""Every kind of visible unit is the exponential family that it says it is."""

import pytest
import torch

from ppgen.distributions import Beside, Binary, Boltzmann, Gaussian, OneHot
from ppgen.distributions.units import sample_units, softplus, softplus_change, softplus_sum
from ppgen.models import RBM, GaussianRBM

Z = 5.0  # 24 comparisons share the failure rate of 2e-5: normal quantile of 1 - 1e-5 / 24 is 4.95
DRAWS = 40_000


def states(units):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * units).reshape(-1, units)


def natural(kind):
    if kind == Gaussian():
        return torch.tensor([0.4, -1.0, 2.0, -0.3, -0.6, -2.0])
    return torch.tensor([0.5, -1.0, 2.0, 0.3, -0.7, 1.5])


KINDS = {
    "binary": Binary(),
    "gaussian": Gaussian(),
    "one-hot": OneHot(3),
    "beside": Beside(((Binary(), 3), (OneHot(3), 3))),
    "nested": Beside(((Beside(((Binary(), 1), (OneHot(2), 2))), 3), (OneHot(3), 3))),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_draws_have_the_means_that_the_log_normaliser_gives(kind):
    """The gradient of A is the mean of T, its Hessian the covariance."""
    eta = natural(kind)
    mean = torch.func.grad(kind.log_normaliser)(eta)
    variance = torch.autograd.functional.hessian(kind.log_normaliser, eta).diagonal()
    x = kind.sample(eta.expand(DRAWS, -1).clone())
    kind.require(x, x.shape[-1])
    error = (variance / DRAWS).sqrt()
    found = kind.statistics(x)
    assert ((found.mean(0) - mean).abs() < Z * error).all()
    # the variance of a variance: 4th moments of these laws are below 20 variances^2
    assert ((found.var(0) / variance - 1).abs() < Z * (20 / DRAWS) ** 0.5).all()
    assert torch.equal(found[:, : x.shape[1]], x)


@pytest.mark.parametrize("name", ["binary", "gaussian", "one-hot"])
def test_the_law_is_the_exponential_family(name):
    kind = KINDS[name]
    eta = natural(kind)
    x = kind.sample(eta.expand(7, -1).clone())
    value = x.unflatten(-1, (-1, 3)) if name == "one-hot" else x
    expected = kind.statistics(x) @ eta - kind.log_normaliser(eta)
    torch.testing.assert_close(kind.law(eta).log_prob(value), expected)


def test_fitted_parameters_match_the_means(kind):
    x = kind.sample(natural(kind).expand(500, -1).clone())
    mean = torch.func.grad(kind.log_normaliser)(kind.fitted(x))
    torch.testing.assert_close(mean, kind.statistics(x).mean(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "x", "match"),
    [
        (Gaussian(), [[0.0, float("nan")]], "finite number, got nan in row 0, column 1"),
        (OneHot(2), [[0.0, 1.0], [1.0, 1.0]], "one of 2 categories, got 2 in row 1, group 0"),
        (OneHot(2), [[0.5, 0.5]], "got 0.5 in row 0"),
        (Beside(((Binary(), 1), (OneHot(1 + 1), 2))), [[1.0, 0.0, 0.0]], "got 0 in row 0, group 0"),
        (Gaussian(), [[1.0, 2.0, 3.0]], r"expected shape \(..., 2\)"),
    ],
)
def test_wrong_data_are_named(kind, x, match):
    with pytest.raises(ValueError, match=match):
        kind.require(torch.tensor(x), 3 if isinstance(kind, Beside) else 2)


@pytest.mark.parametrize("name", ["binary", "one-hot", "gaussian"])
def test_whole_numbers_are_fitted_as_floating_point_ones_are(name):
    x = torch.eye(3, dtype=torch.long)
    torch.testing.assert_close(KINDS[name].fitted(x), KINDS[name].fitted(x.double()))
    made = GaussianRBM.from_data(x, 2)
    torch.testing.assert_close(made.loc.detach(), torch.full((3,), 1 / 3.0))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"units": OneHot(3)}, "4 units are no groups of 3 categories"),
        ({"units": Beside(((Binary(), 2), (OneHot(3), 3)))}, "4 units are not those of"),
        ({"hidden_units": OneHot(3)}, "hidden_units: expected Binary"),
    ],
)
def test_units_that_do_not_fit_are_refused_when_a_machine_is_made(options, match):
    with pytest.raises(ValueError, match=match):
        RBM(4, 3, **options)


def test_real_units_do_not_stand_beside_others():
    with pytest.raises(ValueError, match="expected kinds of discrete units"):
        Beside(((Binary(), 2), (Gaussian(), 3)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_the_density_of_a_state_does_not_depend_on_its_type(dtype):
    x = states(4)
    for law in (RBM(4, 2, weight_scale=1.0).marginal(), boltzmann(4)):
        torch.testing.assert_close(law.log_prob(x.to(dtype)), law.log_prob(x))


def test_laws_expand_to_shapes_that_theirs_fits():
    for law in (RBM(4, 2).marginal(), boltzmann(4)):
        assert law.expand((3, 1)).expand((3, 5)).batch_shape == (3, 5)
        with pytest.raises(ValueError, match=r"that \(3,\) fits, got \(5,\)"):
            law.expand((3,)).expand((5,))


# The fully visible machine


def boltzmann(units, scale=0.7):
    W = scale * torch.randn(units, units)
    return Boltzmann((W + W.T).fill_diagonal_(0.0), torch.randn(units))


@pytest.mark.parametrize("units", [1, 4, 14])
def test_log_partition_and_gradient_equal_the_sum_over_all_states(units):
    """14 units: the table of 12 and four states of the others."""
    law = boltzmann(units)
    law.weight.requires_grad_()
    x = states(units)
    pairs = sum(
        (law.weight[i, j] * x[:, i] * x[:, j] for i in range(units) for j in range(i)),
        torch.zeros(len(x)),
    )
    expected = (pairs + x @ law.bias).logsumexp(0)
    torch.testing.assert_close(law.log_partition(), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(law.log_prob(x).logsumexp(0), torch.zeros(()), rtol=0, atol=1e-10)
    (slope,) = torch.autograd.grad(law.log_partition(), law.weight)
    p = (pairs + x @ law.bias - expected).exp()
    second = torch.einsum("s,si,sj->ij", p, x, x) / 2
    torch.testing.assert_close(slope.fill_diagonal_(0), second.fill_diagonal_(0).detach())


def test_exact_draws_have_the_means_of_the_machine():
    law = boltzmann(4)
    p = law.log_prob(states(4)).exp()
    x = law.sample((DRAWS,))
    mean = p @ states(4)
    assert ((x.mean(0) - mean).abs() < Z * (mean * (1 - mean) / DRAWS).sqrt()).all()
    assert law.expand((2, 3)).sample().shape == (2, 3, 4)


def test_what_is_no_boltzmann_machine_is_refused():
    with pytest.raises(ValueError, match="zero diagonal"):
        Boltzmann(torch.eye(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"expected weight \(D, D\)"):
        Boltzmann(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"21 units, and at most 20.*SingleSiteGibbs"):
        boltzmann(21).log_partition()


# The quick ways of float32 and of sums


def test_units_drawn_from_integer_bits_are_independent_with_their_probabilities():
    """Large float32 draws take another path: means, neighbours and repeated calls."""
    p = torch.rand(50, 100, dtype=torch.float32)
    p[:, 0], p[:, 1], p[:, 2], p[:, 3] = 0.0, 1.0, 1e-5, 1 - 1e-5
    draws, total = 1500, torch.zeros(50, 100, dtype=torch.float64)
    pairs, before, repeats = total.clone(), torch.zeros_like(p), total.clone()
    for _ in range(draws):
        x = sample_units(p)
        total += x
        pairs += x * x.roll(1, -1)
        repeats += x * before
        before = x
    p = p.double()
    z = 6.0  # 15,000 comparisons at 2e-5 in all: normal quantile of 1 - 1e-5 / 15,000 is 6.1
    for found, mean in (
        (total, p),
        (pairs, p * p.roll(1, -1)),
        (repeats, p * p),
    ):
        # + 10 counts cover the skewness of rare ones
        assert (
            (found / draws - mean).abs() < z * (mean * (1 - mean) / draws).sqrt() + 10 / draws
        ).all()
    assert (total[:, 0] == 0).all()
    assert (total[:, 1] == draws).all()


def test_integer_bits_follow_torchs_generator():
    p = torch.full((100, 100), 0.3, dtype=torch.float32)
    torch.manual_seed(3)
    first, second = sample_units(p), sample_units(p)
    torch.manual_seed(3)
    assert torch.equal(sample_units(p), first)
    assert not torch.equal(first, second)
    assert p.unique() == 0.3  # left as it was


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_softplus_without_a_softplus(dtype):
    logits = 30 * torch.randn(230, 7, dtype=dtype)
    logits[0, :4] = torch.tensor([0.0, 100.0, -100.0, 1e4])
    expected = softplus(logits.double()).sum()
    found = softplus_sum(logits, logits.sigmoid())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=10 * torch.finfo(dtype).eps, atol=0)
    idle = torch.zeros(230, 3000, dtype=dtype)  # probability 1/2: the smallest products
    torch.testing.assert_close(softplus_sum(idle, idle.sigmoid()), softplus(idle).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.5, 0.5001), (1.0, 0.99), (0.0, 1e-6)])
def test_changes_of_softplus_are_relative_to_themselves(dtype, start, end):
    logits = 5 * torch.randn(40, 60, dtype=dtype)
    exact = logits.double()
    expected = (softplus(end * exact) - softplus(start * exact)).sum(-1)
    found = softplus_change(logits, start, end)
    scale = abs(end - start) * logits.double().abs().sum(-1)
    assert found.dtype == torch.float64
    # the difference of float64 softplus is itself good to 1e-13 only
    assert ((found - expected).abs() < 10 * torch.finfo(dtype).eps * scale + 1e-12).all()
