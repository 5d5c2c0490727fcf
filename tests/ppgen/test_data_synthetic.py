import math

import pytest
import torch
from scipy.stats import chi2

from ppgen.data.synthetic import (
    banana,
    banana_log_prob,
    bars_and_stripes,
    checkerboard,
    checkerboard_log_prob,
    pinwheel,
    two_spirals,
)

FAILURE_RATE = 2e-5


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_bars_and_stripes_are_all_images_of_equal_rows_or_columns(size):
    patterns = bars_and_stripes(size)
    count = 2 ** (size * size)
    images = (torch.arange(count)[:, None] >> torch.arange(size * size) & 1).view(-1, size, size)
    bars = (images == images[:, :1]).all((1, 2))
    stripes = (images == images[:, :, :1]).all((1, 2))
    # each of the 2^n bars has probability 1/2 * 2^-n, and so has each stripe
    prob = (bars.double() + stripes.double()) / 2 ** (size + 1)
    order = (patterns.x @ (2.0 ** torch.arange(size * size))).long()
    assert torch.equal(order.sort().values, (prob > 0).nonzero().flatten())
    assert torch.allclose(patterns.log_prob.exp(), prob[order], rtol=1e-14)
    positive = prob[prob > 0]
    assert patterns.entropy == pytest.approx(float(-(positive * positive.log()).sum()), rel=1e-12)


def test_draws_of_bars_and_stripes_fit_their_probabilities():
    patterns = bars_and_stripes(2)
    x = patterns.sample(6000)
    counts = (x[:, None] == patterns.x).all(-1).sum(0)
    expected = 6000 * patterns.log_prob.exp()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < chi2.isf(FAILURE_RATE, len(expected) - 1)


DENSITIES = {
    # sampler, log density, corners of a box that holds all but 1e-7 of the mass
    "banana": (banana, banana_log_prob, (-5.5, -5.0), (5.5, 33.0)),
    "checkerboard": (checkerboard, checkerboard_log_prob, (-2.5, -2.5), (2.5, 2.5)),
}


def cell_masses(log_prob, low, high, fine=10):
    """Masses of the cells of side 1/2, by the midpoint rule with `fine` points a side."""
    middles = [
        a + (torch.arange(round(2 * (b - a) * fine)) + 0.5) / (2 * fine)
        for a, b in zip(low, high, strict=True)
    ]
    density = log_prob(torch.stack(torch.meshgrid(*middles, indexing="ij"), -1)).exp()
    rows, columns = (len(m) // fine for m in middles)
    return density.view(rows, fine, columns, fine).sum((1, 3)) / (2 * fine) ** 2


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_integrate_to_one(name):
    _, log_prob, low, high = DENSITIES[name]
    # the midpoint rule is exact on the board, and off by 1e-8 where the banana is thinnest
    # (sd 0.05 across, step 0.05); 4e-8 of the banana's mass is outside
    assert cell_masses(log_prob, low, high).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", DENSITIES)
def test_samplers_fit_their_densities(name):
    sampler, log_prob, low, high = DENSITIES[name]
    mass = cell_masses(log_prob, low, high)
    x = sampler(20_000)
    index = (2 * (x - torch.tensor(low))).floor().long()
    inside = ((index >= 0) & (index < torch.tensor(mass.shape))).all(-1)
    cell = (index[:, 0] * mass.shape[1] + index[:, 1])[inside]
    counts = torch.bincount(cell, minlength=mass.numel())
    expected = 20_000 * mass.flatten()
    big = expected > 5  # where the chi-square approximation holds; all others are one cell
    rest = (20_000 - expected[big].sum()).clamp(min=1e-9)
    statistic = ((counts - expected) ** 2 / expected)[big].sum()
    statistic += (20_000 - counts[big].sum() - rest) ** 2 / rest
    assert statistic < chi2.isf(FAILURE_RATE, int(big.sum()))


def test_the_checkerboard_has_no_mass_off_its_squares():
    assert checkerboard_log_prob(checkerboard(1000)).eq(-math.log(8)).all()
    outside = torch.tensor([[2.5, 0.5], [-1.5, -0.5], [-3.0, -3.0]])
    assert checkerboard_log_prob(outside).eq(-math.inf).all()


@pytest.mark.parametrize("sampler", [pinwheel, two_spirals, banana, checkerboard])
def test_samplers_follow_the_global_seed(sampler):
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sampler(500))
    assert draws[0].shape == (500, 2)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].abs().max() < 20


def test_pinwheel_is_the_same_after_a_turn_by_one_arm():
    # E exp(5 i angle) is not 0, E exp(i angle) is: only multiples of five arms survive
    x = pinwheel(4000)
    angle = torch.atan2(x[:, 1], x[:, 0])
    # mean of cos over n points has sd at most sqrt(1/2n); 4.27 = normal quantile of 2e-5
    assert angle.cos().mean().abs() < 4.27 / math.sqrt(8000)
    assert angle.sin().mean().abs() < 4.27 / math.sqrt(8000)


def test_the_two_spirals_are_mirror_images():
    x = two_spirals(4000, noise=0.0)
    radius, turn = x.norm(dim=-1), torch.atan2(x[:, 1], -x[:, 0])
    # on the first spiral the angle is 3 r, on the second 3 r + pi (mod 2 pi)
    off = (turn - 3 * radius).remainder(math.pi)
    assert torch.minimum(off, math.pi - off).max() < 1e-9


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="1 to 16"):
        bars_and_stripes(0)
