"""Pictures: nothing is cut off, nothing global changes, and what they show is true."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

from ppgen import plots
from ppgen.likelihood import Likelihood
from ppgen.plots import density

rng = np.random.default_rng(0)


def samples(dims, chains=4, draws=100):
    reference = rng.normal(size=(chains, draws, dims))
    wrong = rng.normal(size=(500, dims)) + np.linspace(0, 2, dims)
    return {"HMC": reference, "mean-field": wrong, "a method with a rather long name": wrong * 0.3}


def likelihood(kind, lower, upper=None):
    errors = (0.0, 0.0) if kind == "exact" else (0.2, None if upper is None else 0.3)
    return Likelihood(kind, lower, lower if kind == "exact" else upper, *errors, "AIS", 1000)


LONG = "a_very_long.parameter_name.of_some_module.deep_inside[12,345]"
BOARD = {
    "RBM": likelihood("bounds", -86.5, -85.2),
    "VAE": likelihood("lower", -88.0),
    "flow": likelihood("exact", -91.0),
    "base rates of a story with quite a long name": likelihood("exact", -206.9),
}
CASES = {
    "marginals, one": lambda: plots.marginals(samples(1), ["tau"], "HMC"),
    "marginals, two": lambda: plots.marginals(samples(2), ["tau", LONG], "HMC"),
    "marginals, ten": lambda: plots.marginals(samples(10), [LONG] * 10, "HMC"),
    "marginals, forty": lambda: plots.marginals(samples(40), None, "HMC"),
    "marginals, no reference": lambda: plots.marginals(samples(3)),
    "marginals, a point": lambda: plots.marginals(
        {"MAP": np.ones((1, 2)), "HMC": samples(2)["HMC"]}
    ),
    "marginals, odd scale": lambda: plots.marginals({"HMC": rng.standard_cauchy((400, 2)) * 1e-7}),
    "pair": lambda: plots.pair(samples(3), ["x", "y", LONG]),
    "pair, chosen": lambda: plots.pair(samples(3), ["x", "y", "z"], "HMC", ("x", "z")),
    "coverage": lambda: plots.interval_coverage(
        {name: np.reshape(x, (-1, 3)) for name, x in samples(3).items()}, "HMC", ["x", "y", LONG]
    ),
    "leave one out": lambda: plots.loo_differences({"VI": rng.normal(size=30), LONG: np.ones(30)}),
    "grids": lambda: plots.grids(
        {"means": [[0.01, 2.0], [0.3, np.nan]], "sds": [[0.0, 1e5], [np.inf, 12.0]]},
        ["HMC", LONG],
        ["arK", LONG],
        "Errors",
    ),
    "globe": lambda: plots.globe(
        lambda x: 9 * x[:, 2], rng.normal(size=(20, 3)), LONG, resolution=20
    ),
    "ranks": lambda: plots.rank_histogram(rng.normal(size=(4, 100)), LONG),
    "ranks of many": lambda: plots.rank_histogram(rng.normal(size=(64, 20))),
    "autocorrelation": lambda: plots.autocorrelation(
        {"mixing": rng.normal(size=(4, 90)), LONG: np.arange(4)[:, None] + rng.random((4, 90))}
    ),
    "likelihood, bounds and lower bounds": lambda: plots.likelihood_curve(
        {
            "RBM": {k: likelihood("bounds", -90 + k, -89.5 + k) for k in (1, 2, 4)},
            LONG: {5: likelihood("lower", -88.0)},
        }
    ),
    "trace": lambda: plots.trace(rng.normal(size=(4, 100)), "tau"),
    "trace of many, one broken": lambda: plots.trace(
        np.where(np.arange(20)[:, None] == 3, np.nan, rng.normal(size=(20, 50))), LONG
    ),
    "elbo": lambda: plots.elbo_curve(
        {"VI": np.where(np.arange(300) == 7, np.nan, -np.exp(-np.arange(300) / 20) * 1e4)}
    ),
    "loss": lambda: plots.loss_curve({"training": [-3.0, -2, -1], "validation": [-3, np.nan, -2]}),
    "loss, best": lambda: plots.loss_curve({"loss": np.arange(100.0)}, best="min", title=LONG * 2),
    "free energies": lambda: plots.free_energies({"a": rng.normal(size=90), "b": np.ones(4)}),
    "leaderboard": lambda: plots.leaderboard(BOARD),
    "leaderboard, one": lambda: plots.leaderboard({"VAE": likelihood("lower", -88.0)}),
    "images": lambda: plots.images(rng.random((23, 64)), (8, 8), title=LONG, subtitle=LONG * 3),
    "one image": lambda: plots.images(rng.random((1, 64)), (8, 8)),
    "colour images": lambda: plots.images(rng.random((5, 4, 4, 3)), (4, 4, 3), limits=None),
    "reconstructions": lambda: plots.reconstructions(*rng.random((2, 13, 64)), (8, 8)),
    "filters": lambda: plots.filters(rng.normal(size=(20, 64)), (8, 8)),
    "gradient variance": lambda: plots.gradient_variance(
        [1, 8, 64], {LONG: [4.0, 4, 4], "REINFORCE": [15.0, 120, 4488]}, {LONG: 0, "REINFORCE": 1.8}
    ),
    "reverse and forward": lambda: plots.reverse_and_forward(
        np.linspace(-3, 3, 30), np.linspace(-2, 2, 20), rng.normal(size=(20, 30)),
        {"reverse": ([0.0, 0.0], np.eye(2)), LONG: ([0.5, 0.0], 2 * np.eye(2))},
    ),
    "interpolations": lambda: plots.interpolations(rng.random((3, 9, 64)), (8, 8), LONG, "linear"),
    "traversals": lambda: plots.traversals(rng.random((2, 3, 64)), (8, 8), [-2, 0, 2], [0, 5]),
    "attribute": lambda: plots.attribute(rng.random((2, 3, 64)), (8, 8), [-1, 0, 1], LONG),
    "neighbours": lambda: plots.neighbours(rng.random((2, 64)), rng.random((2, 5, 64)), (8, 8)),
    "manifold": lambda: plots.manifold(rng.random((400, 64)), (8, 8)),
    "property ascent": lambda: plots.property_ascent(*rng.normal(size=(2, 9, 5)), floor=-3),
    "predictive": lambda: plots.posterior_predictive(rng.normal(size=30), rng.normal(size=(9, 30))),
    "predictive, counts": lambda: plots.posterior_predictive(
        torch.poisson(torch.full((50,), 3.0)), rng.poisson(3, size=(4, 30, 50)), "price ($)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_picture_is_whole_and_changes_nothing_global(name):
    before = dict(mpl.rcParams)
    figure = CASES[name]()
    assert isinstance(figure, Figure)
    width, height = figure.get_size_inches() * 110
    assert 400 <= width <= 900
    assert height < 1300
    figure.set_dpi(110)
    figure.canvas.draw()
    box = figure.bbox
    heading = min(t.get_window_extent().y0 for t in figure.texts)
    for part in [*figure.texts, *figure.legends]:
        extent = part.get_window_extent()
        assert -1 <= extent.x0 <= extent.x1 <= box.x1 + 1, part
        assert -1 <= extent.y0 <= extent.y1 <= box.y1 + 1, part
    for ax in figure.axes:
        if ax.get_visible():
            extent = ax.get_tightbbox()
            assert extent.y1 <= heading + 1
            assert extent.y0 >= -1
            assert extent.x0 >= -1
            assert extent.x1 <= box.x1 + 6  # antialiased ends
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", CASES)
def test_the_axes_of_every_picture_have_names(name):
    axes = [ax for ax in CASES[name]().axes if ax.get_visible()]
    outer = [ax for ax in axes if ax.get_subplotspec() is not None]
    columns = outer[0].get_gridspec().ncols
    # small panels share the names of the lowest row and of the first column
    for ax in outer[-columns:]:
        assert ax.get_xlabel()
    for ax in outer[::columns]:
        assert ax.get_ylabel()
    for ax in set(axes) - set(outer):  # colour bars
        assert ax.get_ylabel()


def test_density_is_that_of_the_sample():
    x = np.random.default_rng(1).normal(2.0, 3.0, size=20_000)
    grid, height = density.kde(x, -12, 16, 400)
    # sd of the estimate: sqrt(f R(K) / (n h)) = sqrt(.133 * .28 / (2e4 * .37)) = .0022; bias
    # h^2 f'' / 2 = .001; five times both
    np.testing.assert_allclose(height, stats.norm.pdf(grid, 2, 3), atol=0.016)
    assert np.trapezoid(height, grid) == pytest.approx(1, abs=1e-3)


def test_density_of_a_scale_has_no_mass_below_zero():
    x = np.random.default_rng(2).exponential(size=20_000)
    grid, height = density.kde(x, -1, 8, 1000)
    assert height[grid < -0.02].max() == 0
    assert height[np.searchsorted(grid, 0.05)] > 0.85  # not halved at the bound
    assert np.trapezoid(height, grid) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_regions_hold_their_mass(correlation):
    x, y = np.random.default_rng(3).normal(size=(2, 200_000))
    narrow = np.sqrt(1 - correlation**2)  # of the ellipse, by area
    y = correlation * x + narrow * y
    box = (-5.0, 5.0, -5.0, 5.0)
    height = density.kde2(x, y, box, 100)
    outer, inner = density.mass_levels(height, (0.5, 0.9))
    cell = 0.1**2
    for level, mass in [(inner, 0.5), (outer, 0.9)]:
        # the region of a standard normal with mass m is a disc of area -2 pi log(1 - m); smoothing
        # with bandwidth .13 and cells of .1 widen it by some 2 %, across a ridge of .3 by 6 %
        area = (height >= level).sum() * cell
        assert area == pytest.approx(-2 * np.pi * np.log(1 - mass) * narrow, rel=0.08)


def test_bounds_that_cross_are_not_printed_as_an_interval():
    errors = "Monte Carlo errors 0.2 and 0.3)"
    within, crossed = (str(likelihood("bounds", -24.4, end)) for end in (-24.3, -24.41))
    assert f"between -24.40 and -24.30 nats per example (bounds, {errors}" in within
    assert "-24.40 from below, -24.41 from above" in crossed
    assert f"(bounds, crossed, {errors}" in crossed


def test_the_worst_margin_comes_first_and_the_worst_pair_is_chosen():
    figure = plots.marginals(samples(5), list("abcde"), "HMC")
    titles = [ax.get_title(loc="left").split()[0] for ax in figure.axes if ax.get_visible()]
    assert titles[0] == "e"
    x = rng.normal(size=(2000, 3))
    y = rng.normal(size=(2000, 3))
    y[:, 2] = 0.9 * y[:, 0] + 0.4 * y[:, 2]
    figure = plots.pair({"HMC": y, "mean-field": x}, list("abc"))
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("a", "c")


def test_an_elbo_of_few_steps_is_drawn_as_it_is():
    ax = plots.elbo_curve({"VI": [-3.0, -1.0]}).axes[0]
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xydata(), [[1, -3], [2, -1]])
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_a_leaderboard_prints_no_bound_as_the_value():
    texts = {text.get_text() for text in plots.leaderboard(BOARD).axes[0].texts}
    assert {"−86.50 to −85.20", "≥ −88.00", "−91.00", "−206.90"} <= texts


def test_images_show_their_pixels():
    x = np.arange(12.0).reshape(3, 4) / 11
    picture = plots.images(x, (2, 2), columns=2).axes[0].get_images()[0].get_array()
    assert picture is not None
    grey = np.asarray(picture)[..., 0]
    expected = np.round(x[0].reshape(2, 2) * 255) / 255
    np.testing.assert_allclose(grey[:2, :2], expected, atol=1 / 255)
    np.testing.assert_allclose(grey[3:, :2], np.round(x[2].reshape(2, 2) * 255) / 255, atol=1 / 255)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.marginals({}), "no samples"),
        (lambda: plots.marginals(samples(2), ["a"]), "1 names for 2 scalars"),
        (lambda: plots.marginals(samples(2), None, "NUTS"), "'NUTS' is not among HMC"),
        (lambda: plots.marginals({"a": np.full((3, 1), np.nan)}), "a: nothing to draw"),
        (lambda: plots.pair(samples(1)), "needs two scalars"),
        (lambda: plots.pair(samples(2), ["a", "b"], None, ("a", "c")), "no scalar 'c'"),
        (lambda: plots.trace(np.zeros(3)), r"\(chains, draws\), got \(3,\)"),
        (lambda: plots.images(np.zeros((2, 5)), (2, 2)), "have 4 numbers each"),
        (lambda: plots.images(np.zeros((2, 8)), (2, 2, 2)), r"\(height, width, 3\)"),
        (lambda: plots.loss_curve({"a": [1.0]}, [1, 2]), "a: 1 values for 2 epochs"),
        (lambda: plots.elbo_curve({"a": [np.nan]}), "a: nothing to draw"),
        (lambda: plots.leaderboard({}), "no rows"),
        (lambda: plots.interpolations(np.zeros((3, 64)), (8, 8)), r"\(rows, steps, "),
        (lambda: plots.traversals(np.zeros((2, 3, 4)), (2, 2), [1, 2], [0, 1]), "2 values need"),
        (lambda: plots.attribute(np.zeros((2, 3, 4)), (2, 2), [1, 2]), "2 strengths for 3"),
        (lambda: plots.neighbours(np.zeros((2, 4)), np.zeros((3, 1, 4)), (2, 2)), "2 queries and"),
        (lambda: plots.manifold(np.zeros((5, 4)), (2, 2)), "a square of images"),
        (lambda: plots.property_ascent([1.0], [1.0]), "of one shape"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
