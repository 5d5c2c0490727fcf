"""The four energies: their normalising constants, their draws, and stories with an energy."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from ppgen.distributions import RezendeMohamed
from ppgen.program import Program

FAILURE_RATE = 2e-5


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_densities_integrate_to_one(number):
    target = RezendeMohamed(number)
    # midpoint rule on smooth functions that vanish at the ends: its error is far below 1e-8 (the
    # kink of the wall's curvature costs the cell's cube)
    x, y = (torch.arange(800) + 0.5) * 24 / 800 - 12, (torch.arange(400) + 0.5) * 16 / 400 - 8
    grid = torch.stack(torch.meshgrid(x, y, indexing="ij"), -1)
    mass = target.log_prob(grid).exp().sum() * (24 / 800) * (16 / 400)
    assert abs(mass.item() - 1) < 1e-6


def test_constants_are_those_of_the_literature():
    # log Z with the wall, to the digits that are printed
    known = [1.87750, 2.62532, 3.18493, 3.25393]
    assert [round(RezendeMohamed(k).log_z, 5) for k in (1, 2, 3, 4)] == known


def test_energies_at_points_worked_out_by_hand():
    z = torch.tensor([1.0, 0.5])
    assert math.isclose(RezendeMohamed(2).energy(z), 0.5 * (0.5 / 0.4) ** 2)
    # w2(1) = 3 and w3(1) = 1.5; at 1.3 they are one half and one of their widths further
    w2, w3 = 3 * math.exp(-0.125), 3 / (1 + math.exp(-1))
    for number, widths, first, fork in [
        (3, (0.35, 0.35), 1.0, 3.0),
        (3, (0.35, 0.35), 1.3, w2),
        (4, (0.4, 0.35), 1.0, 1.5),
        (4, (0.4, 0.35), 1.3, w3),
    ]:
        bumps = [
            math.exp(-0.5 * ((0.5 - math.sin(math.pi * first / 2) + shift) / width) ** 2)
            for shift, width in zip((0.0, fork), widths, strict=True)
        ]
        energy = RezendeMohamed(number).energy(torch.tensor([first, 0.5]))
        assert math.isclose(energy, -math.log(sum(bumps)))
    ring = 0.5 * ((math.sqrt(1.25) - 2) / 0.4) ** 2
    moons = math.exp(-0.5 * (1 / 0.6) ** 2) + math.exp(-0.5 * (3 / 0.6) ** 2)
    assert math.isclose(RezendeMohamed(1).energy(z), ring - math.log(moons))
    far = torch.tensor([-8.0, 7.0])
    assert math.isclose(RezendeMohamed(2).energy(far), 0.5 * (7 / 0.4) ** 2 + 4 + 1)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_draws_follow_the_density(number):
    target, draws = RezendeMohamed(number), 4000
    z = target.sample(torch.Size([draws]))
    # cells of one unit over [-8, 8]^2, their mass by 20 x 20 midpoints; those of fewer than 5
    # expected draws count together
    side = (torch.arange(320) + 0.5) / 20 - 8
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)
    mass = target.log_prob(grid).exp().reshape(16, 20, 16, 20).sum((1, 3)).flatten() / 400
    cell = ((z + 8).floor().clamp(0, 15) @ torch.tensor([16.0, 1.0])).long()
    counts = torch.bincount(cell, minlength=256).double()
    large = draws * mass >= 5
    observed = torch.cat([counts[large], counts[~large].sum()[None]])
    expected = draws * torch.cat([mass[large], mass[~large].sum()[None]])
    square = ((observed - expected) ** 2 / expected.clamp(min=1)).sum()
    # Wilson-Hilferty quantile of a chi-square with as many degrees of freedom as large cells
    degrees = int(large.sum())
    z_limit = dist.Normal(0.0, 1.0).icdf(torch.tensor(1 - FAILURE_RATE))
    limit = degrees * (1 - 2 / (9 * degrees) + z_limit * (2 / (9 * degrees)) ** 0.5) ** 3
    assert square < limit


def test_shapes_and_complaints():
    target = RezendeMohamed(3).expand([4])
    assert target.sample(torch.Size([5])).shape == (5, 4, 2)
    assert target.sample(torch.Size([0])).shape == (0, 4, 2)
    assert target.log_prob(torch.zeros(5, 4, 2)).shape == (5, 4)
    with pytest.raises(ValueError, match="1, 2, 3 or 4"):
        RezendeMohamed(5)


def test_an_energy_is_a_story_by_its_distribution_or_as_a_factor():
    def by_distribution():
        pyro.sample("z", RezendeMohamed(4))

    def by_factor():
        flat = dist.ImproperUniform(constraints.real_vector, torch.Size(), torch.Size([2]))
        z = pyro.sample("z", flat)
        pyro.factor("energy", -RezendeMohamed(4).energy(z))

    z = torch.randn(6, 2)
    expected = -RezendeMohamed(4).energy(z)
    assert torch.allclose(Program(by_factor).log_density(z), expected)
    normalised = expected - RezendeMohamed(4).log_z
    assert torch.allclose(Program(by_distribution).log_density(z), normalised)
