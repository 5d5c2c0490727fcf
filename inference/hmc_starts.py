"""Where many chains begin: drawn from normals on the way up from each start, and dispersed.

Each chain climbs from its own start by L-BFGS, which is blind to the scale of the coordinates; the
curvature at the median chain whitens them. There Pathfinder keeps the best normal of each path,
so that a density that rises without limit where it has no mass does not lead astray. Chains are
dealt to paths by the mass of these normals and drawn from them, wider than they are, so that R-hat
keeps something to see.

References:
    | Pathfinder (Zhang, Carpenter, Gelman & Vehtari, 2022) | https://arxiv.org/abs/2108.03782
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.inference import lbfgs
from ppgen.inference.hmc import Metric, State, ValueAndGrad, init
from ppgen.inference.lbfgs import choose
from ppgen.inference.pathfinder import Paths, search
from ppgen.inference.target import InPieces

_NOTHING = 0.1  # nats that matter to no posterior
_NEGLIGIBLE = 10.0  # nats of the ELBO, D apart, below the best path: no mass to start from
_ELBO_DRAWS = 2  # an antithetic pair, the same for all paths
_ITERATIONS = 30
_WIDER = 1.5  # standard deviations of the dispersion


def climb(
    value_and_grad: ValueAndGrad,
    z: Tensor,
    *,
    iterations: int = 200,
    memory: int = 10,
    enough: float | None = None,
) -> State:
    """L-BFGS ascent of every chain from its own start ``(C, D)``, in lock-step.

    Each iteration is one call of `value_and_grad`: a chain whose trial point does not rise
    enough keeps its place and tries a shorter step next time. A chain rests when the gradient in
    the norm of the inverse curvature, ``g' H g``, falls to D, what it is on average over a
    Gaussian posterior: it has reached the posterior's bulk. To go on to the top would be wrong:
    the density of a hierarchy is unbounded where its scale vanishes, and has no mass there. A
    chain that never comes to rest goes back to where its climb was the least steep.

    Args:
        value_and_grad: of the target.
        z: starts of finite log density.
        iterations: at most, one call each.
        memory: pairs of differences that the model of the curvature is made of.
        enough: ``g' H g`` at which a chain rests, nats; D unless given.
    """
    at = init(z, value_and_grad)
    state, rest = lbfgs.init(at, memory), at
    calm = torch.zeros_like(at.log_density)  # successive iterations in the bulk
    flattest = torch.full_like(calm, torch.inf)
    enough = float(z.shape[-1]) if enough is None else enough
    for _ in range(iterations):
        known = state.curved
        flatter = (state.slope < flattest) & known
        flattest = torch.where(flatter, state.slope, flattest)
        rest = choose(flatter, state.at, rest)

        state, info = lbfgs.step(state, value_and_grad, calm < 2)
        # In the bulk: a Newton step would gain little, and does lessen the slope (on a straight
        # ramp it would not), or has come down to rounding.
        little = (known | (info.slope == 0)) & (info.slope < enough) & ~(info.gain >= enough)
        little = little & ((info.moved & ~info.steep) | (info.slope < _NOTHING))
        calm = torch.where(little | (calm >= 2), calm + 1, 0.0)
        if bool((calm >= 2).all()):
            break
    return choose(calm >= 2, state.at, rest)


def curvature(value_and_grad: ValueAndGrad, at: Tensor, chains: int) -> Tensor:
    """Minus the Hessian at ``(D,)`` by central differences, ``(D, D)``.

    `chains` points go into each call, so that the shape is the one already recorded.
    """
    dim = len(at)
    reach = torch.finfo(at.dtype).eps ** (1 / 3) * (1.0 + at.abs())
    rows = []
    for start in range(0, dim, chains):
        which = torch.arange(start, start + chains, device=at.device).clamp(max=dim - 1)
        shift = torch.zeros(chains, dim, dtype=at.dtype, device=at.device)
        shift[torch.arange(chains), which] = reach[which]
        difference = value_and_grad(at - shift)[1] - value_and_grad(at + shift)[1]
        rows.append((difference / (2 * reach[which]).unsqueeze(-1))[: dim - start])
    hessian = torch.cat(rows)
    return 0.5 * (hessian + hessian.mT)


def laplace(hessian: Tensor) -> Tensor:
    """Positive definite covariance from minus a Hessian ``(D, D)`` that may have any sign."""
    if not bool(torch.isfinite(hessian).all()):
        return torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    scale = hessian.diagonal().abs()
    scale = scale.clamp(min=float(scale.max()) * 1e-16 + 1e-12).sqrt()
    values, vectors = torch.linalg.eigh(hessian / scale / scale.unsqueeze(-1))
    # Directions of negative curvature count by their size (saddle-free Newton).
    roots = vectors / values.abs().clamp(min=1e-9).sqrt() / scale.unsqueeze(-1)
    return roots @ roots.mT


def median(state: State) -> int:
    """The chain of median log density."""
    return int(state.log_density.median(0).indices)


def paths(value_and_grad: ValueAndGrad, z: Tensor, frame: Metric) -> Paths:
    """The best normal on each path up from ``z (C, D)``, in the coordinates ``L^{-1} z``."""
    target = frame.inside(InPieces(value_and_grad, len(z)))
    noise = z.new_empty(_ELBO_DRAWS // 2, 1, z.shape[-1]).normal_()
    noise = torch.cat([noise, -noise]).expand(-1, len(z), -1)
    return search(frame.whiten(z), target, noise, iterations=_ITERATIONS)


def tempered(dim: int) -> float:
    """Nats of the ELBO that count as one between paths: what crude normals of D dimensions lack."""
    return 2.0 + 0.1 * dim


def most_at_top(found: Paths) -> bool:
    """Whether a further step would gain less than a nat on most paths: they end at a mode."""
    return bool((found.climb.slope < 1.0).double().mean() > 0.5)


def choose_paths(found: Paths) -> tuple[Tensor, int]:
    """Which path each chain starts from, ``(C,)``, and how many lead to places without mass.

    A path's ELBO is a lower bound of the log mass around it. Paths are resampled by these masses,
    tempered, since a poor normal on the way to the bulk is a place to start from as well.
    """
    count, dim = found.at.shape
    best = found.elbo.max()
    if not bool(torch.isfinite(best)):
        return torch.arange(count, device=found.at.device), 0
    lost = found.elbo < best - (_NEGLIGIBLE + dim)
    log_weights = ((found.elbo - best) / tempered(dim)).masked_fill(lost, -torch.inf)
    cumulative = log_weights.softmax(0).cumsum(0)
    ticks = (torch.arange(count).to(cumulative) + 0.5) / count
    return torch.searchsorted(cumulative, ticks).clamp(max=count - 1), int(lost.sum())


def draw(value_and_grad: ValueAndGrad, found: Paths, source: Tensor, frame: Metric) -> State:
    """A draw for each chain from the normal of its path, wider, but not where density collapses."""
    best = found.best.rows(source)
    result = init(frame.push(found.at[source]), value_and_grad)
    dim = result.z.shape[-1]
    lowest = result.log_density - (4.0 * dim + 10.0)
    noise = torch.randn_like(result.z)
    width, done = _WIDER, torch.zeros_like(result.log_density, dtype=torch.bool)
    for _ in range(8):
        trial = init(frame.push(best.push(width * noise)), value_and_grad)
        good = (trial.log_density >= lowest) & torch.isfinite(trial.gradient).all(-1) & ~done
        result = choose(good, trial, result)
        done = done | good
        if bool(done.all()):
            break
        width *= 0.5
    return result
