"""A Pyro model as a pure function of one flat unconstrained vector."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppgen.anatomy import Anatomy, dissect
from ppgen.compiling import compiling
from ppgen.inputs import inputs, notes_on_foreign, plain, slots, tensors
from ppgen.recording import (
    Recording,
    Slope,
    one_by_one,
    over_rows,
    record,
)
from ppgen.recording_checks import (
    ROWS,
    refuse_disagreement,
    refuse_lost_gradient,
    refuse_noise,
)
from ppgen.simulation import for_all, simulate, simulate_all, unconstrained
from ppgen.starting_points import starting_points
from ppgen.story import (
    Evaluation,
    default_dtype,
    evaluate,
    infer_discrete,
    sandbox,
)
from ppgen.tape import Unrecordable
from ppgen.types import Exchangeable, Story

Part = Literal["density", "map", "likelihood"]

_PARTS: dict[str, Callable[[Evaluation], Tensor]] = {
    "density": lambda e: e.log_density(),
    "map": lambda e: e.log_density() - e.log_jacobian,
    "likelihood": lambda e: e.log_density() - e.log_prior(),
}

_PIECE = 256  # draws at a time, where many may be asked for


def _plain_prior(evaluation: Evaluation) -> Tensor:
    return evaluation.log_prior() - evaluation.log_jacobian


class Program:
    r"""A story with its data as a function of one vector on the unconstrained scale.

    .. math:: \log p(\mathrm{data}, \theta(z)) + \log |\det \partial\theta / \partial z|

    The first evaluation of each shape records the story as a graph of tensor operations and
    compares the recording, at other points, with Pyro's log joint; later evaluations
    replay the graph. What cannot be recorded is evaluated directly, point by point, after one
    warning: slower, never wrong. Finite discrete latent sites are summed out.

    Data, module parameters and tensors in closures are inputs of the recording: an optimizer's
    step, a reassigned parameter and changed data are seen. One dtype rules: that of the
    parameters of the story's modules where there are any, else float64 (float32 only where the
    story holds float32 tensors that cannot be mixed). Data given as arguments and constants made
    inside the story follow it.

    Args:
        model: the story, any Pyro callable.
        args: its arguments; tensors in them are the data. Kept, in the program's dtype.
        kwargs: its keyword arguments, kept likewise.

    Shapes:
        `z` is ``(..., D)``; log densities are ``(...)`` in nats.

    Raises:
        ValueError: for a subsampled plate, data that are not finite, a discrete site with
            infinitely many values, or a support without an unconstrained view; it names the site.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def story(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0).expand([2]).to_event(1), obs=y)
        >>> program = Program(story, torch.tensor([1.0, 2.0]))
        >>> program.log_density(torch.zeros(3, program.dim)).shape
        torch.Size([3])
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
    def operations(self) -> int:
        """Tensor operations of the largest recording; 0 before the first evaluation."""
        return max((r.nodes for r in self._recordings.values()), default=0)

    def __repr__(self) -> str:
        name = getattr(self.model, "__qualname__", type(self.model).__name__)
        return f"Program({name}, dim={self.dim}, sites={list(self.sites)})"

    # -- evaluation --------------------------------------------------------------------------

    def log_density(self, z: Tensor) -> Tensor:
        """Log joint density with the log Jacobian, ``(..., D) -> (...)``, nats."""
        return self._in_pieces("log_density", lambda p: self._single(p).log_density(), z)

    def log_prior(self, z: Tensor, *, jacobian: bool = True) -> Tensor:
        """Log prior density, with or without the log Jacobian, ``(..., D) -> (...)``, nats."""
        if jacobian:
            return self._in_pieces("log_prior", lambda p: self._single(p).log_prior(), z)
        return self._in_pieces("plain log_prior", lambda p: _plain_prior(self._single(p)), z)

    def log_likelihood(self, z: Tensor) -> dict[str, Tensor]:
        """Pointwise log likelihood of each observed site, ``(..., *batch)``, nats.

        A ``pyro.factor`` counts as likelihood. Discrete sites that are summed out are merged
        into the observed site that depends on them.
        """
        return self._in_pieces("log_likelihood", lambda p: self._single(p).log_likelihood(), z)

    def site_densities(self, z: Tensor) -> dict[str, Tensor]:
        """Pointwise log density of each site on its own scale, ``(..., *batch)``, nats.

        Raises:
            ValueError: where discrete sites are summed out, so that densities are not of one site.
        """
        if summed := list(self.anatomy.of_kind("enumerated")):
            raise ValueError(f"site '{summed[0]}' is summed out: densities belong to several sites")
        return self._run("site densities", lambda p: self._single(p).by_site(), z)

    def value_and_grad(
        self, z: Tensor, *, part: Part = "density", compile: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log density ``(...)`` and its gradient ``(..., D)``; nats.

        Args:
            z: points, ``(..., D)``.
            part: ``"density"``; ``"map"`` without the log Jacobian, which is the density on the
                sites' own scale; ``"likelihood"`` alone.
            compile: hand the recorded graph to ``torch.compile`` (tens of seconds, once a shape).
        """
        if part not in _PARTS:
            raise ValueError(f"part must be one of {list(_PARTS)}, got {part!r}")
        return self._run(f"gradient of {part}", self._slope(part), z, compile=compile)

    def value(self, z: Tensor, *, part: Part = "density") -> Tensor:
        """The log density alone, ``(...)``, nats: a half or a third of the cost.

        Args: as of `value_and_grad`, whose recording is used.
        """
        return self._half(z, part, 0).reshape(z.shape[:-1])

    def gradient(self, z: Tensor, *, part: Part = "density") -> Tensor:
        """The gradient alone, ``(..., D)``: what needs no value costs less.

        Args: as of `value_and_grad`, whose recording is used.
        """
        return self._half(z, part, 1).reshape(z.shape)

    def _half(self, z: Tensor, part: Part, which: Literal[0, 1]) -> Tensor:
        """The first or the second of what `value_and_grad` gives, of all points as rows."""
        rows = self._rows(z)
        recording = self.recorded_gradient(rows, part=part)
        if recording is None:
            return self.value_and_grad(rows, part=part)[which]
        with default_dtype(self.dtype), torch.no_grad():
            return self._cast(recording.half(rows, which))

    def recorded_gradient(self, rows: Tensor, *, part: Part = "density") -> Recording | None:
        """Value and gradient of points of this shape, ``(N, D)``, as a graph of tensor operations.

        None where the story is evaluated point by point.
        """
        return self._recorded(f"gradient of {part}", self._slope(part), rows, compile=False)

    def _slope(self, part: Part) -> Slope:
        return Slope(lambda point: _PARTS[part](self._single(point)))

    def constrain(self, z: Tensor, *, deterministic: bool = False) -> dict[str, Tensor]:
        """From the flat vector to named sites on their own scale: ``(..., *shape)`` each."""
        values = self._in_pieces("constrain", lambda p: self._single(p).values, z)
        return values if deterministic else {name: values[name] for name in self.sites}

    def unconstrain(self, sites: Mapping[str, Tensor]) -> Tensor:
        """From named sites on their own scale, ``(..., *shape)`` each, to ``(..., D)``.

        Raises:
            ValueError: where a latent site is missing or outside its support.
        """
        missing = [name for name in self.sites if name not in sites]
        if missing:
            raise ValueError(f"values are needed for {list(self.sites)}; missing: {missing}")
        first = self.anatomy.sites[self.sites[0]]
        given = sites[first.name]
        batch = given.shape[: given.dim() - len(first.shape)]
        rows = {
            name: self._cast(sites[name]).reshape(-1, *self.anatomy.sites[name].shape)
            for name in self.sites
        }
        with self.sandbox():
            flat, inside = unconstrained(self.model, rows, self.args, self.kwargs)
        for name, good in inside.items():
            if not bool(good.all()):
                value, support = rows[name][~good][0], self.anatomy.sites[name].support
                raise ValueError(f"site '{name}': {value} is outside its support {support}")
        return flat.reshape(*batch, self.dim)

    def canonical(self, z: Tensor) -> Tensor:
        """Points ``(..., D)`` with components that have no numbers of their own in one order.

        Of a story that is :class:`ppgen.types.Exchangeable`; of any other, `z` itself.
        """
        story = getattr(self.model, "__self__", None)
        if not isinstance(story, Exchangeable):
            return z
        values = self.constrain(z.reshape(-1, self.dim))
        ordered = story.canonical(values)
        with self.sandbox():
            flat, _ = unconstrained(self.model, ordered, self.args, self.kwargs)
        stays = [(ordered[n] == values[n]).flatten(1).all(1) for n in self.sites]
        better = ~torch.stack(stays).all(0) & flat.isfinite().all(1)
        return torch.where(better.reshape(*z.shape[:-1], 1), flat.reshape(z.shape), z)

    def observed(self) -> dict[str, Tensor]:
        """The data of each observed site, as the story sees them."""
        names = self.anatomy.of_kind("observed")
        z = self.anatomy.prototype
        values = {name: value[0] for name, value in self.constrain(z[None]).items()}
        with self.sandbox(), torch.random.fork_rng(devices=[]):
            found = simulate(self.model, values, self.args, self.kwargs, keep_data=True)
        return {name: found[name] for name in names}

    def replicate(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw the data anew, given ``(N, *shape)`` of each latent site: ``(N, *shape)`` each."""
        latent = {name: self._cast(values[name]) for name in self.sites}
        with self.sandbox():
            return simulate_all(self.model, latent, self.args, self.kwargs)

    def infer_discrete(self, z: Tensor) -> dict[str, Tensor]:
        """Draw the summed-out sites given the data, exactly: ``(N, D) -> (N, *shape)`` each."""

        def one(row: Tensor) -> dict[str, Tensor]:
            return infer_discrete(self.model, self.anatomy, row, self.args, self.kwargs)

        with self.sandbox():
            return for_all(one, z.detach().to(self.dtype))

    def initial(self, chains: int) -> Tensor:
        """Dispersed starting points of finite log density and gradient, ``(chains, D)``.

        Uniform on (-2, 2) in each unconstrained dimension, as in Stan; points where the density
        is not finite are drawn again, closer to zero each time.

        Raises:
            ValueError: where no such point was found, or a site has no influence on the density.
        """
        return starting_points(self, chains)

    def fork(self) -> Program:
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

    def with_data(self, *args: Any, **kwargs: Any) -> Program:
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

    # -- recording ---------------------------------------------------------------------------

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
            with default_dtype(self.dtype), torch.no_grad():
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
            with self.sandbox():
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


def _dtype_and_device(
    model: Story, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[torch.dtype, torch.device]:
    found = [t for _, t in slots(model, args, kwargs)]
    parameters = [t for t in found if isinstance(t, torch.nn.Parameter) and t.is_floating_point()]
    dtype = parameters[0].dtype if parameters else torch.float64
    placed = parameters or [*tensors(args, kwargs), *found]
    return dtype, placed[0].device if placed else torch.device("cpu")
