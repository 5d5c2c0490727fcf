"""Latent space: geometry by formula, directions by construction, effects of known models."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppgen import latent
from ppgen.inference.peak_memory import peak_memory
from ppgen.models.sentence_vae import SentenceVAE
from ppgen.models.vae import VAE
from ppgen.networks.priors import MixturePrior
from ppgen.types import Autoencoder

FAILURE_RATE = 2e-5  # as in tests/conftest.py
Z = 4.3  # two-sided normal quantile of FAILURE_RATE: 4.26


class Mirror(nn.Module):
    """Codes are data: p(x | z) = N(z, noise^2), q(z | x) = N(x, 1)."""

    def __init__(self, noise=0.5):
        super().__init__()
        self.noise = noise

    def encode(self, x):
        return dist.Normal(x, 1.0).to_event(1)

    def decode(self, z):
        return dist.Normal(z, self.noise).to_event(1)

    def log_weights(self, x, samples):
        """Exact under a standard normal prior: every weight is p(x)."""
        sd = math.sqrt(1 + self.noise**2)
        return dist.Normal(0.0, sd).log_prob(x).sum(-1).expand(samples, -1)


def test_the_protocol_is_met():
    assert isinstance(Mirror(), Autoencoder)
    assert isinstance(VAE(4, 2, (5,)), Autoencoder)
    assert not isinstance(nn.Linear(1, 1), Autoencoder)


@pytest.mark.parametrize("path", [latent.linear, latent.spherical])
@pytest.mark.parametrize("shape", [(3,), (5, 4), (2, 3, 6)])
def test_paths_begin_and_end_at_their_codes_and_turn_round(path, shape):
    a, b = torch.randn(2, *shape)
    way = path(a, b, 7)
    assert way.shape == (7, *shape)
    torch.testing.assert_close(way[0], a)
    torch.testing.assert_close(way[-1], b)
    torch.testing.assert_close(path(b, a, 7), way.flip(0))


def test_a_great_circle_keeps_length_and_divides_the_angle_evenly():
    a, b = torch.nn.functional.normalize(torch.randn(2, 10, 6), dim=-1) * 3
    way = latent.spherical(a, b, 5)
    torch.testing.assert_close(way.norm(dim=-1), torch.full((5, 10), 3.0))
    cosines = (way[1:] * way[:-1]).sum(-1) / 9
    torch.testing.assert_close(cosines, cosines[:1].expand(4, -1))
    middle = latent.linear(a, b, 3)[1]
    torch.testing.assert_close(
        latent.spherical(a, b, 3)[1], 3 * middle / middle.norm(dim=-1)[:, None]
    )


def test_a_great_circle_of_nearly_parallel_codes_is_the_line():
    a = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    b = torch.tensor([[2.0, 4.0], [1.0, 2.0], [1.0, 2.0 + 1e-9]])
    torch.testing.assert_close(latent.spherical(a, b), latent.linear(a, b))
    assert bool(torch.isfinite(latent.spherical(a.float(), b.float())).all())


def test_the_manifold_cuts_the_prior_into_cells_of_equal_mass():
    codes = latent.manifold(4)
    assert codes.shape == (16, 2)
    below = torch.special.ndtr(codes)
    torch.testing.assert_close(below[:4, 0], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    assert bool((codes[:4, 1] == codes[0, 1]).all())
    assert float(codes[0, 1]) > float(codes[-1, 1])  # the top row has the larger number
    wide = latent.manifold(4, dist.Normal(torch.tensor(1.0), torch.tensor(2.0)))
    torch.testing.assert_close(wide, 1 + 2 * codes)


def test_a_traversal_changes_one_dimension_at_a_time():
    z = torch.arange(4.0)
    found = latent.traverse(z, [1, -1], [-2.0, 0.0, 2.0])
    expected = z.expand(2, 3, 4).clone()
    expected[0, :, 1] = expected[1, :, 3] = torch.tensor([-2.0, 0.0, 2.0])
    assert torch.equal(found, expected)
    assert torch.equal(z, torch.arange(4.0))


def test_neighbours_are_those_of_an_exhaustive_search():
    query, among = torch.randn(6, 3), torch.randn(50, 3)
    found = latent.nearest(query, among, 4)
    distances = torch.stack([(among - q).norm(dim=-1) for q in query])
    expected = distances.sort(dim=-1)
    assert torch.equal(found.rows, expected.indices[:, :4])
    torch.testing.assert_close(found.distance, expected.values[:, :4])


def test_reconstructions_are_the_mean_of_the_mean_code():
    x = torch.randn(4, 3)
    assert torch.equal(latent.reconstruct(Mirror(), x), x)
    vae, x = VAE(4, 2, (5,)), torch.bernoulli(torch.full((3, 4), 0.5))
    assert torch.equal(latent.reconstruct(vae, x), vae.reconstruct(x))


def test_many_codes_take_the_memory_of_a_thousand():
    wide = VAE(2, 1, (500,))
    x = torch.arange(9000.0).reshape(4500, 2) % 2
    few, many = (peak_memory(lambda n=n: latent.codes(wide, x[:n])) for n in (1000, 4500))
    assert many < 1.2 * few  # hidden layers of 500, beside a code of one number
    torch.testing.assert_close(latent.codes(wide, x), wide.code(x), rtol=0, atol=1e-12)


def test_codes_of_a_law_without_a_mean_are_averaged_over_draws():
    class NoMean(Mirror):
        def encode(self, x):
            base = dist.Normal(x, 0.1).to_event(1)
            return dist.TransformedDistribution(base, dist.transforms.AffineTransform(1.0, 2.0))

    x = torch.randn(5, 3)
    # sd .2 over the root of 64 draws
    off = (latent.codes(NoMean(), x) - (1 + 2 * x)).abs().max()
    assert 0 < float(off) < 5.0 * 0.2 / 8  # 15 comparisons


def test_the_middle_of_a_line_is_less_probable_by_the_length_it_loses():
    """Codes of length r at a right angle: the line's middle has r^2 / 2, the circle's r^2."""
    dimensions, count, noise = 8, 4000, 0.5
    a, b = torch.zeros(2, count, dimensions)
    a[:, 0] = b[:, 1] = radius = 3.0
    variance = 1 + noise**2
    for path, square in ((latent.linear, radius**2 / 2), (latent.spherical, radius**2)):
        found = latent.midpoint_likelihood(Mirror(noise), a, b, path=path, samples=3)
        # minus E|x|^2 / (2 variance), of which E|x|^2 = |z|^2 + D noise^2
        expected = (square - radius**2) / (2 * variance)
        assert found.lost.shape == (count,)
        error = float(found.lost.std()) / math.sqrt(count)
        assert float(found.lost.mean()) == pytest.approx(expected, abs=Z * error)


def classes(count=4000):
    """Two normals with one covariance, apart along the first axis; the second varies along."""
    labels = torch.arange(count) % 2 == 1
    z = torch.randn(count, 2)
    z = torch.stack([z[:, 0], 0.8 * z[:, 0] + 0.6 * z[:, 1]], -1)
    return z + 2.0 * labels[:, None] * torch.tensor([1.0, 0.0]), labels


def test_the_difference_of_means_is_that():
    z, labels = classes()
    found = latent.difference_of_means(z, labels)
    difference = z[labels].mean(0) - z[~labels].mean(0)
    torch.testing.assert_close(found.direction * found.gap, difference)
    torch.testing.assert_close(found.coordinate(z[labels]).mean(), torch.tensor(0.5))
    torch.testing.assert_close(found.coordinate(z[~labels]).mean(), torch.tensor(-0.5))


def test_logistic_regression_finds_the_discriminant_of_two_normals():
    """Log-odds of normals with one covariance are linear, with weights Sigma^-1 (m1 - m0)."""
    z, labels = classes(20_000)
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    weights = torch.linalg.solve(covariance, torch.tensor([2.0, 0.0]))
    found = latent.logistic_direction(z, labels, penalty=1e-3)
    # the angle's sd: that of the weights (p (1 - p) is .02 in the mean here, so 1 / sqrt(.02 n
    # lambda) with the least eigenvalue .2 of Sigma: .11) over their length of 7.1: .016
    cosine = float(found.direction @ weights / weights.norm())
    assert math.acos(min(cosine, 1.0)) < Z * 0.016
    few = torch.cat([z[~labels], z[labels][:500]]), torch.arange(10_500) >= 10_000
    rare = latent.logistic_direction(*few, penalty=1e-3)  # its class means stand where they did
    torch.testing.assert_close(rare.coordinate(few[0][few[1]]).mean(), torch.tensor(0.5))
    torch.testing.assert_close(rare.coordinate(few[0][~few[1]]).mean(), torch.tensor(-0.5))


def test_logistic_regression_is_stationary_even_where_a_plane_separates():
    z = torch.randn(50, 3)
    labels = z[:, 0] > 0
    found = latent.logistic_direction(z, labels)
    assert bool(torch.isfinite(found.direction).all())
    assert float(found.direction[0]) > 0.8


def test_shifts_and_projections_along_an_attribute():
    z, labels = classes(100)
    found = latent.logistic_direction(z, labels)
    moved = found.shift(z, 1.5)
    torch.testing.assert_close(found.coordinate(moved), found.coordinate(z) + 1.5)
    torch.testing.assert_close(found.coordinate(found.put(z, 0.25)), torch.full((100,), 0.25))
    removed = found.remove(z)
    torch.testing.assert_close(found.coordinate(removed), torch.zeros(100))
    across = torch.stack([-found.direction[1], found.direction[0]])
    torch.testing.assert_close(removed @ across, z @ across)  # nothing else changes


def test_the_effect_of_an_attribute_is_counted_as_by_hand():
    x = torch.tensor([[-2.0, 0.0], [-1.0, 5.0], [1.0, 10.0], [2.0, 15.0], [-0.5, 20.0]])
    labels = torch.tensor([False, False, True, True, True])  # the last is misclassified: left out
    attribute = latent.Attribute(torch.tensor([1.0, 0.0]), torch.zeros(2), torch.tensor(1.0))
    model = Mirror()

    def classify(x):
        return x[:, 0] > 0

    found = latent.attribute_effect(model, x, labels, attribute, classify, strength=1.5)
    # -2 + 1.5 and 2 - 1.5 stay, -1 and 1 flip
    assert found.flipped == pytest.approx(0.5)
    assert found.flipped_error == pytest.approx(0.25)
    assert (found.kept, found.examples) == (1.0, 5)
    assert found.kept_error == pytest.approx((6 / 7 * 1 / 7 / 5) ** 0.5)  # none of 5 lost
    tilted = latent.Attribute(torch.tensor([0.6, 0.8]), torch.zeros(2), torch.tensor(1.0))

    class Forgetful(Mirror):
        def decode(self, z):
            return super().decode(torch.stack([z[..., 0], torch.zeros_like(z[..., 1])], -1))

    found = latent.attribute_effect(Forgetful(), x, labels, tilted, classify, strength=0.0)
    assert found.kept == 1.0  # nothing moved
    crowd = latent.attribute_effect(Forgetful(), x, labels, attribute, classify, strength=1.0)
    assert crowd.kept == pytest.approx(0.2)  # all have one code once the attribute is out
    assert "identity kept 0.200" in str(crowd)


def standard(dimensions):
    return dist.Normal(torch.zeros(dimensions), torch.ones(dimensions)).to_event(1)


def test_a_linear_property_is_climbed_to_the_edge_of_the_prior():
    """The best point of a ball of radius r in direction c has the value |c| r."""
    c = torch.tensor([1.0, -2.0, 0.5])
    found = latent.ascend(torch.randn(8, 3) * 0.5, lambda z: z @ c, standard(3), mass=0.9)
    radius = (-2 * (found.floor[0] + 1.5 * math.log(2 * math.pi))).sqrt()
    # the square root of the .9 quantile of chi-square with 3 degrees: 2.500; the density of the
    # radius there is .31, so a quantile of 20,000 draws is off by sqrt(.09 / 20000) / .31 = .007
    assert float(radius) == pytest.approx(2.500, abs=Z * 0.007)
    torch.testing.assert_close(
        found.path[-1], (radius * c / c.norm()).expand(8, 3), rtol=0, atol=2e-3
    )
    assert bool((found.property.diff(dim=0) >= 0).all())
    assert bool((found.log_prior >= found.floor - 1e-5).all())


def test_a_peak_inside_the_region_is_found_and_the_floor_left_alone():
    peak = torch.tensor([0.3, -0.4])
    found = latent.ascend(torch.randn(5, 2), lambda z: -(z - peak).square().sum(-1), standard(2))
    torch.testing.assert_close(found.path[-1], peak.expand(5, 2), rtol=0, atol=1e-3)


def test_a_code_outside_the_region_never_gets_farther_outside():
    start = torch.tensor([[6.0, 0.0]])
    found = latent.ascend(start, lambda z: z[:, 0] + z[:, 1], standard(2))
    assert float(found.floor) == pytest.approx(float(standard(2).log_prob(start)))
    assert bool((found.log_prior >= found.floor - 1e-4).all())
    assert float(found.property[-1]) == pytest.approx(6 * math.sqrt(2), abs=0.01)


def test_a_prior_that_is_learned_learns_nothing_from_a_climb():
    prior = MixturePrior(2, 3)
    found = latent.ascend(torch.randn(4, 2), lambda z: z.sum(-1), prior(None), steps=5)
    assert not any(part.requires_grad for part in found)


VECTORS = torch.eye(2)
YES = torch.tensor([True, False])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: latent.linear(torch.zeros(2), torch.zeros(3)), "two codes of one shape"),
        (lambda: latent.linear(torch.zeros(2), torch.ones(2), 1), "at least 2"),
        (lambda: latent.spherical(torch.zeros(2), torch.ones(2)), "length 0"),
        (lambda: latent.spherical(torch.ones(2), -torch.ones(2)), "opposite directions"),
        (lambda: latent.spherical(VECTORS, VECTORS * (1 - 2 * YES[:, None].float())), "opposite"),
        (lambda: latent.traverse(torch.zeros(3), [3], [0.0]), "dimensions 0 to 2"),
        (lambda: latent.traverse(VECTORS, [0], [0.0]), "one code"),
        (lambda: latent.manifold(0), "at least 1"),
        (lambda: latent.nearest(VECTORS, VECTORS, 3), "from 1 to 2"),
        (lambda: latent.nearest(VECTORS, torch.zeros(4, 3)), "expected codes"),
        (lambda: latent.difference_of_means(VECTORS, ~YES & YES), "0 of 2 codes have"),
        (lambda: latent.difference_of_means(VECTORS, torch.tensor([3, 7])), "0 or 1"),
        (lambda: latent.difference_of_means(torch.zeros(2, 2), YES), "the same mean"),
        (lambda: latent.difference_of_means(VECTORS, torch.zeros(3)), r"codes \(N, L\) and labels"),
        (lambda: latent.logistic_direction(VECTORS, YES, penalty=0), "penalty must be positive"),
        (lambda: latent.logistic_direction(torch.ones(2, 2), YES), "the same mean|no direction"),
        (
            lambda: latent.reconstruct(SentenceVAE(6, 4, 2, 5), torch.tensor([[4, 2, 0, 0]])),
            "Sentence, which SentenceVAE decodes to, has no mean",
        ),
        (lambda: latent.ascend(VECTORS, lambda z: z, standard(2)), "one number for each of 2"),
        (lambda: latent.ascend(VECTORS, lambda z: z.sum(-1), standard(3)), "a prior of event"),
        (lambda: latent.ascend(VECTORS, lambda z: torch.zeros(2), standard(2)), "no gradient"),
        (lambda: latent.ascend(VECTORS, torch.sum, standard(2), mass=1.0), "between 0 and 1"),
        (lambda: latent.ascend(VECTORS, torch.sum, standard(2), radius=0), "must be positive"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
