"""The picture of variances against dimension."""

import numpy as np
import pytest

from ppgen import plots


def test_variances_are_drawn_on_logarithmic_scales_with_their_powers():
    d = [1, 10, 100]
    figure = plots.gradient_variance(
        d, {"path": [4.0, 4, 4], "score": [15.0, 180, 10608]}, {"path": 0.0, "score": 1.77}
    )
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [15.0, 180, 10608])
    assert [t.get_text() for t in figure.legends[0].texts] == ["path: d^0.00", "score: d^1.77"]
    figure.canvas.draw()


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="2 variances for 3 dimensions"):
        plots.gradient_variance([1, 2, 3], {"a": [1.0, 2.0]})
    with pytest.raises(ValueError, match="positive variances, got 0"):
        plots.gradient_variance([1, 2], {"a": [1.0, 0.0]})
