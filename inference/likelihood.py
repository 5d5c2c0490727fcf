"""Log-likelihood of data under any story, in one unit, with its kind."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.inference.peak_memory import peak_memory
from ppgen.inference.training.minibatches import Data, tensors_of
from ppgen.likelihood import Likelihood
from ppgen.types import ExactDensity, ImportanceWeighted, UnnormalisedDensity

_FEWER = 50  # times fewer draws for the examples that do not get all
_PROBED = 64  # draws whose memory is looked at, where an eighth of all are fewer


def log_likelihood(
    story: object,
    data: Data,
    *,
    samples: int = 5000,
    seed: int | None = None,
    **options: Any,
) -> Likelihood:
    """Mean log-likelihood of `data` under a trained story, in nats per example.

    What the number is depends on what the story offers: ``log_prob`` gives the exact value,
    ``log_weights`` a lower bound by importance sampling; a Boltzmann machine, or one under
    directed layers, has bounds by annealed importance sampling of its log Z. A module is put in
    evaluation mode for the while.

    Args:
        story: an `ExactDensity`, an `ImportanceWeighted` or an `UnnormalisedDensity`.
        data: examples, ``(N, D)``, or a `ppgen.data.Dataset` of them; of a conditional story what
            it is told as well, as for `train`: ``(x, y)``, and the likelihood is that of x given y.
        samples: importance draws per example, K.
        seed: makes a stochastic bound reproducible; the generator is given back as it was.
        options: for importance sampling ``memory=``, bytes that a batch may take (64 MB), and
            ``thorough=``, how many examples get all draws (see `importance_weighted_likelihood`);
            for a story with a code ``annealing=``, an `Annealing`, by which its code is annealed
            instead (`annealed_likelihood`: slower, and no encoder loosens it); for a Boltzmann
            machine those of
            `ppgen.inference.boltzmann_likelihood.boltzmann_likelihood`.

    Raises:
        TypeError: when the story offers none of these; the message says what to add.
        ValueError: when there are no examples, or a bound is not finite.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
    """
    x, *given = tensors_of(data, "data")
    if x.ndim < 2 or not len(x):
        raise ValueError(f"data must have shape (N, D) with N >= 1; got {tuple(x.shape)}")
    training = isinstance(story, torch.nn.Module) and story.training
    if isinstance(story, torch.nn.Module):
        story.eval()
    try:
        with torch.no_grad(), nullcontext() if seed is None else torch.random.fork_rng():
            if seed is not None:
                torch.manual_seed(seed)
            return _dispatch(story, x, given, samples, options)
    finally:
        if isinstance(story, torch.nn.Module):
            story.train(training)


def _dispatch(
    story: Any, data: Tensor, given: list[Tensor], samples: int, options: dict[str, Any]
) -> Likelihood:
    if given or hasattr(story, "log_weights"):
        _check_arguments(story, 1 + len(given))
    if given and "annealing" in options:
        raise TypeError(
            f"annealing is of stories of x alone; {type(story).__name__} is told more: leave "
            "annealing= out"
        )
    if given:
        return importance_weighted_likelihood(story, (data, *given), samples, **options)
    if "annealing" in options:
        from ppgen.inference.decoder_likelihood import annealed_likelihood

        return annealed_likelihood(story, data, options.pop("annealing"), **options)
    if isinstance(story, UnnormalisedDensity):
        from ppgen.inference.boltzmann_likelihood import boltzmann_likelihood

        return boltzmann_likelihood(story, data, samples=samples, **options)
    if isinstance(story, ExactDensity):
        if options:
            raise TypeError(f"an exact density takes no options; got {sorted(options)}")
        return exact_likelihood(story, data)
    if isinstance(story, ImportanceWeighted):
        return importance_weighted_likelihood(story, data, samples, **options)
    raise TypeError(
        f"{type(story).__name__} offers no likelihood: give it log_prob(x) -> (N,) where the "
        "density is a formula, or log_weights(x, samples) -> (samples, N) where it has a guide "
        "(log p(x, z) - log q(z | x), z ~ q), or machine, machine_side, log_unnormalised and "
        "unnormalised_log_weights where a Boltzmann machine is in it"
    )


def _check_arguments(story: Any, given: int) -> None:
    weights = getattr(story, "log_weights", None)
    names = list(inspect.signature(weights).parameters)[:-1] if weights else ["x"]
    if len(names) != given:
        expected = names[0] if len(names) == 1 else f"({', '.join(names)})"
        raise ValueError(
            f"{type(story).__name__} has a likelihood of {' given '.join(names)}: expected "
            f"log_likelihood(story, {expected}); got {given} tensor{'s' if given > 1 else ''}"
        )


def exact_likelihood(story: ExactDensity, data: Tensor, *, batch: int = 4096) -> Likelihood:
    """The mean of ``log_prob``; `batch` examples at a time."""
    each = torch.cat([story.log_prob(part).double().cpu() for part in data.split(batch)])
    mean = _finite(each).mean().item()
    details = {"examples_error": _error(each)}
    return Likelihood(
        "exact", mean, mean, 0.0, 0.0, "change of variables or formula", len(data), details,
        each.numpy(),
    )  # fmt: skip


def importance_weighted_likelihood(
    story: ImportanceWeighted,
    data: Tensor | Sequence[Tensor],
    samples: int = 5000,
    *,
    thorough: int | None = None,
    memory: float = 6.4e7,
) -> Likelihood:
    r"""The importance weighted bound with K draws per example.

    .. math:: \mathcal{L}_K = E \log \frac1K \sum_k w_k \le \log p(x), \quad
        w_k = \frac{p(x, z_k)}{q(z_k \mid x)}

    The weights are streamed, so that memory does not depend on K. Its Monte Carlo error is that of
    the mean over examples of a log of a mean (delta method); `details` holds beside it
    ``elbo``, ``examples_error`` (over examples, as a sample of others), ``effective_draws``
    (median over examples of ``(sum w)^2 / sum w^2``: a handful means a loose bound).

    With ``thorough=n`` only n examples, taken at random, get all K draws; all get a fiftieth of
    them, and the mean is raised by what the other draws were worth on those n. In the mean that is
    the same number, and it costs a small part: the difference of two bounds of an example varies
    much less from example to example than the bounds themselves. Its error counts that in.
    """
    weights, data = story.log_weights, (data,) if isinstance(data, Tensor) else data
    if thorough is None or thorough >= len(data[0]):
        found = importance_bound(weights, data, samples, memory=memory)
        return _lower(found, found.each, found.error, found.method)
    if thorough < 2:
        raise ValueError(f"thorough must be at least 2 examples; got {thorough}")
    found = importance_bound(weights, data, max(1, samples // _FEWER), memory=memory)
    rows = torch.randperm(len(data[0]))[:thorough]
    few = [part[rows.to(part.device)] for part in data]
    more = importance_bound(weights, few, samples, memory=memory)
    raised = more.each - found.each[rows]
    share = thorough / len(data[0])  # of the rows whose first bounds cancel against those of all
    error = math.hypot(_error(raised) * (1 - share) ** 0.5, more.error * share**0.5)
    less = found.details["samples"]
    method = f"{more.method} on {thorough} examples, with {less} on all and the mean difference"
    found.details.update(
        samples=samples, thorough=thorough, effective_draws=more.details["effective_draws"]
    )
    return _lower(found, found.each + raised.mean(), error, method)


def _lower(found: ImportanceBound, each: Tensor, error: float, method: str) -> Likelihood:
    value = each.mean().item()
    return Likelihood(
        "lower", value, None, error, None, method, len(each), found.details, each.numpy()
    )


class ImportanceBound(NamedTuple):
    """The importance weighted bound of each example."""

    each: Tensor  # (N,), float64, nats
    error: float  # Monte Carlo standard error of its mean
    method: str  # in words
    details: dict[str, Any]  # see `importance_weighted_likelihood`


def importance_bound(
    log_weights: Callable[..., Tensor],
    data: Tensor | Sequence[Tensor],
    samples: int,
    *,
    memory: float = 6.4e7,
) -> ImportanceBound:
    """Log of the mean of `samples` weights, ``log_weights(x, ..., samples) -> (samples, B)``."""
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    data = (data,) if isinstance(data, Tensor) else data
    x = data[0]
    one = [part[:1] for part in data]
    budget = max(1, int(memory / _bytes_per_draw(log_weights, one, samples * len(x), memory)))
    batches = zip(*(part.split(min(budget, 256)) for part in data), strict=True)
    parts = [_streamed(log_weights, batch, samples, budget) for batch in batches]
    bound, elbo, variance, effective = (
        torch.cat(column).cpu() for column in zip(*parts, strict=True)
    )
    _finite(bound)
    details = {
        "samples": samples,
        "elbo": elbo.mean().item(),
        "examples_error": _error(bound),
        "effective_draws": effective.median().item(),
    }
    error = math.sqrt(variance.sum().item()) / len(x) if samples > 1 else math.inf
    method = f"importance sampling with {samples} draws"
    return ImportanceBound(bound, error, method, details)


def _bytes_per_draw(
    log_weights: Callable[..., Tensor], example: Sequence[Tensor], work: int, memory: float
) -> float:
    """What one more draw takes of memory, measured on one example: its shape does not tell.

    More and more draws are looked at, until what is there of the parameters hides nothing, or an
    eighth of the `work`, all draws of all examples, has been done.
    """
    draws, once = 1, peak_memory(lambda: log_weights(*example, 1))
    used, each, most = once, float(once), max(work // 8, _PROBED)
    while draws < most and used - once < memory / 4:
        more = min(4 * draws, most)
        after = peak_memory(lambda k=more: log_weights(*example, k))
        each = (after - used) / (more - draws)
        draws, used = more, after
    return max(each, example[0].element_size())


def _streamed(
    log_weights: Callable[..., Tensor], batch: tuple[Tensor, ...], samples: int, budget: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bound, ELBO, Monte Carlo variance of the bound, effective draws; each ``(B,)``."""
    shape = (len(batch[0]),)
    total = torch.zeros(shape, dtype=torch.float64, device=batch[0].device)
    once, twice = total - math.inf, total - math.inf  # log sum w, log sum w^2
    done = 0
    while done < samples:
        count = min(samples - done, max(1, budget // shape[0]))
        w = log_weights(*batch, count)
        if w.shape != (count, *shape):
            raise ValueError(
                f"log_weights must return (samples, examples) = {(count, *shape)}; "
                f"it returned {tuple(w.shape)}"
            )
        w = w.double()
        total = total + w.sum(0)
        once = torch.logaddexp(once, w.logsumexp(0))
        twice = torch.logaddexp(twice, (2 * w).logsumexp(0))
        done += count
    effective = torch.exp(2 * once - twice)
    # Var(log mean w) = (K / ESS - 1) / (K - 1), from the sample variance of the weights
    variance = (samples / effective - 1).clamp(min=0) / max(samples - 1, 1)
    return once - math.log(samples), total / samples, variance, effective


def _error(each: Tensor) -> float:
    return (each.std() / math.sqrt(len(each))).item() if len(each) > 1 else math.inf


def _finite(each: Tensor) -> Tensor:
    if not each.isfinite().all():
        row = int((~each.isfinite()).nonzero()[0])
        raise ValueError(
            f"the log-likelihood of row {row} is {each[row].item()}: look for missing values in "
            "that row or in the story's parameters"
        )
    return each
