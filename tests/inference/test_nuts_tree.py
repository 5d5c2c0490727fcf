"""The trees: against a recursion that is easier to believe, and invariance from exact draws."""

import math

import numpy as np
import pytest
from scipy import stats

from ppgen.inference.nuts_tree import GRADIENT, MOMENTUM, POSITION, Trees

FAILURE_RATE = 2e-5  # of one correct statistical test, as in conftest


def quartic(z):
    """Neither separable nor Gaussian; trees of it turn at very different lengths."""
    value = -0.25 * (z**4).sum(-1) - z[:, 0] * z[:, 1]
    gradient = -(z**3)
    gradient[:, 0] -= z[:, 1]
    gradient[:, 1] -= z[:, 0]
    return value, gradient


def gaussian(precision):
    def value_and_grad(z):
        gradient = -z @ precision
        return 0.5 * (z * gradient).sum(-1), gradient

    return value_and_grad


def banana(z):
    """``z_0 ~ N(0, 1)``, ``z_1 ~ N(z_0^2, 0.5^2)``."""
    residual = 4 * (z[:, 1] - z[:, 0] ** 2)
    value = -0.5 * z[:, 0] ** 2 - residual**2 / 8
    return value, np.stack([-z[:, 0] + 2 * residual * z[:, 0], -residual], 1)


def log_gamma(z):
    """Independent z = log x with x ~ Gamma(2, 1)."""
    return (2 * z - np.exp(z)).sum(-1), 2 - np.exp(z)


def start(target, z, momenta, *, depth=10):
    trees = Trees(z, *target(z), max_depth=depth)
    trees.begin(np.arange(len(z)), momenta)
    return trees


def transition(target, z, step_size, rng, *, depth=10):
    """One trajectory of every chain; what each returned when it was complete."""
    trees = start(target, z, rng.standard_normal(z.shape), depth=depth)
    result = z.copy()
    open_ = np.ones(len(z), bool)
    leaves, acceptance = np.zeros(len(z)), np.zeros(len(z))
    while open_.any():
        over = trees.grow(target, step_size, rng.random((3, len(z)))) & open_
        result[over] = trees.draw[over, POSITION]
        leaves[over] = trees.leaves[over]
        acceptance[over] = trees.acceptance[over] / trees.leaves[over]
        open_ &= ~over
    return result, leaves, acceptance


# -- the reference: Stan's recursion, on the leaves of one chain ----------------------------------


class Reference:
    """One trajectory, as the papers write it: subtrees are built of two halves, recursively."""

    def __init__(self, target, z, r, step_size, uniforms, depth):
        self.target, self.step_size, self.uniforms = target, step_size, uniforms
        self.visited, self.acceptance, self.diverged = [], 0.0, False
        value, gradient = self.evaluate(z)
        self.energy = 0.5 * r @ r - value
        self.draw, self.weight = z, 0.0
        self.path = [(z, r, gradient)]  # ordered in time
        for _ in range(depth):
            if not self.double():
                break

    def evaluate(self, z):
        value, gradient = self.target(z[None])
        return value[0], gradient[0]

    def double(self):
        forward = self.uniforms[len(self.visited)][0] < 0.5
        new, self.branch, self.branch_weight = [], None, -math.inf
        grown = self.build(len(self.path), 1 if forward else -1, new)
        if not grown:
            return False
        if self.uniforms[len(self.visited) - 1][2] < math.exp(self.branch_weight - self.weight):
            self.draw = self.branch
        self.weight = np.logaddexp(self.weight, self.branch_weight)
        halves = (self.path, new) if forward else (new[::-1], self.path)
        self.path = halves[0] + halves[1]
        return not self.turned(*halves)

    def build(self, size, sign, new):
        """Append `size` leaves to `new`; False where they, or halves of them, turn."""
        if size == 1:
            return self.leaf(sign, new)
        first, second = [], []
        if not self.build(size // 2, sign, first):
            return False
        self.tip = first[-1]
        if not self.build(size // 2, sign, second):
            return False
        new += first + second
        return not self.turned(*((first, second) if sign > 0 else (second[::-1], first[::-1])))

    def leaf(self, sign, new):
        at = len(self.visited)
        fresh = (at & (at + 1)) == 0
        z, r, g = (self.path[-1] if sign > 0 else self.path[0]) if fresh else self.tip
        r = r + 0.5 * sign * self.step_size * g
        z = z + sign * self.step_size * r
        value, g = self.evaluate(z)
        r = r + 0.5 * sign * self.step_size * g
        self.tip = (z, r, g)
        self.visited.append(z)
        new.append(self.tip)
        gain = self.energy - 0.5 * r @ r + value
        self.acceptance += min(1.0, math.exp(gain))
        self.branch_weight = np.logaddexp(self.branch_weight, gain)
        if self.uniforms[at][1] < math.exp(gain - self.branch_weight):
            self.branch = z
        self.diverged = not gain > -1000
        return not self.diverged

    @staticmethod
    def turned(left, right):
        """Of two halves in the order of time."""
        return closed(left + right) or closed([*left, right[0]]) or closed([left[-1], *right])


def closed(leaves):
    rho = sum(r for _, r, _ in leaves)
    return leaves[0][1] @ rho <= 0 or leaves[-1][1] @ rho <= 0


class WithoutChecksOnward(Reference):
    @staticmethod
    def turned(left, right):
        return closed(left + right) or closed([left[-1], *right])


class WithoutChecksBack(Reference):
    @staticmethod
    def turned(left, right):
        return closed(left + right) or closed([*left, right[0]])


def problems(chains, depth):
    """Starts, momenta ``(chains, 2)``, uniforms."""
    rng = np.random.default_rng(3)
    return (*rng.standard_normal((2, chains, 2)), rng.random((2**depth, 3, chains)))


@pytest.mark.parametrize(("step_size", "chains"), [(0.05, 30), (0.2, 60), (0.7, 200)])
def test_the_trees_are_those_of_the_recursion(step_size, chains):
    """Same momenta and uniforms: same leaves, weights and draws, chain by chain."""
    depth = 6
    z, r, uniforms = problems(chains, depth)
    references = [
        Reference(quartic, z[c], r[c], step_size, uniforms[:, :, c], depth) for c in range(chains)
    ]
    trees = start(quartic, z, r, depth=depth)
    visited = [[] for _ in range(chains)]
    waiting = set(range(chains))
    for row in uniforms:
        over = trees.grow(quartic, step_size, row)
        for c in sorted(waiting):
            visited[c].append(trees._point[c, POSITION].copy())
        for c in [c for c in waiting if over[c]]:
            waiting.remove(c)
            reference = references[c]
            assert trees.leaves[c] == len(visited[c]) == len(reference.visited)
            # at most 64 steps of a few roundings of numbers below 10, in a chaotic flow
            np.testing.assert_allclose(visited[c], reference.visited, rtol=0, atol=1e-10)
            np.testing.assert_allclose(trees.draw[c, POSITION], reference.draw, atol=1e-10)
            assert trees.acceptance[c] == pytest.approx(reference.acceptance, abs=1e-9)
            assert trees.diverging[c] == reference.diverged
    assert not waiting
    lengths = {len(reference.visited) for reference in references}
    assert len(lengths) > 3, "trees of several sizes, else nothing was compared"


@pytest.mark.parametrize("fewer", [WithoutChecksOnward, WithoutChecksBack])
def test_the_checks_across_subtrees_matter_here(fewer):
    """Else the comparison above would not see them."""
    z, r, uniforms = problems(200, 6)

    def leaves(kind):
        runs = (kind(quartic, z[c], r[c], 0.7, uniforms[:, :, c], 6) for c in range(200))
        return [len(run.visited) for run in runs]

    assert leaves(Reference) != leaves(fewer)


# -- identities ----------------------------------------------------------------------------------


def test_the_leapfrog_retraces_its_path_when_the_momentum_is_flipped():
    rng = np.random.default_rng(0)
    z, r = 0.3 * rng.standard_normal((2, 50, 2))
    r += 3.0
    forward = np.full((3, 50), 0.25)
    trees = start(quartic, z, r)
    sizes = np.full(50, 0.02)  # short of any turn
    for _ in range(15):
        assert not trees.grow(quartic, sizes, forward).any()
    there = trees._point.copy()
    back = start(quartic, there[:, POSITION], -there[:, MOMENTUM])
    for _ in range(15):
        back.grow(quartic, sizes, forward)
    # 30 steps, each a few roundings of numbers below 10
    np.testing.assert_allclose(back._point[:, POSITION], z, rtol=0, atol=1e-11)
    np.testing.assert_allclose(back._point[:, MOMENTUM], -r, rtol=0, atol=1e-11)


def test_position_density_and_gradient_of_a_draw_stay_together():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((200, 2))
    trees = start(quartic, z, rng.standard_normal(z.shape))
    momenta = trees.draw[:, MOMENTUM].copy()
    moved = np.zeros(200, bool)
    for _ in range(60):
        over = trees.grow(quartic, np.full(200, 0.3), rng.random((3, 200)))
        ended = np.flatnonzero(over)
        value, gradient = quartic(trees.draw[:, POSITION])
        np.testing.assert_allclose(trees.log_density, value, atol=1e-13)
        np.testing.assert_allclose(trees.draw[:, GRADIENT], gradient, atol=1e-13)
        kinetic = 0.5 * (trees.draw[:, MOMENTUM] ** 2).sum(1)
        np.testing.assert_allclose(trees.energy(np.arange(len(z))), kinetic - value, atol=1e-12)
        moved[ended] |= (trees.draw[ended, MOMENTUM] != momenta[ended]).any(1)
        new = rng.standard_normal((len(ended), 2))
        trees.begin(ended, new)
        momenta[ended] = new
    assert moved.all()


# -- invariance ----------------------------------------------------------------------------------


def z_limit(comparisons):
    """Two-sided normal quantile for that many comparisons at the common failure rate."""
    return stats.norm.isf(FAILURE_RATE / (2 * comparisons))


def test_transitions_leave_a_correlated_gaussian_invariant():
    chains = 10_000
    covariance = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.1], [0.0, 0.1, 0.25]])
    factor = np.linalg.cholesky(covariance)
    rng = np.random.default_rng(1)
    z = rng.standard_normal((chains, 3)) @ factor.T
    target = gaussian(np.linalg.inv(covariance))
    for _ in range(3):
        z, leaves, acceptance = transition(target, z, 0.5, rng)
    assert 0.5 < acceptance.mean() < 0.95
    assert len(set(leaves)) > 3
    white = np.linalg.solve(factor, z.T)
    pairs = [(0, 1), (0, 2), (1, 2)]
    # chains are independent: means of N(0, 1), of squares (variance 2), of products (variance 1)
    scores = [
        *(white.mean(1) * math.sqrt(chains)),
        *(((white**2).mean(1) - 1) * math.sqrt(chains / 2)),
        *((white[i] * white[j]).mean() * math.sqrt(chains) for i, j in pairs),
    ]
    assert np.abs(scores).max() < z_limit(9)
    assert stats.kstest((white**2).sum(0), stats.chi2(3).cdf).pvalue > FAILURE_RATE


def banana_scores(z):
    return z[:, 0], 2 * (z[:, 1] - z[:, 0] ** 2)


CASES = {  # target, draws, independent standard normal scores of them, step size
    "banana": (
        banana,
        lambda rng, n: np.stack([x := rng.standard_normal(n), x**2 + rng.normal(0, 0.5, n)], 1),
        banana_scores,
        0.35,
    ),
    "log gamma": (
        log_gamma,
        lambda rng, n: np.log(rng.gamma(2.0, 1.0, (n, 2))),
        lambda z: stats.norm.ppf(stats.gamma(2).cdf(np.exp(z))).T,
        1.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_transitions_leave_targets_that_are_not_gaussian_invariant(case):
    target, draws, scores, step_size = CASES[case]
    chains, rng = 20_000, np.random.default_rng(2)
    before = z = draws(rng, chains)
    for _ in range(2):
        z, _, acceptance = transition(target, z, step_size, rng, depth=5)
    assert 0.5 < acceptance.mean() < 0.97, "the weights must matter"
    assert (z != before).any(1).mean() > 0.9
    one, other = scores(z)
    for values in (one, other):
        assert stats.kstest(values, stats.norm.cdf).pvalue > FAILURE_RATE / 3
    assert abs(np.corrcoef(one, other)[0, 1]) * math.sqrt(chains) < z_limit(3)


@pytest.mark.parametrize("outside", [-math.inf, math.nan, math.inf])
def test_a_wall_is_never_crossed_and_the_target_kept(outside):
    def half_normal(z):
        inside = (z > 0).all(1)
        return np.where(inside, -0.5 * (z**2).sum(1), outside), -z

    chains, rng = 20_000, np.random.default_rng(0)
    z = np.abs(rng.standard_normal((chains, 1)))
    for _ in range(3):
        z, leaves, _ = transition(half_normal, z, 0.5, rng)
    assert (z > 0).all()
    assert leaves.max() > 1
    assert stats.kstest(z[:, 0], stats.halfnorm.cdf).pvalue > FAILURE_RATE


# -- ends ----------------------------------------------------------------------------------------


def test_a_trajectory_that_explodes_ends_as_divergent_where_it_began():
    target = gaussian(np.eye(3) * 1e6)
    z, r = np.full((20, 3), 1e-3), np.ones((20, 3))
    trees = start(target, z, r)
    over = trees.grow(target, 1.0, np.full((3, 20), 0.3))
    assert over.all()
    assert trees.diverging.all()
    assert (trees.acceptance == 0).all()
    np.testing.assert_array_equal(trees.draw[:, POSITION], z)


@pytest.mark.parametrize(("depth", "leaves"), [(1, 1), (2, 3), (4, 15)])
def test_the_depth_limits_the_leaves(depth, leaves):
    flat = gaussian(np.zeros((2, 2)))
    trees = start(flat, np.zeros((3, 2)), np.ones((3, 2)), depth=depth)
    grown = 1
    while not trees.grow(flat, 1.0, np.full((3, 3), 0.4)).all():
        grown += 1
    assert grown == leaves
    # every leaf has the same energy: the last half is at least as heavy, and always taken
    assert (trees.acceptance == leaves).all()
