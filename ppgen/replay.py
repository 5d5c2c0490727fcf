"""A story with its data, whose functions of flat points are recorded once and replayed."""

from __future__ import annotations

import copy
import gc
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppgen.anatomy import Anatomy, dissect
from ppgen.compiling import compiling
from ppgen.inputs import inputs, notes_on_foreign, plain, slots, tensors
from ppgen.recording import Recording, one_by_one, over_rows, record
from ppgen.recording_checks import (
    ROWS,
    refuse_disagreement,
    refuse_lost_gradient,
    refuse_noise,
)
from ppgen.story import Evaluation, default_dtype, evaluate, sandbox
from ppgen.tape import Unrecordable
from ppgen.types import Story

_PIECE = 256  # draws at a time, where many may be asked for

P = TypeVar("P", bound="Replay")


class Replay:
    """Holds a story, its data and what has been recorded of it; evaluates functions of rows.

    Args:
        model: the story.
        args: its arguments.
        kwargs: its keyword arguments.
    """

    def __init__(self, model: Story, *args: Any, **kwargs: Any) -> None:
        self.model = model
        self.seconds_recording = 0.0
        self.fallback: str | None = None  # why the story is evaluated directly, if it is
        self._recordings: dict[Any, Recording] = {}
        self._used: set[Any] = set()  # keys of recordings whose seconds are counted
        self._taken_over = 0.0  # seconds that recordings of other forks took
        self._given = (args, kwargs)
        self.dtype, self.device = _dtype_and_device(model, args, kwargs)
        try:
            self._prepare()
        except RuntimeError as error:
            if self.dtype != torch.float64 or "dtype" not in str(error):
                raise
            # closed-over float32 tensors in a matrix product: their dtype rules
            self.dtype = torch.float32
            self._prepare()

    def _prepare(self) -> None:
        self.args, self.kwargs = tree_map(self._cast, self._given)
        self._untrained: dict[str, Any] = {"params": {}, "constraints": {}}
        own = {id(t) for _, t in slots(self.model, self.args, self.kwargs)}
        with self.sandbox():
            before = pyro.get_param_store().get_state()
            try:
                self.anatomy: Anatomy = dissect(self.model, self.args, self.kwargs)
            except TypeError as error:
                for note in notes_on_foreign(self.args, self.kwargs):
                    error.add_note(note)
                raise
            after = pyro.get_param_store().get_state()
        # pyro.param statements that nobody has run yet hold what they start with
        for name, tensor in after["params"].items():
            if name not in before["params"] and id(tensor) not in own:
                self._untrained["params"][name] = tensor
                self._untrained["constraints"][name] = after["constraints"][name]

    def sandbox(self) -> AbstractContextManager[None]:
        """Within it the story can be run by hand: no validation, its dtype, a store of its own."""
        return sandbox(self.dtype, self._untrained)

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(self.dtype)
        return value

    @property
    def dim(self) -> int:
        """Number of unconstrained dimensions, D."""
        return self.anatomy.dim

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the latent sites, in the order of the flat vector."""
        return tuple(self.anatomy.of_kind("latent"))

    @property
    def coordinates(self) -> list[str]:
        """A name for each unconstrained dimension: that of its site, with an index there."""
        return [
            name + (f"[{','.join(map(str, index))}]" if index else "")
            for name, site in self.anatomy.of_kind("latent").items()
            for index in itertools.product(*map(range, site.unconstrained_shape))
        ]

    @property
    def operations(self) -> int:
        """Tensor operations of the largest recording; 0 before the first evaluation."""
        return max((r.nodes for r in self._recordings.values()), default=0)

    def __repr__(self) -> str:
        name = getattr(self.model, "__qualname__", type(self.model).__name__)
        return f"Program({name}, dim={self.dim}, sites={list(self.sites)})"

    def fork(self: P) -> P:
        """The same story and data for a run of its own, with the recordings of all forks.

        What each costs alone can still be told: `seconds_recording` and `now` count a recording
        that another fork has made as if this one had made it again.
        """
        other = copy.copy(self)
        other.seconds_recording = other._taken_over = 0.0
        other._used = set()
        return other

    def now(self) -> float:
        """A clock in seconds, on which recordings that were taken over took their time."""
        return time.perf_counter() + self._taken_over

    def with_data(self: P, *args: Any, **kwargs: Any) -> P:
        """The same story with other data; shares the recordings where the shapes agree."""
        other = self.fork()
        other._given = (args, kwargs)
        other._recordings = {}
        other._prepare()
        old, new = tensors(self.args, self.kwargs), tensors(other.args, other.kwargs)
        swap = {id(a): b for a, b in zip(old, new, strict=False)}
        # numbers, lists and arrays are part of a recording
        if (
            other.anatomy.sites == self.anatomy.sites
            and len(old) == len(new) == len(swap)
            and plain(self._given) == plain(other._given)
        ):
            for key, recording in self._recordings.items():
                shared = recording.rebound(swap)
                if shared is not None and shared.fits():
                    other._recordings[key] = shared
                    other._used.add(key)
        return other

    def _single(self, z: Tensor) -> Evaluation:
        return evaluate(self.model, self.anatomy, z, self.args, self.kwargs)

    def _run(
        self, name: str, single: Callable[[Tensor], Any], z: Tensor, compile: bool = False
    ) -> Any:
        rows = self._rows(z)
        recording = self._recorded(name, single, rows, compile)
        if recording is None:
            result = self._direct(single, rows)
        else:
            with self._dtype_of(recording), torch.no_grad():
                result = recording(rows)
        return tree_map(lambda t: self._cast(t).reshape(z.shape[:-1] + t.shape[1:]), result)

    def _in_pieces(self, name: str, single: Callable[[Tensor], Any], z: Tensor) -> Any:
        """As `_run`, at most `_PIECE` rows at a time: one recording for any number of draws.

        Many rows of all data at once may not fit into memory, and are no faster.
        """
        rows = self._rows(z)
        if len(rows) <= _PIECE:
            return self._run(name, single, z)
        whole = torch.cat([rows, rows[-1:].expand(-len(rows) % _PIECE, -1)])
        parts = [self._run(name, single, piece) for piece in whole.split(_PIECE)]

        def joined(*leaves: Tensor) -> Tensor:
            return torch.cat(leaves)[: len(rows)].reshape(z.shape[:-1] + leaves[0].shape[1:])

        return tree_map(joined, *parts)

    def _rows(self, z: Tensor) -> Tensor:
        """The points as a matrix."""
        if z.shape[-1:] != (self.dim,):
            raise ValueError(f"z must end in {self.dim} dimensions, got shape {tuple(z.shape)}")
        return z.detach().to(self.dtype).reshape(z.shape[:-1].numel(), self.dim)

    def _recorded(
        self, name: str, single: Callable[[Tensor], Any], rows: Tensor, compile: bool
    ) -> Recording | None:
        """The recording for rows of this shape; None where they are evaluated directly."""
        if self.fallback is None and len(rows):
            key = (name, rows.shape, rows.dtype, rows.device, compile)
            recording = self._recordings.get(key)
            if recording is None or not recording.fits():
                recording = self._record(key, single, rows)
            elif key not in self._used:
                self._used.add(key)
                self.seconds_recording += recording.seconds
                self._taken_over += recording.seconds
            return recording
        return None

    def _dtype_of(self, recording: Recording) -> AbstractContextManager[None]:
        """The default type that its replay needs; setting it takes as long as some operations."""
        return default_dtype(self.dtype) if recording.by_default else _AS_IT_IS

    def _direct(self, single: Callable[[Tensor], Any], rows: Tensor) -> Any:
        with self.sandbox(), torch.no_grad():
            if len(rows):
                return over_rows(single, one_by_one)(rows)
            shaped = over_rows(single, one_by_one)(self.anatomy.prototype[None])
        return tree_map(lambda t: t[:0], shaped)

    def _record(self, key: Any, single: Callable[[Tensor], Any], rows: Tensor) -> Recording | None:
        start = time.perf_counter()
        recording = None
        try:
            with uncollected(), self.sandbox():
                roots = self.model, self.args, self.kwargs
                inner = self.anatomy.indices.values()
                read = inputs(
                    lambda z: self._single(z).log_density(), rows[0].clone(), roots, inner
                )
                recording = record(single, rows, read, compile=key[-1])
            care = compiling if key[-1] else nullcontext
            with default_dtype(self.dtype), torch.no_grad(), care():
                refuse_disagreement(recording, partial(self._direct, single), rows)
            if key[0].startswith("gradient") and len(rows) > ROWS:
                # of one row at a mode, say, rounding would hide the slope
                with default_dtype(self.dtype), torch.no_grad():
                    refuse_lost_gradient(recording, rows)
            self._recordings[key] = recording
            self._used.add(key)
        except Unrecordable as error:
            refuse_noise(partial(self._direct, single), rows)
            recording, self.fallback = None, str(error)
            if key[0].startswith("gradient"):
                refuse_lost_gradient(partial(self._direct, single), rows[:ROWS])
            warnings.warn(
                f"{self!r} is evaluated point by point, which is slow: {error}", stacklevel=5
            )
        seconds = time.perf_counter() - start
        self.seconds_recording += seconds
        if recording is not None:
            recording.seconds = seconds
        return recording


@contextmanager
def uncollected() -> Iterator[None]:
    """Without a search for garbage: among so many nodes that are all in use it takes a fifth."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_AS_IT_IS = nullcontext()


def _dtype_and_device(
    model: Story, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[torch.dtype, torch.device]:
    found = [t for _, t in slots(model, args, kwargs)]
    parameters = [t for t in found if isinstance(t, torch.nn.Parameter) and t.is_floating_point()]
    dtype = parameters[0].dtype if parameters else torch.float64
    placed = parameters or [*tensors(args, kwargs), *found]
    return dtype, placed[0].device if placed else torch.device("cpu")
