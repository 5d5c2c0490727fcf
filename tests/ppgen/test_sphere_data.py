"""Earthquakes, coastlines and the map of the globe."""

import hashlib
import math

import numpy as np
import pytest
import torch

from ppgen import plots
from ppgen.data import coastlines, degrees, load, unit_vectors
from ppgen.data.earth import EARTHQUAKES
from ppgen.plots.sphere import mollweide
from ppgen.transforms.stereographic import sphere


def test_earthquakes_are_unit_vectors_divided_by_the_stated_rule():
    train, test = load("earthquakes"), load("earthquakes", "test")
    assert train.x.shape == (1366, 3)
    assert test.x.shape == (341, 3)
    assert train.x.dtype == torch.get_default_dtype()
    assert sphere.check(train.x).all()
    assert test.describe() == "earthquakes, test, 341 examples, no binarisation"
    arrays = np.load(EARTHQUAKES, allow_pickle=False)
    by_hash = sorted(range(1707), key=lambda i: hashlib.sha256(str(i).encode()).hexdigest())
    assert set(np.flatnonzero(arrays["test"])) == set(by_hash[:341])
    # the first event of the feed: 4 km west of Castaic, California
    assert arrays["degrees"][0] == pytest.approx([-118.6671667, 34.4945], abs=1e-5)


def test_degrees_and_unit_vectors_are_inverses():
    longitude, latitude = np.array([0.0, 90, -179, 12.5]), np.array([0.0, 0, 45, -89])
    x = unit_vectors(longitude, latitude)
    np.testing.assert_allclose(x[:2], [[1, 0, 0], [0, 1, 0]], atol=1e-15)
    np.testing.assert_allclose(degrees(x), [longitude, latitude], atol=1e-10)


def test_coastlines_are_closed_rings_that_hold_the_share_of_land():
    rings = coastlines()
    assert len(rings) == 128
    assert sum(map(len, rings)) == 5128
    assert all(np.array_equal(ring[0], ring[-1]) for ring in rings)
    # the area of a ring by sin(latitude) d(longitude); land is 29 % of the Earth
    area = 0.0
    for ring in rings:
        east, north = np.radians(ring).T
        area += np.sum(np.diff(east) * (np.sin(north[1:]) + np.sin(north[:-1])) / 2)
    assert abs(area) / (4 * math.pi) == pytest.approx(0.29, abs=0.01)


def test_mollweide_keeps_areas_and_ends_in_its_ellipse():
    longitude, latitude = np.meshgrid(np.linspace(-180, 180, 7), np.linspace(-90, 90, 181))
    x, y = mollweide(longitude, latitude)
    assert (x**2 / 8 + y**2 / 2).max() == pytest.approx(1, abs=1e-9)
    # strips between parallels: their share of the ellipse is that of the sphere
    heights = y[:, 0] / np.sqrt(2)
    share = np.arcsin(heights) / np.pi + heights * np.sqrt(np.clip(1 - heights**2, 0, 1)) / np.pi
    np.testing.assert_allclose(share, np.sin(np.radians(latitude[:, 0])) / 2, atol=1e-9)


def test_a_map_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match=r"unit vectors, \(M, 3\)"):
        plots.globe(lambda x: x[:, 0], np.ones((4, 2)), resolution=4)
    with pytest.raises(ValueError, match="finite somewhere"):
        plots.globe(lambda x: x[:, 0] * math.nan, resolution=4)
