"""Places on the globe: earthquakes, coastlines, and the way between angles and unit vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ppgen.data.numpy_files import read_npz

EARTHQUAKES = Path(__file__).parent / "files" / "earthquakes.npz"
LAND = Path(__file__).parent / "files" / "land.npz"


def unit_vectors(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Degrees east and north, ``(*)`` each, as points of the sphere, ``(*, 3)``."""
    east, north = np.radians(longitude), np.radians(latitude)
    across = np.cos(north)
    return np.stack([across * np.cos(east), across * np.sin(east), np.sin(north)], -1)


def degrees(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude in [-180, 180] and latitude of points of the sphere, ``(*, 3) -> (*)``."""
    across = np.hypot(x[..., 0], x[..., 1])
    longitude = np.degrees(np.arctan2(x[..., 1], x[..., 0]))
    return longitude, np.degrees(np.arctan2(x[..., 2], across))


def earthquakes(split: str) -> np.ndarray:
    """One part of the earthquakes as unit vectors, ``(N, 3)``."""
    arrays = read_npz(EARTHQUAKES)
    rows = arrays["test"] == (split == "test")
    return unit_vectors(*arrays["degrees"][rows].astype(np.float64).T)


def coastlines() -> list[np.ndarray]:
    """The outlines of the land, ``(points, 2)`` each: longitude and latitude in degrees.

    Closed rings, at a scale of 1:110 million; good for pictures.
    """
    arrays = read_npz(LAND)
    return np.split(arrays["degrees"].astype(np.float64), arrays["starts"][1:])
