"""Log-likelihood of data under a Boltzmann machine, or under one with directed layers below it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppgen.inference.annealed_importance_sampling import (
    LogPartition,
    Schedule,
    annealed_importance_sampling,
)
from ppgen.inference.likelihood import ImportanceBound, importance_bound
from ppgen.inference.reverse_annealing import raise_bounds
from ppgen.likelihood import Likelihood
from ppgen.types import UnnormalisedDensity

_ERRORS = 4.3  # standard errors, a failure rate of 2e-5


def boltzmann_likelihood(
    story: UnnormalisedDensity,
    x: Tensor,
    *,
    samples: int = 1000,
    chains: int = 100,
    temperatures: Schedule = 1000,
    base: Tensor | None = None,
    burn_in: int = 1000,
    raise_chains: int = 0,
    memory: float = 6.4e7,
    seed: int | None = None,
) -> Likelihood:
    """Mean ``log p(x)`` of binary data under an RBM, a DBM or a DBN.

    It has two parts. ``log p(x) + log Z`` is a formula for an RBM and a sum for a small DBM, else
    bounded from below by importance sampling. log Z is a sum up to 20 units on the smaller side,
    else bracketed. So the answer is exact, or a pair of bounds, or (where the first part is only
    bounded) a lower bound, from which the *upper* bound of log Z has been subtracted.

    Args:
        story: the machine, or what has it on top; see `UnnormalisedDensity`.
        x: data, ``(N, D)`` in {0, 1}.
        samples: importance draws per example where latent layers are left.
        chains: and the rest: see `annealed_importance_sampling`; `base` is by default the base
            rates of the machine's visible side, with x clamped.
        temperatures: see there.
        base: see there.
        burn_in: see there.
        raise_chains: reverse passes from each example. With some, `details` hold under "raise" a
            lower bound for the *annealing model* with the same base and temperatures, which needs
            no draws from the machine, each example's own (`each`) and their mean (`bound`). Far
            below the lower bound, it says that annealing does not reach what the machine has
            learned. See `raise_bounds`.
        memory: bytes that a batch of importance draws may take.
        seed: for this call alone; torch's global generator if None.

    Raises:
        ValueError: when x is not binary, as the score of a grey image is no likelihood; when the
            data alone show that annealed importance sampling has missed modes.
    """
    machine = story.machine
    if x.dim() != 2 or len(x) == 0:
        raise ValueError(f"x: expected shape (N, D) with N > 0, got {tuple(x.shape)}")
    if raise_chains < 0:
        raise ValueError(f"raise_chains: expected 0 or more, got {raise_chains}")
    machine.units.require(x, story.visible)
    x = x.to(machine.visible_bias)
    with torch.random.fork_rng(enabled=seed is not None), torch.no_grad():
        if seed is not None:
            torch.manual_seed(seed)
        score = _score(story, x, samples, memory)
        if base is None and (raise_chains or not machine.marginal().enumerable):
            base = machine.units.fitted(story.machine_side(x))
            discrete = machine.units.support.is_discrete
            name = "base rates of the data" if discrete else "normal laws of the data's columns"
        else:
            name = "given biases"
        if raise_chains:
            each = raise_bounds(
                machine, x, chains=raise_chains, temperatures=temperatures, base=base
            )
            score.details["raise"] = {"bound": each.mean().item(), "each": each}
        if machine.marginal().enumerable:
            summed = machine.units.binary or machine.hidden_units.binary
            how = "log Z by enumeration" if summed else "log Z in closed form"
            return _with_exact(machine.marginal().log_partition().item(), score, how)
        z = annealed_importance_sampling(
            machine,
            chains=chains,
            temperatures=temperatures,
            base=base,
            base_name=name,
            burn_in=burn_in,
        )
    if machine.units.support.is_discrete:
        _refuse_impossible(x, score.each, z)
    return _with_bounds(z, score)


def _score(story: UnnormalisedDensity, x: Tensor, samples: int, memory: float) -> ImportanceBound:
    """``log p(x) + log Z`` of each example; without a method in words where it is exact."""
    exact = story.log_unnormalised(x)
    if exact is not None:
        return ImportanceBound(exact.double(), 0.0, "", {})
    return importance_bound(story.unnormalised_log_weights, x, samples, memory=memory)


def _with_exact(log_partition: float, score: ImportanceBound, method: str) -> Likelihood:
    value, count = score.each.mean().item() - log_partition, len(score.each)
    details, each = _normalised(score, log_partition), (score.each - log_partition).cpu().numpy()
    if not score.method:
        return Likelihood("exact", value, value, 0.0, 0.0, method, count, details, each)
    method = f"{score.method}, {method}"
    return Likelihood("lower", value, None, score.error, None, method, count, details, each)


def _with_bounds(z: LogPartition, score: ImportanceBound) -> Likelihood:
    mean, count = score.each.mean().item(), len(score.each)
    (low, low_error), (high, high_error) = _ends(z)
    details = {**_normalised(score, high), "log_partition": z}
    each = (score.each - high).cpu().numpy()
    if not score.method:
        ends = mean - high, mean - low
        return Likelihood("bounds", *ends, high_error, low_error, z.text, count, details, each)
    error = math.hypot(score.error, high_error)
    method = f"{score.method}, {z}"
    return Likelihood("lower", mean - high, None, error, None, method, count, details, each)


def _ends(z: LogPartition) -> list[tuple[float, float]]:
    """The lower and the higher estimate of log Z, each with its error.

    A low log Z makes a model look better than it is, so it is the higher one that gives the lower
    bound: the reverse pass, unless long chains have let it fall below the forward one.
    """
    return sorted([(z.lower, z.lower_error), (z.upper, z.upper_error)])


def _normalised(score: ImportanceBound, log_partition: float) -> dict[str, object]:
    details = dict(score.details)
    if "elbo" in details:
        details["elbo"] -= log_partition
    return details


def _refuse_impossible(x: Tensor, each: Tensor, z: LogPartition) -> None:
    """The probabilities of distinct examples sum to at most 1, so their sum is below Z.

    Both passes can miss the same mode; the reverse one starts where the forward one ended.
    """
    distinct, place = x.unique(dim=0, return_inverse=True)
    first = each.new_zeros(len(distinct))
    first[place] = each.to(first.device)  # copies of an example overwrite each other
    known = torch.logsumexp(first, 0).item()
    (low, _), (high, error) = _ends(z)
    if known > high + _ERRORS * error:
        raise ValueError(
            f"annealed importance sampling has missed modes: it puts log Z at {low:.1f} to "
            f"{high:.1f} nats, but the data alone already sum to {known:.1f}. The machine mixes "
            "too badly to be measured so; train it with a smaller learning rate, or use more "
            "temperatures and chains"
        )
