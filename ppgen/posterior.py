"""Draws, and how they were obtained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppgen import diagnosis, diagnostics
from ppgen.components import AnyOrder
from ppgen.program import Program
from ppgen.summary import Row, Summary
from ppgen.types import Story

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Cost:
    """What a run cost: seconds by phase, and gradient evaluations (one a chain and step)."""

    recording: float = 0.0
    compiling: float = 0.0
    adapting: float = 0.0
    sampling: float = 0.0
    gradients: int = 0

    @property
    def seconds(self) -> float:
        return self.recording + self.compiling + self.adapting + self.sampling


@dataclass(frozen=True)
class Posterior:
    """Draws from (an approximation of) a posterior, with what is needed to judge them.

    Args:
        draws: latent and deterministic sites on their own scale, ``(chains, draws, *shape)``.
        engine: the engine's name.
        kind: ``"chains"`` of a Markov chain, ``"independent"`` draws of an approximation, or one
            ``"point"`` estimate.
        converged: whether the run says so itself; Markov chains are diagnosed here besides.
        messages: what the engine has to say, in words: why it did not converge, what it reports.
        options: the engine's options.
        unconstrained: the same draws as flat vectors, ``(chains, draws, D)``.
        log_density: unnormalised log posterior of each draw, unconstrained scale,
            ``(chains, draws)``, nats.
        log_guide: log density of the approximation at each draw, same scale, nats.
        stats: sampler statistics under ArviZ's names, ``(chains, draws)``.
        history: what changed during the fit, such as ``elbo`` (nats, larger is better);
            ``log_weights`` of the draws that these were resampled from.
        cost: seconds by phase, and gradient evaluations.
        deterministic: the sites that follow from the others; `predict` computes them anew.
        guide_log_prob: log density of the approximation at any points of its unconstrained scale,
            ``(N, D) -> (N,)``, nats; None where it is not known. It is not saved. Of an
            exchangeable story, with the numbers of components at random.
    """

    draws: dict[str, Tensor]
    engine: str
    kind: Literal["chains", "independent", "point"]
    converged: bool = True
    messages: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    unconstrained: Tensor | None = field(default=None, repr=False)
    log_density: Tensor | None = field(default=None, repr=False)
    log_guide: Tensor | None = field(default=None, repr=False)
    stats: dict[str, Tensor] = field(default_factory=dict, repr=False)
    history: dict[str, Tensor] = field(default_factory=dict, repr=False)
    cost: Cost = field(default_factory=Cost)
    deterministic: tuple[str, ...] = ()
    guide_log_prob: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    @classmethod
    def from_program(
        cls,
        program: Program,
        z: Tensor,
        *,
        engine: str,
        kind: Literal["chains", "independent", "point"],
        **fields: Any,
    ) -> Posterior:
        """Wrap unconstrained draws `z`, ``(chains, draws, D)``.

        Markov chains are diagnosed: what does not pass goes into `messages`, and `converged`
        becomes False. Of an exchangeable story the draws are put into canonical order.
        """
        ordered = program.canonical(z)
        if ordered is not z:
            said = "components are numbered in the story's canonical order"
            before = [m for m in fields.get("messages", ()) if m != said]
            fields["messages"] = (*before, said)
            z = ordered
            if known := fields.get("guide_log_prob"):
                fields["guide_log_prob"] = AnyOrder(program, known)
        draws = program.constrain(z, deterministic=True)
        if not program.anatomy.of_kind("observed", "factor"):
            # as where y=None was meant for prediction and forgotten in the fit
            said = "nothing is observed: this is the prior"
            fields["messages"] = (*fields.get("messages", ()), said)
        if following := [n for n in program.anatomy.of_kind("deterministic") if n not in draws]:
            needy = " and ".join(following)
            said = f"summed-out sites are needed for {needy}: infer_discrete draws both"
            fields["messages"] = (*fields.get("messages", ()), said)
        lost = [name for name in program.sites if not bool(torch.isfinite(draws[name]).all())]
        if lost:
            fields["converged"] = False
            said = f"draws of {' and '.join(lost)} are not finite"
            fields["messages"] = (*fields.get("messages", ()), said)
        posterior = cls(
            draws=draws,
            engine=engine,
            kind=kind,
            unconstrained=z,
            deterministic=tuple(name for name in draws if name not in program.sites),
            **fields,
        )
        return posterior._diagnosed() if kind == "chains" else posterior

    @classmethod
    def from_chains(cls, draws: dict[str, Tensor], *, engine: str, **fields: Any) -> Posterior:
        """Wrap and diagnose Markov chains over sites that have no unconstrained vector."""
        return cls(draws=draws, engine=engine, kind="chains", **fields)._diagnosed()

    # -- reading -----------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.draws:
            raise KeyError(f"no site {name!r}; there are {list(self.draws)}")
        return self.draws[name]

    def __contains__(self, name: str) -> bool:
        return name in self.draws

    def only(self, *names: str) -> Posterior:
        """The draws of these sites alone: of two parameterisations, what both have.

        What is left has no unconstrained vector of its own.

        Raises:
            KeyError: for a site that is not there.
        """
        kept = {name: self[name] for name in names}
        fixed = tuple(name for name in self.deterministic if name in kept)
        return dataclasses.replace(
            self, draws=kept, deterministic=fixed, unconstrained=None, guide_log_prob=None
        )

    @property
    def chains(self) -> int:
        return next(iter(self.draws.values())).shape[0]

    @property
    def count(self) -> int:
        """Draws in total, over all chains."""
        first = next(iter(self.draws.values()))
        return first.shape[0] * first.shape[1]

    def scalars(self) -> dict[str, np.ndarray]:
        """Every scalar by name, as ``tau`` or ``theta[3]``: ``(chains, draws)`` each."""
        named: dict[str, np.ndarray] = {}
        for site, values in self.draws.items():
            array = values.detach().cpu().double().numpy()
            for index in np.ndindex(*array.shape[2:]):
                suffix = f"[{','.join(map(str, index))}]" if index else ""
                named[site + suffix] = array[(..., *index)]
        return named

    def stacked(self) -> np.ndarray:
        """All scalars side by side, in the order of :meth:`scalars`: ``(chains, draws, N)``."""
        return np.stack(list(self.scalars().values()), -1)

    def summary(self) -> Summary:
        """Mean, sd, quantiles, Monte Carlo error, ESS and R-hat of every scalar.

        Independent draws have no autocorrelation, hence neither ESS nor R-hat.
        """
        scalars = self.scalars()
        stacked = np.stack(list(scalars.values()), -1)
        flat = stacked.reshape(-1, stacked.shape[-1])
        missing = np.full(flat.shape[1], np.nan)
        with np.errstate(invalid="ignore"):  # draws that are not finite have NaN moments
            low, median, high = np.quantile(flat, [0.05, 0.5, 0.95], axis=0)
            sd = flat.std(0, ddof=1) if len(flat) > 1 else missing
        if self.kind == "chains":
            bulk, tail = diagnostics.ess_bulk(stacked), diagnostics.ess_tail(stacked)
            rhat, mcse = diagnostics.rhat(stacked), diagnostics.mcse_mean(stacked)
        else:
            bulk = tail = rhat = missing
            mcse = sd / math.sqrt(len(flat))
        table = np.stack([flat.mean(0), sd, low, median, high, mcse, bulk, tail, rhat], -1)
        rows = tuple(
            Row(name, *map(float, numbers)) for name, numbers in zip(scalars, table, strict=True)
        )
        return Summary(self.headline(), rows)

    def headline(self) -> str:
        """What this is and whether to trust it, in one line."""
        what = {
            "chains": f"{self.chains} chains x {self.count // max(self.chains, 1)} draws",
            "independent": f"{self.count} independent draws",
            "point": "one point",
        }[self.kind]
        doubt = diagnosis.distrust(self)
        state = "converged" if self.converged else "NOT CONVERGED"
        said = self.messages
        if self.converged and doubt is not None:
            state, said = "settled FAR FROM THE POSTERIOR", (doubt, *said)
        elif tail := diagnosis.heavy_tail(self):
            said = (tail, *said)
        reasons = f": {'; '.join(said)}" if said else ""
        return f"{self.engine}, {what}, {self.cost.seconds:.1f} s, {state}{reasons}"

    def __str__(self) -> str:
        return str(self.summary())

    # -- judging -----------------------------------------------------------------------------

    def _diagnosed(self) -> Posterior:
        complaints = self.complaints()
        return dataclasses.replace(
            self,
            converged=self.converged and not complaints,
            messages=(*self.messages, *complaints),
        )

    def complaints(self) -> list[str]:
        """The checks of a Markov chain that these draws do not pass, in words."""
        return diagnosis.complaints(self)

    @property
    def trusted(self) -> bool:
        """Whether it has converged, and its importance weights do not speak against it."""
        return self.converged and diagnosis.distrust(self) is None

    def diagnosis(self) -> dict[str, float]:
        """The worst R-hat and ESS, divergences and E-BFMI of chains; k-hat of approximations."""
        return diagnosis.diagnosis(self)

    @property
    def log_weights(self) -> np.ndarray | None:
        """Importance weights, log p - log q in nats: of the draws, or of those resampled."""
        if "log_weights" in self.history:
            return _numpy(self.history["log_weights"]).ravel()
        if self.log_density is None or self.log_guide is None:
            return None
        return _numpy(self.log_density - self.log_guide).ravel()

    # -- using -------------------------------------------------------------------------------

    def predict(
        self, story: Story, *args: Any, draws: int = 1000, seed: int | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Posterior predictive: run `story` forward with the latent sites of random draws.

        Args:
            story: the story. Its observed sites are drawn anew, so that the data may be given
                (to replicate them) or left out (to predict at new inputs).
            args: its arguments; tensors are cast to the dtype of the draws.
            draws: how many draws to use, at most as many as there are.
            seed: for the same predictions again.
            kwargs: its keyword arguments.

        Returns:
            Observed, deterministic and summed-out sites, ``(draws, *shape)`` each. The summed-out
            ones are drawn given the continuous latents alone, as new data have them; given the
            data that were fitted, :meth:`infer_discrete` draws them.

        Raises:
            ValueError: where `story` has none of the posterior's sites.
        """
        from ppgen.prediction import predict

        return predict(self, story, args, kwargs, draws=draws, seed=seed)

    def infer_discrete(
        self,
        story: Story,
        *args: Any,
        draws: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Assignments given the data: the sites that were summed out, drawn for each draw.

        Exact, by going back through the sum: for a chain of discrete sites that is forward
        filtering, backward sampling. The mean of ``found["z"] == k`` is the posterior probability
        of k; labels may switch from draw to draw as those of the continuous sites do.

        Args:
            story: the story that was fitted.
            args: the arguments that it was fitted with; tensors are cast to the dtype of the draws.
            draws: how many of each chain, evenly spaced; all of them where None.
            seed: for the same assignments again.
            kwargs: its keyword arguments.

        Returns:
            Each summed-out site, and each deterministic site that depends on one, ``(chains,
            draws, *shape)``, beside ``posterior[...]``: with `draws` None, entry by entry.

        Raises:
            ValueError: where `story` has no such site, or other latent sites than the posterior.
        """
        from ppgen.prediction import infer_discrete

        return infer_discrete(self, story, args, kwargs, draws=draws, seed=seed)

    @property
    def latent(self) -> tuple[str, ...]:
        """The sites that were sampled, without those that follow from them."""
        return tuple(name for name in self.draws if name not in self.deterministic)

    def to_datatree(self, story: Story | None = None, *args: Any, **kwargs: Any) -> xarray.DataTree:
        """ArviZ's format: posterior and sample_stats; with the story its densities and data too.

        Args:
            story: the story that was fitted, for the groups ``log_likelihood``, ``log_prior``,
                ``posterior_predictive`` and ``observed_data``, and for dimensions named by its
                plates; draws of discrete sites and of machines, no points of a `Program`, go
                without these.
            args: the arguments that it was fitted with.
            kwargs: its keyword arguments.

        Dimensions that belong to no plate are ``theta_dim_0``, counted over all of the site.
        ``log_prior`` has a value for each entry of each latent site, on its own scale, nats, which
        `arviz_stats.psense` takes; the group is left out where a prior hangs on a summed-out site.
        A ``pyro.factor`` with a value for each of several rows is an entry of ``log_likelihood``:
        censored rows have one of their own; where it truncates or couples rows, their log
        likelihood is the sum of the entries. One of no row is in neither group. ``/`` in names, of
        scopes, becomes ``.``.
        """
        from ppgen.datatree import datatree

        if story is None or self.unconstrained is None:
            return datatree(self)
        return datatree(self, Program(story, *args, **kwargs))

    # -- keeping -----------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the draws and how they were obtained into `folder` (safetensors and JSON)."""
        from ppgen.posterior_files import save

        save(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Posterior:
        """Read what :meth:`save` wrote.

        Raises:
            ppgen.checkpoint.CheckpointError: for a damaged or foreign folder, naming the file.
        """
        from ppgen.posterior_files import load

        return load(folder)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
