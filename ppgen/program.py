"""A Pyro model as a pure function of one flat unconstrained vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ppgen.recording import Recording, Slope
from ppgen.replay import Replay
from ppgen.simulation import for_all, simulate, simulate_all, unconstrained
from ppgen.starting_points import starting_points
from ppgen.story import Evaluation, infer_discrete
from ppgen.types import Exchangeable

Part = Literal["density", "map", "likelihood"]

_PARTS: dict[str, Callable[[Evaluation], Tensor]] = {
    "density": lambda e: e.log_density(),
    "map": lambda e: e.log_density() - e.log_jacobian,
    "likelihood": lambda e: e.log_density() - e.log_prior(),
}


def _plain_prior(evaluation: Evaluation) -> Tensor:
    return evaluation.log_prior() - evaluation.log_jacobian


class Program(Replay):
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

    def prior_densities(self, z: Tensor) -> dict[str, Tensor]:
        """Pointwise log density of each latent site on its own scale, ``(..., *batch)``, nats.

        Without those whose density depends on a site that is summed out.
        """
        return self._in_pieces("priors", lambda p: self._single(p).prior_by_site(), z)

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

    def gradient_like(self, z: Tensor, *, part: Part = "density") -> Callable[[Tensor], Tensor]:
        """`gradient` for many calls with points like `z`, ``(N, D)``, while no data change.

        What a call looks up first (the recording, and what in it does not depend on the point) is
        looked up here: a third of the time that few chains of a small story take.
        """
        recording = self.recorded_gradient(self._rows(z), part=part)
        if recording is None or z.dtype != self.dtype:
            return partial(self.gradient, part=part)
        with self._dtype_of(recording), torch.no_grad():
            slope = recording.half_now(1)

        def gradient(z: Tensor) -> Tensor:
            with self._dtype_of(recording), torch.no_grad():
                return self._cast(slope(z))

        return gradient

    def _half(self, z: Tensor, part: Part, which: Literal[0, 1]) -> Tensor:
        """The first or the second of what `value_and_grad` gives, of all points as rows."""
        rows = self._rows(z)
        recording = self.recorded_gradient(rows, part=part)
        if recording is None:
            return self.value_and_grad(rows, part=part)[which]
        with self._dtype_of(recording), torch.no_grad():
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
        stays = [(ordered[n] == values[n]).reshape(len(flat), -1).all(1) for n in self.sites]
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
