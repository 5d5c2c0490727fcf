"""Running a story at a point: its log density term by term, its summed-out sites drawn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.enum import config_enumerate
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn import Parameter

from ppgen.anatomy import Anatomy, Site, Subsample, innermost
from ppgen.enumeration import Drawn, Factor, Term, draw_back, sum_out
from ppgen.lean import batched_safe_log, plain_shapes
from ppgen.simulation import simulate
from ppgen.supports import unconstrained_view
from ppgen.types import Story


@dataclass
class Evaluation:
    """What one run of a story at one unconstrained point gave; log densities in nats."""

    values: dict[str, Tensor]  # latent and deterministic sites, constrained
    log_jacobian: Tensor  # log |d values / d z|, ()
    find_terms: Callable[[], list[Term]]  # asked once, and only where densities are needed

    @cached_property
    def terms(self) -> list[Term]:
        """Log density terms; one with observed sites is likelihood."""
        return self.find_terms()

    def log_prior(self) -> Tensor:
        return _total(self.log_jacobian, [t for t in self.terms if not t.observed])

    def log_likelihood(self) -> dict[str, Tensor]:
        """Pointwise, keyed by observed site; summed-out discrete sites are merged into it."""
        return {_label(t.observed): t.log_density for t in self.terms if t.observed}

    def log_density(self) -> Tensor:
        return _total(self.log_jacobian, self.terms)

    def prior_by_site(self) -> dict[str, Tensor]:
        """Pointwise, of the latent sites whose density depends on no summed-out site."""
        return {t.site: t.log_density for t in self.terms if t.site and not t.observed}

    def by_site(self) -> dict[str, Tensor]:
        """Pointwise, keyed by site; of stories in which nothing is summed out."""
        return {t.site: t.log_density for t in self.terms}


def _total(start: Tensor, terms: list[Term]) -> Tensor:
    for term in terms:
        start = start + term.log_density.sum()
    return start


def _label(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"


@contextmanager
def sandbox(
    dtype: torch.dtype, untrained: Mapping[str, dict[str, Any]] | None = None
) -> Iterator[None]:
    """Run a story without leaving a trace: no validation, `dtype` for new tensors, scoped store.

    Parameters that belong to modules stay the modules' own (``pyro.module`` would put a copy of
    the store's in their place, and an optimizer made before would then train nothing); plain
    ``pyro.param`` values are the store's, or else those of `untrained`, a state of a store.
    """
    store = pyro.get_param_store()
    state = store.get_state()
    for part, entries in (untrained or {}).items():
        state[part] = {**entries, **state[part]}
    # block: handlers of the caller's must not see the sites of a story that runs in here
    with (
        pyro.validation_enabled(False),
        store.scope(state),
        pyro.poutine.block(),
        _OwnParameters(),
        default_dtype(dtype),
        plain_shapes(),
        batched_safe_log(),
    ):
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors, and what becomes of integers under log or division, are of `dtype` in here.

    A recording needs it too: the type of ``torch.linspace(0, 1, 5)`` or of the logarithm of a
    count is decided when it is replayed.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


class Frozen(Messenger):
    """Keeps frozen parameters of modules from Pyro's store, which would make them trainable."""

    def _pyro_param(self, msg: Any) -> None:
        own = [value for value in msg["args"] if isinstance(value, Parameter)]
        if own and not own[0].requires_grad:
            msg["value"], msg["done"] = own[0], True


class _OwnParameters(Frozen):
    def _pyro_param(self, msg: Any) -> None:
        own = [value for value in msg["args"] if isinstance(value, Tensor)]
        if "$$$" in msg["name"] and own:  # registered by pyro.module
            msg["value"], msg["done"] = own[0], True
        else:
            super()._pyro_param(msg)


class _Evaluate(Messenger):
    """Give each latent site its value from the flat vector, and collect the log densities."""

    def __init__(self, anatomy: Anatomy, z: Tensor) -> None:
        super().__init__()
        self.anatomy, self.z = anatomy, z
        self.values: dict[str, Tensor] = {}
        self.log_jacobian = z.new_zeros(())
        self.visited: list[Any] = []

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], Subsample):
            if msg["done"]:
                return  # rows that a handler inside has chosen
            # indices from outside the recording: a loop over a plate turns them into numbers
            msg["value"], msg["done"] = self.anatomy.indices.get(msg["name"]), True
            return
        site = self.anatomy.sites.get(msg["name"])
        if site is None:
            raise _some_paths(msg["name"])
        msg["fn"] = without_validation(msg["fn"])
        if site.kind == "latent":
            transform = unconstrained_view(msg["fn"].support)
            point = self.z[site.start : site.stop].reshape(site.unconstrained_shape)
            value = transform(point)
            if value.dim() > len(site.shape):  # by a dimension of enumeration
                raise ValueError(
                    f"site '{site.name}' has bounds that depend on a discrete site, which is "
                    "summed out: draw it on [0, 1] and stretch it to them"
                )
            # sums over all dimensions: the Jacobian of the whole site
            self.log_jacobian = (
                self.log_jacobian + transform.log_abs_det_jacobian(point, value).sum()
            )
            msg["value"], msg["done"] = value.expand(site.shape), True

    def _pyro_post_sample(self, msg: Any) -> None:
        site = self.anatomy.sites.get(msg["name"])
        if site is None or isinstance(msg["fn"], Subsample):
            return
        if site.kind in ("latent", "deterministic"):
            self.values[site.name] = msg["value"]
        if site.kind != "deterministic":
            self.visited.append(msg)

    def refuse_absent(self) -> None:
        """A latent site that this run did not visit would be flat, and its draws nonsense."""
        visited = {msg["name"] for msg in self.visited}
        for name in self.anatomy.of_kind("latent", "enumerated", "observed"):
            if name not in visited:
                raise _some_paths(name)


def _some_paths(name: str) -> ValueError:
    return ValueError(
        f"site '{name}' appears only on some paths through the story: which sites there are must "
        "not depend on the values drawn"
    )


def without_validation(fn: Any) -> Any:
    """A copy that does not validate: a check on the data is a branch that cannot be recorded.

    Distributions made inside :func:`sandbox` do not validate anyway; this is for those made
    before, such as a prior in a global.
    """
    if not getattr(fn, "_validate_args", False):
        return fn
    fn = copy.copy(fn)
    fn._validate_args = False
    if hasattr(fn, "base_dist"):
        fn.base_dist = without_validation(fn.base_dist)
    return fn


class _Enumerate(EnumMessenger):
    """Pyro's enumeration of discrete sites, without its read of ``.data``, which vmap refuses."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if isinstance(msg["fn"], Subsample) or not isinstance(value, Tensor):
            return
        shape = value.shape[: value.dim() - msg["fn"].event_dim]
        dim_to_id = msg["infer"].setdefault("_dim_to_id", {})
        dim_to_id.update(self._param_dims.get(msg["name"], {}))
        self._value_dims[msg["name"]] = {
            dim: id_ for dim, id_ in dim_to_id.items() if len(shape) >= -dim and shape[dim] > 1
        }


def evaluate(
    model: Story, anatomy: Anatomy, z: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Evaluation:
    """Run the story at the unconstrained point `z`, ``(D,)``; works under vmap and autograd.

    Call it inside :func:`sandbox`.
    """
    if anatomy.of_kind("enumerated"):
        handler = _enumerated(model, anatomy, z, args, kwargs)
        return Evaluation(
            handler.values,
            handler.log_jacobian,
            lambda: sum_out([_factor(anatomy, msg) for msg in handler.visited]),
        )
    handler = _Evaluate(anatomy, z)
    with handler:
        model(*args, **kwargs)
    handler.refuse_absent()
    return Evaluation(
        handler.values,
        handler.log_jacobian,
        lambda: [_direct_term(anatomy, msg) for msg in handler.visited],
    )


def _enumerated(
    model: Story, anatomy: Anatomy, z: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> _Evaluate:
    handler = _Evaluate(anatomy, z)
    with handler, _Enumerate(first_available_dim=-1 - anatomy.plate_nesting):
        config_enumerate(model)(*args, **kwargs)
    handler.refuse_absent()
    for name, site in anatomy.of_kind("deterministic").items():
        if torch.as_tensor(handler.values[name]).shape != site.shape:
            del handler.values[name]  # it has one value for each of those of a summed-out site
    return handler


def infer_discrete(
    model: Story, anatomy: Anatomy, z: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Tensor]:
    """One draw of each summed-out site given the data and the unconstrained point `z`, ``(D,)``.

    With it come the deterministic sites that have no value without it. Call it inside
    :func:`sandbox`; it works under vmap.
    """
    handler, trail = _enumerated(model, anatomy, z, args, kwargs), []
    sum_out([_factor(anatomy, msg) for msg in handler.visited], trail)
    drawn, found = draw_back(trail), {}
    for msg in handler.visited:
        site = anatomy.sites[msg["name"]]
        if site.kind == "enumerated":
            dim = msg["infer"]["_enumerate_dim"]
            found[site.name] = _at(drawn[msg["infer"]["_dim_to_id"][dim]], dim, msg, site)
    following = [n for n in anatomy.of_kind("deterministic") if n not in handler.values]
    if following:
        whole = simulate(model, {**handler.values, **found}, args, kwargs, keep_data=True)
        found |= {name: whole[name] for name in following}
    return found


def _at(drawn: Drawn, dim: int, msg: Any, site: Site) -> Tensor:
    """The drawn places of a site's support as its values, ``(*batch, *event)``."""
    value, event = msg["value"], site.event_dim
    support = value.movedim(value.dim() - event + dim, 0)
    support = support.reshape(len(support), -1, *support.shape[support.dim() - event :])[:, 0]
    names = {f.dim: f.name for f in msg["cond_indep_stack"] if f.vectorized}
    dims = sorted(names)  # the most negative is the outermost
    index = drawn.places.permute([drawn.plates.index(names[d]) for d in dims])
    shape = [1] * len(site.batch_shape)
    for d, size in zip(dims, index.shape, strict=True):
        shape[d] = size
    return support[index.reshape(shape)]


def _observed(anatomy: Anatomy, msg: Any) -> tuple[str, ...]:
    return () if anatomy.sites[msg["name"]].kind in ("latent", "enumerated") else (msg["name"],)


def _log_prob(msg: Any) -> Tensor:
    fn, value = msg["fn"], msg["value"]
    if not isinstance(value, Tensor):
        value = torch.tensor(float(value))  # data given as a number
    elif isinstance(innermost(fn), dist.Bernoulli) and not value.is_floating_point():
        value = value.to(torch.get_default_dtype())  # torch's own wants 0.0 and 1.0
    return fn.log_prob(value, *msg["args"], **msg["kwargs"])


def visited_sites(
    model: Story, anatomy: Anatomy, z: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Pyro's messages of the sites of one run at the unconstrained point `z`."""
    handler = _Evaluate(anatomy, z)
    with torch.no_grad(), handler:
        model(*args, **kwargs)
    return handler.visited


def not_finite(
    model: Story, anatomy: Anatomy, z: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, str]:
    """Sites whose log density is not finite at the unconstrained point `z`, with that value."""
    found = {}
    for msg in visited_sites(model, anatomy, z, args, kwargs):
        total = float(_direct_term(anatomy, msg).log_density.sum())
        if not math.isfinite(total):
            found[f"'{msg['name']}' ({anatomy.sites[msg['name']].distribution})"] = str(total)
    return found


def _direct_term(anatomy: Anatomy, msg: Any) -> Term:
    # Pyro masks where `obs_mask` has data, and a masked prior is flat. What stands there is used
    # nowhere, so that its prior integrates to one.
    base = msg["name"].removesuffix("_unobserved")
    fills_in = base != msg["name"] and f"{base}_observed" in anatomy.sites
    mask = None if fills_in else msg["mask"]
    log_density = scale_and_mask(_log_prob(msg), msg["scale"], mask)
    return Term(_observed(anatomy, msg), log_density, msg["name"])


def _factor(anatomy: Anatomy, msg: Any) -> Factor:
    log_prob = _log_prob(msg)
    log_prob = scale_and_mask(log_prob, 1.0, msg["mask"])
    variables = msg["infer"].get("_dim_to_id", {})
    plates = {f.dim: f for f in msg["cond_indep_stack"] if f.vectorized}
    rank = max([log_prob.dim(), *(-dim for dim in plates)])
    log_prob = log_prob.reshape((1,) * (rank - log_prob.dim()) + tuple(log_prob.shape))
    names: list[str | int] = []
    shape: list[int] = []
    for dim in range(-rank, 0):
        size = log_prob.shape[dim]
        if dim in plates:
            log_prob = log_prob.expand(
                *(plates[dim].size if d == dim else -1 for d in range(-rank, 0))
            )
            names.append(plates[dim].name)
            shape.append(plates[dim].size)
        elif size > 1 and dim in variables:
            names.append(variables[dim])
            shape.append(size)
        elif size > 1:
            declared = anatomy.sites[msg["name"]].batch_shape
            if -dim > len(declared) or declared[dim] != size:
                raise ValueError(
                    f"site '{msg['name']}' has batch shape {tuple(log_prob.shape)} where it had "
                    f"{tuple(declared)} before discrete sites were enumerated: it mixes their "
                    "values over a plate; index and broadcast along the plates instead, or use "
                    "Gibbs()"
                )
            names.append(f"dimension {dim}")  # belongs to no plate
            shape.append(size)
    own = msg["infer"].get("_enumerate_dim")
    return Factor(
        observed=_observed(anatomy, msg),
        log_density=log_prob.reshape(shape),
        names=tuple(names),
        plates=frozenset(f.name for f in plates.values()),
        introduces=None if own is None else variables[own],
        scale=msg["scale"],
        site=msg["name"],
    )
