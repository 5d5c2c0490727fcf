"""Spherical Cauchy laws and their mixtures: formula, draws, EM that never falls."""

import math

import pytest
import torch
from pyro.infer import Trace_ELBO

from ppgen.distributions import SphereUniform, SphericalCauchy
from ppgen.distributions.sphere import log_area
from ppgen.inference.likelihood import log_likelihood
from ppgen.models.moebius_mixture import MoebiusMixture, em_step
from ppgen.transforms.moebius import moebius

Z = 4.27  # two-sided normal quantile of FAILURE_RATE = 2e-5


def places(count, dim, length):
    x = SphereUniform(dim).sample(torch.Size([count]))
    return length * x


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
def test_the_law_is_kato_and_mccullaghs_and_its_draws_have_its_tails(dim):
    law = SphericalCauchy(places(1, dim, 0.6)[0])
    x = law.sample(torch.Size([4000]))
    rho, mode = 0.6, law.centre / 0.6
    height = x @ mode
    formula = dim * math.log(1 - rho**2) - dim * (1 + rho**2 - 2 * rho * height).log()
    assert torch.allclose(law.log_prob(x), formula - log_area(dim), atol=1e-12)
    # of draws pulled back by the inverse map, which are uniform, heights have mean zero and
    # variance 1 / (n + 1)
    back = moebius(x, -law.centre)[0] @ mode
    assert abs(back.mean()) < Z * ((dim + 1) * 4000) ** -0.5
    ratio = (SphereUniform(dim).log_prob(x) - law.log_prob(x)).exp()  # E[u / p] = 1
    assert abs(ratio.mean() - 1) < Z * ratio.std() / 4000**0.5


def test_gradients_of_draws_are_those_of_the_map():
    centre = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
    x = SphericalCauchy(centre).rsample(torch.Size([20_000]))
    (slope,) = torch.autograd.grad(x.sum(-1).mean(), centre)
    # the mean direction's length on S^2, as a function of the centre, by quadrature of heights
    h = torch.linspace(-1, 1, 20_001)

    def mean(c):
        rho = c.norm()
        density = (1 - rho**2) ** 2 / (1 + rho**2 - 2 * rho * h) ** 2 / 2
        return torch.trapezoid(density * h, h) * (c / rho).sum()

    point = centre.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(mean(point), point)
    # each draw's gradient is at most some 3 long
    assert (slope - expected).abs().max() < Z * 3 / 20_000**0.5


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_no_sweep_of_em_lowers_the_likelihood(dim):
    law = MoebiusMixture(dim, 3)
    with torch.no_grad():
        law.raw.mul_(4)
    x = law.sample(400)
    centre, weights = 0.9 * x[:5], torch.full((5,), 0.2)
    scores = []
    for _ in range(40):
        components = SphericalCauchy(centre, validate_args=False)
        joint = components.log_prob(x[:, None]) + weights.log()
        scores.append(joint.logsumexp(-1).mean())
        centre, weights = em_step(x, centre, weights)
    rises = torch.stack(scores).diff()
    # the least events of a component, 1e-4 of 400, move the weights by as much
    assert rises.min() > -1e-6
    assert rises.sum() > 0.05


def test_em_finds_the_law_of_its_data():
    law = SphericalCauchy(places(1, 2, 0.8)[0])
    x = law.sample(torch.Size([3000]))
    found = MoebiusMixture.from_data(x, 1, sweeps=60)
    (centre,) = found.density().component_distribution.centre.detach()
    # at the best centre the data pulled back have mean zero: exact, but for the sweeps left out
    assert moebius(x, -centre)[0].mean(0).norm() < 1e-6
    # the information of each coordinate, n^2 / (n + 1) / (1 - rho^2)^2 * 4 at least: sd < .004
    assert (centre - law.centre).norm() < 3**0.5 * Z * (1 - 0.64) / 3000**0.5
    result = log_likelihood(found, x)
    assert result.kind == "exact"
    assert result.lower > law.log_prob(x).mean().item() - 1e-9


def test_the_pair_trains_and_refuses_what_lies_off_the_sphere():
    story = MoebiusMixture(2, 4)
    x = story.sample(30)
    assert torch.allclose(x.norm(dim=-1), torch.ones(30))
    before = story.raw.detach().clone()
    loss = Trace_ELBO().loss_and_grads(story.model, story.guide, x)
    assert loss == pytest.approx(-story.log_prob(x).sum().item())
    torch.optim.Adam(story.parameters(), 0.01).step()
    assert not torch.equal(story.raw, before)
    with pytest.raises(ValueError, match="unit vectors"):
        story.log_prob(2 * x)
    with pytest.raises(ValueError, match="unit vectors"):
        MoebiusMixture.from_data(2 * x, 2)
    with pytest.raises(ValueError, match="31 components begin at as many points; got 30"):
        MoebiusMixture.from_data(x, 31)
    for shape in ((), (1,)):
        with pytest.raises(ValueError, match="at least 2 coordinates"):
            SphericalCauchy(torch.zeros(shape))
    with pytest.raises(ValueError, match="inside the unit ball"):
        SphericalCauchy(torch.tensor([0.0, 0.0, 1.5]))
    for wrong in (torch.tensor([1.0, 0.0, 0.0]), torch.ones(3, 1), x[:0]):
        with pytest.raises(ValueError, match=r"one example a row|dim=|no examples"):
            MoebiusMixture.from_data(wrong, 1)


def test_directions_may_be_whole_numbers():
    axes = torch.eye(3, dtype=torch.long)
    found = MoebiusMixture.from_data(axes, 2)
    assert found.raw.dtype == torch.get_default_dtype()
    assert found.log_prob(axes).isfinite().all()
