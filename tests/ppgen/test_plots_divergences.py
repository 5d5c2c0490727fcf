"""The picture of a target with its approximations."""

import numpy as np
import pytest

from ppgen import plots

X, Y = np.linspace(-3, 3, 61), np.linspace(-2, 2, 41)
BOWL = -0.5 * (X[None] ** 2 + Y[:, None] ** 2)


def test_the_curves_of_a_normal_hold_their_mass():
    covariance = np.array([[1.0, 0.6], [0.6, 0.8]])
    figure = plots.reverse_and_forward(X, Y, BOWL, {"q": ([0.2, -0.1], covariance)})
    (ax,) = figure.axes
    for line, mass in zip(ax.lines, (0.5, 0.9), strict=True):
        off = np.stack(line.get_data()) - np.array([[0.2], [-0.1]])
        squares = (off * np.linalg.solve(covariance, off)).sum(0)
        np.testing.assert_allclose(squares, -2 * np.log(1 - mass))  # chi-square, two degrees
    figure.canvas.draw()


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match=r"\(ny, nx\) = \(41, 61\), got \(61, 41\)"):
        plots.reverse_and_forward(X, Y, BOWL.T, {})
    with pytest.raises(ValueError, match="a: expected a mean"):
        plots.reverse_and_forward(X, Y, BOWL, {"a": ([0.0], np.eye(2))})
