"""Warm-up of many-chain HMC: starts, metric in stages, step size and trajectory throughout.

The metric is estimated from all chains together. Each estimate is shrunk towards the metric in
force, in the coordinates that this metric whitens: so neither units nor correlations matter.
A stage after which the metric stays as it was, the chains agree and their density drifts nowhere is
followed by the last one: an easy posterior takes less than half of the iterations that are allowed.
Nothing is adapted once `warm_up` has returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ppgen import diagnostics
from ppgen.inference import chees, hmc_starts
from ppgen.inference.hmc import Info, Metric, State, ValueAndGrad, init, step

JITTER = 0.5  # share of the trajectory that varies; see `chees.jittered`
MetricName = Literal["auto", "diag", "dense"]

_STAGES = (0.08, 0.2, 0.35, 0.55, 0.8)  # shares of the warm-up after which the metric is renewed
_FIRST_LEAPFROGS = 8  # steps while chains still fall into the typical set
_CORRELATED = 5.0  # condition number of the correlations from which a dense metric pays
DENSE_LIMIT = 200  # dimensions; beyond it "auto" stays diagonal
_HESSIAN_LIMIT = 500  # dimensions; beyond it no first metric is taken from the curvature
_ROUNDS = 3  # of the search for normals to start from, where paths do not end at a top
_ORDERS = 100.0  # between widths by the curvature and by the starts: the first is mistaken
_FEW = 8  # chains; fewer say nothing about each other
_SAME = 1.5  # factor of a variance that makes no other metric
_AGREEING = 1.05  # R-hat of the draws of one stage
_DRIFT = 3.0  # standard errors of the log density between the halves of a stage
_ENOUGH = 20  # iterations of a stage that can say that it was enough
_WORTH = 0.4  # independent draws that a kept draw should be worth, in long chains
_LONG = 200  # draws of a chain
_MARGIN = 1.5  # over what R-hat asks of shorter ones: the estimate from the warm-up is optimistic
_THINNED_LEAPFROGS = 100.0  # gradients that a kept draw may cost on account of thinning
_APART = 1.5  # R-hat of the draws of a stage
_FALLEN = 0.5  # share of R-hat's excess that a next stage leaves where chains come nearer
_DIVERGING = 0.005  # share of the transitions of a stage
_LAST = 20  # iterations that follow where there is no hope
_PRIOR_DRAWS = 10.0  # weight of the metric in force when it is renewed, in draws


class Tuned(NamedTuple):
    """What sampling needs, frozen."""

    state: State
    metric: Metric
    step_size: float
    trajectory: float  # tau, whitened time units
    moved: int  # starts that led into modes without mass, and were moved
    thin: int  # transitions to a draw
    hopeless: bool = False  # chains stay apart and trajectories diverge, stage after stage


def warm_up(
    z: Tensor,
    value_and_grad: ValueAndGrad,
    *,
    iterations: int,
    target_accept: float,
    max_leapfrog: int,
    metric: MetricName,
    draws: int = 200,
    jitter: float = JITTER,
    canonical: Callable[[Tensor], Tensor] = lambda z: z,
    advance: Callable[[float, Info], bool] = lambda step_size, info: True,
) -> Tuned:
    """From dispersed starts ``(C, D)`` to tuned chains.

    Args:
        z: starting points with finite log density.
        value_and_grad: of the target.
        iterations: of HMC, at most; the optimisation before them costs up to 250 gradients more.
        target_accept: for the harmonic mean acceptance over chains.
        max_leapfrog: longest trajectory, in steps.
        metric: `auto` is dense where the parameters are strongly correlated.
        draws: that each chain will keep.
        jitter: share of the trajectory that varies between iterations, in [0, 1].
        canonical: one of the points ``(N, D)`` that the story's exchangeable components make equal;
            what differs by their numbers alone would look like chains apart.
        advance: told the step size and info of each iteration; False ends the warm-up early.
    """
    state, current, moved = starts(z, value_and_grad, metric, canonical)
    steps = chees.start_step_size(reasonable_step_size(state, value_and_grad, current))
    shortest = quarter_period(1.0, jitter)
    path = chees.start_trajectory(shortest)
    renewals = [math.ceil(share * iterations) for share in _STAGES]
    falling, last_stage, end = renewals[0], iterations - renewals[-1], iterations
    window: list[State] = []
    stages: list[Stage] = []
    diverged = 0
    for t in range(iterations):
        if t == end:
            break
        epsilon, before = math.exp(steps.log), state.z
        wanted = chees.leapfrogs(t, math.exp(path.log), epsilon, jitter=jitter)
        state, info = step(
            state,
            value_and_grad=value_and_grad,
            metric=current,
            step_size=epsilon,
            leapfrogs=min(wanted, _FIRST_LEAPFROGS if t < falling else max_leapfrog),
        )
        steps = chees.update_step_size(steps, chees.harmonic_acceptance(info), target_accept)
        window.append(state)
        diverged += int(info.diverging.sum())
        if t >= falling:
            gradient = chees.criterion_gradient(before, info, current, chees.jittered(t, jitter))
            longest = max(shortest, 1000.0 * epsilon)
            path = chees.update_trajectory(path, gradient, shortest=shortest, longest=longest)
        if t + 1 in renewals and t + 1 < end:
            window = in_order(window, canonical)
            before_renewal = current
            current, spread = renew(current, torch.stack([s.z for s in window]), metric)
            if t + 1 > falling:
                stages.append(Stage.of(window, diverged))
                if hopeless(stages):
                    end = t + 1 + _LAST
                elif settled(window, before_renewal, current):
                    end = t + 1 + last_stage
            steps = chees.start_step_size(math.exp(steps.log_average))
            shortest = quarter_period(spread, jitter)
            path = chees.start_trajectory(shortest)
            window, diverged = [], 0
        if not advance(epsilon, info):
            break
    epsilon, trajectory = math.exp(steps.log_average), math.exp(path.log_average)
    kept, lost = [s.z for s in in_order(window, canonical)], hopeless(stages)
    thin = 1
    if kept and not lost:
        thin = thinning(torch.stack(kept, 1), trajectory / epsilon, draws)
    return Tuned(state, current, epsilon, trajectory, moved, thin, lost)


def in_order(states: list[State], canonical: Callable[[Tensor], Tensor]) -> list[State]:
    """The same states with positions as `canonical` has them; gradients stay where they were."""
    if not states:
        return states
    z = canonical(torch.stack([s.z for s in states]))
    return [s._replace(z=x) for s, x in zip(states, z, strict=True)]


class Stage(NamedTuple):
    """How a stage of the warm-up went."""

    rhat: float  # the largest, of its draws; infinite where a chain did not move
    diverging: float  # share of its transitions

    @classmethod
    def of(cls, window: list[State], diverged: int) -> Stage:
        draws = torch.stack([s.z for s in window], 1)
        few = draws.shape[0] < _FEW or draws.shape[1] < _ENOUGH
        rhat = 1.0 if few else float(diagnostics.rhat(draws).max())
        return cls(rhat, diverged / draws[..., 0].numel())


def hopeless(stages: list[Stage]) -> bool:
    """Whether the last two stages had chains apart, no nearer in the second, and divergences.

    So it is in a funnel: some chains sit in its neck, where no step is small enough. Going on with
    ever longer trajectories would cost most of a run and end with the same answer, none.
    """
    if len(stages) < 2:
        return False
    before, after = stages[-2:]
    apart = before.rhat > _APART and after.rhat - 1 > max(
        _APART - 1, _FALLEN * min(before.rhat - 1, 10.0)
    )
    return apart and min(before.diverging, after.diverging) > _DIVERGING


def settled(window: list[State], before: Metric, after: Metric) -> bool:
    """Whether a stage has shown that the chains are where they belong, and how wide that is.

    Args:
        window: the states of all chains after each of its iterations.
        before: the metric that was in force.
        after: the metric that its draws gave.
    """
    half = len(window) // 2
    few = half < _ENOUGH // 2 or len(window[0].z) < _FEW
    if few or before.dense != after.dense:
        return False
    if before.dense:
        change = torch.linalg.solve_triangular(before.factor, after.factor, upper=False)
        ratios = torch.linalg.svdvals(change).square()
    else:
        ratios = (after.factor / before.factor).square()
    width = (1.0 + noise(len(ratios), len(window) * len(window[0].z))) ** 2 if before.dense else 1.0
    if not bool((ratios.log().abs() <= math.log(_SAME * width)).all()):
        return False
    density = torch.stack([s.log_density for s in window], 1)  # (C, N)
    drift = density[:, half:].mean(1) - density[:, :half].mean(1)
    error = float(drift.std()) / math.sqrt(len(drift))
    if not abs(float(drift.mean())) <= _DRIFT * error:
        return False
    rhat = diagnostics.rhat(torch.stack([s.z for s in window], 1))
    return bool((rhat <= _AGREEING).all())


def thinning(window: Tensor, leapfrogs: float, draws: int) -> int:
    """Transitions to a draw, from the last stage's ``(C, N, D)`` and the steps of a trajectory.

    R-hat of many short chains is about ``1 + (1 / e - 1) / 2 N`` where every half chain holds N
    draws worth e independent ones each: at N = 100 it passes 1.01 only if e exceeds a third, at
    N = 50 only if it exceeds a half. So where location or spread of any parameter mixes slower,
    several transitions make one draw; not where that would cost hundreds of gradients.
    """
    if window.shape[1] < 10:
        return 1
    worth = _WORTH if draws >= _LONG else min(0.9, _MARGIN / (1.0 + 0.01 * draws))
    spread = (window - window.flatten(0, 1).median(0).values).abs()
    ess = min(diagnostics.ess_bulk(x).min() for x in (window, spread))
    share = max(float(ess) / window[..., 0].numel(), 1e-3)  # NaN where a chain never moved
    affordable = max(1.0, _THINNED_LEAPFROGS / max(1.0, leapfrogs))
    return math.ceil(min(worth / share, affordable)) if share < worth else 1


def quarter_period(spread: float, jitter: float) -> float:
    """Trajectory whose mean length decorrelates a Gaussian of standard deviation `spread`."""
    return 0.5 * math.pi * spread / (1.0 - 0.5 * jitter)


def starts(
    z: Tensor,
    value_and_grad: ValueAndGrad,
    metric: MetricName,
    canonical: Callable[[Tensor], Tensor] = lambda z: z,
) -> tuple[State, Metric, int]:
    """Climb from ``z (C, D)``, find normals in the coordinates that the curvature whitens, draw.

    Where most paths reach a top, that is all. Else the density has a pole or a long ridge, on
    the way to which the paths may have missed the bulk: then the draws, wider than the normals,
    are starts of further rounds, as long as these find clearly more mass.

    Returns: the state, the metric, and how many starts led to places without mass.
    """
    chains, moved, mass = len(z), 0, -math.inf
    state = hmc_starts.climb(value_and_grad, z)
    if (ordered := canonical(state.z)) is not state.z:
        state = init(ordered, value_and_grad)
    frame = whitening(value_and_grad, state.z[hmc_starts.median(state)], chains, metric)
    for _ in range(_ROUNDS):
        paths = hmc_starts.paths(value_and_grad, state.z, frame)
        found = float(paths.elbo.max())
        if not found > mass + hmc_starts.tempered(z.shape[-1]) and math.isfinite(mass):
            break
        source, lost = hmc_starts.choose_paths(paths)
        mass, moved = found, max(moved, lost)
        state = hmc_starts.draw(value_and_grad, paths, source, frame)
        best = frame.push(paths.at[int(paths.elbo.argmax())])
        frame = whitening(value_and_grad, best, chains, metric)
        if hmc_starts.most_at_top(paths):
            break
    return state, believable(frame, state.z), moved


def believable(frame: Metric, z: Tensor) -> Metric:
    """`frame`, or the spread of the starts ``z (C, D)`` where they fill next to nothing of it.

    A Laplace prior has no curvature beside its kink: it seems endlessly wide, and later metrics
    would be slow to shrink. (A metric that is too narrow is widened at once.)
    """
    if len(z) < _FEW:
        return frame
    spread = frame.whiten(z - z.mean(0)).std(0)
    return Metric(z.std(0)) if float(spread.min()) < 1.0 / _ORDERS else frame


def whitening(value_and_grad: ValueAndGrad, at: Tensor, chains: int, metric: MetricName) -> Metric:
    """Metric of the curvature at ``(D,)``, by calls of `chains` points; unit in high dimension."""
    if len(at) > _HESSIAN_LIMIT:
        return Metric(torch.ones_like(at))
    curvature = hmc_starts.curvature(value_and_grad, at, chains)
    return from_covariance(hmc_starts.laplace(curvature), metric)


def noise(dim: int, draws: int) -> float:
    """Relative width of the spectrum that sampling alone gives to a white covariance.

    Marchenko and Pastur: its eigenvalues fill ``(1 - noise)^2`` to ``(1 + noise)^2``. Successive
    draws of a tuned chain count as half a draw each.
    """
    return min(math.sqrt(2.0 * dim / draws), 0.9)


def from_covariance(covariance: Tensor, metric: MetricName, draws: int | None = None) -> Metric:
    """Metric of the chosen kind for a covariance ``(D, D)``, estimated from that many `draws`."""
    scale = covariance.diagonal().sqrt()
    if metric == "diag" or (metric == "auto" and len(scale) > DENSE_LIMIT):
        return Metric(scale)
    correlation = covariance / scale / scale.unsqueeze(-1)
    if metric == "auto":
        values = torch.linalg.eigvalsh(correlation)
        width = 0.0 if draws is None else noise(len(scale), draws)
        limit = _CORRELATED * ((1.0 + width) / (1.0 - width)) ** 2
        if float(values[-1]) < limit * float(values[0]):
            return Metric(scale)
    factor, failed = torch.linalg.cholesky_ex(correlation)
    if int(failed):
        return Metric(scale)  # singular to rounding
    return Metric(scale.unsqueeze(-1) * factor)


def renew(current: Metric, draws: Tensor, metric: MetricName) -> tuple[Metric, float]:
    """Metric from the last stage's draws ``(N, C, D)`` of all chains together.

    The metric in force stays where the draws do not contradict it: few of them in many dimensions
    know the covariance less well than the curvature that it came from.

    Returns: the metric, and the largest standard deviation (noise apart, at least 1) left in any
    direction once the draws are whitened by it.
    """
    x = draws.flatten(0, 1)
    x = x - x.mean(0)
    count, dim = x.shape
    white = current.whiten(x)
    if current.dense and as_white(white):
        renewed = current
    elif metric == "diag" or (metric == "auto" and dim > DENSE_LIMIT):
        variance = (white.square().sum(0) + _PRIOR_DRAWS) / (count + _PRIOR_DRAWS)
        scale = variance.sqrt()
        renewed = Metric(current.push(scale)) if not current.dense else Metric(x.std(0))
    else:
        prior = _PRIOR_DRAWS * torch.eye(dim, dtype=x.dtype, device=x.device)
        inner = (white.mT @ white + prior) / (count + _PRIOR_DRAWS)
        renewed = from_covariance(current.push(current.push(inner).mT), metric, count)
    return renewed, max(1.0, largest_spread(renewed.whiten(x)) / (1.0 + noise(dim, count)))


def as_white(white: Tensor) -> bool:
    """Whether ``(N, D)`` may be draws of a density of unit covariance, to a factor `_SAME`."""
    count, dim = white.shape
    values, width = torch.linalg.eigvalsh(white.mT @ white / count), noise(dim, count)
    low = (1.0 - width) ** 2 / _SAME if 2 * dim < count else 0.0  # fewer have no width at all
    return bool((values >= low).all() & (values <= _SAME * (1.0 + width) ** 2).all())


def largest_spread(white: Tensor, iterations: int = 20) -> float:
    """Root of the largest eigenvalue of the covariance of ``(N, D)``, by power iteration."""
    direction = white.square().mean(0).sqrt()
    spread = 1.0
    for _ in range(iterations):
        direction = direction / direction.norm()
        along = white @ direction
        spread = math.sqrt(float(along.square().mean()))
        direction = along @ white
    return spread


def reasonable_step_size(
    state: State, value_and_grad: ValueAndGrad, metric: Metric, guess: float = 1.0
) -> float:
    """Largest power of two times `guess` at which one leapfrog step is accepted with .8."""
    epsilon, direction = guess, 0
    for _ in range(60):
        _, info = step(
            state, value_and_grad=value_and_grad, metric=metric, step_size=epsilon, leapfrogs=1
        )
        wanted = 1 if chees.harmonic_acceptance(info) > 0.8 else -1
        if direction == -wanted:
            return epsilon if wanted > 0 else 0.5 * epsilon
        direction = wanted
        epsilon *= 2.0**direction
    return epsilon
