"""One call for every inference method."""

from __future__ import annotations

import reprlib
import warnings
from dataclasses import replace
from typing import Any, Literal

import torch

from ppgen.inference.decorrelate import along_axes, decorrelated
from ppgen.inference.hierarchies import hierarchies, listed
from ppgen.inference.hmc_engine import HMC
from ppgen.inference.label_switching import ADVICE, Numbered, label_switching
from ppgen.inference.point import as_program
from ppgen.inference.reparametrisation import Reparametrisation, added
from ppgen.inference.reparametrise import NonCentred, reparametrised
from ppgen.inputs import slots, tensors
from ppgen.names import refuse_taken
from ppgen.posterior import Posterior
from ppgen.program import Program
from ppgen.threads import one_thread_if
from ppgen.types import Engine, Story

_SMALL = 20_000  # numbers in the data and parameters


def fit(
    model: Story | Program,
    *args: Any,
    using: Engine | None = None,
    seed: int | None = 0,
    reparametrise: Literal["auto"] | bool = False,
    **kwargs: Any,
) -> Posterior:
    """The posterior of a story given its data.

    Args:
        model: the story, any Pyro callable; or a :class:`ppgen.program.Program`, which holds its
            data: runs on one share what has been recorded.
        args: its arguments: the data.
        using: the engine with its options; ``HMC()`` when None.
        seed: of the run; the caller's random state is given back afterwards. None continues
            from the caller's random state.
        reparametrise: run in other coordinates: hierarchies written non-centred, as far as the
            data ask for it (:func:`ppgen.inference.reparametrise.reparametrised`), and, for
            engines that work along the axes, such as mean-field VI, scales and correlations taken
            out where they matter (:func:`ppgen.inference.decorrelate.decorrelated`). ``"auto"``
            does so only where the run on the story as written fails. The posterior has the
            story's own sites either way. False proposes it where a run fails. True and ``"auto"``
            also run again, with components in one order, where chains differ by their numbers
            alone (:mod:`ppgen.inference.label_switching`), in these coordinates too where a
            hierarchy beside them asks for it.
        kwargs: the story's keyword arguments.

    Raises:
        ValueError: where the story or its data cannot be fitted by this engine; it names the site.
            Also where an argument of the story has the name of one of these options: it goes by
            position, or into a functools.partial.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppgen.inference import Laplace
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> posterior = fit(coin, torch.tensor(7.0), using=Laplace())
        >>> posterior["p"].shape
        torch.Size([1, 4000])
    """
    refuse_taken(fit, model, args, seed)
    return fit_numbered(model, args, kwargs, using, seed, reparametrise)[0]


def fit_numbered(
    model: Story | Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    using: Engine | None,
    seed: int | None,
    reparametrise: Literal["auto"] | bool,
) -> tuple[Posterior, Numbered | None]:
    """As :func:`fit`, and the order that the components of the story were put into, if any."""
    engine: Any = HMC() if using is None else using
    if reparametrise not in (True, False, "auto"):
        raise ValueError(f"reparametrise must be True, False or 'auto', got {reparametrise!r}")
    if not callable(getattr(engine, "run", None)) or isinstance(engine, type):
        raise TypeError(
            "using must be an engine with its options, such as HMC(chains=64); "
            f"got {reprlib.repr(using)}"
        )
    little = one_thread_if(_little(model, args, kwargs))
    with torch.random.fork_rng(enabled=seed is not None), little:
        if seed is not None:
            torch.manual_seed(seed)
        return _run(engine, reparametrise, model, args, kwargs)


def _run(
    engine: Any,
    choice: Literal["auto"] | bool,
    model: Story | Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Posterior, Numbered | None]:
    if choice is True:
        changes = _changes(engine, model, args, kwargs)
        posterior = _on(engine, changes) if changes else engine.run(model, *args, **kwargs)
        return _renumbered(engine, posterior, changes, model, args, kwargs)
    try:
        posterior = engine.run(model, *args, **kwargs)
    except ValueError as error:
        found = _way_out(choice, engine, model, args, kwargs)
        if isinstance(found, str):
            error.add_note(found)
        if not isinstance(found, tuple):
            raise
        why = f"{type(engine).__name__} failed on the story as written"
        return _on(engine, found, why), None
    if posterior.trusted:
        return posterior, None
    numbered = _switched(posterior, model, args, kwargs)
    if choice == "auto" and numbered is not None:
        again = _in_order(engine, numbered, posterior, (), model, args, kwargs)
        change = reparametrised(model, *args, **kwargs) if not again.trusted else None
        if change is not None and _numbered((change,), numbered):
            again = _in_order(engine, numbered, again, (change,), model, args, kwargs)
        return again, numbered
    found = f"{numbered}; {ADVICE}" if numbered else _way_out(choice, engine, model, args, kwargs)
    if isinstance(found, tuple):
        again = _on(engine, found, "the run on the story as written did not converge")
        again = replace(again, cost=added(posterior.cost, again.cost))
        return _renumbered(engine, again, found, model, args, kwargs)
    said = () if found is None else (found,)
    return replace(posterior, messages=(*posterior.messages, *said)), None


def _renumbered(
    engine: Engine,
    posterior: Posterior,
    changes: tuple[Reparametrisation, ...],
    model: Story | Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Posterior, Numbered | None]:
    """A run in these coordinates, once more where its chains differ by their numbers alone."""
    numbered = _switched(posterior, model, args, kwargs)
    if numbered is None:
        return posterior, None
    return _in_order(engine, numbered, posterior, changes, model, args, kwargs), numbered


def _switched(
    posterior: Posterior, model: Story | Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Numbered | None:
    if posterior.kind != "chains" or posterior.converged or posterior.unconstrained is None:
        return None
    return label_switching(as_program(model, args, kwargs), posterior)


def _in_order(
    engine: Engine,
    numbered: Numbered,
    posterior: Posterior,
    changes: tuple[Reparametrisation, ...],
    model: Story | Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Posterior:
    """Another run, whose chains number the components in one way."""
    if isinstance(model, Program):
        args, kwargs = model.args, model.kwargs
    why = f"the run on the story as written did not converge ({numbered})"
    if non_centred := _numbered(changes, numbered):
        again = _on(engine, non_centred, why)
    else:
        again = engine.run(numbered.model, *args, **kwargs)
        again = replace(again, messages=(why, *again.messages))
    return replace(again, cost=added(posterior.cost, again.cost))


def _numbered(
    changes: tuple[Reparametrisation, ...], numbered: Numbered
) -> tuple[Reparametrisation, ...]:
    """The hierarchies among these changes with the components in order.

    Nothing where a component's own sites were changed: their coordinates have no order.
    """
    for change in changes:
        if isinstance(change, NonCentred) and not (
            change.centredness.keys() & set(numbered.components.sites)
        ):
            inner = replace(numbered, story=change.story)
            program = numbered.numbering(change.program)
            return (replace(change, story=inner.model, program=program),)
    return ()


def _changes(
    engine: Engine, model: Story | Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Reparametrisation, ...]:
    """Hierarchies first; what remains is scaled and decorrelated, if it matters to the engine."""
    first = reparametrised(model, *args, **kwargs)
    changes = () if first is None else (first,)
    if along_axes(engine):
        story = model if first is None else first.story
        second = decorrelated(story, *args, **kwargs)
        changes += () if second is None else (second,)
    return changes


def _on(
    engine: Engine, changes: tuple[Reparametrisation, ...], why: str | None = None
) -> Posterior:
    last = changes[-1]
    posterior = engine.run(last.story, *last.program.args, **last.program.kwargs)
    for change in reversed(changes):
        posterior = change.restored(posterior)
    return replace(posterior, messages=(*([why] if why else []), *posterior.messages))


def _way_out(
    choice: Literal["auto"] | bool,
    engine: Engine,
    model: Story | Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Reparametrisation, ...] | str | None:
    """Other coordinates, where they were asked for; else the advice to ask for them."""
    with warnings.catch_warnings():
        # a story that is not recorded: the engine has said so, and so will a run of the rewritten
        warnings.filterwarnings("ignore", ".*point by point", UserWarning)
        try:
            if choice == "auto":
                return _changes(engine, model, args, kwargs) or None
            program = as_program(model, args, kwargs)
            if found := hierarchies(program):
                names = listed([str(h) for h in found])
                return f"fit(..., reparametrise=True) would write non-centred: {names}"
            change = decorrelated(program) if along_axes(engine) else None
        except ValueError:
            return None  # it is the story that fails, not the engine
    if change is None:
        return None
    return f"fit(..., reparametrise=True) would run it {change.description}"


def _little(model: Story | Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether data and parameters are too few for threads to share."""
    if isinstance(model, Program):
        model, args, kwargs = model.model, model.args, model.kwargs
    held = [t for _, t in slots(model, args, kwargs)]
    numbers = sum({id(t): t.numel() for t in [*held, *tensors(args, kwargs)]}.values())
    return numbers < _SMALL
