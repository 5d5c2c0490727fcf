r"""HMC within Gibbs: discrete sites unit by unit, continuous ones along a trajectory, in turn.

.. math::
    k_j \sim p(k_j \mid k_{-j}, z, \mathrm{data}), \qquad
    z \leftarrow \text{one HMC transition of } p(z \mid k, \mathrm{data})

Both leave the posterior invariant, and so does a sweep of all. Each value of a unit costs one
evaluation of the story; rows of a plate that are independent given what is outside of it are drawn
at once. Discrete sites that :class:`ppgen.Program` can sum out need none of this: `HMC` then
mixes better.

References:
    | MCMC using Hamiltonian dynamics (Neal, 2011): combining it with other updates
      | https://arxiv.org/abs/1206.1901
    | Composable effects for flexible and accelerated probabilistic programming in NumPyro
      (Phan, Pradhan & Jankowiak, 2019): the same with NUTS | https://arxiv.org/abs/1912.11554
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.arguments import require_whole
from ppgen.inference import chees, hmc
from ppgen.inference.discrete_chains import Chains, Reading
from ppgen.inference.discrete_joint import Joint, NothingDiscrete, Unit
from ppgen.inference.gibbs import UntransformedKernel
from ppgen.inference.hmc_warmup import JITTER, quarter_period, reasonable_step_size, renew
from ppgen.types import Story

_STAGES = (0.1, 0.25, 0.5, 0.8)  # shares of the warm-up after which the metric is renewed
_ACCEPT = 0.8  # harmonic mean over chains
_LONGEST = 64  # leapfrogs of a trajectory


class Info(NamedTuple):
    """How a sweep went."""

    log_density: Tensor  # of all sites, continuous ones on the unconstrained scale, (C,), nats
    acceptance: Tensor  # of the trajectory, (C,)
    diverging: Tensor  # (C,), bool


def draw(unit: Unit, point: Tensor, joint: Joint) -> Tensor:
    """Each chain's unit anew, from its law given all else: ``(C, D)`` to ``(C, D)``."""
    columns, rows = unit.columns.flatten(), unit.columns.dim() > 0
    many = point.repeat(unit.choices, 1).reshape(unit.choices, *point.shape)
    for k in range(unit.choices):
        many[k][:, columns] = float(k)
    flat = many.flatten(0, 1)
    found = joint.rows(flat, unit.site) if rows else joint.program.log_density(flat)[:, None]
    logits = found.reshape(unit.choices, len(point), -1).movedim(0, -1)
    drawn = torch.distributions.Categorical(logits=logits.nan_to_num(nan=-math.inf)).sample()
    return point.index_copy(1, columns, drawn.to(point))


class Sweeps:
    """Sweeps that adapt the trajectories for a while, and are frozen afterwards."""

    def __init__(self, joint: Joint, chains: int, warmup: int) -> None:
        self.joint = joint
        self.warmup, self.done = warmup, 0
        self.start = self.joint.start(chains)
        self.units = self.joint.units(self.start)
        self.metric = hmc.Metric(self.start.new_ones(len(self.joint.continuous)))
        self.trajectory = quarter_period(1.0, JITTER)
        self.steps: chees.StepSize | None = None
        self.window: list[Tensor] = []

    def sweep(self, point: Tensor) -> tuple[Tensor, Info]:
        """All units, then the continuous sites: ``(C, D)`` to ``(C, D)``."""
        for unit in self.units:
            point = draw(unit, point, self.joint)
        if not len(self.joint.continuous):
            still = point.new_ones(len(point))
            return point, Info(self.joint.program.log_density(point), still, still < 0)
        point, info = self._move(point)
        self.done += 1
        return point, info

    def _move(self, point: Tensor) -> tuple[Tensor, Info]:
        value_and_grad = self.joint.given(point)
        state = hmc.init(point[:, self.joint.continuous], value_and_grad)
        if self.steps is None:
            guess = reasonable_step_size(state, value_and_grad, self.metric)
            self.steps = chees.start_step_size(guess)
        adapting = self.done < self.warmup
        epsilon = math.exp(self.steps.log if adapting else self.steps.log_average)
        wanted = chees.leapfrogs(self.done, self.trajectory, epsilon, jitter=JITTER)
        state, info = hmc.step(
            state,
            value_and_grad=value_and_grad,
            metric=self.metric,
            step_size=epsilon,
            leapfrogs=min(wanted, _LONGEST),
        )
        if adapting:
            self._adapt(state.z, info)
        found = Info(state.log_density, info.acceptance, info.diverging)
        return self.joint.placed(point, state.z), found

    def _adapt(self, z: Tensor, info: hmc.Info) -> None:
        assert self.steps is not None
        accepted = chees.harmonic_acceptance(info)
        self.steps = chees.update_step_size(self.steps, accepted, _ACCEPT)
        self.window.append(z)
        if self.done + 1 in [math.ceil(share * self.warmup) for share in _STAGES]:
            self.metric, spread = renew(self.metric, torch.stack(self.window), "auto")
            self.trajectory = quarter_period(spread, JITTER)
            self.steps = chees.start_step_size(math.exp(self.steps.log_average))
            self.window = []


class HMCWithinGibbs(UntransformedKernel):
    """The same sweep as a kernel for ``pyro.infer.MCMC``, adapted while that warms up.

    All chains move together, as one draw of shape ``(chains, *shape)`` of each site.

    Args:
        model: any Pyro callable with discrete latent sites, each of finitely many values.
        data: its arguments.
        chains: started from dispersed values.
        sweeps: for each draw.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer import MCMC
        >>> def story(y):
        ...     on = pyro.sample("on", dist.Bernoulli(0.5))
        ...     mu = pyro.sample("mu", dist.Normal(3.0 * on, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> kernel = HMCWithinGibbs(story, torch.tensor(2.0), chains=10)
        >>> mcmc = MCMC(kernel, num_samples=3, warmup_steps=20, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["on"].shape)
        (3, 10)
    """

    def __init__(self, model: Story, *data: Any, chains: int = 1, sweeps: int = 1) -> None:
        require_whole(self, chains=chains, sweeps=sweeps)
        self.sweeps = sweeps
        self.moves = Sweeps(Joint(model, data, {}), chains, 0)
        self.point = self.moves.start
        super().__init__(self.moves.joint.draws(self.point))

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        self.moves.warmup = warmup_steps * self.sweeps

    def sample(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for _ in range(self.sweeps):
            self.point, _ = self.moves.sweep(self.point)
        return self.moves.joint.draws(self.point)


def mixed_chains(
    model: Story, chains: int, warmup: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Chains | None:
    """Chains over all latent sites, adapting for `warmup` sweeps; None where none is discrete.

    Raises:
        ValueError: where a discrete site has infinitely many values, or no start was found.
    """
    try:
        joint = Joint(model, args, kwargs)
    except NothingDiscrete:
        return None
    moves, anatomy, columns = Sweeps(joint, chains, warmup), joint.program.anatomy, joint.columns
    return Chains(
        (moves.start, None),
        lambda state: moves.sweep(state[0]),
        lambda state: _read(joint, *state),
        observes=bool(set(anatomy.of_kind("observed", "factor")) - set(columns)),
        deterministic=tuple(n for n in anatomy.of_kind("deterministic") if n not in columns),
    )


def _read(joint: Joint, point: Tensor, info: Info) -> Reading:
    stats = {"acceptance_rate": info.acceptance, "diverging": info.diverging}
    return Reading(joint.draws(point), info.log_density, stats)
